//! Who uses a workspace now, and since when nobody does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Counts those who use one workspace.
#[derive(Debug, Clone)]
pub(super) struct Uses(Arc<Mutex<Counted>>);

#[derive(Debug)]
struct Counted {
    now: usize,
    last: Instant,
}

/// Somebody uses the workspace until this is dropped: it is not put to sleep meanwhile.
#[derive(Debug)]
pub struct InUse(Uses);

impl Uses {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Counted { now: 0, last: Instant::now() })))
    }

    pub(super) fn begin(&self) -> InUse {
        let mut counted = self.lock();
        counted.now += 1;
        counted.last = Instant::now();
        InUse(self.clone())
    }

    /// Whether somebody uses it now.
    pub(super) fn any(&self) -> bool {
        self.lock().now > 0
    }

    /// When somebody last used it.
    pub(super) fn last(&self) -> Instant {
        let counted = self.lock();
        if counted.now > 0 { Instant::now() } else { counted.last }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut counted = self.0.lock();
        counted.now = counted.now.saturating_sub(1);
        counted.last = Instant::now();
    }
}
