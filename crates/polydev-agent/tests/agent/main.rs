//! The real agent as PID 1 of fresh namespaces, driven over its channel.
//!
//! Needs root, namespaces and overlayfs; prints why it is skipped where these are missing.

mod client;
mod guest;
mod egress;
mod logins;
mod running;
mod terminals;
