//! The host: creates, finds again and destroys VMs.

mod admission;
mod agent_logs;
mod disk;
mod drain;
pub(crate) mod ends;
mod failed;
pub(crate) mod handover;
mod hibernate;
mod lifecycle;
mod network;
mod pool;
mod reclaim;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polydev_core::{
    ids::{Slot, UserId, VmId},
    wire::Identity,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;

pub use self::{ends::VmEnd, hibernate::Resumed, pool::WarmPlan};
pub use crate::error::{HostError, Missing};
use crate::{
    agent::AgentClient,
    config::{HostConfig, NetworkMode},
    driver::{
        Driver, Places,
        probe::{self, Chosen, DriverProbe},
    },
    egress::{Accounts, EgressHandler, EgressUsage},
    golden::GoldenImage,
    logs,
    net::Networks,
    record::{Records, VmRecord, VmState},
    slots::Slots,
    space,
    usage::{self, HostFigures, Phases, Usage, VmUsage},
};

/// How often growing logs are cut and agents' logs copied.
const LOGS_EVERY: Duration = Duration::from_secs(2);

/// What a VM is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum VmKind {
    /// Disposable, with a desktop.
    Browser,
    /// A user's persistent workspace; its disk outlives the VM.
    Cli {
        /// Whose.
        user: UserId,
    },
}

/// A VM to create.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct CreateVm {
    /// Drawn by the caller and recorded before the call.
    pub id: VmId,
    /// What for.
    pub kind: VmKind,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Handed to the agent after start or restore. Clock and entropy are filled in by the host at that moment.
    pub identity: Identity,
}

/// A running VM whose agent has answered and taken its identity.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// What it is for.
    pub kind: VmKind,
    /// Its place.
    pub slot: Slot,
    /// Connection to its agent.
    pub agent: AgentClient,
}

/// A VM found on the machine.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SeenVm {
    /// Its id.
    pub id: VmId,
    /// What it is for.
    pub kind: VmKind,
    /// Its place.
    pub slot: Slot,
    /// Whether its process is alive.
    pub running: bool,
}

/// Logs of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// Guest console (kernel and PID 1).
    Console,
    /// The driver's own process (runc, QEMU).
    Driver,
    /// The agent and the programs it supervises.
    Agent,
}

/// Whether browser VMs start as fast as their driver can start them; see [`Host::prepare_templates`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastStart {
    /// Nobody asked for it.
    #[default]
    None,
    /// What it needs is being made; until then VMs start cold.
    Preparing,
    /// It is all there.
    Ready,
    /// It could not be made; VMs start cold.
    Failed,
}

/// For `/health`, `/metrics`, `doctor` and the page's badge.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Driver in use.
    pub driver: String,
    /// Guests share the host's kernel.
    pub shared_kernel: bool,
    /// Golden image in use.
    pub image: String,
    /// How browser VMs start.
    pub fast_start: FastStart,
    /// Browser VMs that wait for somebody, ready to be handed out.
    #[serde(default)]
    pub warm: usize,
    /// CLI VMs that sleep.
    #[serde(default)]
    pub hibernated: usize,
    /// VMs that stand still until the disk has room again; see [`Host::paused`].
    #[serde(default)]
    pub paused: BTreeSet<VmId>,
    /// Slots in use.
    pub slots_used: usize,
    /// Slots there are.
    pub slots_total: usize,
    /// Why no VM can be made.
    #[serde(default)]
    pub missing: Option<Missing>,
}

impl HostStatus {
    /// Of a host that could not be opened.
    pub fn without_host(missing: Missing, slots_total: usize) -> Self {
        Self {
            driver: "none".to_owned(),
            shared_kernel: false,
            image: String::new(),
            fast_start: FastStart::None,
            warm: 0,
            hibernated: 0,
            paused: BTreeSet::new(),
            slots_used: 0,
            slots_total,
            missing: Some(missing),
        }
    }
}

