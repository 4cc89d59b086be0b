//! The streaming program on real X servers, watched by a host that decodes what comes.

mod host;
mod picture;
mod server;

mod frames;
