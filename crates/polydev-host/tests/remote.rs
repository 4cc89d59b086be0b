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
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use machine::{Kind, Machine, browser, cli, new_id, run};
use polydev_core::{
    ids::{UserId, VmId},
    wire::{EgressReply, Request},
};
use polydev_host::{
    DriverChoice, EgressHandler, EgressRefused, HostConfig, HostError, LogKind, NoEgress, Vm,
    driver::fake::FakeDriver,
    remote::{
        Allowed, ControllerEgress, Hold, Hosts, Lease, PROTOCOL_VERSION, RemoteHost, RemoteOptions, Role,
        Server,
    },
};
use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use sha2::{Digest, Sha256};
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
    egress: ControllerEgress,
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
        self.start_for(me()).await
    }

    async fn start_for(&self, allowed: Allowed) -> Process {
        let lease = Lease::default();
        let server = Server::bind(&self.socket, allowed, lease.clone()).unwrap();
        let host = self.machine.host_with(Arc::new(lease.egress())).await;
        Process::of(server, host, &lease)
    }

    async fn connect(&self, role: Role) -> Result<RemoteHost, HostError> {
        self.connect_with(role, Arc::new(NoEgress)).await
    }

    async fn connect_with(
        &self,
        role: Role,
        egress: Arc<dyn EgressHandler>,
    ) -> Result<RemoteHost, HostError> {
        let options = RemoteOptions { socket: self.socket.clone(), role, egress_limits: Default::default() };
        RemoteHost::connect(options, egress, Duration::from_secs(2)).await
    }
}

/// A host process and the controller that drives it.
struct Driven {
    stage: Stage,
    process: Process,
    host: RemoteHost,
}

impl Driven {
    async fn start() -> Self {
        Self::start_with(Arc::new(NoEgress)).await
    }

    async fn start_with(egress: Arc<dyn EgressHandler>) -> Self {
        let stage = Stage::new();
        let process = stage.start().await;
        let host = stage.connect_with(DRIVES, egress).await.unwrap();
        Self { stage, process, host }
    }

    async fn browser(&self) -> (VmId, Vm) {
        let id = new_id();
        (id, self.host.create(browser(id)).await.unwrap())
    }
}

