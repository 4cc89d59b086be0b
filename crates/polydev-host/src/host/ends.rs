//! Notices at once that a VM ended by itself, and why: the kernel reports the end of a process by its handle (pidfd_open(2)),
//! long before a connection is missed.

use std::{collections::HashMap, fmt, io::ErrorKind, sync::Arc, time::Duration};

use polydev_core::ids::VmId;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{Host, Inner};
use crate::{
    firecracker::exit::Watch,
    process::ProcessId,
    record::{Phase, VmRecord, VmState},
};

/// VMs whose watch is asked for at a time; there are fewer slots.
const ASKED: usize = 512;
/// Ends that a listener may be behind with. It loses the oldest: their connections break off all the same.
const NEWS: usize = 256;
/// One wait for an end; then the next begins.
const WAIT: Duration = Duration::from_secs(3600);
/// The kernel tells the status once the process was waited for, which its parent does at once.
const STATUS_LIMIT: Duration = Duration::from_millis(500);
const SIGKILL: i32 = 9;
const STATUS_POLL: Duration = Duration::from_millis(5);

/// How a VM ended that nobody had end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmEnd {
    /// The kernel ended processes of it because its memory was used up.
    OutOfMemory,
    /// Its main process left with this code.
    Exited(i32),
    /// Its main process was ended by this signal.
    Killed(i32),
    /// The kernel did not tell (before Linux 6.15).
    Unknown,
}

impl VmEnd {
    /// Of a wait status (wait(2)).
    fn of_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) & 0xff),
            signal => Self::Killed(signal),
        }
    }
}

impl fmt::Display for VmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("its memory was used up"),
            Self::Exited(code) => write!(f, "its process left with code {code}"),
            Self::Killed(signal) => write!(f, "its process was ended by signal {signal}"),
            Self::Unknown => f.write_str("its process ended"),
        }
    }
}

/// Who is watched, and who listens.
pub(super) struct Ends {
    asked: mpsc::Sender<(VmId, ProcessId)>,
    news: broadcast::Sender<(VmId, VmEnd)>,
}

impl Ends {
    pub(super) fn new() -> (Self, mpsc::Receiver<(VmId, ProcessId)>) {
        let (asked, queue) = mpsc::channel(ASKED);
        (Self { asked, news: broadcast::Sender::new(NEWS) }, queue)
    }

    /// Asked for the same process again, nothing changes.
    pub(super) fn watch(&self, id: VmId, process: ProcessId) {
        if self.asked.try_send((id, process)).is_err() {
            tracing::warn!(vm.id = %id, "VM is not watched; its end is noticed by its connection");
        }
    }
}

impl Host {
    /// VMs that end by themselves, from now on.
    pub fn ends(&self) -> broadcast::Receiver<(VmId, VmEnd)> {
        self.inner.ends.news.subscribe()
    }
}

/// Watches until the host is gone.
pub(super) fn keep(inner: &Arc<Inner>, mut asked: mpsc::Receiver<(VmId, ProcessId)>) -> JoinHandle<()> {
    // The task must not keep the host alive.
    let host = Arc::downgrade(inner);
    tokio::spawn(async move {
        let mut watched: HashMap<VmId, ProcessId> = HashMap::new();
        let mut ends = JoinSet::new();
        loop {
            tokio::select! {
                new = asked.recv() => {
                    let Some((id, process)) = new else { return };
                    if watched.insert(id, process) != Some(process) {
                        ends.spawn(async move { (id, process, end_of(process).await) });
                    }
                }
                Some(ended) = ends.join_next() => {
                    let Ok((id, process, end)) = ended else { continue };
                    if watched.get(&id) == Some(&process) {
                        watched.remove(&id);
                    }
                    let Some(host) = host.upgrade() else { return };
                    host.ended(id, process, end);
                }
            }
        }
    })
}

async fn end_of(process: ProcessId) -> VmEnd {
    let watch = Watch::of(process);
    while let Err(error) = process.ended(WAIT).await {
        if error.kind() != ErrorKind::TimedOut {
            tracing::warn!(pid = process.pid(), %error, "a process cannot be watched");
            return VmEnd::Unknown;
        }
    }
    let deadline = Instant::now() + STATUS_LIMIT;
    loop {
        match watch.status() {
            Some(status) => return VmEnd::of_status(status),
            None if Instant::now() >= deadline => return VmEnd::Unknown,
            None => sleep(STATUS_POLL).await,
        }
    }
}

impl Inner {
    /// Watches a VM that somebody has, if it has a process.
    pub(super) fn watch_end(&self, record: &VmRecord) {
        let found = crate::driver::main_process(&self.places, record.id, &self.places.vm(record.id));
        if let Ok(Some(process)) = found {
            self.ends.watch(record.id, process);
        }
    }

    /// Tells everybody, unless the host itself is about to end the VM or has put it to sleep.
    fn ended(&self, id: VmId, process: ProcessId, end: VmEnd) {
        let was_it = |record: &VmRecord| {
            let same = record.process.as_ref().is_none_or(|known| known.pid == process.pid());
            record.phase == Phase::Running && record.state == VmState::Active && same
        };
        if process.alive() || !self.records.read(id).as_ref().is_some_and(was_it) {
            return;
        }
        // A program of a container may have been ended long ago, and the container left by itself today.
        let end = match end {
            VmEnd::Killed(SIGKILL) | VmEnd::Unknown if self.places.groups.ran_out_of_memory(id) => {
                VmEnd::OutOfMemory
            }
            end => end,
        };
        tracing::warn!(vm.id = %id, reason = %end, "VM ended by itself");
        // Held by somebody: something is being done with the VM, which will find out.
        if let Ok(agent) = self.cell(id).try_lock()
            && let Some(client) = agent.as_ref()
        {
            client.vm_ended(end);
        }
        // Nobody may listen.
        let _ = self.ends.news.send((id, end));
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed_with_its_reason() {
        for (script, expected) in
            [("read line; exit 7", VmEnd::Exited(7)), ("read line; kill -SEGV $$", VmEnd::Killed(11))]
        {
            let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
            let process = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
            let end = tokio::spawn(end_of(process));
            tokio::task::yield_now().await;
            drop(child.stdin.take());
            child.wait().unwrap();
            match end.await.unwrap() {
                VmEnd::Unknown => println!("SKIPPED: this kernel does not tell (before 6.15)"),
                end => assert_eq!(end, expected),
            }
        }
    }
}
