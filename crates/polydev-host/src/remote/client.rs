//! The controller's side: a host that is another process. It is asked over the socket, the agents of its VMs directly.

mod agents;
mod link;

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use polydev_core::{
    ids::{UserId, VmId},
    wire::{Reply as AgentReply, Request as AgentRequest},
};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::{
    agents::{Agents, RemoteConnector},
    link::Core,
};
use super::protocol::{Reply, Request, Role};
use crate::{
    agent::{AgentClient, AgentError, LinkOptions},
    egress::{Accounts, EgressHandler, EgressLimits},
    error::HostError,
    host::{
        CreateVm, HostStatus, LogKind, ReclaimReport, Resumed, SeenVm, Vm, VmKind, WarmPlan,
        handover::VmFacts,
    },
    usage::HostFigures,
};

/// Most bytes that an agent is asked for.
const AGENT_LOG_MAX: u32 = 512 << 10;

/// Where the host process is and what it is told.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// Its socket.
    pub socket: PathBuf,
    /// What this program is.
    pub role: Role,
    /// What each VM may take of the machine's own connection where its traffic comes by its agent's.
    pub egress_limits: EgressLimits,
}

/// Handle to a host in another process; clones share it. VMs and their agents' connections outlive that process.
///
/// While it is away requests wait a moment and then fail with [`HostError::Unavailable`]; it is connected to again by
/// itself.
#[derive(Clone)]
pub struct RemoteHost {
    core: Arc<Core>,
    agents: Arc<Agents>,
    /// What goes out over the agents' connections: the host process does not see it.
    accounts: Arc<Accounts>,
    _tasks: Arc<[AbortOnDropHandle<()>; 2]>,
}

impl RemoteHost {
    /// Connects and says hello. Waits for a host process that is not there yet, and for another controller to leave,
    /// until `limit`.
    pub async fn connect(
        options: RemoteOptions,
        egress: Arc<dyn EgressHandler>,
        limit: Duration,
    ) -> Result<Self, HostError> {
        let core = Arc::new(Core::new(egress));
        let accounts = Arc::new(Accounts::new(options.egress_limits));
        let agents = Arc::new(Agents::default());
        let keeping = link::keep_up(Arc::clone(&core), Arc::downgrade(&agents), options);
        let keeping = AbortOnDropHandle::new(tokio::spawn(keeping));
        let tending = AbortOnDropHandle::new(tokio::spawn(agents::tend_logs(
            Arc::clone(&core),
            Arc::downgrade(&agents),
        )));
        core.first(limit).await?;
        Ok(Self { core, agents, accounts, _tasks: Arc::new([keeping, tending]) })
    }

    /// See [`crate::Host::create`].
    pub async fn create(&self, create: CreateVm) -> Result<Vm, HostError> {
        let id = create.id;
        let facts = self.vm(Request::Create(create)).await?;
        match self.reach(facts).await {
            Ok(vm) => Ok(vm),
            Err(error) => {
                if let Err(cleanup) = self.destroy(id).await {
                    tracing::error!(vm.id = %id, error = %cleanup, "VM that cannot be reached cannot be removed");
                }
                Err(error)
            }
        }
    }

    /// See [`crate::Host::adopt`].
    pub async fn adopt(&self, id: VmId) -> Result<Vm, HostError> {
        let facts = self.vm(Request::Adopt { id }).await?;
        self.reach(facts).await
    }

    /// See [`crate::Host::draw`].
    pub async fn draw(&self, kind: &VmKind, vcpus: u8, memory_mib: u32) -> VmId {
        match self.core.ask(Request::Draw { kind: kind.clone(), vcpus, memory_mib }).await {
            Ok(Reply::Id(id)) => id,
            // Whoever creates it finds out what is wrong.
            Ok(_) | Err(_) => VmId::from_uuid(Uuid::new_v4()),
        }
    }

    /// See [`crate::Host::hibernate`].
    pub async fn hibernate(&self, id: VmId) -> Result<(), HostError> {
        self.let_go(id).await?;
        self.done(Request::Hibernate { id }).await
    }

