//! The live desktop of a browser VM: one guest stream per sign-in, shared by its viewers whatever way they watch.
//!
//! ```text
//! guest program <--desktop stream--> hub --latest frames--> viewer (WebRTC or WebSocket)
//!                                     ^------input, words-------'
//! ```

mod bucket;
mod metrics;
mod queue;
mod seat;
mod stats;
pub mod talk;
mod viewer;
mod words;

use polydev_core::ids::SessionId;
use talk::Role;

pub use metrics::Metrics;
pub use queue::FrameQueue;
pub use viewer::{Joined, Lane, ViewerLink};
pub use words::{Outgoing, WordQueue};

use crate::store::StoreError;

/// The live desktops of all sign-ins.
pub struct Desktops {}

/// Why a viewer cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no such sign-in.
    #[error("there is no such sign-in")]
    UnknownSession,
    /// The sign-in has no live browser now.
    #[error("there is no live browser now")]
    NoDesktop,
    /// As many watch as may.
    #[error("{max} viewers watch already")]
    TooManyViewers {
        /// How many may.
        max: usize,
    },
    /// Nobody who left lately has this token.
    #[error("the viewer is not known any more")]
    UnknownViewer,
    /// The service is being stopped.
    #[error("the service is being stopped")]
    ShuttingDown,
    /// The sign-in could not be looked up.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Desktops {
    /// Joins the desktop of a sign-in. A viewer that wishes for [`Role::View`] never gets the control.
    pub async fn join(&self, session: SessionId, wish: Role, lane: Lane) -> Result<Joined, JoinError> {
        let _ = (session, wish, lane);
        Err(JoinError::NoDesktop)
    }

    /// Joins again with the token of a connection that was lost or is about to be replaced.
    pub async fn rejoin(&self, session: SessionId, token: &str, lane: Lane) -> Result<Joined, JoinError> {
        let _ = (session, token, lane);
        Err(JoinError::NoDesktop)
    }
}
