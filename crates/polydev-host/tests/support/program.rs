//! Programs of a test's own that run in every guest.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

/// Builds a static program from C.
pub(crate) fn static_program(source: &str, target: &Path) {
    let file = target.with_extension("c");
    fs::write(&file, source).unwrap();
    let built = Command::new("cc").args(["-static", "-o"]).arg(target).arg(&file).status().unwrap();
    assert!(built.success());
    fs::remove_file(&file).unwrap();
    fs::set_permissions(target, Permissions::from_mode(0o755)).unwrap();
}
