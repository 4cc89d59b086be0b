//! The Firecracker client: against recorded answers everywhere, and against the real program with a guest of some sixty
//! bytes where `POLYDEV_FIRECRACKER` names one.
//!
//! With `POLYDEV_FIRECRACKER_RECORD=1` the real run writes the recording anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/firecracker_tape.rs"]
mod tape;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use polydev_host::firecracker::{
    Action, Api, ApiError, Backend, BackendType, Balloon, BalloonTarget, BootSource, Drive, DriveLimits,
    Entropy, HugePages, InstanceState, LoadSnapshot, Logger, MachineConfig, Metrics, NetworkInterface,
    NetworkLimits, NetworkOverride, RateLimiter, Serial, SnapshotKind, TakeSnapshot, TokenBucket, VmState,
    Vsock, VsockOverride, check_version, toy,
};
use tape::{Player, Recorder, Tape};

const TAPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/firecracker-1.16.1.json");
/// Between two dots of the guest.
const TOY_ROUNDS: u32 = 20_000;
/// Made by Firecracker where it is root, gone with it.
const TAP: &str = "pdfctest0";
const LIMIT: Duration = Duration::from_secs(30);

/// Every call of a VM's life in the order in which they are legal: boot, pause, full and diff snapshot, resume.
async fn first_life(api: &Api) {
    assert_eq!(check_version(&api.version().await.unwrap()), Ok([1, 16, 1]));
    let info = api.info().await.unwrap();
    assert_eq!((info.id.as_str(), info.state), ("toy", InstanceState::NotStarted));
    api.logger(&Logger { log_path: "vmm.log".into(), level: "Info", show_level: true }).await.unwrap();
    api.metrics(&Metrics { metrics_path: "metrics".into() }).await.unwrap();
    api.serial(&Serial {
        serial_out_path: Some("serial".into()),
        rate_limiter: Some(TokenBucket { size: 1 << 20, refill_time: 1000 }),
    })
    .await
    .unwrap();
    let machine = MachineConfig {
        vcpu_count: 1,
        mem_size_mib: 64,
        smt: false,
        track_dirty_pages: true,
        huge_pages: HugePages::None,
    };
    let none = api.machine(&MachineConfig { vcpu_count: 0, ..machine.clone() }).await.unwrap_err();
    assert!(
        matches!(&none, ApiError::Fault { status: 400, message, .. } if message.contains("vCPUs")),
        "{none}"
    );
    api.machine(&machine).await.unwrap();
    assert_eq!(api.machine_now().await.unwrap(), machine);
    let boot = |kernel: &str| BootSource {
        kernel_image_path: kernel.into(),
        initrd_path: None,
        boot_args: "console=ttyS0 reboot=k panic=1".into(),
    };
    let missing = api.boot_source(&boot("nowhere")).await.unwrap_err();
    assert!(
        matches!(&missing, ApiError::Fault { message, .. } if message.contains("kernel file cannot be opened"))
    );
    api.boot_source(&boot("kernel")).await.unwrap();
    api.drive(&Drive {
        drive_id: "base".into(),
        path_on_host: "disk".into(),
        is_root_device: false,
        is_read_only: true,
        rate_limiter: Some(limiter(1 << 20)),
    })
    .await
    .unwrap();
    let iface = NetworkInterface {
        iface_id: "eth0".into(),
        host_dev_name: "tap with spaces".into(),
        guest_mac: "not an address".into(),
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    };
    assert!(matches!(api.network(&iface).await, Err(ApiError::Fault { status: 400, .. })));
    let iface = NetworkInterface {
        host_dev_name: TAP.into(),
        guest_mac: "06:00:c0:a8:64:02".into(),
        rx_rate_limiter: Some(limiter(1 << 20)),
        tx_rate_limiter: Some(limiter(1 << 20)),
        ..iface
    };
    api.network(&iface).await.unwrap();
    api.vsock(&Vsock { guest_cid: 3, uds_path: "v.sock".into() }).await.unwrap();
    api.entropy(&Entropy { rate_limiter: Some(limiter(64 << 10)) }).await.unwrap();
    api.balloon(&Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 }).await.unwrap();
    let early = api.set_state(VmState::Paused).await.unwrap_err();
    assert!(early.to_string().contains("before starting"), "{early}");

    api.action(Action::InstanceStart).await.unwrap();
    assert_eq!(api.info().await.unwrap().state, InstanceState::Running);
    let twice = api.action(Action::InstanceStart).await.unwrap_err();
    assert!(twice.to_string().contains("after starting"), "{twice}");
    let full = TakeSnapshot {
        snapshot_type: SnapshotKind::Full,
        snapshot_path: "full.state".into(),
        mem_file_path: "full.memory".into(),
    };
    assert!(
        matches!(api.take_snapshot(&full).await, Err(ApiError::Fault { .. })),
        "a running VM cannot be saved"
    );
    // The toy guest has no drivers.
    let inactive = api.inflate(BalloonTarget { amount_mib: 1 }).await.unwrap_err();
    assert!(inactive.to_string().contains("not activated"), "{inactive}");
    let told = api.balloon_stats().await.unwrap();
    assert_eq!((told.actual_mib, told.free_memory), (0, None), "its guest says nothing of its memory");
    api.set_state(VmState::Paused).await.unwrap();
    api.set_state(VmState::Paused).await.expect("it stands still already");
    assert_eq!(api.info().await.unwrap().state, InstanceState::Paused);
    api.take_snapshot(&full).await.unwrap();
    let diff = TakeSnapshot {
        snapshot_type: SnapshotKind::Diff,
        snapshot_path: "diff.state".into(),
        mem_file_path: "diff.memory".into(),
    };
    api.take_snapshot(&diff).await.unwrap();
    api.set_state(VmState::Resumed).await.unwrap();
    api.action(Action::FlushMetrics).await.unwrap();
}

