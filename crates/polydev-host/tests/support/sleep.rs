//! CLI VMs that are put to sleep and woken.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use polydev_core::{
    ids::{UserId, VmId},
    wire::{FileGet, FilePut, PROTOCOL_VERSION, Reply, Request, files::FileBytes, pty::PtyFrame},
};
use polydev_host::{HostError, NetworkChoice, PtyStream, Vm};
use tokio::time::timeout;

use super::{
    leftovers,
    machine::{Kind, Machine, browser, cli, new_id, run, starts},
};

fn someone() -> UserId {
    "someone".parse().unwrap()
}

pub(crate) async fn a_vm_that_slept_goes_on_with_its_shell_and_scrollback(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 4) else { return };
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(cli(id, &someone())).await.unwrap();
    let real = !matches!(kind, Kind::Fake(_));
    if real {
        let mut pty = shell(&vm).await;
        pty.send(PtyFrame::Data(b"kept=alive; echo before-$((40+2))\n".to_vec())).await.unwrap();
        shows(&machine, &mut pty, "before-42\r\n").await;
    }
    for round in ["first", "second"] {
        let began = Instant::now();
        host.hibernate(id).await.unwrap();
        println!("{round} hibernate: {} ms", began.elapsed().as_millis());
        timeout(machine.patience(), vm.agent.closed())
            .await
            .expect("nobody is connected to a VM that sleeps");
        host.hibernate(id).await.expect("it sleeps already");
        assert_eq!(host.status().hibernated, 1);
        assert_eq!(host.status().slots_used, 1, "it keeps its place");
        let seen = host.list().await.unwrap();
        assert!(seen.len() == 1 && !seen[0].running, "{seen:?}");

        let began = Instant::now();
        let resumed = host.resume(id).await.unwrap();
        println!("{round} resume: {} ms", began.elapsed().as_millis());
        assert_eq!(resumed.memory_lost, None);
        assert_eq!(resumed.vm.slot, vm.slot);
        assert_eq!(host.status().hibernated, 0);
        let vm = resumed.vm;
        if real {
            assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), id.as_uuid().simple().to_string());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let guest: u64 = run(&vm, &["date", "+%s"]).await.trim().parse().unwrap();
            assert!(guest.abs_diff(now) <= 5, "guest clock {guest}, host {now}");
            let mut pty = shell(&vm).await;
            shows(&machine, &mut pty, "before-42\r\n").await;
            pty.send(PtyFrame::Data(format!("echo {round}-$kept\n").into_bytes())).await.unwrap();
            shows(&machine, &mut pty, &format!("{round}-alive\r\n")).await;
        }
    }
    assert_eq!((starts(&host, "new", "total"), starts(&host, "woken", "wake")), (1, 2));
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn a_vm_that_sleeps_survives_its_manager_and_can_be_destroyed(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let host = machine.host().await;
    let id = new_id();
    drop(host.create(cli(id, &someone())).await.unwrap());
    assert!(
        matches!(host.hibernate(new_id()).await, Err(HostError::NoSuchVm(_))),
        "there is nothing of this id to put to sleep"
    );
    host.hibernate(id).await.unwrap();
    drop(host);

    let host = machine.host().await;
    assert_eq!((host.status().hibernated, host.status().slots_used), (1, 1));
    let vm = host.adopt(id).await.expect("whoever connects to it wakes it");
    assert_eq!(run(&vm, &["echo", "awake"]).await.trim().trim_start_matches("echo "), "awake");
    host.hibernate(id).await.unwrap();
    let other = host.create(cli(new_id(), &someone())).await;
    assert!(matches!(other, Err(HostError::DiskInUse { by }) if by == id), "its disk stays its own");
    let began = Instant::now();
    host.destroy(id).await.unwrap();
    println!("destroy asleep: {} ms", began.elapsed().as_millis());
    assert_eq!((host.status().hibernated, host.status().slots_used), (0, 0));
    assert!(matches!(host.resume(id).await, Err(HostError::NoSuchVm(gone)) if gone == id));
    leftovers::assert_none("VM", || leftovers::of_vm(&id.to_string()));
    drop((vm, host));
    assert!(!held(&machine, id).exists());
    machine.assert_nothing_left();
}

pub(crate) async fn memory_that_is_lost_is_reported_and_the_vm_starts_from_its_disk(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 4) else { return };
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(cli(id, &someone())).await.unwrap();
    let file = FilePut {
        path: ".config/kept.txt".to_owned(),
        mode: 0o600,
        data: FileBytes::new(b"FAKE content".to_vec()),
        merge_json: Vec::new(),
    };
    vm.agent.request(Request::PutFiles { files: vec![file] }).await.unwrap();
    host.hibernate(id).await.unwrap();
    match &kind {
        Kind::Fake(driver) => driver.damage_memory(id),
        Kind::Container => machine.crash(id),
        Kind::Qemu => {
            let state = held(&machine, id).join("state");
            let mut bytes = fs::read(&state).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            fs::write(&state, bytes).unwrap();
        }
    }
    let resumed = host.resume(id).await.unwrap();
    println!("reported: {:?}", resumed.memory_lost);
    assert!(resumed.memory_lost.is_some(), "the loss is told");
    let wanted = vec![FileGet { path: ".config/kept.txt".to_owned(), optional: false }];
    match resumed.vm.agent.request(Request::GetFiles { files: wanted }).await.unwrap() {
        Reply::Files { files } => assert_eq!(&**files[0].data.0, b"FAKE content"),
        other => panic!("{other:?}"),
    }
    host.hibernate(id).await.expect("it can sleep again");
    assert_eq!(host.resume(id).await.unwrap().memory_lost, None);
    host.destroy(id).await.unwrap();
    drop((vm, resumed, host));
    machine.assert_nothing_left();
}

