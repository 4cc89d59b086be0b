//! The streaming program on real X servers, watched by a host that decodes what comes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

mod host;
mod picture;
mod server;

mod frames;
mod hosts;
mod screens;
