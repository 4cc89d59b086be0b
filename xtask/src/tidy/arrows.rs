//! Which crate may use which.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::{cargo, read};

/// Every crate of the workspace, and the crates of the workspace that it may depend on.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("polydev-core", &[]),
    ("polydev-agent", &["polydev-core"]),
    ("polydev-desktop", &["polydev-core"]),
    ("polydev-host", &["polydev-core"]),
    ("polydev", &["polydev-core", "polydev-host"]),
    // Its chaos suite and the bench of the host speak to a manager; nothing else is built with that feature.
    ("xtask", &["polydev-core", "polydev-host"]),
];
/// What pure logic must not be able to do.
const NOT_IN_CORE: [&str; 6] = ["tokio", "rustix", "libc", "async-std", "mio", "rand"];

pub(super) fn faults() -> Result<Vec<String>> {
    let metadata = read(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
    Ok(check(&dependencies(&metadata)))
}

/// Dependencies of each crate of the workspace; those of its tests are its own business.
fn dependencies(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .map(|package| {
            let all = package["dependencies"].as_array().into_iter().flatten();
            let names = all
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| text(&dependency["name"]));
            (text(&package["name"]), names.collect())
        })
        .collect()
}

fn check(crates: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, dependencies) in crates {
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            faults.push(format!("{name}: a crate that the design does not know"));
            continue;
        };
        for dependency in dependencies {
            if crates.contains_key(dependency) && !allowed.contains(&dependency.as_str()) {
                faults.push(format!("{name} -> {dependency}: this arrow is not in the design"));
            }
            if name == "polydev-core" && NOT_IN_CORE.contains(&dependency.as_str()) {
                faults.push(format!("polydev-core -> {dependency}: core does no I/O"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_arrows_of_the_design_are_allowed() {
        let crates = |arrows: &[(&str, &[&str])]| {
            let owned = |(name, list): &(&str, &[&str])| {
                ((*name).to_owned(), list.iter().map(|&name| name.to_owned()).collect())
            };
            arrows.iter().map(owned).collect::<BTreeMap<_, Vec<_>>>()
        };
        let good = crates(&[("polydev-core", &["serde"]), ("polydev-host", &["polydev-core", "tokio"])]);
        assert_eq!(check(&good), [""; 0]);
        let bad = crates(&[
            ("polydev-core", &["polydev-host", "tokio"]),
            ("polydev-host", &[]),
            ("polydev-agent", &["polydev-host"]),
            ("polydev-extra", &[]),
        ]);
        assert_eq!(check(&bad).len(), 4, "{:?}", check(&bad));
    }
}
