//! One who asks: the product's own client of a host process, for threads that wait for the answers.

use std::{collections::HashSet, fmt::Display, time::Duration};

use polydev_core::{
    ids::{Slot, UserId, VmId},
    wire::{FileGet, FilePut, Identity, Reply, Request, files::FileBytes},
};
use polydev_host::{CreateVm, HostError, HostStatus, SeenVm, VmKind, WarmPlan, remote::RemoteHost};
use tokio::{runtime::Handle, time};

use super::machine::ProcessId;

const MARKER: &str = ".config/chaos.txt";
const RUN_LIMIT_MS: u64 = 30_000;
const DESKTOP_PX: (u16, u16) = (1280, 800);
const VCPUS: u8 = 1;
/// How long making a template may take, and that is under emulation on a busy machine.
const PREPARATION: Duration = Duration::from_secs(1800);
/// How often it is looked whether the manager lives.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Why there is no answer of the wanted kind.
#[derive(Debug)]
pub(super) enum Failure {
    /// The manager is gone.
    Died,
    /// It lives and says no.
    Refused(String),
    /// It lives and says nothing.
    Silent,
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Died => formatter.write_str("the manager died"),
            Self::Refused(words) => write!(formatter, "refused: {words}"),
            Self::Silent => formatter.write_str("no answer in time"),
        }
    }
}

/// A controller while one manager lives. Clones share the connection.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) host: RemoteHost,
    pub(super) runtime: Handle,
    pub(super) manager: ProcessId,
    /// Longest that one answer may take.
    pub(super) patience: Duration,
    pub(super) memory_mib: u32,
}

impl Caller {
    /// The id for a browser VM.
    pub(super) fn draw(&self) -> Result<VmId, Failure> {
        let host = &self.host;
        self.ask(async { Ok::<_, HostError>(host.draw(&VmKind::Browser, VCPUS, self.memory_mib).await) })
    }

    pub(super) fn create(&self, id: VmId, user: Option<UserId>) -> Result<Slot, Failure> {
        let kind = user.map_or(VmKind::Browser, |user| VmKind::Cli { user });
        let (vcpus, memory_mib) = (VCPUS, self.memory_mib);
        let create = CreateVm { id, kind, vcpus, memory_mib, identity: Identity::of(id, "vm") };
        self.ask(self.host.create(create)).map(|vm| vm.slot)
    }

    pub(super) fn hibernate(&self, id: VmId) -> Result<(), Failure> {
        self.ask(self.host.hibernate(id))
    }

    /// Why the VM's memory was lost, if it was.
    pub(super) fn resume(&self, id: VmId) -> Result<Option<String>, Failure> {
        self.ask(self.host.resume(id)).map(|resumed| resumed.memory_lost)
    }

    pub(super) fn destroy(&self, id: VmId) -> Result<(), Failure> {
        self.ask(self.host.destroy(id))
    }

    pub(super) fn list(&self) -> Result<Vec<SeenVm>, Failure> {
        self.ask(self.host.list())
    }

    pub(super) fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<(), Failure> {
        self.ask(self.host.reclaim(wanted)).map(drop)
    }

    /// As of the last answer.
    pub(super) fn status(&self) -> HostStatus {
        self.host.status()
    }

    /// Makes what lets VMs start fast.
    pub(super) fn prepare(&self) -> Result<(), Failure> {
        let caller = Self { patience: PREPARATION, ..self.clone() };
        caller.ask(self.host.prepare_templates(VCPUS, self.memory_mib, DESKTOP_PX))
    }

    /// How many browser VMs are to be held ready.
    pub(super) fn warm(&self, high: usize) -> Result<(), Failure> {
        let (vcpus, memory_mib) = (VCPUS, self.memory_mib);
        self.ask(self.host.set_warm(WarmPlan { low: high, high, vcpus, memory_mib, desktop_px: DESKTOP_PX }))
    }

    /// Has the agent write the marker file.
    pub(super) fn put(&self, id: VmId, text: String) -> Result<(), Failure> {
        let data = FileBytes::new(text.into_bytes());
        let file = FilePut { path: MARKER.to_owned(), mode: 0o600, data, merge_json: Vec::new() };
        self.ask_agent(id, Request::PutFiles { files: vec![file] }).map(drop)
    }

    /// Has the agent read the marker file.
    pub(super) fn get(&self, id: VmId) -> Result<Option<String>, Failure> {
        let files = vec![FileGet { path: MARKER.to_owned(), optional: true }];
        match self.ask_agent(id, Request::GetFiles { files })? {
            Reply::Files { files } => {
                Ok(files.first().map(|file| String::from_utf8_lossy(&file.data.0).into_owned()))
            }
            other => Err(Failure::Refused(format!("unexpected reply {other:?}"))),
        }
    }

    /// Has the agent run something; answers with the guest's boot id.
    pub(super) fn ping(&self, id: VmId) -> Result<String, Failure> {
        let argv = vec!["cat".to_owned(), "/proc/sys/kernel/random/boot_id".to_owned()];
        match self.ask_agent(id, Request::Run { argv, env: Default::default(), timeout_ms: RUN_LIMIT_MS })? {
            Reply::Ran { exit_code: 0, stdout, .. } => Ok(stdout.trim().to_owned()),
            other => Err(Failure::Refused(format!("unexpected reply {other:?}"))),
        }
    }

    /// Asks a VM's agent, to which the manager only makes the connection.
    fn ask_agent(&self, id: VmId, request: Request) -> Result<Reply, Failure> {
        self.ask(async {
            let vm = self.host.adopt(id).await.map_err(|error| error.to_string())?;
            vm.agent.request(request).await.map_err(|error| error.to_string())
        })
    }

    fn ask<T, E: Display>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
        self.runtime.block_on(async {
            tokio::select! {
                answer = time::timeout(self.patience, work) => match answer {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(error)) => Err(self.why(&error).await),
                    Err(_) => Err(Failure::Silent),
                },
                () = self.death() => Err(Failure::Died),
            }
        })
    }

    /// An error is the manager's answer only if it still answers. Its end of the line goes before it does.
    async fn why(&self, error: &impl Display) -> Failure {
        let looked = time::timeout(self.patience, async {
            tokio::select! {
                listed = self.host.list() => if listed.is_err() { self.death().await },
                () = self.death() => {}
            }
        });
        match looked.await {
            Ok(()) if self.manager.alive() => Failure::Refused(error.to_string()),
            Ok(()) => Failure::Died,
            Err(_) => Failure::Silent,
        }
    }

    async fn death(&self) {
        while self.manager.alive() {
            time::sleep(LOOK_AGAIN).await;
        }
    }
}
