//! Snapshots of a browser VM whose desktop is up, and VMs that continue from them.
//!
//! A template is two files: the guest's memory, which every restored VM maps privately (so it never changes again),
//! and the state of the devices. What makes a VM one of its own is handed over after the restore.

use std::{
    cell::Cell,
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use polydev_core::{
    ids::VmId,
    wire::{Reply, Request},
};
use serde_json::json;
use tokio::time::sleep;

use super::{
    CHANNEL, QMP, QemuDriver,
    machine::{Machine, Memory},
    qmp::Qmp,
};
use crate::{
    agent::{AgentClient, AgentError, LinkOptions},
    driver::{
        Driver, SocketConnector,
        template::{self, Rest, remove},
    },
    egress::NoEgress,
    error::HostError,
    failpoint,
    host::{LogKind, VmKind},
    logs,
    net::Scratch,
    process::{self, ProcessId},
    record::VmRecord,
    snapshot::{DEVICES, MEMORY, check, describe},
};

/// Version of what a template depends on.
const SCHEMA: u32 = 3;
/// How long a desktop may take to show its first picture.
const PAINT_LIMIT: Duration = Duration::from_secs(400);
/// How the guest comes to rest afterwards.
const REST: Rest = Rest { limit: Duration::from_secs(60), interval: Duration::from_secs(3) };
const MIGRATE_LIMIT: Duration = Duration::from_secs(60);
/// How long the guest may take to see that nobody is connected any more.
const HANG_UP_LIMIT: Duration = Duration::from_secs(5);
/// Where Debian's package puts QEMU.
pub(super) const QEMU_FILE: &str = "/usr/bin/qemu-system-x86_64";

/// What has to be equal for a template to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
}

impl QemuDriver {
    /// The template for VMs of this size, if a whole one is there.
    pub(super) fn template(&self, size: &Size, initrd: &Path) -> Option<PathBuf> {
        let dir = self.template_dir(size, initrd);
        dir.exists().then(|| check(&dir)).and_then(|checked| match checked {
            Ok(_) => Some(dir),
            Err(reason) => {
                tracing::warn!(template = %dir.display(), reason, "template is damaged and not used");
                None
            }
        })
    }

    /// Makes the template unless a whole one is there.
    pub(super) async fn make_template(&self, size: &Size, desktop_px: (u16, u16)) -> Result<(), HostError> {
        let _one_at_a_time = self.making.lock().await;
        let initrd = self.initrd()?;
        let target = self.template_dir(size, &initrd);
        if check(&target).is_ok_and(|about| about.desktop_px == Some(desktop_px)) {
            return Ok(());
        }
        let _room = self.places.room(&target, u64::from(size.memory_mib) << 20, "a template")?;
        let began = Instant::now();
        let id = VmId::from_uuid(uuid::Uuid::new_v4());
        let run = self.places.vm(id);
        let fresh = target.with_extension("new");
        let make =
            |dir: &Path| fs::create_dir_all(dir).map_err(HostError::os(format!("make {}", dir.display())));
        remove(&fresh)?;
        make(&fresh)?;
        make(&run)?;
        let unfinished = Unfinished { id, instance: &self.places.instance, run: &run, fresh: &fresh };
        let saved = self.save(id, &run, size, desktop_px, &initrd, &fresh).await;
        let stopped = self.stop(id, &run).await;
        let stopped = match self.places.groups.remove(id).await {
            Ok(()) => stopped,
            Err(error) => stopped.and(Err(error)),
        };
        std::mem::forget(unfinished);
        remove(&run)?;
        let installed = saved.and(stopped).and_then(|()| {
            remove(&target)?;
            fs::rename(&fresh, &target).map_err(HostError::os(format!("make {}", target.display())))
        });
        if installed.is_err() {
            remove(&fresh)?;
        }
        installed?;
        template::forget_old(&target, |name| !name.starts_with(template::FIRECRACKER))?;
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(template = %target.display(), elapsed_ms, "template made");
        Ok(())
    }

    /// Starts a VM from a template. Its agent is where the template's was when it was saved.
    pub(super) async fn restore(
        &self,
        vm: &VmRecord,
        dir: &Path,
        size: &Size,
        initrd: &Path,
        template: &Path,
    ) -> Result<(), HostError> {
        let id = vm.id;
        let os = |what: &str| HostError::os(format!("{what} VM {id} from its template"));
        std::os::unix::fs::symlink(template.join(DEVICES), dir.join(DEVICES)).map_err(os("prepare"))?;
        let memory = Memory::Restored { file: &template.join(MEMORY) };
        let layers = self.layers(&VmKind::Browser)?;
        let netns = self.netns(vm);
        let machine = self.machine(size, initrd, &layers, None, memory);
        self.launch(id, dir, &Machine { netns: netns.as_deref(), ..machine }).await?;
        let load = async {
            let mut qmp = Qmp::connect(&dir.join(QMP), self.watch(id)).await?;
            ignore_shared(&mut qmp).await?;
            qmp.run("migrate-incoming", json!({ "uri": format!("exec:cat {DEVICES}") })).await?;
            qmp.migrated(MIGRATE_LIMIT).await?;
            failpoint::reach("qemu/restored");
            qmp.run("cont", json!({})).await.map(drop)
        };
        load.await.map_err(os("restore"))?;
        self.note_restored(id, dir, template).map_err(os("write the log of"))
    }

    /// QEMU says nothing of where a VM came from; its log is to.
    fn note_restored(&self, id: VmId, dir: &Path, template: &Path) -> io::Result<()> {
        let name = template.file_name().unwrap_or_default().to_string_lossy();
        let mut log = logs::open_append(&dir.join(LogKind::Driver.file_name()))?;
        writeln!(log, "restored from template {name}")?;
        tracing::info!(vm.id = %id, template = %name, "VM restored");
        Ok(())
    }