    /// See [`crate::Host::resume`].
    pub async fn resume(&self, id: VmId) -> Result<Resumed, HostError> {
        match self.core.ask(Request::Resume { id }).await? {
            Reply::Resumed { facts, memory_lost } => {
                Ok(Resumed { vm: self.reach(facts).await?, memory_lost })
            }
            _ => Err(wrong("resume")),
        }
    }

    /// See [`crate::Host::set_warm`]. A host process that is started anew is told again.
    pub async fn set_warm(&self, plan: WarmPlan) -> Result<(), HostError> {
        self.standing(Request::SetWarm(plan)).await
    }

    /// See [`crate::Host::destroy`].
    pub async fn destroy(&self, id: VmId) -> Result<(), HostError> {
        self.remove(id, false).await
    }

    /// See [`crate::Host::destroy_failed`].
    pub async fn destroy_failed(&self, id: VmId) -> Result<(), HostError> {
        self.remove(id, true).await
    }

    /// See [`crate::Host::reclaim`].
    pub async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        self.core.ready_soon().await?;
        for id in self.agents.sever_all_but(wanted) {
            self.core.uses_no_more(id);
        }
        match self.core.ask(Request::Reclaim { wanted: wanted.iter().copied().collect() }).await? {
            Reply::Reclaimed(report) => {
                report.destroyed.iter().for_each(|id| self.accounts.forget(*id));
                Ok(report)
            }
            _ => Err(wrong("reclaim")),
        }
    }

    /// See [`crate::Host::list`].
    pub async fn list(&self) -> Result<Vec<SeenVm>, HostError> {
        match self.core.ask(Request::List).await? {
            Reply::Seen(vms) => Ok(vms),
            _ => Err(wrong("list")),
        }
    }

    /// See [`crate::Host::figures`].
    pub async fn figures(&self) -> Result<HostFigures, HostError> {
        match self.core.ask(Request::Figures).await? {
            Reply::Figures(mut figures) => {
                for (id, usage) in &mut figures.vms {
                    usage.network += self.accounts.usage(*id).unwrap_or_default();
                }
                Ok(figures)
            }
            _ => Err(wrong("figures")),
        }
    }

    /// See [`crate::Host::read_log`].
    pub async fn read_log(&self, id: VmId, kind: LogKind, max_bytes: usize) -> Result<String, HostError> {
        if kind == LogKind::Agent
            && let Some(agent) = self.agents.get(id)
        {
            let max_bytes = u32::try_from(max_bytes).unwrap_or(u32::MAX).min(AGENT_LOG_MAX);
            if let Ok(AgentReply::Log { text }) = agent.request(AgentRequest::ReadLog { max_bytes }).await {
                return Ok(text);
            }
        }
        match self.core.ask(Request::ReadLog { id, kind, max_bytes }).await? {
            Reply::Text(text) => Ok(text),
            _ => Err(wrong("read_log")),
        }
    }

    /// See [`crate::Host::kept_failed`].
    pub async fn kept_failed(&self) -> Result<Vec<VmId>, HostError> {
        match self.core.ask(Request::KeptFailed).await? {
            Reply::Ids(ids) => Ok(ids),
            _ => Err(wrong("kept_failed")),
        }
    }

    /// See [`crate::Host::forget_failed`].
    pub async fn forget_failed(&self, id: VmId) -> Result<(), HostError> {
        self.done(Request::ForgetFailed { id }).await
    }

    /// See [`crate::Host::end_connections`].
    pub async fn end_connections(&self, id: VmId) -> Result<(), HostError> {
        // Those that come by the agent end here, those of a network device there.
        self.accounts.end_connections(id);
        self.done(Request::EndConnections { id }).await
    }

    /// See [`crate::Host::remove_user_disk`].
    pub async fn remove_user_disk(&self, user: &UserId) -> Result<(), HostError> {
        self.done(Request::RemoveUserDisk { user: user.clone() }).await
    }

    /// See [`crate::Host::prepare_templates`]. A host process that is started anew is told again.
    pub async fn prepare_templates(
        &self,
        vcpus: u8,
        memory_mib: u32,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError> {
        self.standing(Request::Prepare { vcpus, memory_mib, desktop_px }).await
    }

    /// Whether VMs can be made now: the host process can be reached and misses nothing.
    pub fn ready(&self) -> Result<(), HostError> {
        self.core.ready()?;
        self.status().missing.map_or(Ok(()), |missing| Err(missing.error()))
    }

    /// See [`crate::Host::status`]; as of the last answer.
    pub fn status(&self) -> HostStatus {
        self.core.status()
    }

    /// See [`crate::Host::paused`]; as the host process tells with every answer, at the latest each 2 s.
    pub fn paused(&self) -> watch::Receiver<BTreeSet<VmId>> {
        self.core.paused()
    }

    /// Returns when the host process is lost to this program for good, with the reason: another controller has taken
    /// over, or the host process speaks another version. The program has to end then.
    pub async fn closed(&self) -> String {
        self.core.closed().await
    }

    async fn remove(&self, id: VmId, failed: bool) -> Result<(), HostError> {
        self.let_go(id).await?;
        self.done(Request::Destroy { id, failed }).await?;
        self.accounts.forget(id);
        Ok(())
    }

    /// Ends the connection to a VM's agent so that the host process can have its own: some channels carry one only. Not
    /// before somebody is there to use it.
    async fn let_go(&self, id: VmId) -> Result<(), HostError> {
        self.core.ready_soon().await?;
        self.core.uses_no_more(id);
        self.agents.sever(id);
        Ok(())
    }

    /// Something that a host process has to know as long as it lives.
    async fn standing(&self, request: Request) -> Result<(), HostError> {
        self.core.remember(&request);
        self.done(request).await
    }

    async fn done(&self, request: Request) -> Result<(), HostError> {
        let name = request.name();
        match self.core.ask(request).await? {
            Reply::Done => Ok(()),
            _ => Err(wrong(name)),
        }
    }

    async fn vm(&self, request: Request) -> Result<VmFacts, HostError> {
        let name = request.name();
        match self.core.ask(request).await? {
            Reply::Vm(facts) => Ok(facts),
            _ => Err(wrong(name)),
        }
    }

    /// Connects to a VM's agent, unless that has been done.
    async fn reach(&self, facts: VmFacts) -> Result<Vm, HostError> {
        let VmFacts { id, kind, slot, slow_factor, answer_limit } = facts;
        if let Some(agent) = self.agents.get(id).filter(|agent| !agent.is_closed()) {
            return Ok(Vm { id, kind, slot, agent });
        }
        let connector = Arc::new(RemoteConnector::new(Arc::clone(&self.core), id));
        let (egress, account) = (self.core.egress(), self.accounts.of(id));
        let options = LinkOptions { vm: id, egress, account, slow_factor };
        let connected = timeout(answer_limit, AgentClient::connect(connector, options, answer_limit)).await;
        let limit_ms = u64::try_from(answer_limit.as_millis()).unwrap_or(u64::MAX);
        let agent = match connected {
            Ok(Ok(agent)) => agent,
            Ok(Err(AgentError::TimedOut { limit_ms, .. })) => {
                return Err(HostError::AgentSilent { id, limit_ms });
            }
            Ok(Err(AgentError::Closed)) => return Err(HostError::NoSuchVm(id)),
            Ok(Err(source)) => return Err(HostError::Identity { id, source }),
            Err(_) => return Err(HostError::AgentSilent { id, limit_ms }),
        };
        self.agents.keep(id, &kind, agent.clone());
        self.core.uses(id);
        Ok(Vm { id, kind, slot, agent })
    }
}

impl Drop for RemoteHost {
    fn drop(&mut self) {
        // The tasks hold the rest; with the last handle nobody can dial any more.
        if Arc::strong_count(&self._tasks) == 1 {
            self.core.close("this program has let go of it");
        }
    }
}

fn wrong(request: &'static str) -> HostError {
    HostError::Unavailable { reason: format!("it answered {request} with something else") }
}
