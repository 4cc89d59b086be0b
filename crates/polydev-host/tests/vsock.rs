//! The agent behind a real vsock, as under Firecracker: QEMU's guest end, and a program that gives it Firecracker's
//! unix socket (`vhost-device-vsock`, named by `POLYDEV_VHOST_VSOCK` or in `PATH`).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/leftovers.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod leftovers;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod machine;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{
    guest::{VSOCK_OPTION, VSOCK_PORT},
    wire::{Identity, Reply, Request},
};
use polydev_host::{AgentClient, ByteStream, Connector, HostConfig, LinkOptions, NoEgress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

const PROGRAM: &str = "vhost-device-vsock";
const LIMIT: Duration = Duration::from_secs(180);

mod qemu {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_agent_on_a_vsock_says_hello_takes_its_identity_and_meets_a_second_host() {
        super::an_agent_on_a_vsock_says_hello_takes_its_identity_and_meets_a_second_host().await;
    }
}

async fn an_agent_on_a_vsock_says_hello_takes_its_identity_and_meets_a_second_host() {
    let Some(machine) = machine::Machine::new(machine::Kind::Qemu, 1) else { return };
    let Some(program) = program() else {
        println!("SKIPPED: no {PROGRAM} in PATH, none named by POLYDEV_VHOST_VSOCK");
        return;
    };
    let dir = tempfile::Builder::new().prefix("pd-v-").tempdir_in("/tmp").unwrap();
    let vsock = Command::new(program)
        .args(["--guest-cid", "3", "--socket", "vhost.sock", "--uds-path", "v.sock"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.path().join("vsock.log")).unwrap())
        .spawn();
    let _vsock = Ended(vsock.unwrap());
    appears(&dir.path().join("vhost.sock")).await;
    let _qemu = Ended(boot(dir.path(), &machine.config));

    let connect = async || {
        let connector = Arc::new(Vsock { socket: dir.path().join("v.sock") });
        let options = LinkOptions::new(machine::new_id(), Arc::new(NoEgress), 6);
        AgentClient::connect(connector, options, LIMIT).await
    };
    let agent = match connect().await {
        Ok(agent) => agent,
        Err(error) => {
            let console = fs::read_to_string(dir.path().join("console.log")).unwrap_or_default();
            panic!("{error}\n{console}");
        }
    };
    let identity = Identity {
        hostname: "on-vsock".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        unix_time_ms: 1_800_000_000_000,
        entropy: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(),
        env: Default::default(),
        egress: false,
    };
    assert_eq!(agent.request(Request::Identify(identity)).await.unwrap(), Reply::Done);
    assert_eq!(output(&agent, &["cat", "/etc/machine-id"]).await, "0123456789abcdef0123456789abcdef\n");
    // Another connection takes over, as after a manager's end.
    let second = connect().await.expect("the listener survives a connection");
    assert_eq!(output(&second, &["cat", "/proc/sys/kernel/hostname"]).await, "on-vsock\n");
}

async fn output(agent: &AgentClient, argv: &[&str]) -> String {
    let argv = argv.iter().map(|it| (*it).to_owned()).collect();
    match agent.request(Request::Run { argv, env: Default::default(), timeout_ms: 60_000 }).await.unwrap() {
        Reply::Ran { exit_code: 0, stdout, .. } => stdout,
        other => panic!("{other:?}"),
    }
}

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("POLYDEV_VHOST_VSOCK").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(PROGRAM))).find(|it| it.is_file())
}

/// Starts the golden image's smallest system, with the channel on a vsock.
fn boot(dir: &Path, config: &HostConfig) -> Child {
    let image = config.image_dir.join("current");
    let about: serde_json::Value =
        serde_json::from_slice(&fs::read(image.join("image.json")).unwrap()).unwrap();
    let layers = about["layers"].as_array().unwrap();
    let base = layers.iter().find(|it| it["name"] == "base").unwrap()["path"].as_str().unwrap();
    let base = fs::canonicalize(image.join(base)).unwrap();
    fs::create_dir(dir.join("initrd")).unwrap();
    fs::copy(&config.agent_path, dir.join("initrd/init")).unwrap();
    let agent = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(dir.join("initrd"))
        .stdin(list(dir, "init\n"))
        .output()
        .unwrap();
    assert!(agent.status.success(), "{agent:?}");
    let mut initrd = fs::read(image.join(about["modules_cpio"].as_str().unwrap())).unwrap();
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(agent.stdout);
    fs::write(dir.join("initrd.cpio"), initrd).unwrap();

    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    // The vsock's other end reads the guest's memory, so that is shared.
    qemu.args(["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "Nehalem"]);
    qemu.args(["-smp", "2", "-m", "512M", "-object", "memory-backend-memfd,id=memory,size=512M,share=on"]);
    qemu.args([
        "-chardev",
        "socket,id=vsock,path=vhost.sock",
        "-device",
        "vhost-user-vsock-pci,chardev=vsock",
    ]);
    qemu.args(["-serial", "file:console.log", "-initrd", "initrd.cpio", "-kernel"]);
    qemu.arg(image.join(about["kernel"]["vmlinux"].as_str().unwrap()));
    qemu.arg("-drive")
        .arg(format!("if=none,id=base,format=raw,readonly=on,file.locking=off,file={}", base.display()));
    qemu.args(["-device", "virtio-blk-pci,drive=base,serial=base", "-append"]);
    qemu.arg(format!(
        "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check polydev.layers=base polydev.upper=tmpfs {VSOCK_OPTION}"
    ));
    qemu.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    qemu.spawn().unwrap()
}

fn list(dir: &Path, names: &str) -> fs::File {
    fs::write(dir.join("names"), names).unwrap();
    fs::File::open(dir.join("names")).unwrap()
}

async fn appears(path: &Path) {
    let there = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, there).await.expect("the socket appears");
}

/// Ends a process with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Firecracker's protocol: a line names the guest's port, another one answers.
struct Vsock {
    socket: PathBuf,
}

#[async_trait]
impl Connector for Vsock {
    async fn dial(&self) -> io::Result<Box<dyn ByteStream>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
        let mut answer = String::new();
        while !answer.ends_with('\n') {
            answer.push(char::from(stream.read_u8().await?));
        }
        if answer.starts_with("OK ") { Ok(Box::new(stream)) } else { Err(io::Error::other(answer)) }
    }

    fn alive(&self) -> bool {
        true
    }
}
