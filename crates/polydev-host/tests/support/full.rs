//! Workspaces on a host whose disk gets full.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use polydev_core::ids::{UserId, VmId};
use polydev_host::{Host, HostError};
use rustix::{
    fs::statvfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use tokio::time::{sleep, timeout};

use super::machine::{Kind, Machine, browser, cli, new_id, run};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// Appends 240 MiB to a file, each piece on the disk before the next, and no faster than 20 MiB/s: the disk is that of
/// memory, and so small that its last quarter of the reserve would be gone between two looks. The shell ends once the
/// writer has a session of its own: what is left in the terminal's is ended with it.
const WRITER: &str = r#"cd && tr '\0' x </dev/zero | head -c 2M >piece
    setsid sh -c 'touch begun; for piece in $(seq 120); do
        dd if=piece of=large oflag=append conv=notrunc,fsync bs=2M 2>/dev/null || exit
        sleep 0.1
    done; touch done' </dev/null >/dev/null 2>&1 &
    while [ ! -e begun ]; do sleep 0.1; done"#;
/// Ends once all is there as it was written.
const WRITTEN: &str = "cd && while [ ! -e done ]; do sleep 0.1; done && sync
    [ $(stat -c %s large) = $((240 * 1048576)) ] && [ $(tr -d x <large | wc -c) = 0 ]";

/// A small disk for the data directory, gone with the test.
struct Small(PathBuf);

impl Small {
    fn at(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        mount("polydev-test", dir, "tmpfs", MountFlags::empty(), c"size=400m").unwrap();
        Self(dir.to_owned())
    }

    fn free(&self) -> u64 {
        let disk = statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

async fn until(what: &str, mut seen: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !seen().await {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

async fn runs(host: &Host, id: VmId) -> bool {
    host.list().await.unwrap().iter().any(|vm| vm.id == id && vm.running)
}

/// The only user's disk, and what it takes.
fn disk(machine: &Machine) -> u64 {
    let users = fs::read_dir(machine.config.data_dir.join("users")).unwrap();
    let taken = |dir: PathBuf| fs::metadata(dir.join("disk.ext4")).map_or(0, |it| it.blocks() * 512);
    users.flatten().map(|user| taken(user.path())).sum()
}

pub(crate) async fn a_workspace_that_fills_the_disk_stands_still_and_goes_on_when_there_is_room() {
    let Some(mut machine) = Machine::new(Kind::Container, 4) else { return };
    machine.config.resources.user_disk_bytes = 1 << 30;
    machine.config.resources.disk_reserve_bytes = 128 * MIB;
    let small = Small::at(&machine.config.data_dir);
    let ballast = machine.config.data_dir.join("ballast");
    fs::write(&ballast, vec![1; 160 << 20]).unwrap();
    let host = machine.host().await;
    let (user, other): (UserId, UserId) = ("someone".parse().unwrap(), "other".parse().unwrap());
    let (id, quiet) = (new_id(), new_id());
    let vm = host.create(cli(id, &user)).await.unwrap();
    let bystander = host.create(cli(quiet, &other)).await.unwrap();

    run(&vm, &["sh", "-c", WRITER]).await;
    until("it stands still", async || !runs(&host, id).await).await;
    assert!(small.free() > 8 * MIB, "the disk was not filled: {} MiB are free", small.free() / MIB);
    assert!(runs(&host, quiet).await, "who does not write is left alone");
    assert_eq!(run(&bystander, &["echo", "here"]).await.trim(), "here");
    for refused in
        [host.create(browser(new_id())).await, host.create(cli(new_id(), &"third".parse().unwrap())).await]
    {
        assert!(matches!(refused, Err(HostError::NoSpace { room: Some(_), .. })), "{refused:?}");
    }
    drop((vm, bystander, host));

    // The next manager finds it, connects, and has it stand still again: it still writes.
    let host = machine.host().await;
    drop(host.adopt(id).await.unwrap());
    drop(host.adopt(quiet).await.unwrap());
    until("it stands still again", async || !runs(&host, id).await).await;

    fs::remove_file(&ballast).unwrap();
    until("it goes on", async || runs(&host, id).await).await;
    let vm = host.adopt(id).await.unwrap();
    run(&vm, &["sh", "-c", WRITTEN]).await;
    for id in [id, quiet] {
        host.destroy(id).await.unwrap();
    }
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn vms_are_removed_from_a_disk_that_is_full() {
    let Some(mut machine) = Machine::new(Kind::Container, 4) else { return };
    machine.config.resources.user_disk_bytes = 1 << 30;
    machine.config.resources.disk_reserve_bytes = 0;
    let small = Small::at(&machine.config.data_dir);
    let host = machine.host().await;
    let (id, user) = (new_id(), "someone".parse().unwrap());
    drop(host.create(cli(id, &user)).await.unwrap());
    let mut ballast = fs::File::create(machine.config.data_dir.join("ballast")).unwrap();
    let filled = std::io::copy(&mut std::io::repeat(1), &mut ballast).unwrap_err();
    assert_eq!((filled.kind(), small.free()), (std::io::ErrorKind::StorageFull, 0));
    let refused = host.create(browser(new_id())).await;
    assert!(matches!(refused, Err(HostError::NoSpace { .. })), "{refused:?}");
    host.destroy(id).await.unwrap();
    assert!(host.list().await.unwrap().is_empty());
    drop(host);
    machine.assert_nothing_left();
}

pub(crate) async fn what_a_workspace_deletes_is_given_back_to_the_hosts_disk(kind: Kind) {
    let Some(machine) = Machine::new(kind, 2) else { return };
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(cli(id, &"someone".parse().unwrap())).await.unwrap();
    run(&vm, &["sh", "-c", "dd if=/dev/urandom of=$HOME/large bs=1M count=64 2>/dev/null && sync"]).await;
    let full = disk(&machine);
    assert!(full > 64 * MIB, "{full}");
    run(&vm, &["sh", "-c", "rm ~/large && sync"]).await;
    let began = Instant::now();
    until("it is given back", async || disk(&machine) < full - 60 * MIB).await;
    println!("{} MiB, then {} MiB after {:?}", full / MIB, disk(&machine) / MIB, began.elapsed());
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}
