//! The host process's side: who may connect, who drives, and what each request does.

mod egress;
mod hold;
mod hosts;
mod lease;
mod requests;

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream, unix::UCred},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{egress::ControllerEgress, hold::Hold, hosts::Hosts, lease::Lease};
use self::{hosts::Ends, lease::Holder};
use super::{
    connection::{self, Outbox, Outgoing, Reader},
    protocol::{Denied, PROTOCOL_VERSION, Role, ToClient, ToServer},
};
use crate::error::HostError;

/// How long a client may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may be silent: it asks for the status every few seconds.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// Most connections at a time.
const CONNECTIONS: usize = 64;
/// Most requests of one client at a time; it is not read from while there are more.
const REQUESTS: usize = 512;
/// Pause after a failure to accept, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Only root and the group connect.
const SOCKET_MODE: u32 = 0o660;

/// Whose programs may connect besides root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// May drive VMs.
    pub uid: u32,
    /// May look. The socket belongs to this group.
    pub gid: u32,
}

/// The listening socket, with the lock that keeps a second host process off it.
pub struct Server {
    listener: UnixListener,
    shared: Arc<Shared>,
    socket: PathBuf,
    _lock: Hold,
}

struct Shared {
    allowed: Allowed,
    lease: Lease,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Listens. What a killed host process left there is removed; one that lives is left alone.
    pub fn bind(socket: &Path, allowed: Allowed, lease: Lease) -> Result<Self, HostError> {
        let fault = |what: &str| HostError::os(format!("{what} {}", socket.display()));
        let lock = Hold::take(&socket.with_extension("lock"), &socket.display().to_string())?;
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault("remove")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(socket).map_err(fault("listen on"))?;
        // A process that is not root (tests) can give the socket to nobody else.
        if rustix::process::geteuid().is_root() {
            chown(socket, Some(0), Some(allowed.gid)).map_err(fault("give away"))?;
        }
        fs::set_permissions(socket, fs::Permissions::from_mode(SOCKET_MODE))
            .map_err(fault("set the mode of"))?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared { allowed, lease, stop, tasks: TaskTracker::new() });
        Ok(Self { listener, shared, socket: socket.to_owned(), _lock: lock })
    }

    /// Serves until `stop`; then no new request is taken, and those under way come to their end. VMs go on.
    pub async fn run(self, hosts: impl Into<Hosts>, stop: CancellationToken) {
        let hosts = hosts.into();
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        // Connections end with this future, however it ends.
        let _ended = self.shared.stop.clone().drop_guard();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // One that finds no place is dropped, which closes it.
            let Ok(place) = Arc::clone(&free).try_acquire_owned() else { continue };
            let (shared, hosts) = (Arc::clone(&self.shared), hosts.clone());
            self.shared.tasks.spawn(async move {
                shared.serve(stream, hosts).await;
                drop(place);
            });
        }
        // Removed first: a client that comes now waits for the next host process.
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!(socket = %self.socket.display(), %error, "the socket cannot be removed");
        }
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