/// The same VM in another process, on another socket.
async fn second_life(api: &Api) {
    // Standard output, as the driver has it.
    let rate_limiter = Some(TokenBucket { size: 1 << 18, refill_time: 1000 });
    api.serial(&Serial { serial_out_path: None, rate_limiter }).await.unwrap();
    api.load_snapshot(&LoadSnapshot {
        snapshot_path: "full.state".into(),
        mem_backend: Backend { backend_type: BackendType::File, backend_path: "full.memory".into() },
        track_dirty_pages: true,
        resume_vm: false,
        clock_realtime: true,
        network_overrides: vec![NetworkOverride { iface_id: "eth0".into(), host_dev_name: TAP.into() }],
        vsock_override: Some(VsockOverride { uds_path: "v2.sock".into() }),
    })
    .await
    .unwrap();
    assert_eq!(api.info().await.unwrap().state, InstanceState::Paused);
    let rate_limiter = Some(limiter(2 << 20));
    api.limit_drive(&DriveLimits { drive_id: "base".into(), rate_limiter }).await.unwrap();
    let limits = NetworkLimits {
        iface_id: "eth0".into(),
        rx_rate_limiter: rate_limiter,
        tx_rate_limiter: rate_limiter,
    };
    api.limit_network(&limits).await.unwrap();
    api.set_state(VmState::Resumed).await.unwrap();
    assert_eq!(api.info().await.unwrap().state, InstanceState::Running);
}

fn limiter(bytes_per_s: u64) -> RateLimiter {
    let bandwidth = TokenBucket { size: bytes_per_s, refill_time: 1000 };
    RateLimiter { bandwidth: Some(bandwidth), ops: None }
}

