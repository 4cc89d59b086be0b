//! The networks of all slots: taken, given back, made ahead, found again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use polydev_core::ids::Slot;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::{
    LinkKind, NetworkError,
    constants::{GUEST_SUFFIX, HIGH_MARK, LOW_MARK, NAMESPACES},
    gateway::{Gateway, Guest},
    link, namespace,
};

/// Pause after a network that could not be made ahead; who needs one meanwhile makes it, and gets the error.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

/// Handle to the networks; clones share them. Namespaces outlive it.
#[derive(Clone)]
pub struct Networks {
    inner: Arc<Inner>,
    _maker: Option<Arc<AbortOnDropHandle<()>>>,
}

struct Inner {
    dir: PathBuf,
    slots: u8,
    state: Mutex<State>,
    /// At most one network is made or removed at a time: for the kernel they are serial, too.
    work: tokio::sync::Mutex<()>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    /// Slots of VMs, some of them with their gateway.
    used: BTreeMap<Slot, Option<Gateway>>,
    /// Made ahead and untouched.
    ready: BTreeMap<Slot, LinkKind>,
    /// No VMs will come.
    closed: bool,
}

impl Networks {
    /// The networks below a run directory. Makes none before it is asked; see [`Networks::make_ahead`].
    pub fn open(run_dir: &Path, slots: u8) -> Self {
        let (state, work, wanted) = (Mutex::default(), tokio::sync::Mutex::default(), Notify::new());
        let inner = Inner { dir: run_dir.join(NAMESPACES), slots, state, work, wanted };
        if namespace::mounts_end_with_service() {
            tracing::warn!(
                "this service has mounts of its own: at its next start running VMs have lost their networks; take \
                 Private*=, Protect*= and *Paths= out of its unit"
            );
        }
        Self { inner: Arc::new(inner), _maker: None }
    }

    /// Notes a slot whose VM was found: its network stays as it is.
    pub fn note(&self, slot: Slot) {
        self.inner.state().used.entry(slot).or_default();
    }

    /// Keeps some networks of this kind ready from now on, the ones of the lowest free slots.
    pub fn make_ahead(&mut self, kind: LinkKind) {
        if let Err(error) = make_dir(&self.inner.dir) {
            tracing::warn!(%error, "no network can be made ahead");
        }
        // The task must not keep the networks alive.
        let networks = Arc::downgrade(&self.inner);
        let maker = tokio::spawn(async move {
            loop {
                let Some(inner) = networks.upgrade() else { return };
                let made = inner.fill(kind).await;
                if let Err(error) = made {
                    tracing::warn!(%error, "no network could be made ahead");
                    drop(inner);
                    tokio::time::sleep(FAILURE_PAUSE).await;
                    continue;
                }
                inner.wanted.notified().await;
            }
        });
        self._maker = Some(Arc::new(AbortOnDropHandle::new(maker)));
    }

    /// The slot's network, made unless one lies ready. One that a VM of before left is made anew.
    pub async fn take(&self, slot: Slot, kind: LinkKind) -> Result<(), NetworkError> {
        let ready = {
            let mut state = self.inner.state();
            state.used.insert(slot, None);
            state.ready.remove(&slot) == Some(kind)
        };
        self.inner.wanted.notify_one();
        if ready && namespace::is_named(&self.inner.path(slot)) {
            return Ok(());
        }
        self.inner.make(slot, kind).await
    }

    /// The slot's network as it is, or made where there is none.
    pub async fn keep(&self, slot: Slot, kind: LinkKind) -> Result<(), NetworkError> {
        if namespace::is_named(&self.inner.path(slot)) {
            self.note(slot);
            return Ok(());
        }
        self.take(slot, kind).await
    }

    /// Whether the slot's namespace has its name.
    pub fn is_named(&self, slot: Slot) -> bool {
        namespace::is_named(&self.inner.path(slot))
    }

