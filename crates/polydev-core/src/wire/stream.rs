//! First frame of each yamux stream.

use serde::{Deserialize, Serialize};

/// What a new stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StreamHeader {
    /// Requests, replies and events. The host opens exactly one.
    Control,
    /// Raw bytes of the guest's VNC server. Closed at once when there is no desktop.
    Vnc,
    /// Messages of [`crate::desktop`], each after its length, to and from the guest's desktop program. Closed at once
    /// when it does not run.
    Desktop,
    /// Attaches to a terminal opened by [`super::Request::OpenPty`]. The newest attachment gets the output.
    Pty {
        /// The terminal's id.
        id: u32,
    },
    /// A TCP connection that something in the guest wants to make; opened by the agent.
    Egress {
        /// Host name as the guest program asked for it, or an address literal.
        host: String,
        /// TCP port.
        port: u16,
    },
}

/// The host's answer to [`StreamHeader::Egress`], one frame; after `Connected` the stream carries raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum EgressReply {
    /// The far end answered.
    Connected,
    /// Policy forbids it, or the far end cannot be reached.
    Refused {
        /// For the agent's log; never shown to a person.
        reason: String,
    },
}
