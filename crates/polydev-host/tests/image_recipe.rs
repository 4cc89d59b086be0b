//! Recipes as data: the ones in the repository hold, and a bad one is refused with every fault at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::path::{Path, PathBuf};

use polydev_host::image::{BuildOptions, Cancel, ImageError, Mirror, Recipe, build};

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images")
}

/// The bookworm recipe after text replacements, beside its npm lock.
fn altered(changes: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let mut text = std::fs::read_to_string(images().join("bookworm.toml")).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the recipe has no {from:?} to change");
        text = text.replacen(from, to, 1);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("npm")).unwrap();
    std::fs::copy(images().join("npm/package-lock.json"), dir.path().join("npm/package-lock.json")).unwrap();
    let path = dir.path().join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn faults(changes: &[(&str, &str)]) -> Vec<String> {
    let (_dir, path) = altered(changes);
    match Recipe::load(&path) {
        Err(ImageError::Recipe { faults, .. }) => faults,
        other => panic!("accepted: {:?}", other.map(|recipe| recipe.name)),
    }
}

#[test]
fn every_recipe_of_the_repository_holds() {
    for name in ["bookworm", "ubuntu-22.04", "ubuntu-24.04"] {
        let recipe =
            Recipe::load(&images().join(format!("{name}.toml"))).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(recipe.name, name);
        assert_eq!(recipe.not_buildable.is_some(), recipe.os.mirror == Mirror::Operator, "{name}");
    }
}

#[test]
fn recipes_name_no_host() {
    for entry in std::fs::read_dir(images()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        assert!(!text.contains("://"), "{}", entry.path().display());
    }
}

#[test]
fn a_recipe_that_says_it_cannot_be_built_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let options = BuildOptions::new(images().join("ubuntu-24.04.toml"), dir.path().join("images"));
    match build(&options, &Cancel::default(), &|_| {}) {
        Err(ImageError::NotBuildable { recipe, reason }) => {
            assert!(recipe == "ubuntu-24.04" && reason.contains("Ubuntu"))
        }
        other => panic!("{other:?}"),
    }
    assert!(!dir.path().join("images").exists(), "a refused build leaves nothing");
}

#[test]
fn all_faults_are_reported_at_once() {
    let found = faults(&[
        ("schema = 1", "schema = 9"),
        ("version = \"22.23.3\"", "version = \"^22\""),
        ("uid = 1001", "uid = 1002"),
        ("strip = [\"/usr/share/zsh\"", "strip = [\"/../etc\""),
        ("expect = \"git version\"", "expect = \"\""),
        ("\"ca-certificates\"", "\"ca certificates\""),
    ]);
    for part in
        ["schema 9", "node.version", "account browser", "/../etc", "expects nothing", "ca certificates"]
    {
        assert!(found.iter().any(|fault| fault.contains(part)), "{part} is missing in {found:#?}");
    }
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn an_inexact_or_unlocked_cli_version_is_refused() {
    assert!(
        faults(&[("version = \"2.1.330\"", "version = \"latest\"")])
            .iter()
            .any(|fault| fault.contains("not exact"))
    );
    let found = faults(&[("version = \"2.1.330\"", "version = \"2.1.331\"")]);
    assert!(found.iter().any(|fault| fault.contains("2.1.331") && fault.contains("2.1.330")), "{found:?}");
}

#[test]
fn a_link_that_leaves_the_npm_packages_is_refused() {
    assert!(
        faults(&[("gemini = \".bin/gemini\"", "gemini = \"../../../bin/sh\"")])
            .iter()
            .any(|fault| fault.contains("below node_modules"))
    );
}

#[test]
fn unknown_keys_are_refused() {
    assert!(faults(&[("size_goal_mib", "sise_goal_mib")])[0].contains("sise_goal_mib"));
}
