//! Agents' connections: dialled by the host process, used by this one alone.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::net,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{
    ids::VmId,
    wire::{Reply as AgentReply, Request as AgentRequest},
};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::{
    super::protocol::{Reply, Request},
    AGENT_LOG_MAX,
    link::Core,
};
use crate::{
    agent::{AgentClient, ByteStream, Connector},
    host::VmKind,
};

/// How often browser VMs' logs are copied.
const LOGS_EVERY: Duration = Duration::from_secs(2);
/// A workspace idles for days and is not to be woken too often: it is asked in one of so many rounds.
const CLI_ROUNDS: u64 = 15;
/// How long an agent may keep the others waiting.
const COPY_LIMIT: Duration = Duration::from_secs(2);

/// Connections this process has.
#[derive(Default)]
pub(super) struct Agents {
    held: Mutex<HashMap<VmId, Held>>,
}

struct Held {
    agent: AgentClient,
    is_cli: bool,
}

impl Agents {
    pub(super) fn keep(&self, id: VmId, kind: &VmKind, agent: AgentClient) {
        let is_cli = matches!(kind, VmKind::Cli { .. });
        if let Some(old) = self.held().insert(id, Held { agent, is_cli }) {
            old.agent.sever();
        }
    }

    pub(super) fn get(&self, id: VmId) -> Option<AgentClient> {
        self.held().get(&id).map(|held| held.agent.clone())
    }

    /// Ends the connection, whoever else holds it.
    pub(super) fn sever(&self, id: VmId) {
        if let Some(held) = self.held().remove(&id) {
            held.agent.sever();
        }
    }

    /// Ends the connections to all VMs but these, and returns to which.
    pub(super) fn sever_all_but(&self, wanted: &HashSet<VmId>) -> Vec<VmId> {
        let mut held = self.held();
        let unwanted: Vec<_> = held.extract_if(|id, _| !wanted.contains(id)).collect();
        unwanted
            .into_iter()
            .map(|(id, held)| {
                held.agent.sever();
                id
            })
            .collect()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<VmId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the host process dial.
pub(super) struct RemoteConnector {
    core: Arc<Core>,
    id: VmId,
    gone: AtomicBool,
}

impl RemoteConnector {
    pub(super) fn new(core: Arc<Core>, id: VmId) -> Self {
        Self { core, id, gone: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Connector for RemoteConnector {
    async fn dial(&self) -> io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(self.dial_socket().await?))
    }

    async fn dial_socket(&self) -> io::Result<UnixStream> {
        let (reply, socket) =
            self.core.ask_for_socket(Request::Dial { id: self.id }).await.map_err(io::Error::other)?;
        match (reply, socket) {
            (Reply::Dialled, Some(socket)) => {
                let socket = net::UnixStream::from(socket);
                socket.set_nonblocking(true)?;
                UnixStream::from_std(socket)
            }
            (Reply::NotDialled { gone, why }, _) => {
                if gone {
                    self.gone.store(true, Ordering::Release);
                }
                Err(io::Error::other(why))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Without the host process nobody knows, and it is asked again.
    fn alive(&self) -> bool {
        !self.gone.load(Ordering::Acquire) && !self.core.is_closed()
    }
}

/// Hands copies of the agents' logs to the host process, which keeps them for the case that a VM is killed.
pub(super) async fn tend_logs(core: Arc<Core>, agents: Weak<Agents>) {
    for round in 0u64.. {
        tokio::time::sleep(LOGS_EVERY).await;
        let Some(agents) = agents.upgrade() else { return };
        if core.ready().is_err() {
            continue;
        }
        let due: Vec<_> = {
            let held = agents.held();
            let due = held.iter().filter(|(_, held)| !held.is_cli || round.is_multiple_of(CLI_ROUNDS));
            due.map(|(id, held)| (*id, held.agent.clone())).collect()
        };
        drop(agents);
        let mut copies = JoinSet::new();
        for (id, agent) in due {
            let core = Arc::clone(&core);
            copies.spawn(async move {
                let asked = agent.request(AgentRequest::ReadLog { max_bytes: AGENT_LOG_MAX });
                // A guest that is gone, slow or confused keeps the copy it has.
                if let Ok(Ok(AgentReply::Log { text })) = timeout(COPY_LIMIT, asked).await
                    && let Err(error) = core.ask(Request::KeepAgentLog { id, text }).await
                {
                    tracing::debug!(vm.id = %id, %error, "agent log cannot be kept");
                }
            });
        }
        while copies.join_next().await.is_some() {}
    }
}