#[tokio::test]
async fn every_call_is_worded_as_recorded_and_every_answer_understood() {
    let tape = Tape::read(Path::new(TAPE));
    let dir = tempfile::tempdir().unwrap();
    for (life, name) in tape.lives.into_iter().zip(["one.sock", "two.sock"]) {
        let socket = dir.path().join(name);
        let player = Player::start(&socket, life);
        let api = Api::new(socket);
        if name == "one.sock" {
            first_life(&api).await
        } else {
            second_life(&api).await
        }
        player.all_played().await;
    }
}

#[tokio::test]
async fn a_call_to_nobody_and_a_call_that_hangs_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = Api::new(dir.path().join("nobody"));
    assert!(matches!(nobody.info().await, Err(ApiError::Connect { .. })));
    let socket = dir.path().join("mute");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let mute = Api::new(socket);
    let call = tokio::spawn(async move { mute.info().await });
    let (held, _) = listener.accept().await.unwrap();
    assert!(matches!(call.await.unwrap(), Err(ApiError::TimedOut { limit_ms: 3000, .. })));
    drop(held);
    let cut = Api::new(dir.path().join("mute"));
    let call = tokio::spawn(async move { cut.info().await });
    drop(listener.accept().await.unwrap());
    assert!(matches!(call.await.unwrap(), Err(ApiError::Broken { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vm_boots_is_saved_and_goes_on_in_another_process() {
    let Some(program) = std::env::var_os("POLYDEV_FIRECRACKER").map(PathBuf::from) else {
        println!("SKIPPED: POLYDEV_FIRECRACKER names no firecracker 1.16.1");
        return;
    };
    let dir = tempfile::Builder::new().prefix("pd-fc-").tempdir().unwrap();
    let place = dir.path();
    fs::write(place.join("kernel"), toy::elf(TOY_ROUNDS)).unwrap();
    fs::write(place.join("disk"), vec![0; 1 << 20]).unwrap();
    for name in ["vmm.log", "metrics", "serial"] {
        fs::write(place.join(name), "").unwrap();
    }
    let serial = |name: &str| fs::read_to_string(place.join(name)).unwrap();

    let vmm = Vmm::start(&program, place, "api1.sock");
    let recorder = Recorder::start(&place.join("r1.sock"), &place.join("api1.sock"));
    vmm.answers(&place.join("api1.sock")).await;
    first_life(&Api::new(place.join("r1.sock"))).await;
    until("the guest speaks", || serial("serial").starts_with(toy::BANNER)).await;
    until("the guest ticks", || serial("serial").ends_with("..")).await;
    let one = recorder.stop().await;
    drop(vmm);

    let vmm = Vmm::start(&program, place, "api2.sock");
    vmm.answers(&place.join("api2.sock")).await;
    let recorder = Recorder::start(&place.join("r2.sock"), &place.join("api2.sock"));
    let began = Instant::now();
    second_life(&Api::new(place.join("r2.sock"))).await;
    println!("loaded and running: {} ms", began.elapsed().as_millis());
    until("the restored guest goes on ticking", || serial("api2.sock.out").contains("..")).await;
    assert!(!serial("api2.sock.out").contains(toy::BANNER.trim()), "it goes on, it does not begin again");
    let two = recorder.stop().await;
    drop(vmm);

    let heard = Tape { lives: vec![one, two] };
    if std::env::var_os("POLYDEV_FIRECRACKER_RECORD").is_some() {
        heard.write(Path::new(TAPE));
    }
    assert_eq!(heard, Tape::read(Path::new(TAPE)), "the recording is what the real program says");
}

/// A Firecracker that ends with the test.
struct Vmm(Child);

impl Vmm {
    fn start(program: &Path, place: &Path, socket: &str) -> Self {
        let out =
            fs::File::options().create(true).append(true).open(place.join(format!("{socket}.out"))).unwrap();
        let mut command = Command::new(program);
        command.args(["--api-sock", socket, "--id", "toy", "--no-seccomp"]).current_dir(place);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Self(command.spawn().unwrap())
    }

    async fn answers(&self, socket: &Path) {
        Api::new(socket.to_owned()).ready(LIMIT, || true).await.unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
