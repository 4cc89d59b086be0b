//! Puts a user's VM to sleep on disk and wakes it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use polydev_core::ids::VmId;

use super::{
    FirecrackerDriver,
    guest::DATA_DISK,
    saved::{self, Saved},
};
use crate::{
    error::HostError,
    failpoint,
    firecracker::{
        ApiError, InstanceState,
        vmm::{Item, Vmm, VmmError},
    },
    host::VmKind,
    record::VmRecord,
};

impl FirecrackerDriver {
    /// Saves a VM and ends its process.
    pub(super) async fn save(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let saved = self.saved(vm.id);
        if vm.kind == VmKind::Browser {
            return Err(HostError::NotHibernatable { id: vm.id });
        }
        let failed = |detail: String| HostError::HibernateFailed { id: vm.id, detail };
        let vmm = match Vmm::adopt(self.home(vm.id, dir)).await {
            Ok(Some(vmm)) => vmm,
            Ok(None) if saved.is_whole() => return settle(&saved).await,
            Ok(None) => return Err(failed("it has ended".to_owned())),
            Err(error) => return Err(self.given_up(vm.id, dir, error).await?),
        };
        if saved.is_captured() {
            // An earlier manager got as far as this.
            return self.end_and_settle(vm.id, dir, &saved).await;
        }
        // While the VM runs: once it stands still and was captured, letting it go on may cost its connections.
        let what = format!("memory of VM {}", vm.id);
        let _room = self.places.room(&self.places.held(vm.id), u64::from(vm.memory_mib) << 20, &what)?;
        match self.capture(dir, &vmm, &saved).await {
            Ok(()) => self.end_and_settle(vm.id, dir, &saved).await,
            Err(Fault::Vmm(error)) if error.is_hung() || matches!(error, VmmError::Ended { .. }) => {
                Err(self.given_up(vm.id, dir, error).await?)
            }
            Err(fault) => {
                // What was written is of no use, and the space is: the VM runs on.
                saved.discard_capture().map_err(HostError::os("remove an unfinished capture"))?;
                if let Err(error) = vmm.resume().await {
                    return Err(self.given_up(vm.id, dir, error).await?);
                }
                Err(match fault {
                    Fault::Vmm(VmmError::Api { source, .. }) if source.is_no_space() => {
                        HostError::NoSpace { what: format!("memory of VM {}", vm.id), room: None }
                    }
                    Fault::Vmm(error) => failed(error.to_string()),
                    Fault::Host(error) => error,
                })
            }
        }
    }