/// As a manager finds it whose predecessor had mounts of its own: names of networks are files with nothing on them.
pub(crate) async fn a_network_that_lost_its_name_is_not_replaced_under_a_living_vm(kind: Kind) {
    let Some(mut machine) = Machine::new(kind.clone(), 4) else { return };
    machine.config.network = NetworkChoice::Tap;
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(cli(id, &someone())).await.unwrap();
    if matches!(kind, Kind::Container) {
        host.hibernate(id).await.unwrap();
    }
    let name = machine.config.run_dir.join(format!("netns/{}", vm.slot.index()));
    let number = || fs::metadata(&name).unwrap().ino();
    let before = number();
    drop((vm, host));
    for name in [&name, &name.with_extension("guest")] {
        // A microVM has the first one only.
        if name.exists() {
            rustix::mount::unmount(name, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
    assert_ne!(number(), before, "the name is lost");

    let host = machine.host().await;
    if matches!(kind, Kind::Container) {
        let resumed = host.resume(id).await.unwrap();
        let reason = resumed.memory_lost.expect("it is started anew");
        assert!(reason.contains("network"), "{reason}");
    } else {
        host.adopt(id).await.unwrap();
        assert_eq!(number(), before, "it is the VM's own");
    }
    host.destroy(id).await.unwrap();
    host.end().await.unwrap();
    drop(host);
    machine.assert_nothing_left();
}

pub(crate) async fn only_workspaces_sleep(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(browser(id)).await.unwrap();
    assert!(matches!(host.hibernate(id).await, Err(HostError::NotHibernatable { id: told }) if told == id));
    assert_eq!(run(&vm, &["echo", "awake"]).await.trim().trim_start_matches("echo "), "awake");
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

/// Disk is full while the memory is saved: the VM runs on, and nothing of the attempt is left. Of drivers that save.
pub(crate) async fn a_vm_that_cannot_be_saved_runs_on(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(cli(id, &someone())).await.unwrap();
    let mut pty = shell(&vm).await;
    pty.send(PtyFrame::Data(b"kept=alive; echo before-$((40+2))\n".to_vec())).await.unwrap();
    shows(&machine, &mut pty, "before-42\r\n").await;
    // A file system of a few blocks in the place of what is saved.
    let place = machine.config.data_dir.join("held");
    fs::create_dir_all(&place).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "polydev-test"])
        .arg(&place)
        .status()
        .unwrap();
    assert!(mounted.success());
    let error = host.hibernate(id).await.expect_err("there is no space");
    println!("reported: {error}");
    let left = fs::read_dir(&place).unwrap().count();
    let unmounted = std::process::Command::new("umount").arg(&place).status().unwrap();
    assert!(unmounted.success());
    assert!(matches!(error, HostError::NoSpace { .. }), "{error}");
    assert_eq!(left, 0, "nothing is left of the attempt");
    let vm = host.adopt(id).await.expect("it runs on");
    let mut pty = shell(&vm).await;
    pty.send(PtyFrame::Data(b"echo after-$kept\n".to_vec())).await.unwrap();
    shows(&machine, &mut pty, "after-alive\r\n").await;
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

fn held(machine: &Machine, id: VmId) -> std::path::PathBuf {
    machine.config.data_dir.join("held").join(id.to_string())
}

/// The VM's shell: the one that is open, or a new one.
async fn shell(vm: &Vm) -> PtyStream {
    let open = match vm.agent.request(Request::Hello { version: PROTOCOL_VERSION }).await.unwrap() {
        Reply::Hello { ptys, .. } => ptys,
        other => panic!("{other:?}"),
    };
    let id = match open.first() {
        Some(id) => *id,
        None => {
            let request = Request::OpenPty { argv: Vec::new(), env: Default::default(), cols: 80, rows: 24 };
            match vm.agent.request(request).await.unwrap() {
                Reply::Pty { id } => id,
                other => panic!("{other:?}"),
            }
        }
    };
    vm.agent.attach_pty(id).await.unwrap()
}

/// Waits until a terminal has shown a text.
async fn shows(machine: &Machine, pty: &mut PtyStream, wanted: &str) {
    let mut shown = String::new();
    let reading = async {
        while !shown.contains(wanted) {
            match pty.recv().await {
                Some(PtyFrame::Data(bytes)) => shown.push_str(&String::from_utf8_lossy(&bytes)),
                Some(_) => {}
                None => return false,
            }
        }
        true
    };
    let limit: Duration = machine.patience();
    let seen = timeout(limit, reading).await.unwrap_or(false);
    assert!(seen, "{wanted:?} is not in {shown:?}");
}
