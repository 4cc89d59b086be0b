//! The really built image, when there is one: files, libraries, programs, and a boot under emulation.

use std::path::{Path, PathBuf};

use polydev_host::image::{
    self, BootCheck, BuildOptions, Cancel, DEFAULT_IMAGE_DIR, Image, ImageError, Progress, Recipe,
    VerifyOptions,
};

fn image_dir() -> PathBuf {
    std::env::var_os("POLYDEV_IMAGE_DIR").map_or_else(|| DEFAULT_IMAGE_DIR.into(), PathBuf::from)
}

fn recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/bookworm.toml")
}

fn tell(progress: Progress) {
    eprintln!("{progress}");
}

/// The current image, or the reason why a test of it is skipped.
fn current() -> Option<Image> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: checking an image needs root");
        return None;
    }
    match image::open_current(&image_dir()) {
        Ok(image) => Some(image),
        Err(error @ ImageError::NoImage(_)) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn assert_passes(image: &Image, options: &VerifyOptions) {
    let report =
        image::verify(image, options, &Cancel::default(), &tell).unwrap_or_else(|error| panic!("{error}"));
    for line in &report.passed {
        eprintln!("ok: {line}");
    }
    assert!(report.is_ok(), "{}", report.faults.join("\n"));
}

#[test]
fn the_current_image_passes_its_check() {
    let Some(image) = current() else { return };
    assert_passes(&image, &VerifyOptions::default());
}

#[test]
fn the_current_image_boots_and_stacks_its_layers() {
    let Some(image) = current() else { return };
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        eprintln!("skipped: no qemu-system-x86_64 on this machine");
        return;
    }
    assert_passes(&image, &VerifyOptions { boot: Some(BootCheck::default()) });
}

#[test]
fn the_versions_of_the_current_image_are_those_of_the_recipe() {
    let Some(image) = current() else { return };
    let recipe = Recipe::load(&recipe()).unwrap();
    let versions = &image.manifest().versions;
    assert_eq!(versions.get("node"), Some(&recipe.node.version));
    for tool in &recipe.tool {
        assert_eq!(versions.get(&tool.id), Some(&tool.version), "{}", tool.id);
    }
}

#[test]
#[ignore = "takes minutes, root and a package archive"]
fn a_second_build_finds_everything_done_and_keeps_the_id() {
    let options = BuildOptions::new(recipe(), image_dir());
    let first = image::build(&options, &Cancel::default(), &tell).unwrap_or_else(|error| panic!("{error}"));
    let began = std::time::Instant::now();
    let second = image::build(&options, &Cancel::default(), &tell).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("second build: {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(first.id(), second.id());
    assert!(!image_dir().join(".work").exists(), "unfinished work is left");
    assert_passes(&second, &VerifyOptions::default());
}
