//! Snapshots of a browser VM whose desktop is up, and VMs that continue from them.
//!
//! boot ─▶ paint the desktop ─▶ wait for rest ─▶ quiesce ─▶ hang up ─▶ pause ─▶ capture ─▶ describe ─▶ end. A VM maps the
//! memory file privately, so it never changes again; what makes the VM one of its own is handed over afterwards. The
//! sequence has been run with a guest without an operating system only: no machine was at hand whose KVM runs Linux.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use polydev_core::{
    ids::{Slot, VmId},
    wire::Request,
};

use super::{FirecrackerDriver, TEMPLATE_SLOT, hibernate::blocking, unusable};
use crate::{
    agent::{AgentClient, AgentError, LinkOptions},
    driver::{
        Driver,
        template::{self, Rest, remove},
    },
    egress::NoEgress,
    error::HostError,
    failpoint,
    firecracker::{
        ApiError, SnapshotKind, jail,
        vmm::{Item, VmmError},
    },
    host::VmKind,
    process,
    record::{VmRecord, VmState},
    snapshot::{self, DEVICES, MEMORY, check, describe},
};

/// Version of what a template depends on.
const SCHEMA: u32 = 1;
/// How the VMM names the template it continues from, and the one it is made into.
const TEMPLATE: &str = "template";
const MADE: &str = "made";
/// How long a desktop may take to show its first picture.
const PAINT_LIMIT: Duration = Duration::from_secs(90);
/// How the guest comes to rest afterwards.
const REST: Rest = Rest { limit: Duration::from_secs(30), interval: Duration::from_secs(1) };

impl FirecrackerDriver {
    /// Starts a browser VM from a template, if a whole one is there and works. Without, nothing is left of the attempt.
    pub(super) async fn restore(&self, vm: &VmRecord, dir: &Path) -> Result<bool, HostError> {
        let template = self.template_dir(vm.vcpus, vm.memory_mib).await?;
        match template.exists().then(|| check(&template)) {
            None => return Ok(false),
            Some(Ok(_)) => {}
            Some(Err(reason)) => {
                tracing::warn!(template = %template.display(), reason, "template is damaged and not used");
                return Ok(false);
            }
        }
        let (mut machine, mut items) = self.guest.machine(vm, dir, &self.places).await?;
        self.fit_out(&mut machine, vm.network);
        items.push(Item::read(TEMPLATE, &template));
        let vmm = self
            .launch(vm.id, vm.slot.index(), (vm.vcpus, vm.memory_mib), dir, self.netns(vm), items)
            .await?;
        // The limits are those the template was made with: they are part of its name.
        let error = match vmm.load_and_run(TEMPLATE, &machine).await {
            Ok(()) => {
                let name = template.file_name().unwrap_or_default().to_string_lossy();
                tracing::info!(vm.id = %vm.id, template = %name, "VM restored");
                return Ok(true);
            }
            Err(error) => error,
        };
        tracing::warn!(vm.id = %vm.id, %error, "restore failed; booting instead");
        self.kill(vm.id, dir).await?;
        if matches!(error, VmmError::Api { source: ApiError::Fault { .. }, .. }) {
            remove(&template)?;
        }
        Ok(false)
    }