/// One client that said a good hello.
struct Client {
    hosts: Hosts,
    outbox: Outbox,
    controller: Option<Arc<Holder>>,
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: UnixStream, hosts: Hosts) {
        let Ok(peer) = stream.peer_cred() else { return };
        if !self.may_look(&peer) {
            tracing::warn!(uid = peer.uid(), gid = peer.gid(), pid = peer.pid(), "a stranger connected");
            return;
        }
        let (mut reader, writer, outbox) = connection::split(stream);
        let mut writing = tokio::spawn(writer.run());
        let hello = tokio::select! {
            hello = timeout(HELLO_LIMIT, reader.next::<ToServer>()) => hello,
            () = self.stop.cancelled() => return,
        };
        let Ok(Ok(Some((ToServer::Hello { version, role }, None)))) = hello else {
            tracing::warn!(pid = peer.pid(), "a client did not say hello");
            return;
        };
        match self.admit(version, role, &peer, &outbox) {
            Ok(controller) => {
                let welcome = ToClient::Welcome { status: hosts.status() };
                if send(&outbox, &welcome).await.is_ok() {
                    let client = Client { hosts, outbox, controller: controller.clone() };
                    let ended = self.converse(Arc::new(client), &mut reader, &mut writing).await;
                    tracing::info!(
                        pid = peer.pid(),
                        controller = controller.is_some(),
                        ended,
                        "client is gone"
                    );
                }
                if let Some(holder) = controller {
                    self.lease.give_back(&holder);
                }
            }
            Err(denied) => {
                tracing::warn!(pid = peer.pid(), %denied, "client sent away");
                let _ = send(&outbox, &ToClient::Denied(denied)).await;
                drop(outbox);
                // The writer ends when it has sent everything; it has a deadline of its own.
                let _ = writing.await;
            }
        }
    }

    fn may_look(&self, peer: &UCred) -> bool {
        peer.uid() == 0 || peer.uid() == self.allowed.uid || peer.gid() == self.allowed.gid
    }

    fn admit(
        &self,
        version: u32,
        role: Role,
        peer: &UCred,
        outbox: &Outbox,
    ) -> Result<Option<Arc<Holder>>, Denied> {
        if version != PROTOCOL_VERSION {
            return Err(Denied::Version { host: PROTOCOL_VERSION, client: version });
        }
        match role {
            Role::Observer => Ok(None),
            Role::Controller { take_over } => {
                if peer.uid() != 0 && peer.uid() != self.allowed.uid {
                    return Err(Denied::User { uid: peer.uid() });
                }
                let holder = Arc::new(Holder::new(peer.pid(), outbox.clone()));
                self.lease.take(&holder, take_over)?;
                tracing::info!(pid = peer.pid(), uid = peer.uid(), "controller connected");
                Ok(Some(holder))
            }
        }
    }

    /// Takes messages until the connection ends; says why.
    async fn converse(
        &self,
        client: Arc<Client>,
        reader: &mut Reader,
        writing: &mut JoinHandle<io::Result<()>>,
    ) -> &'static str {
        let requests = Arc::new(Semaphore::new(REQUESTS));
        let superseded = async {
            match &client.controller {
                Some(holder) => holder.superseded().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(superseded);
        let mut ends = Ends::of(&client.hosts);
        loop {
            let message = tokio::select! {
                message = timeout(SILENCE_LIMIT, reader.next::<ToServer>()) => message,
                () = &mut superseded => {
                    let _ = client.outbox.try_send(match Outgoing::new(&ToClient::Superseded) {
                        Ok(outgoing) => outgoing,
                        Err(_) => return "another controller took over",
                    });
                    return "another controller took over";
                }
                (vm, end) = ends.next(), if client.controller.is_some() => {
                    if send(&client.outbox, &ToClient::Ended { vm, end }).await.is_err() {
                        return "it takes no messages";
                    }
                    continue;
                }
                () = self.stop.cancelled() => return "the host process ends",
                _ = &mut *writing => return "it takes no messages",
            };
            match message {
                Err(_) => return "it was silent for too long",
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a client does not keep to the protocol");
                    return "it does not keep to the protocol";
                }
                Ok(Ok(None)) => return "it closed the connection",
                Ok(Ok(Some((ToServer::Request { id, request }, None)))) => {
                    if client.controller.is_none() && !request.only_looks() {
                        return "it only looks and asked for more";
                    }
                    let Ok(place) = Arc::clone(&requests).acquire_owned().await else {
                        return "the host process ends";
                    };
                    let client = Arc::clone(&client);
                    // Goes on when the client is gone: what was begun comes to its end.
                    self.tasks.spawn(async move {
                        client.answer(id, request).await;
                        drop(place);
                    });
                }
                Ok(Ok(Some((ToServer::Answer { id, result }, socket)))) => match &client.controller {
                    Some(holder) => holder.answered(id, result, socket),
                    None => return "it answered what nobody asked",
                },
                Ok(Ok(Some((ToServer::Hello { .. } | ToServer::Request { .. }, _)))) => {
                    return "it does not keep to the protocol";
                }
            }
        }
    }
}

/// Waits for room. An error means that the connection is gone.
async fn send(outbox: &Outbox, message: &ToClient) -> io::Result<()> {
    let outgoing = Outgoing::new(message)?;
    outbox.send(outgoing).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}
