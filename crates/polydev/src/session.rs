//! Sign-ins under way: one task owns each of them, feeds the pure machine of `polydev_core::session` and carries out
//! what it asks for. Others send it messages and watch what it shows.

mod agent_events;
mod driver;
mod figures;
mod shown;
mod work;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use polydev_core::{
    ids::{SessionId, UserId},
    provider::{Placeholders, Provider, ProviderSet},
    session::{Event, Lane, Limits, Session},
};
use polydev_host::HostError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    cleaner::Cleaner,
    clock::Clock,
    config::VmSize,
    machines::Machines,
    slots::{Slots, SlotsExhausted},
    store::{Store, StoreError, sessions::SessionRecord},
    vault::Vault,
    workspaces::Workspaces,
};

pub use driver::{Command, CommandRefused};
use driver::{Driver, Message};
pub use figures::Figures;
use shown::Kept;
pub use shown::{DeviceCode, SessionDto, SessionErrorDto, Shown, StepDto};

/// Messages that may wait for one session.
const MAILBOX: usize = 64;
/// Longest text a person may paste.
pub const INPUT_MAX: usize = 8 << 10;

/// What sessions need.
pub struct Parts {
    /// Time.
    pub clock: Clock,
    /// Database.
    pub store: Store,
    /// Seals credentials.
    pub vault: Arc<Vault>,
    /// Makes VMs.
    pub machines: Arc<dyn Machines>,
    /// Places for VMs.
    pub slots: Slots,
    /// Removes VMs.
    pub cleaner: Cleaner,
    /// CLI VMs.
    pub workspaces: Workspaces,
    /// Tools.
    pub providers: Arc<ProviderSet>,
    /// Places in the guest.
    pub places: Placeholders,
    /// Size of a browser VM.
    pub size: VmSize,
    /// Size of the desktop.
    pub desktop_px: (u16, u16),
    /// Deadlines.
    pub limits: Limits,
    /// `http://host:port` of the page.
    pub base_url: String,
    /// How long sign-ins took.
    pub figures: Figures,
}

/// All sign-ins; clones share them.
#[derive(Clone)]
pub struct Sessions {
    parts: Arc<Parts>,
    registry: Arc<Mutex<Registry>>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Registry {
    live: HashMap<SessionId, Live>,
    closing: bool,
}

#[derive(Clone)]
struct Live {
    mailbox: mpsc::Sender<Message>,
    shown: watch::Receiver<Arc<Shown>>,
}

/// Why a sign-in was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No tool has this name.
    #[error("there is no provider `{0}`")]
    UnknownProvider(String),
    /// The tool cannot be signed in in this way.
    #[error("{provider} has no lane {lane}")]
    NoSuchLane {
        /// Which tool.
        provider: String,
        /// Which lane.
        lane: &'static str,
    },
    /// All slots are in use.
    #[error(transparent)]
    SlotsExhausted(#[from] SlotsExhausted),
    /// No VM can be made at all.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service is being stopped.
    #[error("the service is being stopped")]
    ShuttingDown,
}

/// A sign-in that was started or found.
pub struct Started {
    /// How it stands.
    pub shown: Arc<Shown>,
    /// It was under way already.
    pub attached: bool,
}

impl Sessions {
    /// How long sign-ins took so far.
    pub(crate) fn figures(&self) -> &Figures {
        &self.parts.figures
    }

    /// No sign-in is under way yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), registry: Arc::default(), tasks: TaskTracker::new() }
    }

    /// Starts a sign-in, or finds the one that is under way for the user and tool, or that this key started.
    pub async fn start(
        &self,
        user: UserId,
        provider: &str,
        lane: Option<Lane>,
        key: Option<String>,
    ) -> Result<Started, StartError> {
        let unknown = || StartError::UnknownProvider(provider.to_owned());
        let provider = self.parts.providers.get(provider).ok_or_else(unknown)?;
        let lane = lane.unwrap_or(provider.default_lane());
        if !provider.lanes().contains(&lane) {
            return Err(StartError::NoSuchLane { provider: provider.id().to_string(), lane: lane.as_str() });
        }
        if let Some(key) = &key
            && let Some(record) = self.parts.store.session_by_key(&user, provider.id(), key).await?
        {
            let shown = self.of_record(&record)?;
            return Ok(Started { shown, attached: true });
        }
        let (live, first) = match self.enter(user, provider, lane, key)? {
            Entered::Found(shown) => return Ok(Started { shown, attached: true }),
            Entered::New { live, first } => (live, first),
        };
        match first.await {
            Ok(Ok(())) => Ok(Started { shown: live.shown.borrow().clone(), attached: false }),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(StartError::ShuttingDown),
        }
    }

    /// A sign-in, under way or ended.
    pub async fn get(&self, id: SessionId) -> Result<Option<Arc<Shown>>, StoreError> {
        if let Some(watch) = self.watch(id) {
            return Ok(Some(watch.borrow().clone()));
        }
        let record = self.parts.store.session(id).await?;
        record.map(|record| self.of_record(&record)).transpose()
    }

    /// Follows a sign-in that is under way. Ends (the sender is gone) when nothing can change any more.
    pub fn watch(&self, id: SessionId) -> Option<watch::Receiver<Arc<Shown>>> {
        self.lock().live.get(&id).map(|live| live.shown.clone())
    }

