//! The guest channel: what the host and the agent say to each other.
//!
//! One byte connection per VM, whatever the driver: a unix socket (container), a virtio-serial port (QEMU) or a
//! vsock stream (Firecracker). It starts with a [`preamble`], after which both sides speak yamux with the host as
//! client; either side may open streams. Every yamux stream begins with one [frame] holding a
//! [`StreamHeader`], then continues as that header says:
//!
//! | header | opened by | then |
//! |---|---|---|
//! | `control` | host, once | host sends [`RequestFrame`]s, agent sends [`AgentFrame`]s, both as frames |
//! | `vnc` | host | raw RFB bytes to and from the guest's X server |
//! | `desktop` | host | messages of [`crate::desktop`] to and from the guest's desktop program |
//! | `pty` | host | [`PtyFrame`](pty)-typed frames of one terminal |
//! | `egress` | agent | host answers one frame ([`EgressReply`]); on `connected` raw bytes follow |
//!
//! A newer host connection wins: the agent drops the older session, so a restarted controller can always come back.
//! PTYs and logins live in the agent and survive that.

pub mod control;
pub mod files;
pub mod frame;
pub mod login;
pub mod preamble;
pub mod pty;
pub mod stream;

pub use control::{
    AgentEvent, AgentFrame, DesktopState, ErrorCode, Identity, Refusal, Reply, Request, RequestFrame,
    ServiceState,
};
pub use files::{FileGet, FilePut, FileRead};
pub use login::{
    CallbackRule, ExpectStep, FileFormat, JsonRpcStep, LoginEnd, LoginSpec, LoginStdio, RequiredFile,
    SuccessRule, UrlRule, UrlSource, UrlYields,
};
pub use stream::{EgressReply, StreamHeader};

/// Version of everything in this module. A mismatch is refused at [`Request::Hello`].
pub const PROTOCOL_VERSION: u16 = 2;
