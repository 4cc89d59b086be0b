//! Everything the controller is made of, in one place, and its start and end.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polydev_core::{
    ids::{UserId, VmId},
    provider::ProviderSet,
    session::Limits,
};
use polydev_host::HostError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{RateLimiter, access::Access},
    cleaner::Cleaner,
    clock::Clock,
    config::Config,
    desktop::{self, Desktops, turn::Turn, webrtc::Endpoint},
    egress::Egress,
    guest_places,
    machines::Machines,
    session::{self, Sessions},
    slots::Slots,
    store::{
        Store, StoreError,
        vms::{VmRecord, VmRole, VmState},
    },
    vault::{Vault, reseal_all},
    workspaces::{self, Workspaces},
};

/// How long sign-ins may take to end at a shutdown.
const CLOSING_LIMIT: Duration = Duration::from_secs(20);
/// How long VMs that nobody has may take to go then.
const POOL_LIMIT: Duration = Duration::from_secs(15);
/// How often a host that misses something is looked at again.
const READY_EVERY: Duration = Duration::from_secs(1);

/// What an [`App`] is built from.
pub struct Parts {
    /// Checked configuration.
    pub config: Config,
    /// The address that is really listened on.
    pub listen: SocketAddr,
    /// Time.
    pub clock: Clock,
    /// Database.
    pub store: Store,
    /// Seals credentials and upstream proxies.
    pub vault: Arc<Vault>,
    /// Runs VMs.
    pub machines: Arc<dyn Machines>,
    /// Ways out of VMs; the machines use the same one.
    pub egress: Arc<Egress>,
    /// Tools.
    pub providers: Arc<ProviderSet>,
    /// Who may call.
    pub access: Access,
    /// Deadlines of sign-ins.
    pub limits: Limits,
    /// Where desktops are watched over WebRTC.
    pub endpoint: Endpoint,
    /// STUN and TURN for those who cannot reach it.
    pub turn: Turn,
}

/// The controller.
pub struct App {
    /// Configuration.
    pub config: Config,
    /// Time.
    pub clock: Clock,
    /// Database.
    pub store: Store,
    /// Runs VMs.
    pub machines: Arc<dyn Machines>,
    /// Ways out of VMs.
    pub egress: Arc<Egress>,
    /// Tools.
    pub providers: Arc<ProviderSet>,
    /// Who may call.
    pub access: Access,
    /// How often.
    pub limiter: RateLimiter,
    /// Places for VMs.
    pub slots: Slots,
    /// Sign-ins.
    pub sessions: Sessions,
    /// Live desktops.
    pub desktops: Desktops,
    /// Where they are watched over WebRTC.
    pub endpoint: Endpoint,
    /// STUN and TURN for those who cannot reach it.
    pub turn: Turn,
    /// CLI VMs.
    pub workspaces: Workspaces,
    /// Removes VMs.
    pub cleaner: Cleaner,
    /// Ends WebSockets and event streams.
    pub stop: CancellationToken,
    vault: Arc<Vault>,
    sockets: Mutex<std::collections::HashMap<VmId, Arc<AtomicUsize>>>,
    tasks: TaskTracker,
}

