//! Collects every dead process, as PID 1 must, and hands exit statuses of the agent's own children to whoever waits.
//!
//! Nothing else in this program may call a `wait` function: a status can be collected only once.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// Handle; clones share the table.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    waiting: Rc<RefCell<HashMap<i32, oneshot::Sender<i32>>>>,
}

impl Reaper {
    /// To be called right after the child was started, before anything is awaited: then its status cannot be missed.
    pub(crate) fn expect(&self, pid: i32) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Collects for ever.
    pub(crate) async fn run(self) -> std::io::Result<()> {
        let mut child_died = signal(SignalKind::child())?;
        loop {
            self.collect();
            if child_died.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn collect(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(-1);
            if let Some(waiting) = self.waiting.borrow_mut().remove(&pid.as_raw_nonzero().get()) {
                // The waiter may have lost interest.
                let _ = waiting.send(code);
            }
        }
    }
}
