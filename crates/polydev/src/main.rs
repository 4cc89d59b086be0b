//! polydev
fn main() {}
