//! The live desktop of a browser VM: one guest stream per sign-in, shared by its viewers whatever way they watch.
//!
//! ```text
//! guest program <--desktop stream--> hub --latest frames--> viewer (WebRTC or WebSocket)
//!                                     ^------input, words-------'
//! ```

pub mod talk;
