//! A machine whose host is reached over a socket, as another process would reach it.

use std::{
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use polydev_host::{
    HostError, NoEgress,
    remote::{Allowed, Lease, RemoteHost, RemoteOptions, Role, Server},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::leftovers;

#[path = "machine.rs"]
#[allow(dead_code, reason = "shared with other suites")]
mod own;

pub(crate) use own::{Kind, browser, cli, new_id, run};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Machine(own::Machine);

/// A controller's handle, and the host process that ends with it.
pub(crate) struct Controller {
    remote: RemoteHost,
    stop: CancellationToken,
    _process: JoinHandle<()>,
}

impl Machine {
    pub(crate) fn new(kind: Kind, slots: u8) -> Option<Self> {
        own::Machine::new(kind, slots).map(Self)
    }

    pub(crate) async fn host(&self) -> Controller {
        let socket = self.config.run_dir.with_file_name("host.sock");
        let lease = Lease::default();
        let server = self.bind(socket.clone(), &lease).await;
        let host = self.0.host_with(Arc::new(lease.egress())).await;
        let stop = CancellationToken::new();
        let process = tokio::spawn(server.run(host, stop.clone()));
        let options = RemoteOptions {
            socket,
            role: Role::Controller { take_over: false },
            egress_limits: Default::default(),
        };
        let remote = RemoteHost::connect(options, Arc::new(NoEgress), PATIENCE).await.unwrap();
        Controller { remote, stop, _process: process }
    }

    /// Waits for a former process to let go of the socket.
    async fn bind(&self, socket: PathBuf, lease: &Lease) -> Server {
        let me = Allowed { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let bound = async {
            loop {
                match Server::bind(&socket, me, lease.clone()) {
                    Ok(server) => return server,
                    Err(HostError::Held { .. }) => {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, bound).await.expect("the socket comes free")
    }
}

impl Deref for Machine {
    type Target = own::Machine;
    fn deref(&self) -> &own::Machine {
        &self.0
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut own::Machine {
        &mut self.0
    }
}

impl Deref for Controller {
    type Target = RemoteHost;
    fn deref(&self) -> &RemoteHost {
        &self.remote
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
