//! Listing, opening and cleaning up images, on directories made for the test.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::fs;
use std::path::Path;

use polydev_host::image::{GcReport, ImageError, gc, list, open, open_current};
use serde_json::json;

/// Writes an image of one layer; `layer` names its directory.
fn image(dir: &Path, id: &str, created: u64, layer: &str) {
    let layers = dir.join("layers").join(layer);
    fs::create_dir_all(&layers).unwrap();
    fs::write(layers.join("layer.erofs"), b"layer").unwrap();
    let root = dir.join(id);
    fs::create_dir_all(root.join("kernel")).unwrap();
    for file in ["kernel/bzImage", "kernel/vmlinux", "modules.cpio"] {
        fs::write(root.join(file), b"x").unwrap();
    }
    let manifest = json!({
        "schema": 1, "id": id, "recipe": "test", "suite": "test", "created_unix": created,
        "layers": [{"name": "base", "path": format!("../layers/{layer}/layer.erofs"), "sha256": "0", "size_bytes": 5, "compressed_bytes": 5}],
        "kernel": {"version": "6", "bzimage": "kernel/bzImage", "vmlinux": "kernel/vmlinux", "sha256": {}},
        "modules_cpio": "modules.cpio", "versions": {},
    });
    fs::write(root.join("image.json"), manifest.to_string()).unwrap();
}

/// Four images, the second newest of which is current; `a` and `b` share a layer.
fn four() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (id, created, layer) in [("a", 1, "shared"), ("b", 2, "shared"), ("c", 3, "own-c"), ("d", 4, "own-d")]
    {
        image(dir.path(), id, created, layer);
    }
    std::os::unix::fs::symlink("c", dir.path().join("current")).unwrap();
    dir
}

fn ids(dir: &Path) -> Vec<String> {
    list(dir).unwrap().into_iter().map(|image| image.manifest.id).collect()
}

fn collect(dir: &Path, keep: usize) -> GcReport {
    GcReport { freed_bytes: 0, ..gc(dir, keep).unwrap() }
}

#[test]
fn images_are_listed_newest_first_with_the_current_one_marked() {
    let dir = four();
    let all = list(dir.path()).unwrap();
    assert_eq!(ids(dir.path()), ["d", "c", "b", "a"]);
    assert_eq!(all.iter().map(|image| image.current).collect::<Vec<_>>(), [false, true, false, false]);
}

#[test]
fn clean_up_keeps_the_current_and_the_newest_others() {
    let dir = four();
    let report = collect(dir.path(), 1);
    assert_eq!(
        report,
        GcReport {
            removed_images: vec!["b".into(), "a".into()],
            removed_layers: vec!["shared".into()],
            ..GcReport::default()
        }
    );
    assert_eq!(ids(dir.path()), ["d", "c"]);
    assert!(open_current(dir.path()).is_ok() && open(dir.path(), "d").is_ok());
}

#[test]
fn a_layer_goes_only_when_no_image_names_it() {
    let dir = four();
    assert_eq!(collect(dir.path(), 2).removed_layers, Vec::<String>::new());
    assert_eq!(ids(dir.path()), ["d", "c", "b"]);
    assert!(open(dir.path(), "b").is_ok());
    assert_eq!(collect(dir.path(), 0).removed_layers, ["own-d", "shared"]);
}

#[test]
fn an_image_that_is_open_survives_clean_up_until_it_is_closed() {
    let dir = four();
    let held = open(dir.path(), "a").unwrap();
    let report = collect(dir.path(), 0);
    assert_eq!(
        (report.kept_in_use, report.removed_images),
        (vec!["a".to_owned()], vec!["d".to_owned(), "b".to_owned()])
    );
    assert!(held.layer("base").unwrap().is_file());
    drop(held);
    assert_eq!(collect(dir.path(), 0).removed_images, ["a"]);
}

#[test]
fn a_layer_that_a_process_has_open_survives_clean_up() {
    let dir = four();
    let file = fs::File::open(dir.path().join("layers/shared/layer.erofs")).unwrap();
    let report = collect(dir.path(), 0);
    assert_eq!(
        (report.kept_in_use, report.removed_layers),
        (vec!["shared".to_owned()], vec!["own-d".to_owned()])
    );
    drop(file);
    assert_eq!(collect(dir.path(), 0).removed_layers, ["shared"]);
}

#[test]
fn leftovers_of_a_build_that_was_killed_are_no_images() {
    let dir = four();
    fs::create_dir_all(dir.path().join(".work/image")).unwrap();
    fs::create_dir_all(dir.path().join("layers/.new-1234")).unwrap();
    fs::create_dir_all(dir.path().join("half")).unwrap();
    assert_eq!(ids(dir.path()), ["d", "c", "b", "a"]);
    assert!(collect(dir.path(), 9).removed_layers.contains(&".new-1234".to_owned()));
}

#[test]
fn opening_names_what_is_missing_or_wrong() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open_current(dir.path()), Err(ImageError::NoImage(_))));
    image(dir.path(), "x", 1, "l");
    fs::write(dir.path().join("layers/l/layer.erofs"), b"short").unwrap();
    assert!(open(dir.path(), "x").is_ok());
    fs::write(dir.path().join("layers/l/layer.erofs"), b"cut").unwrap();
    assert!(open(dir.path(), "x").unwrap_err().to_string().contains("layer base has 3 bytes"));
    fs::write(dir.path().join("layers/l/layer.erofs"), b"right").unwrap();
    fs::remove_file(dir.path().join("x/kernel/vmlinux")).unwrap();
    assert!(open(dir.path(), "x").unwrap_err().to_string().contains("vmlinux is missing"));
}

#[test]
fn current_may_only_point_at_an_image_beside_it() {
    let dir = four();
    fs::remove_file(dir.path().join("current")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", dir.path().join("current")).unwrap();
    assert!(open_current(dir.path()).unwrap_err().to_string().contains("not at an image beside it"));
}
