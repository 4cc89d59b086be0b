//! Keeps one VM's connection up: dials, lets a [session] run, dials again while the VM lives.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use polydev_core::{
    ids::VmId,
    wire::{AgentEvent, Refusal},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::{broadcast, watch},
    task::JoinHandle,
    time::Instant,
};

use super::session::{self, Ended, Session};
use crate::egress::{Account, EgressHandler};

/// First pause before dialling again; short, because a container's agent listens within some 10 ms.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause before dialling again.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A session that lived this long resets the pause.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// Any byte connection.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// The way to one VM's agent.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Makes a byte connection, whatever the driver's kind is.
    async fn dial(&self) -> io::Result<Box<dyn ByteStream>>;
    /// The same as a socket, which can be handed to another process.
    async fn dial_socket(&self) -> io::Result<UnixStream> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether the VM's process lives, so that dialling again makes sense. Must not block.
    fn alive(&self) -> bool;
}

/// What a connection needs to know.
#[derive(Clone)]
pub struct LinkOptions {
    /// Whose it is.
    pub vm: VmId,
    /// Decides about the guest's connections.
    pub egress: Arc<dyn EgressHandler>,
    /// What they may use and did use.
    pub(crate) account: Arc<Account>,
    /// Multiplies every deadline: 1 at native speed, more for emulated VMs.
    pub slow_factor: u32,
}

impl LinkOptions {
    /// With an account of its own for what the guest uses.
    pub fn new(vm: VmId, egress: Arc<dyn EgressHandler>, slow_factor: u32) -> Self {
        Self { vm, egress, account: Arc::default(), slow_factor }
    }
}

/// How the connection is.
pub(super) enum LinkState {
    /// Being made (again).
    Connecting,
    /// Hello has been answered.
    Up(Arc<Session>),
    /// For good: the VM is gone, or its agent speaks another version.
    Gone(Option<Refusal>),
}

impl std::fmt::Debug for LinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Up(_) => "up",
            Self::Gone(_) => "gone",
        })
    }
}

/// Starts the task that owns the connection.
pub(super) fn spawn(
    connector: Arc<dyn Connector>,
    options: LinkOptions,
    events: broadcast::Sender<AgentEvent>,
) -> (watch::Receiver<LinkState>, JoinHandle<()>) {
    let (state, seen) = watch::channel(LinkState::Connecting);
    (seen, tokio::spawn(keep_up(connector, options, events, state)))
}

async fn keep_up(
    connector: Arc<dyn Connector>,
    options: LinkOptions,
    events: broadcast::Sender<AgentEvent>,
    state: watch::Sender<LinkState>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(io) = connector.dial().await {
            let began = Instant::now();
            let ended = session::run(io, &options, &events, &state).await;
            match ended {
                Ended::Refused(refusal) => {
                    tracing::error!(vm.id = %options.vm, %refusal, "agent refused hello");
                    state.send_replace(LinkState::Gone(Some(refusal)));
                    return;
                }
                Ended::Lost(reason) => {
                    tracing::debug!(vm.id = %options.vm, reason, "connection to the agent lost");
                    state.send_replace(LinkState::Connecting);
                }
            }
            if began.elapsed() >= STABLE_AFTER {
                pause = FIRST_PAUSE;
            }
        }
        if !connector.alive() {
            state.send_replace(LinkState::Gone(None));
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
