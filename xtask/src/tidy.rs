//! Rules of the repository that no compiler holds. All violations are reported at once.

mod arrows;
mod generated;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    compile, repo,
    run::{command, read, step},
};

const MAX_LINES: usize = 600;
/// Source files whose length is held.
const SOURCES: [&str; 7] = ["rs", "ts", "svelte", "mjs", "js", "css", "sh"];
/// A module named so says nothing about what is in it.
const EMPTY_NAMES: [&str; 5] = ["mod.rs", "utils.rs", "util.rs", "helpers.rs", "types.rs"];
/// Domains, without their last label, that no file may hold in an address: package sources belong to the machine, not
/// to the project.
const SOURCE_DOMAINS: [&str; 5] = ["npmjs", "pypi", "pythonhosted", "debian", "ubuntu"];

/// Holds every rule.
pub(crate) fn tidy() -> Result<()> {
    step("tidy", || {
        let files = files()?;
        let mut faults = arrows::faults()?;
        for file in &files {
            faults.extend(file_faults(file));
        }
        faults.extend(fixture_faults(&files));
        let guest = compile::guest()?;
        faults.extend(size_fault(&guest.agent)?);
        faults.extend(generated::faults()?);
        if faults.is_empty() {
            eprintln!(
                "{} files: arrows, sizes, names, fixtures, hosts and generated files are as they should be",
                files.len()
            );
            return Ok(());
        }
        bail!(
            "{} violations:{}",
            faults.len(),
            faults.iter().map(|fault| format!("\n  {fault}")).collect::<String>()
        )
    })
}

/// Writes the generated files anew.
pub(crate) fn generate() -> Result<()> {
    generated::write()
}

/// Tracked and new files, relative to the root.
fn files() -> Result<Vec<String>> {
    let list = read(command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let there = |file: &&str| repo::root().join(file).is_file();
    Ok(list.lines().filter(there).map(str::to_owned).collect())
}

fn file_faults(file: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = file.rsplit('/').next().unwrap_or(file);
    let extension = name.rsplit('.').next().unwrap_or("");
    if EMPTY_NAMES.contains(&name) {
        faults.push(format!("{file}: name it after what is in it"));
    }
    // Pictures and other binary files have neither lines nor hosts.
    let Ok(text) = fs::read_to_string(repo::root().join(file)) else { return faults };
    let lines = text.lines().count();
    if SOURCES.contains(&extension) && !generated::is_generated(file) && lines > MAX_LINES {
        faults.push(format!("{file}: {lines} lines, {MAX_LINES} are allowed"));
    }
    for (at, line) in text.lines().enumerate() {
        for host in hosts(line)
            .filter(|host| host.rsplit('.').nth(1).is_some_and(|domain| SOURCE_DOMAINS.contains(&domain)))
        {
            faults.push(format!("{file}:{}: names the package host {host}", at + 1));
        }
    }
    faults
}

/// Host names of the addresses in a line.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.split("://").skip(1).map(|rest| {
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))).unwrap_or(rest.len());
        &rest[..end]
    })
}

fn fixture_faults(files: &[String]) -> Vec<String> {
    let id = |file: &String| {
        let id = file.strip_prefix("providers/")?.strip_suffix(".toml")?;
        (!id.contains('/')).then(|| id.to_owned())
    };
    let missing = |id: &String| !files.contains(&format!("providers/fixtures/{id}/fixture.toml"));
    let ids = files.iter().filter_map(id).filter(missing);
    ids.map(|id| format!("providers/{id}.toml: no fixture in providers/fixtures/{id}/")).collect()
}

fn size_fault(agent: &Path) -> Result<Option<String>> {
    let size = fs::metadata(agent).context("measure the agent")?.len();
    let max = compile::AGENT_MAX_BYTES;
    Ok((size > max).then(|| format!("polydev-agent: {size} bytes, {max} are allowed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_wherever_an_address_stands() {
        let line = "a https://one.example/x \"http://two.example:80\" git+ssh://three.example";
        assert_eq!(hosts(line).collect::<Vec<_>>(), ["one.example", "two.example", "three.example"]);
        assert_eq!(hosts("no address: one.example").count(), 0);
    }

    #[test]
    fn a_provider_without_a_fixture_is_found() {
        let files =
            ["providers/a.toml", "providers/b.toml", "providers/fixtures/a/fixture.toml"].map(str::to_owned);
        assert_eq!(fixture_faults(&files), ["providers/b.toml: no fixture in providers/fixtures/b/"]);
    }
}
