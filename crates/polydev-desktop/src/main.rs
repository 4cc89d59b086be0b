//! polydev-desktop
fn main() {}