    /// Gives the namespace of a VM that lives in it the slot's name, which was lost with an earlier manager's mounts.
    /// `link` is that of the VM's process; a container's leads to its own end, where nothing can be served.
    pub async fn name_again(&self, slot: Slot, link: &Path) -> Result<(), NetworkError> {
        let _alone = self.inner.work.lock().await;
        let path = self.inner.path(slot);
        if namespace::is_named(&path) {
            return Ok(());
        }
        namespace::name_of_process(link, &path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => NetworkError::NoNamespace { path },
            _ => NetworkError::os(format!("name a network namespace {}", path.display()))(error),
        })
    }

    /// Opens the slot's gateway for a VM, unless it is open. The network must be there.
    pub async fn serve(&self, slot: Slot, guest: Guest) -> Result<(), NetworkError> {
        if matches!(self.inner.state().used.get(&slot), Some(Some(_))) {
            return Ok(());
        }
        if !self.is_named(slot) {
            return Err(NetworkError::NoNamespace { path: self.inner.path(slot) });
        }
        let gateway = Gateway::open(&self.inner.path(slot), guest).await?;
        self.inner.state().used.insert(slot, Some(gateway));
        Ok(())
    }

    /// Takes a slot's network down, its name last, so that nothing of its VM survives. None is fine.
    pub async fn give_back(&self, slot: Slot) -> Result<(), NetworkError> {
        // With the gateway go its connections and its names.
        drop(self.inner.state().used.get_mut(&slot).map(Option::take));
        self.inner.remove(slot).await?;
        self.inner.state().used.remove(&slot);
        self.inner.wanted.notify_one();
        Ok(())
    }

    /// Removes what is there for slots that are neither used nor ready, and says its names.
    pub async fn sweep(&self) -> Result<Vec<String>, NetworkError> {
        let _alone = self.inner.work.lock().await;
        let kept: BTreeSet<Slot> = {
            let state = self.inner.state();
            state.used.keys().chain(state.ready.keys()).copied().collect()
        };
        let mut swept = Vec::new();
        for (path, slot) in names(&self.inner.dir)? {
            if slot.is_none_or(|slot| !kept.contains(&slot)) {
                unname(&path)?;
                swept.push(path.display().to_string());
            }
        }
        Ok(swept)
    }

    /// Removes what lies ready and makes nothing ahead any more.
    pub async fn close(&self) -> Result<Vec<String>, NetworkError> {
        {
            let mut state = self.inner.state();
            state.closed = true;
            state.ready.clear();
        }
        self.sweep().await
    }

    /// The file that names the slot's namespace.
    pub fn namespace(&self, slot: Slot) -> PathBuf {
        self.inner.path(slot)
    }

    /// How many lie ready.
    pub fn ready(&self) -> usize {
        self.inner.state().ready.len()
    }
}

impl Inner {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, slot: Slot) -> PathBuf {
        path(&self.dir, slot)
    }

    /// Makes networks until enough lie ready.
    async fn fill(&self, kind: LinkKind) -> Result<(), NetworkError> {
        if self.state().ready.len() >= LOW_MARK {
            return Ok(());
        }
        loop {
            let alone = self.work.lock().await;
            let slot = {
                let state = self.state();
                if state.closed || state.ready.len() >= HIGH_MARK {
                    return Ok(());
                }
                let free = |slot: &Slot| !state.used.contains_key(slot) && !state.ready.contains_key(slot);
                match (1..=self.slots).filter_map(Slot::new).find(free) {
                    Some(slot) => slot,
                    None => return Ok(()),
                }
            };
            replace(self.dir.clone(), slot, kind).await?;
            let mut state = self.state();
            // Taken meanwhile: whoever took it waits for its turn and makes one that nobody else saw.
            if !state.closed && !state.used.contains_key(&slot) {
                state.ready.insert(slot, kind);
            }
            drop(alone);
        }
    }

    async fn make(&self, slot: Slot, kind: LinkKind) -> Result<(), NetworkError> {
        let _alone = self.work.lock().await;
        make_dir(&self.dir)?;
        replace(self.dir.clone(), slot, kind).await
    }

    async fn remove(&self, slot: Slot) -> Result<(), NetworkError> {
        let _alone = self.work.lock().await;
        let dir = self.dir.clone();
        off_runtime(move || remove(&dir, slot)).await
    }
}

/// Removes all networks below a run directory whose host is gone for good, and their directory: without it a host that
/// is still about to end makes none ahead.
pub fn remove_all(run_dir: &Path) -> Result<(), NetworkError> {
    let dir = run_dir.join(NAMESPACES);
    loop {
        for (path, _) in names(&dir)? {
            unname(&path)?;
        }
        match fs::remove_dir(&dir) {
            // One more was made meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetworkError::os(format!("remove {}", dir.display()))(error));
            }
            _ => return Ok(()),
        }
    }
}

/// Makes a network of this kind and lets it go again: whether this process can.
pub async fn try_out(kind: LinkKind) -> Result<(), NetworkError> {
    off_runtime(move || link::make_nameless(kind)).await
}

/// Makes and removes one network after the other in `run_dir` and says how long each took to make.
pub async fn measure(run_dir: &Path, kind: LinkKind, rounds: usize) -> Result<Vec<Duration>, NetworkError> {
    let slot = Slot::new(1).expect("there is a first slot");
    let mut took = Vec::new();
    for _ in 0..rounds {
        let networks = Networks::open(run_dir, 1);
        let began = Instant::now();
        networks.take(slot, kind).await?;
        took.push(began.elapsed());
        networks.give_back(slot).await?;
    }
    Ok(took)
}

/// A network for a VM that has no slot, removed when this is dropped.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one with a TAP under a name of its own.
    pub(crate) async fn open(run_dir: &Path, name: &str) -> Result<Self, NetworkError> {
        let path = run_dir.join(NAMESPACES).join(name);
        let at = path.clone();
        off_runtime(move || {
            make_dir(at.parent().unwrap_or(&at))?;
            unname(&at)?;
            link::make_tap(0, &at)
        })
        .await?;
        Ok(Self { path })
    }

    pub(crate) fn namespace(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = namespace::unname(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "network cannot be removed");
        }
    }
}

/// The file that names a slot's namespace in the run directory of its host.
pub(crate) fn namespace_of(run_dir: &Path, slot: Slot) -> PathBuf {
    path(&run_dir.join(NAMESPACES), slot)
}