    /// Lets a VM go on that sleeps, or whose manager died while it fell asleep or woke.
    pub(super) async fn wake(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let saved = self.saved(vm.id);
        let lost = |detail: String| HostError::MemoryLost { id: vm.id, detail };
        fs::create_dir_all(dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        match self.awake(vm, dir, &saved).await? {
            Awake::Runs => return Ok(()),
            Awake::Between => self.save(vm, dir).await?,
            Awake::No => {}
        }
        settle(&saved).await?;
        saved.base().map_err(lost)?;
        let (mut machine, mut items) = self.guest.machine(vm, dir, &self.places).await?;
        self.fit_out(&mut machine, vm.network);
        items.push(Item::write(saved::ITEM, saved.make().map_err(HostError::os("open saved memory"))?));
        failpoint::reach("firecracker/before-wake");
        let vmm = self
            .launch(vm.id, vm.slot.index(), (vm.vcpus, vm.memory_mib), dir, self.netns(vm), items)
            .await?;
        match vmm.load(&Saved::base_item(), &machine).await {
            Ok(()) => {}
            // It is what its checksum says, and still nothing that can be loaded.
            Err(VmmError::Api { source: ApiError::Fault { message, .. }, .. }) => {
                self.kill(vm.id, dir).await?;
                return Err(lost(message));
            }
            Err(error) => {
                self.kill(vm.id, dir).await?;
                return Err(error.of_step(vm.id, "load of saved memory"));
            }
        }
        failpoint::reach("firecracker/loaded");
        saved.use_up(dir).map_err(HostError::os("note that the VM runs"))?;
        failpoint::reach("firecracker/used-up");
        vmm.resume().await.map_err(|error| error.of_step(vm.id, "resume"))
    }

    /// What a process of a VM that is to wake does.
    async fn awake(&self, vm: &VmRecord, dir: &Path, saved: &Saved) -> Result<Awake, HostError> {
        let vmm = match Vmm::adopt(self.home(vm.id, dir)).await {
            Ok(None) => return Ok(Awake::No),
            Ok(Some(vmm)) => vmm,
            Err(error) => {
                tracing::warn!(vm.id = %vm.id, %error, "firecracker of a sleeping VM is killed");
                self.kill(vm.id, dir).await?;
                return Ok(Awake::No);
            }
        };
        let state = vmm.state().await.map_err(|error| error.of_step(vm.id, "look at its state"))?;
        if state == InstanceState::Running {
            return Ok(Awake::Runs);
        }
        // What sleeps on disk has not run since: the process is one that was being woken or ended.
        if state == InstanceState::NotStarted || saved.is_whole() {
            self.kill(vm.id, dir).await?;
            return Ok(Awake::No);
        }
        Ok(Awake::Between)
    }

    async fn capture(&self, dir: &Path, vmm: &Vmm, saved: &Saved) -> Result<(), Fault> {
        let os = |what: &str| HostError::os(format!("{what} of VM {}", vmm.home().id));
        saved.make().map_err(os("make the directory for the memory"))?;
        if vmm.state().await? == InstanceState::Running {
            vmm.pause().await?;
        }
        failpoint::reach("firecracker/paused");
        let disk = vmm.home().root().join(DATA_DISK);
        blocking(move || fs::File::open(disk)?.sync_all()).await.map_err(os("write out the disk"))?;
        // The jail's owner is the one who writes.
        let root = fs::metadata(vmm.home().root()).map_err(os("look at the directory"))?;
        let mut capture = saved.begin(dir, root.uid()).map_err(os("begin to save the memory"))?;
        failpoint::reach("firecracker/before-capture");
        if let Err(error) = vmm.capture(capture.kind, &capture.item()).await {
            let refused = matches!(&error, VmmError::Api { source: fault @ ApiError::Fault { .. }, .. } if !fault.is_no_space());
            if !refused {
                return Err(error.into());
            }
            tracing::warn!(vm.id = %vmm.home().id, %error, "changes cannot be saved; all of the memory is");
            capture = saved.begin_whole(root.uid()).map_err(os("begin to save the memory"))?;
            vmm.capture(capture.kind, &capture.item()).await?;
        }
        failpoint::reach("firecracker/captured");
        let complete = saved.clone();
        blocking(move || complete.complete(capture)).await.map_err(os("save the memory"))?;
        failpoint::reach("firecracker/capture-described");
        Ok(())
    }

    async fn end_and_settle(&self, id: VmId, dir: &Path, saved: &Saved) -> Result<(), HostError> {
        self.kill(id, dir).await?;
        failpoint::reach("firecracker/asleep");
        // The jail goes first: its links make a second name of the user's disk.
        self.home(id, dir).clear().map_err(HostError::os(format!("clear the directory of VM {id}")))?;
        settle(saved).await
    }

    /// A VMM of which nobody knows what it does is killed: what it held in memory is lost, its disk is not.
    async fn given_up(&self, id: VmId, dir: &Path, error: VmmError) -> Result<HostError, HostError> {
        tracing::warn!(vm.id = %id, %error, "firecracker is killed");
        self.kill(id, dir).await?;
        self.saved(id).discard().map_err(HostError::os("remove an unfinished capture"))?;
        Ok(HostError::HibernateFailed { id, detail: format!("{error}; its process was ended") })
    }
}

/// How far a VM is that is to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awake {
    /// It runs.
    Runs,
    /// It stands still and what it holds is nowhere else.
    Between,
    /// No process is left.
    No,
}

/// Why a VM was not captured.
enum Fault {
    Vmm(VmmError),
    Host(HostError),
}

impl From<VmmError> for Fault {
    fn from(error: VmmError) -> Self {
        Self::Vmm(error)
    }
}

impl From<HostError> for Fault {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

async fn settle(saved: &Saved) -> Result<(), HostError> {
    let saved = saved.clone();
    blocking(move || saved.settle()).await.map_err(HostError::os("settle the user's saved memory"))
}

/// Runs what may wait for a disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
