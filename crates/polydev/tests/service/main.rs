//! The controller as a service: real router, store, vault and session driver; fake VMs that speak the guest channel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod app;
mod bad_input;
mod desktop;
mod desktop_lane;
mod desktop_slow;
mod egress;
mod faults;
mod host_apart;
mod logged;
mod openapi;
mod paused;
mod proxy_ports;
mod restart;
mod sign_in;
mod sleep;
mod sockets;
mod turn;
mod turn_client;
mod turn_coturn;
mod turn_media;
mod upstreams;
mod users;
mod warm;
mod webrtc;
mod webrtc_client;
