//! The real agent as PID 1 of fresh namespaces, driven over its channel.
//!
//! Needs root, namespaces and overlayfs; prints why it is skipped where these are missing.

mod client;
mod desktop;
mod egress;
mod guest;
mod logins;
mod running;
mod terminals;
