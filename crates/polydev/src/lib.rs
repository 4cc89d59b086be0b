//! The controller of polydev: HTTP API, web UI, session driver, store, vault, egress.
//!
//! Touches no mount, cgroup or process itself: that is `polydev-host`. Decides nothing about a sign-in's course
//! itself: that is `polydev_core::session`.

pub mod api;
pub mod app;
mod cleaner;
pub mod cli;
pub mod clock;
pub mod config;
pub mod desktop;
pub mod egress;
mod guest_places;
pub mod machines;
mod removal;
mod serve;
pub mod session;
pub mod slots;
pub mod store;
pub mod vault;
mod web;
pub mod workspaces;
