//! Firecracker itself with the toy guest: what load and resume cost without any guest's own work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use polydev_host::firecracker::toy;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{Place, figure, ms};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const MEMORY_MIB: u32 = 256;

pub(super) async fn measure(rounds: usize) {
    let Some(program) = std::env::var_os("POLYDEV_FIRECRACKER").map(PathBuf::from) else {
        eprintln!("skipped: POLYDEV_FIRECRACKER names no firecracker");
        return;
    };
    let place = Place::new();
    let dir = place.dir();
    fs::write(dir.join("kernel"), toy::elf(20_000)).expect("a kernel");
    let vmm = Vmm::start(&program, dir, "first");
    vmm.put("/serial", json!({ "serial_out_path": vmm.serial })).await;
    vmm.put(
        "/machine-config",
        json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB, "track_dirty_pages": true }),
    )
    .await;
    vmm.put("/boot-source", json!({ "kernel_image_path": "kernel", "boot_args": "console=ttyS0" })).await;
    vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": "first.vsock" })).await;
    vmm.put("/entropy", json!({})).await;
    vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await;
    vmm.speaks(dir).await;
    vmm.call("PATCH", "/vm", json!({ "state": "Paused" })).await;
    let files = json!({ "snapshot_type": "Full", "snapshot_path": "s.vm", "mem_file_path": "s.mem" });
    vmm.put("/snapshot/create", files).await;
    drop(vmm);
    let (mut loads, mut totals) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let name = format!("r{round}");
        let began = Instant::now();
        let vmm = Vmm::start(&program, dir, &name);
        vmm.put("/serial", json!({ "serial_out_path": vmm.serial })).await;
        let load = json!({
            "snapshot_path": "s.vm",
            "mem_backend": { "backend_type": "File", "backend_path": "s.mem" },
            "track_dirty_pages": true, "resume_vm": true, "clock_realtime": true,
            "vsock_override": { "uds_path": format!("{name}.vsock") },
        });
        let loading = Instant::now();
        vmm.put("/snapshot/load", load).await;
        // The first one fills caches.
        if round > 0 {
            loads.push(ms(loading.elapsed()));
            totals.push(ms(began.elapsed()));
        }
        vmm.speaks(dir).await;
    }
    figure("firecracker toy: load + resume", "ms", &loads, None);
    figure("firecracker toy: exec -> resumed", "ms", &totals, None);
}

/// A Firecracker that ends with this value.
struct Vmm {
    child: Child,
    socket: PathBuf,
    serial: String,
}

impl Vmm {
    fn start(program: &Path, dir: &Path, name: &str) -> Self {
        let (socket, serial, log) =
            (format!("{name}.sock"), format!("{name}.serial"), dir.join(format!("{name}.log")));
        fs::write(dir.join(&serial), "").expect("a file");
        let out = fs::File::create(&log).expect("a log");
        let child = Command::new(program)
            .args(["--api-sock", &socket, "--id", name])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stderr(out.try_clone().expect("a log"))
            .stdout(out)
            .spawn()
            .expect("firecracker");
        Self { child, socket: dir.join(socket), serial }
    }

    async fn put(&self, path: &str, body: Value) {
        self.call("PUT", path, body).await;
    }

    async fn call(&self, method: &str, path: &str, body: Value) {
        let call = async {
            let mut stream = loop {
                match UnixStream::connect(&self.socket).await {
                    Ok(stream) => break stream,
                    Err(_) => sleep(LOOK_AGAIN).await,
                }
            };
            let body = body.to_string();
            let length = body.len();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).await.expect("a call");
            let mut answer = vec![0; 4096];
            let length = stream.read(&mut answer).await.expect("an answer");
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        let answer = timeout(LIMIT, call).await.expect("an answer in time");
        assert!(answer.starts_with("HTTP/1.1 204"), "{method} {path}: {answer}");
    }

    /// Waits for the guest's next words.
    async fn speaks(&self, dir: &Path) {
        let began = Instant::now();
        while fs::metadata(dir.join(&self.serial)).map_or(0, |it| it.len()) == 0 {
            assert!(began.elapsed() < LIMIT, "the guest is silent");
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
