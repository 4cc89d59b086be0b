//! The controller of polydev: HTTP API, web UI, session driver, store, vault, egress.
//!
//! Touches no mount, cgroup or process itself: that is `polydev-host`. Decides nothing about a sign-in's course
//! itself: that is `polydev_core::session`.

pub mod config;
pub mod store;
pub mod vault;