/// The file that names a container's own namespace.
pub(crate) fn guest_namespace_of(run_dir: &Path, slot: Slot) -> PathBuf {
    guest_path(&run_dir.join(NAMESPACES), slot)
}

fn path(dir: &Path, slot: Slot) -> PathBuf {
    dir.join(slot.index().to_string())
}

fn guest_path(dir: &Path, slot: Slot) -> PathBuf {
    dir.join(format!("{}{GUEST_SUFFIX}", slot.index()))
}

async fn replace(dir: PathBuf, slot: Slot, kind: LinkKind) -> Result<(), NetworkError> {
    off_runtime(move || {
        let (path, guest_path) = (path(&dir, slot), guest_path(&dir, slot));
        remove(&dir, slot)?;
        match kind {
            LinkKind::Tap => link::make_tap(slot.index(), &path),
            LinkKind::Veth => link::make_veth(&path, &guest_path),
        }
    })
    .await
}

/// The name of the slot's own namespace goes last: by it what is left of a removal that was cut short is found.
fn remove(dir: &Path, slot: Slot) -> Result<(), NetworkError> {
    unname(&guest_path(dir, slot))?;
    unname(&path(dir, slot))
}

fn unname(path: &Path) -> Result<(), NetworkError> {
    namespace::unname(path).map_err(NetworkError::os(format!("remove network namespace {}", path.display())))
}

fn make_dir(dir: &Path) -> Result<(), NetworkError> {
    fs::create_dir_all(dir).map_err(NetworkError::os(format!("make {}", dir.display())))
}

/// All names, containers' own namespaces first.
fn names(dir: &Path) -> Result<Vec<(PathBuf, Option<Slot>)>, NetworkError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(NetworkError::os(format!("read {}", dir.display())))?,
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let index = name.strip_suffix(GUEST_SUFFIX).unwrap_or(&name).parse().ok();
            (entry.path(), index.and_then(Slot::new))
        })
        .collect();
    found.sort_by_key(|(path, _)| path.extension().is_none());
    Ok(found)
}

async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    namespace::on_own_thread("slot-network", work).await.map_err(NetworkError::os("run a thread"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EgressLimits, NoEgress, egress::Accounts};
    use polydev_core::ids::VmId;
    use std::{
        process::{Child, Command},
        thread,
    };

    const LIMIT: Duration = Duration::from_secs(20);

    /// As a service with a mount namespace of its own would: makes a slot's network and starts a process in it.
    fn make_with_own_mounts(run_dir: &Path, slot: Slot) -> Child {
        use rustix::{
            mount::{MountPropagationFlags, mount_change},
            thread::{UnshareFlags, unshare_unsafe},
        };
        let manager = || {
            // SAFETY: only this thread's mounts and working directory become its own; no descriptors do.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let networks = Networks::open(run_dir, 1);
            runtime.block_on(networks.take(slot, LinkKind::Tap)).unwrap();
            assert!(networks.is_named(slot));
            let mut vm = Command::new("nsenter");
            vm.arg(format!("--net={}", networks.namespace(slot).display())).args(["--", "sleep", "600"]);
            vm.spawn().unwrap()
        };
        thread::scope(|scope| scope.spawn(manager).join().unwrap())
    }

    #[tokio::test]
    async fn a_name_that_went_with_a_managers_mounts_is_noticed_and_given_again() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return;
        }
        let (dir, slot) = (tempfile::tempdir().unwrap(), Slot::new(1).unwrap());
        let mut vm = make_with_own_mounts(dir.path(), slot);
        let name = format!("/proc/{}/comm", vm.id());
        let deadline = Instant::now() + LIMIT;
        while fs::read_to_string(&name).unwrap().trim() != "sleep" {
            assert!(Instant::now() < deadline, "it is not started");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }

        let next = Networks::open(dir.path(), 1);
        let id = VmId::from_uuid(uuid::Uuid::new_v4());
        let guest = || Guest {
            vm: id,
            handler: Arc::new(NoEgress),
            account: Accounts::new(EgressLimits::default()).of(id),
        };
        let result = async {
            assert!(next.namespace(slot).is_file(), "an empty file is left");
            let unnamed = next.serve(slot, guest()).await;
            let of_nobody = next.name_again(slot, Path::new("/proc/self/ns/net")).await;
            let link = format!("/proc/{}/ns/net", vm.id());
            next.name_again(slot, Path::new(&link)).await.unwrap();
            let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
            assert_eq!(inode(&next.namespace(slot)), inode(Path::new(&link)));
            next.serve(slot, guest()).await.unwrap();
            (unnamed, of_nobody)
        };
        let (unnamed, of_nobody) = result.await;
        next.give_back(slot).await.unwrap();
        vm.kill().unwrap();
        vm.wait().unwrap();
        assert!(matches!(unnamed, Err(NetworkError::NoNamespace { .. })), "{unnamed:?}");
        assert!(matches!(of_nobody, Err(NetworkError::NoNamespace { .. })), "{of_nobody:?}");
    }
}
