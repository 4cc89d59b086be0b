//! polydev-agent
fn main() {}