fn me() -> Allowed {
    Allowed { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
}

impl Process {
    fn of(server: Server, hosts: impl Into<Hosts>, lease: &Lease) -> Self {
        let (stop, hosts) = (CancellationToken::new(), hosts.into());
        let task = tokio::spawn(server.run(hosts, stop.clone()));
        Self { egress: lease.egress(), stop, task }
    }

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
    let driven = Driven::start().await;
    let (id, vm) = driven.browser().await;
    let Driven { stage: _stage, process, host } = driven;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_process_takes_no_connection_and_no_vm_with_it() {
    let driven = Driven::start().await;
    let (id, vm) = driven.browser().await;
    let Driven { stage, process, host } = driven;
    process.kill().await;

    assert_eq!(
        run(&vm, &["echo", "direct"]).await.trim(),
        "echo direct",
        "the agent's connection is its own"
    );
    let away = host.list().await.unwrap_err();
    assert!(matches!(away, HostError::Unavailable { .. }), "{away}");
    assert!(matches!(host.ready(), Err(HostError::Unavailable { .. })));

    let process = stage.start().await;
    let seen = until(|| async { host.list().await.ok() }).await;
    assert_eq!(seen.iter().map(|vm| (vm.id, vm.running)).collect::<Vec<_>>(), [(id, true)]);
    // A connection that breaks off is dialled anew by the new process.
    stage.driver.drop_connection(id);
    let echo = Request::Run { argv: vec!["echo".into()], env: Default::default(), timeout_ms: 10_000 };
    // One that was under way on the old connection fails.
    until(|| async { vm.agent.request(echo.clone()).await.ok() }).await;
    host.destroy(id).await.unwrap();
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_ends_while_the_host_process_is_away_is_noticed_afterwards() {
    let driven = Driven::start().await;
    let (id, vm) = driven.browser().await;
    let Driven { stage, process, host } = driven;
    process.kill().await;
    stage.driver.kill(id);
    stage.driver.drop_connection(id);
    let process = stage.start().await;
    timeout(PATIENCE, vm.agent.closed()).await.expect("the end is noticed");
    host.destroy(id).await.unwrap();
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_dies_leaves_its_vms_to_the_next_one() {
    let Driven { stage, process, host: first } = Driven::start().await;
    let (kept, unwanted) = (new_id(), new_id());
    let user: UserId = "someone".parse().unwrap();
    drop(first.create(cli(kept, &user)).await.unwrap());
    drop(first.create(browser(unwanted)).await.unwrap());
    drop(first);

    let second = stage.connect(DRIVES).await.expect("the place of a controller that is gone is free");
    assert_eq!(second.reclaim(&HashSet::from([kept])).await.unwrap().destroyed, [unwanted]);
    let vm = second.adopt(kept).await.unwrap();
    assert_eq!(run(&vm, &["echo", "still here"]).await.trim(), "echo still here");
    assert!(matches!(second.adopt(unwanted).await, Err(HostError::NoSuchVm(id)) if id == unwanted));
    second.destroy(kept).await.unwrap();
    second.remove_user_disk(&user).await.unwrap();
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_controllers_one_drives_and_the_other_is_told() {
    let driven = Driven::start().await;
    let (id, _) = driven.browser().await;
    let Driven { stage, process, host: first } = driven;

    let refused = stage.connect(DRIVES).await.err().expect("the place is taken");
    assert!(refused.to_string().contains("another controller"), "{refused}");

    let second = stage.connect(Role::Controller { take_over: true }).await.unwrap();
    let reason = timeout(PATIENCE, first.closed()).await.expect("the first one is told");
    assert!(reason.contains("another controller"), "{reason}");
    assert!(
        matches!(first.destroy(id).await, Err(HostError::Unavailable { .. })),
        "it drives nothing any more"
    );
    let vm = second.adopt(id).await.unwrap();
    assert_eq!(run(&vm, &["echo", "mine"]).await.trim(), "echo mine");
    second.destroy(id).await.unwrap();
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_may_look_and_none_of_them_may_do_more() {
    let driven = Driven::start().await;
    let (id, _) = driven.browser().await;
    let Driven { stage, process, host: controller } = driven;
    for _ in 0..3 {
        let looks = stage.connect(Role::Observer).await.unwrap();
        assert_eq!(looks.list().await.unwrap().len(), 1);
        assert_eq!(looks.status().slots_used, 1);
        assert!(matches!(looks.destroy(id).await, Err(HostError::Unavailable { .. })));
    }
    assert_eq!(controller.list().await.unwrap().len(), 1);
    controller.destroy(id).await.unwrap();
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_learns_that_a_vm_stands_still_and_that_it_goes_on() {
    let mut stage = Stage::new();
    stage.machine.config.resources.disk_reserve_bytes = 1 << 20;
    let process = stage.start().await;
    let host = stage.connect(DRIVES).await.unwrap();
    let (id, user): (VmId, UserId) = (new_id(), "someone".parse().unwrap());
    let _vm = host.create(cli(id, &user)).await.unwrap();
    let mut paused = host.paused();
    assert!(paused.borrow_and_update().is_empty());

    // The fake driver makes no disk; it grows all the same until that is noticed.
    let digest = Sha256::digest(user.as_str());
    let name: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = stage.machine.config.data_dir.join("users").join(name);
    fs::create_dir_all(&dir).unwrap();
    let mut disk = fs::File::create(dir.join("disk.ext4")).unwrap();
    stage.driver.set_disk_free(Some(0));
    let growing = async {
        while !paused.borrow().contains(&id) {
            disk.write_all(&[1; 64 << 10]).unwrap();
            let _ = timeout(Duration::from_millis(20), paused.changed()).await;
        }
    };
    timeout(PATIENCE, growing).await.expect("it is told that the VM stands still");
    assert!(host.status().paused.contains(&id));

    stage.driver.set_disk_free(None);
    let goes_on = timeout(PATIENCE, paused.wait_for(|paused| !paused.contains(&id))).await;
    assert!(goes_on.expect("it is told that the VM goes on").is_ok());
    host.destroy(id).await.unwrap();
    process.end().await;
}

/// Answers everything with one service of this machine.
struct To(std::net::SocketAddr);

#[async_trait]
impl EgressHandler for To {
    async fn connect(&self, _: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        if host != "allowed.example" {
            return Err(EgressRefused::Policy(format!("{host}:{port}")));
        }
        TcpStream::connect(self.0).await.map_err(|error| EgressRefused::Unreachable(error.to_string()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_makes_the_connections_of_vms_and_hands_them_over() {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = To(service.local_addr().unwrap());
    let driven = Driven::start_with(Arc::new(far)).await;
    let Driven { stage, process, host: controller } = driven;
    let egress = process.egress.clone();
    // Of the host process, as the sockets of a slot's namespace use it.
    let id = new_id();
    let refused = egress.connect(id, "elsewhere.example", 443).await.unwrap_err();
    assert_eq!(refused, EgressRefused::Policy("elsewhere.example:443".into()));
    for round in 0..20u8 {
        let (near, accepted) = tokio::join!(egress.connect(id, "allowed.example", 443), service.accept());
        let (mut near, (mut there, _)) = (near.unwrap(), accepted.unwrap());
        near.write_all(&[round]).await.unwrap();
        assert_eq!(there.read_u8().await.unwrap(), round);
        drop(near);
        assert!(there.read_u8().await.is_err(), "the controller keeps no copy of the socket");
    }
    // Of a VM whose egress comes over its agent's connection.
    let vm = controller.create(browser(id)).await.unwrap();
    let (asked, accepted) = tokio::join!(stage.driver.egress(id, "allowed.example", 443), service.accept());
    let (reply, mut near) = asked.unwrap();
    assert_eq!(reply, EgressReply::Connected);
    let (mut there, _) = accepted.unwrap();
    near.write_all(b"question").await.unwrap();
    there.read_exact(&mut [0; 8]).await.unwrap();
    there.write_all(b"answer").await.unwrap();
    near.read_exact(&mut [0; 6]).await.unwrap();
    // The host process has not seen any of it, its figures tell it all the same.
    let used = until(|| async {
        let figures = controller.figures().await.unwrap();
        figures.vms.iter().find(|(vm, _)| *vm == id).map(|(_, usage)| usage.network)
    });
    let used = used.await;
    assert_eq!((used.connections, used.bytes_up, used.bytes_down), (1, 8, 6));
    controller.end_connections(id).await.unwrap();
    let ended = timeout(PATIENCE, near.read(&mut [0; 1])).await.expect("the VM's connection goes on");
    assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes == 0));
    assert_eq!(timeout(PATIENCE, there.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    drop((near, there, vm));
    controller.destroy(id).await.unwrap();

    drop(controller);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_the_connection_it_came_on_and_nothing_else() {
    let Driven { stage, process, host: controller } = Driven::start().await;
    let hello = hello(r#""observer""#);
    let request = framed(br#"{"request":{"id":1,"request":"list"}}"#);
    let pieces: [Vec<u8>; 8] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        framed(b"not json"),
        framed(br#"{"request":{"id":1,"request":"list"}}"#),
        framed(br#"{"hello":{"version":99,"role":"observer"}}"#),
        [hello.clone(), vec![0, 0, 0, 1, 9, 0]].concat(),
        [hello.clone(), request.clone(), framed(br#"{"request":{"id":2,"request":"reboot"}}"#)].concat(),
        [hello.clone(), request, framed(br#"{"answer":{"id":1,"result":{"Ok":null}}}"#)].concat(),
    ];
    for piece in pieces {
        let shown = String::from_utf8_lossy(&piece).into_owned();
        let socket = stage.socket.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // The other side may have hung up half way.
            let _ = stream.write_all(&piece);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        });
        assert!(ended.await.unwrap(), "the connection is closed after {shown:?}");
    }
    assert!(controller.list().await.unwrap().is_empty(), "the controller is still served");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_host_process_is_refused_and_a_dead_ones_socket_is_replaced() {
    let stage = Stage::new();
    let process = stage.start().await;
    let me = Allowed { uid: 0, gid: 0 };
    let second = Server::bind(&stage.socket, me, Lease::default()).err().expect("it is refused");
    let words = second.to_string();
    assert!(words.contains(&format!("in use by process {}", std::process::id())), "{words}");
    assert!(words.contains("SIGTERM"), "{words}");
    process.kill().await;
    assert!(stage.socket.exists(), "a killed process leaves its socket");
    let process = stage.start().await;
    drop(stage.connect(DRIVES).await.unwrap());
    process.end().await;
    assert!(!stage.socket.exists());
}

#[tokio::test]
async fn a_run_directory_has_one_host_whatever_socket_it_listens_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = Hold::of_run_dir(dir.path()).unwrap();
    let refused = Hold::of_run_dir(dir.path()).unwrap_err();
    assert!(
        matches!(refused, HostError::Held { pid: Some(pid), .. } if pid.unsigned_abs() == std::process::id())
    );
    drop(first);
    Hold::of_run_dir(dir.path()).expect("it is free again");
}

mod container {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_host_process_without_an_image_says_so_and_takes_one_as_soon_as_it_is_there() {
        let stage = Stage::new();
        let images = stage.socket.with_file_name("images");
        let config = HostConfig {
            image_dir: images.clone(),
            driver: DriverChoice::Container,
            ..stage.machine.config.clone()
        };
        let lease = Lease::default();
        let server = Server::bind(&stage.socket, me(), lease.clone()).unwrap();
        let hosts = Hosts::open(config, Arc::new(lease.egress())).await.unwrap();
        let process = Process::of(server, hosts, &lease);
        let host = stage.connect(DRIVES).await.unwrap();
        let missing = |error: HostError| matches!(error, HostError::ImageMissing { .. });
        assert!(missing(host.ready().unwrap_err()));
        assert!(missing(host.create(browser(new_id())).await.unwrap_err()));
        assert_eq!((host.status().driver.as_str(), host.status().slots_total), ("none", 8));
        assert!(host.figures().await.unwrap().vms.is_empty());

        let real = PathBuf::from(
            std::env::var_os("POLYDEV_IMAGE_DIR").unwrap_or("/var/cache/polydev/images".into()),
        );
        if let Some(why) = machine::missing(&Kind::Container) {
            println!("SKIPPED: no image to install: {why}");
            return process.end().await;
        }
        fs::create_dir(&images).unwrap();
        std::os::unix::fs::symlink(fs::canonicalize(real.join("current")).unwrap(), images.join("current"))
            .unwrap();
        until(|| async { host.ready().ok() }).await;
        assert_eq!(host.status().driver, "container");
        let id = new_id();
        let vm = host.create(browser(id)).await.unwrap();
        assert_eq!(run(&vm, &["echo", "here"]).await.trim(), "here");
        host.destroy(id).await.unwrap();
        process.end().await;
    }
}

/// Says hello as another user and returns what the host process answers; `None` where it hangs up.
fn hello_as(socket: &Path, uid: u32, gid: u32, role: &str) -> Option<String> {
    let hello = hello(role);
    let socket = socket.to_owned();
    // Users are a thread's, and this one ends as what it has become.
    let asked = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&hello).ok()?;
        let mut prefix = [0; 5];
        stream.read_exact(&mut prefix).ok()?;
        let mut body = vec![0; u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize];
        stream.read_exact(&mut body).ok()?;
        String::from_utf8(body).ok()
    });
    asked.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_named_user_drives_its_group_looks_and_strangers_are_hung_up_on() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: needs root to be other users");
    }
    const DRIVER: u32 = 64_001;
    const GROUP: u32 = 64_002;
    const STRANGER: u32 = 64_003;
    const CONTROLLER: &str = r#"{"controller":{"take_over":false}}"#;
    const OBSERVER: &str = r#""observer""#;
    let stage = Stage::new();
    // The test's directory is its user's alone.
    fs::set_permissions(stage.socket.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let process = stage.start_for(Allowed { uid: DRIVER, gid: GROUP }).await;
    let ask = async |uid, gid, role: &'static str| {
        let socket = stage.socket.clone();
        tokio::task::spawn_blocking(move || hello_as(&socket, uid, gid, role)).await.unwrap()
    };
    let mode = fs::metadata(&stage.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(ask(STRANGER, STRANGER, OBSERVER).await, None, "the file's mode keeps strangers off");
    // Without that the process itself does.
    fs::set_permissions(&stage.socket, fs::Permissions::from_mode(0o666)).unwrap();
    for role in [OBSERVER, CONTROLLER] {
        assert_eq!(ask(STRANGER, STRANGER, role).await, None);
    }
    let welcome = ask(DRIVER, GROUP, CONTROLLER).await.unwrap();
    assert!(welcome.starts_with(r#"{"welcome""#), "{welcome}");
    let looks = ask(STRANGER, GROUP, OBSERVER).await.unwrap();
    assert!(looks.starts_with(r#"{"welcome""#), "{looks}");
    let denied = ask(STRANGER, GROUP, CONTROLLER).await.unwrap();
    assert_eq!(denied, format!(r#"{{"denied":{{"user":{{"uid":{STRANGER}}}}}}}"#));
    process.end().await;
}

fn hello(role: &str) -> Vec<u8> {
    framed(format!(r#"{{"hello":{{"version":{PROTOCOL_VERSION},"role":{role}}}}}"#).as_bytes())
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[..], &[0], body].concat()
}

/// Tries until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, found).await.expect("it comes about in time")
}
