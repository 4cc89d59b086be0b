//! A bug of the WebRTC library, or of our use of it, may cost one viewer its connection but nobody else theirs.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The library panicked. What it was working on must not be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the WebRTC library failed")]
pub(super) struct Panicked;

/// Calls into the library. A session has no locks and no threads of its own, so nothing but itself is damaged.
pub(super) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| Panicked)
}