/// What [`Host::reclaim`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReclaimReport {
    /// VMs that nobody wanted.
    pub destroyed: Vec<VmId>,
    /// VMs of before the machine was started anew. Users' disks stay, and VMs that sleep on disk can be woken.
    pub earlier_boot: Vec<VmId>,
    /// Leftovers without a VM (directories, mounts, namespaces, cgroups, sockets), by name.
    pub swept: Vec<String>,
}

/// Handle to the host; clones share it. VMs outlive it.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
    _tasks: Arc<[AbortOnDropHandle<()>; 5]>,
}

struct Inner {
    config: HostConfig,
    egress: Arc<dyn EgressHandler>,
    places: Places,
    image: String,
    /// The first is used for new VMs.
    drivers: Vec<Arc<dyn Driver>>,
    /// Of new VMs.
    network: NetworkMode,
    records: Records,
    slots: Mutex<Slots>,
    networks: Networks,
    accounts: Accounts,
    fast_start: Mutex<FastStart>,
    cells: Mutex<BTreeMap<VmId, Cell>>,
    /// VMs that sleep.
    asleep: Mutex<BTreeSet<VmId>>,
    /// VMs that stand still.
    paused: watch::Sender<BTreeSet<VmId>>,
    starting: admission::Starting,
    pool: pool::Pool,
    usage: Usage,
    phases: Phases,
    ends: ends::Ends,
    /// No new VMs: this process is about to end.
    draining: std::sync::atomic::AtomicBool,
}

/// What one VM's steps run under: at most one of them at a time.
type Cell = Arc<tokio::sync::Mutex<Option<AgentClient>>>;

impl Host {
    /// Probes the driver and opens the image. Touches no VM.
    pub async fn open(config: HostConfig, egress: Arc<dyn EgressHandler>) -> Result<Self, HostError> {
        #[cfg(feature = "chaos")]
        if let Some(driver) = crate::driver::chaos::without_image(&config)? {
            return Self::with_driver(config, egress, driver);
        }
        let image = GoldenImage::current(&config.image_dir)?;
        let places = Places::open(&config)?;
        let chosen = probe::choose(&config, &places, &image).await?;
        Self::assemble(config, egress, places, image.id, chosen)
    }

    /// A host with a driver of the caller's, for tests. Its VMs have network devices only if that is asked for.
    #[cfg(feature = "fake")]
    pub fn with_driver(
        config: HostConfig,
        egress: Arc<dyn EgressHandler>,
        driver: Arc<dyn Driver>,
    ) -> Result<Self, HostError> {
        let places = Places::open(&config)?;
        let chosen = Chosen { drivers: vec![driver], network: config.network.without_probe() };
        Self::assemble(config, egress, places, "none".to_owned(), chosen)
    }

    fn assemble(
        config: HostConfig,
        egress: Arc<dyn EgressHandler>,
        places: Places,
        image: String,
        Chosen { drivers, network }: Chosen,
    ) -> Result<Self, HostError> {
        let records = Records::open(places.data.join("vms"))?;
        let mut slots = Slots::new(config.slots);
        let mut networks = Networks::open(&places.run, config.slots);
        let accounts = Accounts::new(config.egress_limits);
        let (mut asleep, mut paused, mut warm) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for record in records.all()? {
            slots.note(record.slot, record.id);
            if record.network == NetworkMode::Tap {
                networks.note(record.slot);
            }
            match record.state {
                VmState::Active => {}
                VmState::Paused => drop(paused.insert(record.id)),
                VmState::Warm => warm.push(record.id),
                VmState::Hibernated => drop(asleep.insert(record.id)),
            }
        }
        if network == NetworkMode::Tap
            && let Some(driver) = drivers.first()
        {
            networks.make_ahead(network::link_kind(&**driver));
        }
        let slots = Mutex::new(slots);
        let cells = Mutex::default();
        let fast_start = Mutex::default();
        let (ends, watches) = ends::Ends::new();
        let inner = Arc::new(Inner {
            config,
            egress,
            places,
            image,
            drivers,
            network,
            records,
            slots,
            networks,
            accounts,
            fast_start,
            cells,
            asleep: Mutex::new(asleep),
            paused: watch::Sender::new(paused),
            starting: admission::Starting::default(),
            pool: pool::Pool::found(warm),
            usage: Usage::default(),
            phases: Phases::default(),
            ends,
            draining: Default::default(),
        });
        let sampling = usage::keep(&inner, |inner: &Inner| (&inner.usage, &inner.places, &inner.records));
        let pool = pool::keep(Arc::clone(&inner));
        let (watching, disk) = (ends::keep(&inner, watches), disk::keep(&inner));
        let tasks = [tend_logs(Arc::clone(&inner)), pool, sampling, watching, disk];
        Ok(Self { inner, _tasks: Arc::new(tasks.map(AbortOnDropHandle::new)) })
    }