impl App {
    /// Puts the parts together. Nothing runs yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            config,
            listen: _,
            clock,
            store,
            vault,
            machines,
            egress,
            providers,
            access,
            limits,
            endpoint,
            turn,
        } = parts;
        let slots = Slots::new(usize::from(config.vms.slots), config.limits.queue_max);
        let cleaner = Cleaner::new(store.clone(), Arc::clone(&machines), Arc::clone(&egress), clock);
        let places = guest_places::places(config.vms.overlay_dir.as_deref());
        let workspaces = Workspaces::new(workspaces::Parts {
            clock,
            store: store.clone(),
            vault: Arc::clone(&vault),
            machines: Arc::clone(&machines),
            slots: slots.clone(),
            cleaner: cleaner.clone(),
            providers: Arc::clone(&providers),
            places: places.clone(),
            size: config.vms.cli,
            hibernate_after: config.vms.hibernate_after,
        });
        let sessions = Sessions::new(session::Parts {
            clock,
            store: store.clone(),
            vault: Arc::clone(&vault),
            machines: Arc::clone(&machines),
            slots: slots.clone(),
            cleaner: cleaner.clone(),
            workspaces: workspaces.clone(),
            providers: Arc::clone(&providers),
            places,
            size: config.vms.browser,
            desktop_px: config.vms.desktop_px,
            limits,
            base_url: access.base_url(),
            figures: session::Figures::default(),
        });
        turn.relay_to_endpoint(endpoint.announced());
        let limiter = RateLimiter::new(config.limits.clone());
        let stop = CancellationToken::new();
        let desktops = Desktops::new(desktop::Parts {
            sessions: sessions.clone(),
            settings: desktop::Settings::from(&config.desktop),
            desktop_px: config.vms.desktop_px,
            shares_clock: machines.status().shared_kernel,
            metrics: Arc::default(),
            stop: stop.clone(),
        });
        Arc::new(Self {
            config,
            clock,
            store,
            machines,
            egress,
            providers,
            access,
            limiter,
            slots,
            sessions,
            desktops,
            endpoint,
            turn,
            workspaces,
            cleaner,
            stop,
            vault,
            sockets: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Takes up what a former controller left: CLI VMs are adopted, what nobody wants is removed, sign-ins that were
    /// under way come to a clear end. What is left for [`App::recover_late`], when no VM could be looked at.
    pub async fn recover(&self) -> Result<Option<Former>, RecoverError> {
        let (resealed, unreadable) = reseal_all(&self.store, &self.vault).await?;
        if resealed + unreadable > 0 {
            tracing::info!(resealed, unreadable, "credentials brought under the newest master key");
        }
        let former = Former(self.store.live_vms().await?);
        let late = match self.machines.ready() {
            Ok(()) => {
                let wanted = self.adopt_vms(&former).await?;
                let report = self.machines.reclaim(&wanted).await?;
                for id in &report.destroyed {
                    tracing::info!(vm.id = %id, "left-over VM removed");
                }
                for name in &report.swept {
                    tracing::info!(name, "left-over swept");
                }
                self.destroy_all_but(&wanted, &former).await?;
                None
            }
            Err(_) => Some(former),
        };
        self.egress.open_ports().await?;
        let sessions = self.sessions.resume().await?;
        if sessions > 0 {
            tracing::info!(sessions, "sign-ins of the former run are being closed");
        }
        self.tasks.spawn(self.cleaner.clone().run(self.stop.clone()));
        Ok(late)
    }

    /// Ends the connections that a user's VMs have to elsewhere; whether all of them are ended.
    pub async fn end_connections(&self, user: &UserId) -> bool {
        let vms = match self.store.live_vms().await {
            Ok(vms) => vms,
            Err(error) => {
                tracing::error!(%user, %error, "connections go on: the database does not tell whose VMs there are");
                return false;
            }
        };
        let mut all = true;
        for vm in vms.into_iter().filter(|vm| vm.user == *user) {
            if let Err(error) = self.machines.end_connections(vm.id).await {
                tracing::error!(%user, vm.id = %vm.id, %error, "the VM's connections go on");
                all = false;
            }
        }
        all
    }

    /// Ends everything in order; CLI VMs keep running.
    pub async fn shut_down(&self) {
        tracing::info!("shutting down");
        self.sessions.shut_down(CLOSING_LIMIT).await;
        if let Err(error) = self.machines.end_pool(POOL_LIMIT).await {
            tracing::warn!(%error, "VMs that were held ready may be left; the next start takes them over");
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.desktops.ended().await;
        self.egress.shut_down().await;
        self.endpoint.close().await;
        self.turn.shut_down().await;
        self.store.close().await;
    }

    /// Counts a WebSocket on a VM; `None` when there are too many.
    pub fn socket_on(&self, vm: VmId) -> Option<SocketCount> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|_, count| count.load(Ordering::Relaxed) > 0);
        let count = Arc::clone(sockets.entry(vm).or_default());
        let max = self.config.limits.websockets_per_vm;
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < max).then_some(n + 1));
        taken.ok().map(|_| SocketCount(count))
    }

    /// Waits for a host that could not make VMs when the controller was started, then takes up what the former one left.
    /// Nothing is swept: sign-ins may have begun, and theirs must not be taken for leftovers.
    pub async fn recover_late(&self, former: Former) -> Result<(), RecoverError> {
        while self.machines.ready().is_err() {
            tokio::time::sleep(READY_EVERY).await;
        }
        let wanted = self.adopt_vms(&former).await?;
        self.destroy_all_but(&wanted, &former).await
    }

    /// Removes VMs, and closes their rows.
    async fn destroy_all_but(&self, wanted: &HashSet<VmId>, former: &Former) -> Result<(), RecoverError> {
        for record in former.0.iter().filter(|record| !wanted.contains(&record.id)) {
            // A sweep may have removed it; the task makes sure of it.
            self.store.vm_failed(record.id).await?;
            self.cleaner.destroy_later(record.id).await;
        }
        Ok(())
    }

    /// Connects to the CLI VMs of the former controller; returns which are there.
    async fn adopt_vms(&self, former: &Former) -> Result<HashSet<VmId>, RecoverError> {
        let mut wanted = HashSet::new();
        for record in &former.0 {
            let is_cli =
                record.role == VmRole::Cli && matches!(record.state, VmState::Running | VmState::Hibernated);
            if !is_cli {
                continue;
            }
            // Finishes what the former controller may have begun.
            if record.state == VmState::Hibernated && self.machines.hibernate(record.id).await.is_ok() {
                wanted.insert(record.id);
                self.workspaces.adopt_asleep(&record.user, record.id);
                continue;
            }
            match self.machines.adopt(record.id).await {
                Ok(vm) => {
                    tracing::info!(vm.id = %record.id, user = %record.user, "CLI VM adopted");
                    wanted.insert(record.id);
                    self.store.vm_running(record.id, vm.slot).await?;
                    self.workspaces.adopt(&record.user, vm);
                }
                Err(error) if workspaces::may_pass(&error) => {
                    tracing::warn!(vm.id = %record.id, user = %record.user, %error, "CLI VM is taken up later");
                    wanted.insert(record.id);
                    self.workspaces.adopt_uncertain(&record.user, record.id);
                }
                Err(error) => {
                    tracing::warn!(vm.id = %record.id, user = %record.user, %error, "CLI VM is lost; its disk is kept");
                }
            }
        }
        Ok(wanted)
    }
}

/// VMs of a former controller, as its rows tell.
#[derive(Debug)]
pub struct Former(Vec<VmRecord>);

/// A counted WebSocket; dropping it counts it off.
pub struct SocketCount(Arc<AtomicUsize>);

impl Drop for SocketCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why the former run's state could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host.
    #[error("reclaim left-over VMs: {0}")]
    Host(#[from] HostError),
}
