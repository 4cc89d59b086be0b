//! The host as a process of its own, which may be killed and started again under the controller.

use std::{path::PathBuf, sync::Arc, time::Duration};

use polydev_host::{
    EgressHandler, Host, HostConfig,
    driver::fake::FakeDriver,
    remote::{Allowed, Lease, RemoteHost, RemoteOptions, Role, Server},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A host over a socket.
pub(crate) struct HostApart {
    config: HostConfig,
    driver: FakeDriver,
    socket: PathBuf,
    process: Option<JoinHandle<()>>,
}

impl HostApart {
    pub(crate) fn start(config: HostConfig, driver: FakeDriver) -> Self {
        let socket = config.run_dir.with_file_name("host.sock");
        let mut apart = Self { config, driver, socket, process: None };
        apart.start_again();
        apart
    }

    pub(crate) fn start_again(&mut self) {
        let allowed =
            Allowed { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let lease = Lease::default();
        let server = Server::bind(&self.socket, allowed, lease.clone()).unwrap();
        let driver = Arc::new(self.driver.clone());
        let host = Host::with_driver(self.config.clone(), Arc::new(lease.egress()), driver).unwrap();
        self.process = Some(tokio::spawn(server.run(host, CancellationToken::new())));
    }

    pub(crate) async fn connect(&self, egress: Arc<dyn EgressHandler>) -> RemoteHost {
        let options = RemoteOptions {
            socket: self.socket.clone(),
            role: Role::Controller { take_over: false },
            egress_limits: self.config.egress_limits,
        };
        RemoteHost::connect(options, egress, CONNECT_LIMIT).await.unwrap()
    }

    /// As kill -9 would: connections break off, VMs stay.
    pub(crate) async fn kill(&mut self) {
        let process = self.process.take().expect("it is killed once");
        process.abort();
        let _ = process.await;
    }
}
