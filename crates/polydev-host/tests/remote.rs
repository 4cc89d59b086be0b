//! The host as a process of its own, over a real socket: who may drive it, what crosses it, what outlives it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/leftovers.rs"]
#[allow(dead_code, reason = "shared with other suites")]
mod leftovers;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "shared with other suites")]
mod machine;

use std::{
    collections::HashSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use machine::{Kind, Machine, browser, cli, new_id, run};
use polydev_core::{
    ids::{UserId, VmId},
    wire::EgressReply,
};
use polydev_host::{
    EgressHandler, EgressRefused, HostError, LogKind, NoEgress,
    driver::fake::FakeDriver,
    remote::{Allowed, Lease, RemoteHost, RemoteOptions, Role, Server},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
const DRIVES: Role = Role::Controller { take_over: false };

/// A host process in this one, with a fake driver whose VMs outlive it.
struct Process {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Stage {
    machine: Machine,
    driver: FakeDriver,
    socket: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let driver = FakeDriver::default();
        let machine = Machine::new(Kind::Fake(driver.clone()), 8).unwrap();
        let socket = machine.config.run_dir.with_file_name("host.sock");
        Self { machine, driver, socket }
    }

    async fn start(&self) -> Process {
        let me = Allowed { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let lease = Lease::default();
        let server = Server::bind(&self.socket, me, lease.clone()).unwrap();
        let host = self.machine.host_with(Arc::new(lease.egress())).await;
        let stop = CancellationToken::new();
        Process { task: tokio::spawn(server.run(host, stop.clone())), stop }
    }

    async fn connect(&self, role: Role) -> Result<RemoteHost, HostError> {
        self.connect_with(role, Arc::new(NoEgress)).await
    }

    async fn connect_with(&self, role: Role, egress: Arc<dyn EgressHandler>) -> Result<RemoteHost, HostError> {
        let options = RemoteOptions { socket: self.socket.clone(), role };
        RemoteHost::connect(options, egress, Duration::from_secs(2)).await
    }
}

impl Process {
    /// As kill -9 would: connections break off, nothing is put in order.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("the host process ends").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_made_used_and_removed_through_the_socket() {
    let stage = Stage::new();
    let process = stage.start().await;
    let host = stage.connect(DRIVES).await.unwrap();
    let id = new_id();
    let vm = host.create(browser(id)).await.unwrap();
    assert_eq!((vm.slot.index(), host.status().slots_used), (1, 1));
    assert_eq!(run(&vm, &["echo", "over there"]).await.trim(), "echo over there");
    assert!(!host.read_log(id, LogKind::Agent, 10_000).await.unwrap().is_empty());
    assert!(matches!(host.create(browser(id)).await, Err(HostError::AlreadyExists(it)) if it == id));
    host.destroy(id).await.unwrap();
    timeout(PATIENCE, vm.agent.closed()).await.expect("its connection ends");
    assert_eq!(host.status().slots_used, 0);
    assert!(host.list().await.unwrap().is_empty());
    assert!(!host.read_log(id, LogKind::Agent, 10_000).await.unwrap().is_empty(), "its last words are kept");
    process.end().await;
}