    /// Has the person's command carried out. `None` when no such sign-in is under way.
    pub async fn command(&self, id: SessionId, command: Command) -> Option<Result<(), CommandRefused>> {
        let mailbox = self.lock().live.get(&id)?.mailbox.clone();
        let (reply, answer) = oneshot::channel();
        mailbox.send(Message::Command(command, reply)).await.ok()?;
        answer.await.ok()
    }

    /// The person did something on the live browser. May be lost when much happens at once.
    pub fn user_active(&self, id: SessionId) {
        let mailbox = self.lock().live.get(&id).map(|live| live.mailbox.clone());
        if let Some(mailbox) = mailbox {
            let _ = mailbox.try_send(Message::Happened(Event::UserActive));
        }
    }

    /// A user's sign-ins that have not closed.
    pub fn of_user(&self, user: &UserId) -> Vec<SessionId> {
        let registry = self.lock();
        let theirs = registry.live.iter().filter(|(_, live)| live.shown.borrow().user == *user);
        theirs.map(|(id, _)| *id).collect()
    }

    /// Sign-ins that have not ended.
    pub fn active(&self) -> usize {
        self.lock().live.values().filter(|live| !live.shown.borrow().is_final()).count()
    }

    /// Takes up what a former controller left: every sign-in gets to a clear end, its VM is released.
    pub async fn resume(&self) -> Result<usize, StoreError> {
        let open = self.parts.store.open_sessions().await?;
        let count = open.len();
        for record in open {
            let Ok(kept) = serde_json::from_str::<Kept>(&record.snapshot) else {
                tracing::error!(session.id = %record.id, "stored session cannot be read; it is given up");
                self.parts.store.give_session_up(record.id, self.parts.clock.now_db()).await?;
                continue;
            };
            let Some(provider) = self.parts.providers.get(record.provider.as_str()) else {
                tracing::error!(session.id = %record.id, "session of a provider that is no longer defined");
                self.parts.store.give_session_up(record.id, self.parts.clock.now_db()).await?;
                continue;
            };
            let (mut driver, live) = Driver::new(Arc::clone(&self.parts), &record, provider.clone(), kept);
            driver.occupy_held_vm();
            let id = record.id;
            self.lock().live.insert(id, live);
            self.spawn(id, driver.resume());
        }
        Ok(count)
    }

    /// Ends all sign-ins; those whose credential is stored already are finished. Returns when their VMs are gone or
    /// `limit` is over; what is left then is taken up by [`Self::resume`] at the next start.
    pub async fn shut_down(&self, limit: Duration) {
        let mailboxes: Vec<_> = {
            let mut registry = self.lock();
            registry.closing = true;
            registry.live.values().map(|live| live.mailbox.clone()).collect()
        };
        for mailbox in mailboxes {
            let _ = mailbox.send(Message::ShutDown).await;
        }
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!("sign-ins are still closing; the next start goes on with that");
        }
    }

    fn enter(
        &self,
        user: UserId,
        provider: &Provider,
        lane: Lane,
        key: Option<String>,
    ) -> Result<Entered, StartError> {
        let mut registry = self.lock();
        if registry.closing {
            return Err(StartError::ShuttingDown);
        }
        let running = registry.live.values().map(|live| live.shown.borrow().clone());
        let mut same = running.filter(|shown| shown.user == user && shown.provider == *provider.id());
        if let Some(shown) = same.find(|shown| !shown.is_final()) {
            return Ok(Entered::Found(shown));
        }
        self.parts.machines.ready()?;
        let ticket = self.parts.slots.enter()?;
        let id = SessionId::from_uuid(Uuid::new_v4());
        let now_ms = self.parts.clock.now_ms();
        let (machine, effects) = Session::start(now_ms, lane, self.parts.limits.clone());
        let kept = Kept { machine, slot: None, browser_vm: None, cli_vm: None };
        let record = SessionRecord {
            id,
            user,
            provider: provider.id().clone(),
            state: String::new(),
            ended: false,
            snapshot: String::new(),
            idempotency_key: key,
            created_unix_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
            ended_unix_ms: None,
        };
        let (driver, live) = Driver::new(Arc::clone(&self.parts), &record, provider.clone(), kept);
        registry.live.insert(id, live.clone());
        let (told, first) = oneshot::channel();
        self.spawn(id, driver.run(ticket, effects, told));
        Ok(Entered::New { live, first })
    }

    fn spawn(&self, id: SessionId, driving: impl Future<Output = ()> + Send + 'static) {
        let registry = Arc::clone(&self.registry);
        self.tasks.spawn(async move {
            driving.await;
            registry.lock().unwrap_or_else(PoisonError::into_inner).live.remove(&id);
        });
    }

    fn of_record(&self, record: &SessionRecord) -> Result<Arc<Shown>, StoreError> {
        if let Some(watch) = self.watch(record.id) {
            return Ok(watch.borrow().clone());
        }
        Shown::of_record(record).map(Arc::new).ok_or(StoreError::Damaged { what: "session" })
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Entered {
    Found(Arc<Shown>),
    New { live: Live, first: oneshot::Receiver<Result<(), StoreError>> },
}