    /// Makes the template unless a whole one is there.
    pub(super) async fn make_template(
        &self,
        vcpus: u8,
        memory_mib: u32,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError> {
        let _one_at_a_time = self.making.lock().await;
        let target = self.template_dir(vcpus, memory_mib).await?;
        if check(&target).is_ok_and(|about| about.desktop_px == Some(desktop_px)) {
            return Ok(());
        }
        let began = Instant::now();
        let _room = self.places.room(&target, u64::from(memory_mib) << 20, "a template")?;
        let vm = self.template_vm(vcpus, memory_mib);
        let (run, fresh) = (self.places.vm(vm.id), target.with_extension("new"));
        let unfinished = Unfinished { driver: self, id: vm.id, run: &run, fresh: &fresh };
        for dir in [&fresh, &run] {
            remove(dir)?;
            fs::create_dir_all(dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        }
        let captured = self.paint_and_capture(&vm, &run, &fresh, desktop_px).await;
        let ended = match self.kill(vm.id, &run).await {
            Ok(()) => self.places.groups.remove(vm.id).await,
            Err(error) => Err(error),
        };
        captured.and(ended)?;
        failpoint::reach("firecracker/template-captured");
        let described = fresh.clone();
        blocking(move || describe(&described, Some(desktop_px)))
            .await
            .map_err(HostError::os("save the template"))?;
        remove(&target)?;
        fs::rename(&fresh, &target).map_err(HostError::os(format!("make {}", target.display())))?;
        drop(unfinished);
        template::forget_old(&target, |name| name.starts_with(template::FIRECRACKER))?;
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(template = %target.display(), elapsed_ms, "template made");
        Ok(())
    }

    async fn paint_and_capture(
        &self,
        vm: &VmRecord,
        run: &Path,
        fresh: &Path,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError> {
        let id = vm.id;
        let (mut machine, mut items) = self.guest.boot(vm, run, &self.places).await?;
        self.fit_out(&mut machine, vm.network);
        items.push(Item::write(MADE, fresh));
        let step = |step: &'static str| move |error: VmmError| error.of_step(id, step);
        let network = template::network(&self.places, vm.network, id).await?;
        let netns = network.as_ref().map(|network| network.namespace().to_owned());
        let vmm = self.launch(id, TEMPLATE_SLOT, (vm.vcpus, vm.memory_mib), run, netns, items).await?;
        vmm.boot(&machine).await.map_err(step("boot of a template"))?;
        let info = self.info();
        let options = LinkOptions::new(id, std::sync::Arc::new(NoEgress), info.slow_factor);
        let failed = |source: AgentError| HostError::Identity { id, source };
        let agent =
            AgentClient::connect(self.connector(id, run), options, info.start_limit).await.map_err(failed)?;
        agent.paint(desktop_px, PAINT_LIMIT).await.map_err(failed)?;
        REST.wait(id, || vmm.cpu_time()).await;
        agent.request(Request::Quiesce).await.map_err(failed)?;
        // Connections do not outlive a capture.
        drop(agent);
        vmm.pause().await.map_err(step("pause of a template"))?;
        let uid =
            fs::metadata(vmm.home().root()).map_err(HostError::os("look at the template's directory"))?.uid();
        jail::hand_over(fresh, uid).map_err(HostError::os("make the template's directory"))?;
        // Every change since the boot is known: what was never written to takes no space.
        vmm.capture(SnapshotKind::Diff, MADE).await.map_err(step("capture of a template"))?;
        jail::take_back(fresh, &[DEVICES, MEMORY]).map_err(HostError::os("take over the template"))
    }

    /// The VM that a template is made of; nobody's, and in no slot.
    fn template_vm(&self, vcpus: u8, memory_mib: u32) -> VmRecord {
        VmRecord {
            schema: VmRecord::SCHEMA,
            id: VmId::from_uuid(uuid::Uuid::new_v4()),
            kind: VmKind::Browser,
            slot: Slot::new(1).expect("slots begin at 1"),
            driver: super::NAME.to_owned(),
            image: String::new(),
            vcpus,
            memory_mib,
            hostname: "template".to_owned(),
            phase: Default::default(),
            state: VmState::Warm,
            boot_id: Some(process::boot_id().to_owned()),
            process: None,
            identity: None,
            network: self.network,
        }
    }

    async fn template_dir(&self, vcpus: u8, memory_mib: u32) -> Result<PathBuf, HostError> {
        let program = self.firecracker.get().await.map_err(|error| unusable(&error))?;
        let key = serde_json::json!([
            SCHEMA,
            self.guest.key(&self.places)?,
            vcpus,
            memory_mib,
            self.config.limits(),
            self.network,
            // A snapshot is loaded by the build that made it, on the CPU it was made on.
            program.version,
            program.stamp(),
            cpu_model(),
        ]);
        Ok(self.places.data.join("templates").join(format!(
            "{}{}",
            template::FIRECRACKER,
            template::name(&key)
        )))
    }
}

/// A template that is being made. When nobody waits for it any more its VM ends, too: it is of no use to anybody.
struct Unfinished<'a> {
    driver: &'a FirecrackerDriver,
    id: VmId,
    run: &'a Path,
    fresh: &'a Path,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let clear = || -> std::io::Result<()> {
            for process in self.driver.home(self.id, self.run).processes()? {
                process.send_kill()?;
            }
            jail::clear(self.run)?;
            self.driver.guest.forget(self.id);
            snapshot::remove(self.run)?;
            snapshot::remove(self.fresh)
        };
        if let Err(error) = clear() {
            tracing::warn!(vm.id = %self.id, %error, "what a template was made of cannot be removed");
        }
    }
}

fn cpu_model() -> String {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let wanted = ["vendor_id", "cpu family", "model\t", "stepping", "flags"];
    // Of the first processor.
    let first = all.split("\n\n").next().unwrap_or_default();
    first.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect()
}
