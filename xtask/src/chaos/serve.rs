//! A manager for the suite: a host behind a line of JSON on a unix socket.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use polydev_core::wire::{FileGet, FilePut, Identity, Reply, Request, files::FileBytes};
use polydev_host::{
    CreateVm, DriverChoice, FirecrackerConfig, Host, HostConfig, HostError, NetworkChoice, NoEgress, VmKind,
    WarmPlan, driver::chaos::ProcessDriver,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Notify,
};

use super::caller::{Answer, Ask, Listed, Status};

const MARKER: &str = ".config/chaos.txt";
const RUN_LIMIT_MS: u64 = 30_000;
const DESKTOP_PX: (u16, u16) = (1280, 800);

/// What the manager's process is told by a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) driver: String,
    pub(super) socket: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) run_dir: PathBuf,
    pub(super) image_dir: PathBuf,
    pub(super) guest_dir: PathBuf,
    pub(super) slots: u8,
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
    pub(super) tap: bool,
}

impl Config {
    fn warm(&self, high: usize) -> WarmPlan {
        let (vcpus, memory_mib) = (self.vcpus, self.memory_mib);
        WarmPlan { low: high, high, vcpus, memory_mib, desktop_px: DESKTOP_PX }
    }
}

struct Manager {
    host: Host,
    config: Config,
    end: Notify,
}

pub(super) fn serve(file: &Path) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let config: Config = serde_json::from_slice(&text).context("read the manager's configuration")?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    runtime.block_on(async {
        let host = open(&config).await.context("open the host")?;
        // The one before was killed and could not remove it.
        let _ = std::fs::remove_file(&config.socket);
        let listener = UnixListener::bind(&config.socket).context("listen")?;
        let manager = Arc::new(Manager { host, config, end: Notify::new() });
        let mut lines = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.context("accept")?;
                    lines.spawn(Arc::clone(&manager).line(stream));
                }
                () = manager.end.notified() => break,
            }
        }
        // With the last of them goes the host, which then takes along what it holds for VMs to come.
        lines.shutdown().await;
        Ok(())
    })
}

/// `POLYDEV_FIRECRACKER` names the program; its jailer lies beside it.
fn firecracker() -> FirecrackerConfig {
    match std::env::var_os("POLYDEV_FIRECRACKER").map(std::path::PathBuf::from) {
        Some(program) => FirecrackerConfig {
            jailer: program.with_file_name("jailer"),
            program,
            ..FirecrackerConfig::default()
        },
        None => FirecrackerConfig::default(),
    }
}

async fn open(config: &Config) -> Result<Host, HostError> {
    let driver = match config.driver.as_str() {
        "container" => DriverChoice::Container,
        "qemu" => DriverChoice::Qemu,
        "firecracker" => DriverChoice::FirecrackerToy,
        _ => DriverChoice::Auto,
    };
    let host_config = HostConfig {
        driver,
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        image_dir: config.image_dir.clone(),
        agent_path: config.guest_dir.join("polydev-agent"),
        desktop_path: config.guest_dir.join("polydev-desktop"),
        overlay_dir: None,
        slots: config.slots,
        log_bytes_max: 1 << 20,
        log_vms_max: 10,
        keep_failed: false,
        network: if config.tap { NetworkChoice::Tap } else { NetworkChoice::Channel },
        egress_limits: polydev_host::EgressLimits::default(),
        resources: Default::default(),
        capacity: None,
        firecracker: firecracker(),
    };
    if config.driver == "fake" {
        let driver = ProcessDriver::new(&host_config)?;
        return Host::with_driver(host_config, Arc::new(NoEgress), Arc::new(driver));
    }
    Host::open(host_config, Arc::new(NoEgress)).await
}

impl Manager {
    async fn line(self: Arc<Self>, mut stream: UnixStream) {
        let (reader, mut writer) = stream.split();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = match serde_json::from_str(&line) {
                Ok(ask) => match self.answer(ask).await {
                    Ok(value) => Answer::Done(value),
                    Err(error) => Answer::Refused(format!("{error:#}")),
                },
                Err(error) => Answer::Refused(error.to_string()),
            };
            let mut line = serde_json::to_vec(&answer).unwrap_or_default();
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Result<Value> {
        let host = &self.host;
        Ok(match ask {
            Ask::Create { id, user } => {
                let kind = user.map_or(VmKind::Browser, |user| VmKind::Cli { user });
                let (vcpus, memory_mib) = (self.config.vcpus, self.config.memory_mib);
                let create = CreateVm { id, kind, vcpus, memory_mib, identity: Identity::of(id, "vm") };
                json!(host.create(create).await?.slot)
            }
            Ask::Draw => json!(host.draw(&VmKind::Browser, self.config.vcpus, self.config.memory_mib).await),
            Ask::Hibernate { id } => json!(host.hibernate(id).await?),
            Ask::Resume { id } => json!(host.resume(id).await?.memory_lost),
            Ask::Destroy { id } => json!(host.destroy(id).await?),
            Ask::List => {
                let listed = host.list().await?.into_iter().map(|vm| Listed {
                    id: vm.id,
                    slot: vm.slot,
                    running: vm.running,
                });
                json!(listed.collect::<Vec<_>>())
            }
            Ask::Reclaim { wanted } => {
                let report = host.reclaim(&wanted.into_iter().collect::<HashSet<_>>()).await?;
                json!(report.destroyed)
            }
            Ask::Put { id, text } => {
                let file = FilePut {
                    path: MARKER.to_owned(),
                    mode: 0o600,
                    data: FileBytes::new(text.into_bytes()),
                    merge_json: Vec::new(),
                };
                host.adopt(id).await?.agent.request(Request::PutFiles { files: vec![file] }).await?;
                Value::Null
            }
            Ask::Get { id } => {
                let files = vec![FileGet { path: MARKER.to_owned(), optional: true }];
                match host.adopt(id).await?.agent.request(Request::GetFiles { files }).await? {
                    Reply::Files { files } => {
                        json!(files.first().map(|file| String::from_utf8_lossy(&file.data.0).into_owned()))
                    }
                    other => anyhow::bail!("unexpected reply {other:?}"),
                }
            }
            Ask::Ping { id } => {
                let argv = vec!["cat".to_owned(), "/proc/sys/kernel/random/boot_id".to_owned()];
                let run = Request::Run { argv, env: Default::default(), timeout_ms: RUN_LIMIT_MS };
                match host.adopt(id).await?.agent.request(run).await? {
                    Reply::Ran { exit_code: 0, stdout, .. } => json!(stdout.trim()),
                    other => anyhow::bail!("unexpected reply {other:?}"),
                }
            }
            Ask::Prepare => {
                json!(host.prepare_templates(self.config.vcpus, self.config.memory_mib, DESKTOP_PX).await?)
            }
            Ask::Warm { high } => {
                host.set_warm(self.config.warm(high));
                Value::Null
            }
            Ask::End => {
                self.end.notify_one();
                Value::Null
            }
            Ask::Drain => json!(host.drain().await?),
            Ask::Status => json!(Status { slots_used: host.status().slots_used }),
        })
    }
}