    /// Removes a template that does not work, and what its attempt left in a VM's run directory.
    pub(super) fn discard(&self, template: &Path, dir: &Path) -> Result<(), HostError> {
        remove(template)?;
        for name in [DEVICES, QMP, CHANNEL] {
            match fs::remove_file(dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(HostError::os(format!("remove {name} in {}", dir.display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn save(
        &self,
        id: VmId,
        run: &Path,
        size: &Size,
        desktop_px: (u16, u16),
        initrd: &Path,
        target: &Path,
    ) -> Result<(), HostError> {
        let memory = target.join(MEMORY);
        let layers = self.layers(&VmKind::Browser)?;
        let network = template::network(&self.places, self.network, id).await?;
        let machine = self.machine(size, initrd, &layers, None, Memory::Saved { file: &memory });
        let machine = Machine { netns: network.as_ref().map(Scratch::namespace), ..machine };
        self.launch(id, run, &machine).await?;
        let connector = Arc::new(SocketConnector::new(&self.places, id, run, run.join(CHANNEL)));
        let info = self.info();
        let options = LinkOptions::new(id, Arc::new(NoEgress), info.slow_factor);
        let failed = |source: AgentError| HostError::Identity { id, source };
        let agent = AgentClient::connect(connector, options, info.start_limit).await.map_err(failed)?;
        let painted = agent.paint(desktop_px, PAINT_LIMIT).await;
        if painted.is_err()
            && let Ok(Reply::Log { text }) = agent.request(Request::ReadLog { max_bytes: 4000 }).await
        {
            tracing::warn!(agent_log = text, "desktop of the template did not come up");
        }
        painted.map_err(failed)?;
        let processes = || process::of_vm(&self.places.instance, id).unwrap_or_default();
        REST.wait(id, || processes().into_iter().map(ProcessId::cpu_time).sum()).await;
        agent.request(Request::Quiesce).await.map_err(failed)?;
        drop(agent);
        let about = async {
            let mut qmp = Qmp::connect(&run.join(QMP), self.watch(id)).await?;
            hung_up(&mut qmp).await?;
            qmp.run("stop", json!({})).await?;
            ignore_shared(&mut qmp).await?;
            qmp.run("migrate", json!({ "uri": format!("exec:cat > {DEVICES}") })).await?;
            qmp.migrated(MIGRATE_LIMIT).await?;
            // The answer may be cut off by the end it asks for.
            let _ = qmp.run("quit", json!({})).await;
            for process in process::of_vm(&self.places.instance, id)? {
                process.ended(MIGRATE_LIMIT).await?;
            }
            fs::copy(run.join(DEVICES), target.join(DEVICES))?;
            describe(target, Some(desktop_px))
        };
        about.await.map_err(HostError::os("save the template"))
    }

    /// Tells again and again whether a VM has a process, with a look at the whole process table only until it has one.
    pub(super) fn watch(&self, id: VmId) -> impl Fn() -> bool + Send {
        let (instance, known) = (self.places.instance.clone(), Cell::<Option<ProcessId>>::new(None));
        move || {
            if known.get().is_some_and(ProcessId::alive) {
                return true;
            }
            known.set(process::of_vm(&instance, id).ok().and_then(|found| found.into_iter().next()));
            known.get().is_some()
        }
    }

    pub(super) fn has_process(&self, id: VmId) -> bool {
        process::of_vm(&self.places.instance, id).is_ok_and(|found| !found.is_empty())
    }

    fn template_dir(&self, size: &Size, initrd: &Path) -> PathBuf {
        // The initramfs is named after its content: agent, desktop, overlay and kernel modules.
        let layers = self.layers(&VmKind::Browser).unwrap_or_default();
        let key = json!([
            SCHEMA,
            self.image.id,
            layers.iter().map(|layer| &layer.sha256).collect::<Vec<_>>(),
            initrd.file_name().map(|name| name.to_string_lossy()),
            size.vcpus,
            size.memory_mib,
            self.network,
            // Another build of QEMU may lay its devices' state out differently.
            fs::metadata(QEMU_FILE).map(|file| (file.len(), file.mtime())).unwrap_or_default(),
        ]);
        self.places.data.join("templates").join(template::name(&key))
    }
}

/// A template that is being made. When nobody waits for it any more, because the controller ends, its VM ends too: unlike
/// other VMs it is of no use to the next controller.
struct Unfinished<'a> {
    id: VmId,
    instance: &'a str,
    run: &'a Path,
    fresh: &'a Path,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        for process in process::of_vm(self.instance, self.id).unwrap_or_default() {
            if let Err(error) = process.send_kill() {
                tracing::warn!(vm.id = %self.id, %error, "VM of an unfinished template cannot be killed");
            }
        }
        for dir in [self.run, self.fresh] {
            if let Err(error) = remove(dir) {
                tracing::warn!(%error, "unfinished template cannot be removed");
            }
        }
    }
}

/// Waits until nobody is connected to the agent's port.
async fn hung_up(qmp: &mut Qmp) -> io::Result<()> {
    let deadline = Instant::now() + HANG_UP_LIMIT;
    loop {
        let all = qmp.run("query-chardev", json!({})).await?;
        let agent = all.as_array().into_iter().flatten().find(|it| it["label"] == "agent");
        let connected =
            agent.and_then(|it| it["filename"].as_str()).is_some_and(|it| !it.starts_with("disconnected"));
        if !connected {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the agent's port stays connected"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ignore_shared(qmp: &mut Qmp) -> io::Result<()> {
    let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    qmp.run("migrate-set-capabilities", capability).await.map(drop)
}