    /// Tries every driver out. Takes some seconds where a broken KVM is present.
    pub async fn probe(config: &HostConfig) -> Vec<DriverProbe> {
        probe::all(config).await
    }

    /// Every VM this machine still has traces of, whoever started it.
    pub async fn list(&self) -> Result<Vec<SeenVm>, HostError> {
        self.inner.list().await
    }

    /// Starts a VM; returns when its agent has taken the identity. On error nothing is left but its logs.
    ///
    /// Dropping the future does not stop what it began: the VM then comes up and waits for [`Host::destroy`].
    pub async fn create(&self, create: CreateVm) -> Result<Vm, HostError> {
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move { inner.create(create).await })).await
    }

    /// Connects to a VM that is running already, for example after a restart of the controller.
    pub async fn adopt(&self, id: VmId) -> Result<Vm, HostError> {
        self.inner.adopt(id).await
    }

    /// Stops a VM, archives its logs, removes all it had. Idempotent. A CLI VM's disk stays.
    ///
    /// Dropping the future does not stop what it began.
    pub async fn destroy(&self, id: VmId) -> Result<(), HostError> {
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move { inner.destroy(id, false).await })).await
    }

    /// Like [`Host::destroy`] for a VM whose sign-in failed: with `keep_failed` the plain files of a browser VM's
    /// run directory are kept under `<data_dir>/failed`. Its memory and its writable layer are never kept.
    pub async fn destroy_failed(&self, id: VmId) -> Result<(), HostError> {
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move { inner.destroy(id, true).await })).await
    }

    /// Makes what the driver needs to start browser VMs of this size fast, for example a snapshot with a desktop of
    /// `desktop_px`, unless it is there. May take minutes; VMs can be created meanwhile.
    pub async fn prepare_templates(
        &self,
        vcpus: u8,
        memory_mib: u32,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError> {
        self.inner.set_fast_start(FastStart::Preparing);
        let prepared = self.inner.driver().prepare(vcpus, memory_mib, desktop_px).await;
        self.inner.set_fast_start(if prepared.is_ok() { FastStart::Ready } else { FastStart::Failed });
        prepared
    }

    /// Removes a user's CLI disk for good. Refused while a VM uses it.
    pub async fn remove_user_disk(&self, user: &UserId) -> Result<(), HostError> {
        let dir = self.inner.places.user(user);
        let records = self.inner.records.all()?;
        if let Some(record) = records.iter().find(|record| self.inner.uses_disk(record, user)) {
            return Err(HostError::DiskInUse { by: record.id });
        }
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HostError::os(format!("remove {}", dir.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Destroys every VM not in `wanted` and sweeps leftovers.
    pub async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        self.inner.reclaim(wanted).await
    }

    /// What a VM used of its way out since this process knows it.
    pub fn egress_usage(&self, id: VmId) -> Option<EgressUsage> {
        self.inner.accounts.usage(id)
    }

    /// Ends all connections that a VM has to elsewhere, and those that are being made: what was decided about them may hold
    /// no more. Later ones are decided about anew.
    pub fn end_connections(&self, id: VmId) {
        self.inner.accounts.end_connections(id);
    }

    /// The end of a VM's log, alive or archived.
    pub async fn read_log(&self, id: VmId, kind: LogKind, max_bytes: usize) -> Result<String, HostError> {
        self.inner.read_log(id, kind, max_bytes).await
    }

    /// What VMs take, as of the last sample (some seconds ago).
    pub fn usage(&self) -> Vec<(VmId, VmUsage)> {
        let network = |id| self.inner.accounts.usage(id).unwrap_or_default();
        let sampled = self.inner.usage.latest().into_iter();
        sampled.map(|(id, usage)| (id, VmUsage { network: network(id), ..usage })).collect()
    }

    /// Everything that `/metrics` shows of a host.
    pub fn figures(&self) -> HostFigures {
        HostFigures {
            vms: self.usage(),
            starts: self.inner.phases.figures(),
            disk_free_bytes: space::free(&self.inner.places.data).ok(),
            disk_reserve_bytes: Some(self.inner.places.resources.disk_reserve_bytes),
        }
    }

    /// What is in use.
    pub fn status(&self) -> HostStatus {
        let info = self.inner.driver().info();
        let slots = self.inner.slots();
        HostStatus {
            driver: info.shown.to_owned(),
            shared_kernel: info.shared_kernel,
            image: self.inner.image.clone(),
            fast_start: *self.inner.fast_start.lock().unwrap_or_else(PoisonError::into_inner),
            warm: self.inner.pool.ready(),
            hibernated: self.inner.asleep().len(),
            paused: self.inner.paused.borrow().clone(),
            slots_used: slots.used(),
            slots_total: slots.total(),
            missing: None,
        }
    }
}

impl Inner {
    /// For new VMs.
    fn driver(&self) -> &Arc<dyn Driver> {
        self.drivers.first().expect("a host is assembled with at least one driver")
    }

    /// The driver that made a VM.
    fn driver_of(&self, record: &VmRecord) -> &Arc<dyn Driver> {
        self.drivers
            .iter()
            .find(|driver| driver.info().name == record.driver)
            .unwrap_or_else(|| self.driver())
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asleep(&self) -> std::sync::MutexGuard<'_, BTreeSet<VmId>> {
        self.asleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_fast_start(&self, to: FastStart) {
        *self.fast_start.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn cell(&self, id: VmId) -> Cell {
        Arc::clone(self.cells.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default())
    }

    fn drop_cell(&self, id: VmId) {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn uses_disk(&self, record: &VmRecord, user: &UserId) -> bool {
        matches!(&record.kind, VmKind::Cli { user: owner } if owner == user)
    }

    fn archive_dir(&self) -> std::path::PathBuf {
        self.places.data.join("logs")
    }
}

/// Keeps logs small and copies of the agents' logs fresh.
fn tend_logs(inner: Arc<Inner>) -> JoinHandle<()> {
    // The task must not keep the host alive.
    let host = Arc::downgrade(&inner);
    tokio::spawn(async move {
        for round in 0.. {
            tokio::time::sleep(LOGS_EVERY).await;
            let Some(inner) = host.upgrade() else { return };
            inner.copy_agent_logs(round).await;
            let Ok(vms) = fs::read_dir(inner.places.run.join("vm")) else { continue };
            for dir in vms.flatten() {
                for kind in logs::KINDS {
                    let path = dir.path().join(kind.file_name());
                    if let Err(error) = logs::cut(&path, inner.config.log_bytes_max) {
                        tracing::warn!(path = %path.display(), %error, "log cannot be cut");
                    }
                }
            }
        }
    })
}

/// The result of work that goes on when nobody waits for it.
async fn joined<T>(work: JoinHandle<Result<T, HostError>>) -> Result<T, HostError> {
    match work.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(HostError::os("wait for the VM's task")(std::io::Error::other(error))),
        },
    }
}
