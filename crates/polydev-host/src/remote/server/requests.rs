//! What each request does.

use std::os::fd::OwnedFd;

use super::{
    super::{
        connection::Outgoing,
        protocol::{Reply, Request, ToClient},
    },
    Client,
};
use crate::{error::HostError, host::handover::NotDialled, usage::HostFigures};

/// Most bytes of a log in one answer.
const LOG_BYTES_MAX: usize = 1 << 20;

impl Client {
    /// Does what was asked and says what came of it; nobody may be there any more to hear it.
    pub(super) async fn answer(&self, id: u64, request: Request) {
        let name = request.name();
        let (result, socket) = match self.perform(request).await {
            Ok((reply, socket)) => (Ok(reply), socket),
            Err(error) => (Err(error), None),
        };
        let message = ToClient::Reply { id, result, status: self.hosts.status() };
        match Outgoing::with_socket(&message, socket) {
            Ok(outgoing) => drop(self.outbox.send(outgoing).await),
            Err(error) => tracing::error!(request = name, %error, "an answer cannot be sent"),
        }
    }

    async fn perform(&self, request: Request) -> Result<(Reply, Option<OwnedFd>), HostError> {
        let host = match (self.hosts.get(), &request) {
            (Ok(host), _) => host,
            // Which answers say what is missing; nothing runs that it could tell of.
            (Err(_), Request::Status) => return Ok((Reply::Done, None)),
            (Err(_), Request::Figures) => return Ok((Reply::Figures(HostFigures::default()), None)),
            (Err(missing), _) => return Err(missing.error()),
        };
        let reply = match request {
            Request::Create(create) => {
                let id = create.id;
                host.create(create).await?;
                Reply::Vm(host.hand_over(id).await?)
            }
            Request::Adopt { id } => match host.hand_over(id).await {
                Ok(facts) => Reply::Vm(facts),
                // It may sleep; this wakes it, or says that it is gone.
                Err(HostError::NoSuchVm(_)) => {
                    host.adopt(id).await?;
                    Reply::Vm(host.hand_over(id).await?)
                }
                Err(error) => return Err(error),
            },
            Request::Draw { kind, vcpus, memory_mib } => Reply::Id(host.draw(&kind, vcpus, memory_mib).await),
            Request::Hibernate { id } => host.hibernate(id).await.map(|()| Reply::Done)?,
            Request::Resume { id } => {
                let memory_lost = host.resume(id).await?.memory_lost;
                Reply::Resumed { facts: host.hand_over(id).await?, memory_lost }
            }
            Request::SetWarm(plan) => {
                host.set_warm(plan);
                Reply::Done
            }
            Request::Destroy { id, failed: false } => host.destroy(id).await.map(|()| Reply::Done)?,
            Request::Destroy { id, failed: true } => host.destroy_failed(id).await.map(|()| Reply::Done)?,
            Request::Reclaim { wanted } => {
                Reply::Reclaimed(host.reclaim(&wanted.into_iter().collect()).await?)
            }
            Request::List => Reply::Seen(host.list().await?),
            Request::Status => Reply::Done,
            Request::Figures => Reply::Figures(host.figures()),
            Request::ReadLog { id, kind, max_bytes } => {
                Reply::Text(host.read_log(id, kind, max_bytes.min(LOG_BYTES_MAX)).await?)
            }
            Request::KeepAgentLog { id, text } => host.keep_agent_log(id, &text).map(|()| Reply::Done)?,
            Request::KeptFailed => Reply::Ids(host.kept_failed()?),
            Request::ForgetFailed { id } => host.forget_failed(id).map(|()| Reply::Done)?,
            Request::EndConnections { id } => {
                host.end_connections(id);
                Reply::Done
            }
            Request::RemoveUserDisk { user } => host.remove_user_disk(&user).await.map(|()| Reply::Done)?,
            Request::Prepare { vcpus, memory_mib, desktop_px } => {
                host.prepare_templates(vcpus, memory_mib, desktop_px).await.map(|()| Reply::Done)?
            }
            Request::Dial { id } => {
                let why = match host.dial(id).await {
                    Ok(socket) => match socket.into_std() {
                        Ok(socket) => return Ok((Reply::Dialled, Some(socket.into()))),
                        Err(error) => error.to_string(),
                    },
                    Err(NotDialled::Gone) => {
                        return Ok((Reply::NotDialled { gone: true, why: "the VM is gone".into() }, None));
                    }
                    Err(NotDialled::Later(error)) => error.to_string(),
                };
                Reply::NotDialled { gone: false, why }
            }
        };
        Ok((reply, None))
    }
}
