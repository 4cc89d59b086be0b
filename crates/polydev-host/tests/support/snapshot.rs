//! Browser VMs that continue from a snapshot under emulation.

use std::{collections::HashSet, fs, time::Instant};

use polydev_core::wire::{AgentEvent, Request};
use polydev_host::{FastStart, Host, LogKind, Vm};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::machine::{Kind, Machine, browser, identity, new_id, run};

const DESKTOP: (u16, u16) = (1280, 800);

pub(crate) async fn vms_restored_from_one_template_answer_fast_and_are_each_one_of_its_own() {
    let Some(machine) = Machine::new(Kind::Qemu, 4) else { return };
    let host = machine.host().await;
    if !host.status().driver.contains("emulated") {
        println!("SKIPPED: KVM works here, snapshots are for emulation");
        return;
    }
    let began = Instant::now();
    assert_eq!(host.status().fast_start, FastStart::None);
    host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    assert_eq!(host.status().fast_start, FastStart::Ready);
    println!("template made: {} ms", began.elapsed().as_millis());
    let began = Instant::now();
    host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    println!("template checked: {} ms", began.elapsed().as_millis());

    let mut seen = Vec::new();
    for _ in 0..2 {
        let id = new_id();
        let vm = restored(&host, id).await;
        assert_eq!(run(&vm, &["cat", "/proc/sys/kernel/hostname"]).await.trim(), identity(id).hostname);
        assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), identity(id).machine_id);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let guest: u64 = run(&vm, &["date", "+%s"]).await.trim().parse().unwrap();
        assert!(guest.abs_diff(now) <= 5, "guest clock {guest}, host {now}");
        seen.push(run(&vm, &["head", "-c", "32", "/dev/urandom"]).await);
        // Both run at the same time, on one memory file.
        if seen.len() == 2 {
            let other = host.list().await.unwrap().into_iter().find(|other| other.id != id).unwrap();
            assert!(other.running);
        }
    }
    assert_ne!(seen[0], seen[1], "two clones drew the same random bytes");
    for vm in host.list().await.unwrap() {
        host.destroy(vm.id).await.unwrap();
    }

    // A template that something wrote to is not used: the VM boots instead, and the next prepare makes a new one.
    let templates = machine.config.data_dir.join("templates");
    let template = fs::read_dir(&templates).unwrap().next().unwrap().unwrap().path();
    fs::write(template.join("devices.state"), b"FAKE damage").unwrap();
    let id = new_id();
    let vm = host.create(browser(id)).await.unwrap();
    assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), identity(id).machine_id);
    assert!(!host.read_log(id, LogKind::Driver, 1000).await.unwrap().contains("restored"));
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

/// Creates a VM and sees its desktop's picture arrive; prints how long both took.
async fn restored(host: &Host, id: polydev_core::ids::VmId) -> Vm {
    let began = Instant::now();
    let vm = host.create(browser(id)).await.unwrap();
    println!("restored, identity taken: {} ms", began.elapsed().as_millis());
    let log = host.read_log(id, LogKind::Driver, 1000).await.unwrap();
    assert!(log.contains("restored from template"), "{log}");
    let mut events = vm.agent.events();
    let (width, height) = DESKTOP;
    vm.agent.request(Request::StartDesktop { width, height }).await.unwrap();
    let painted = async {
        while !matches!(events.recv().await.unwrap(), AgentEvent::Desktop { state } if state.painted) {}
    };
    timeout(std::time::Duration::from_secs(20), painted).await.expect("the desktop is up already");
    println!("desktop known to be painted: {} ms", began.elapsed().as_millis());
    let colours = picture(vm.agent.vnc().await.unwrap()).await;
    println!("whole picture ({colours} colours): {} ms", began.elapsed().as_millis());
    assert!(colours > 2, "the picture shows a browser");
    vm
}

/// Asks a VNC server for one whole picture (RFC 6143) and counts its colours.
async fn picture(mut vnc: impl AsyncRead + AsyncWrite + Unpin) -> usize {
    let mut version = [0; 12];
    vnc.read_exact(&mut version).await.unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    vnc.write_all(&version).await.unwrap();
    let kinds = vnc.read_u8().await.unwrap();
    vnc.read_exact(&mut vec![0; kinds.into()]).await.unwrap();
    vnc.write_u8(1).await.unwrap();
    assert_eq!(vnc.read_u32().await.unwrap(), 0, "no password is asked for");
    // Others may look, too.
    vnc.write_u8(1).await.unwrap();
    let (width, height) = (vnc.read_u16().await.unwrap(), vnc.read_u16().await.unwrap());
    assert_eq!((width, height), DESKTOP);
    vnc.read_exact(&mut [0; 16]).await.unwrap();
    let name = vnc.read_u32().await.unwrap();
    vnc.read_exact(&mut vec![0; name.try_into().unwrap()]).await.unwrap();
    // Plain pixels only, then everything once.
    vnc.write_all(&[2, 0, 0, 1, 0, 0, 0, 0]).await.unwrap();
    let [w, h] = [width.to_be_bytes(), height.to_be_bytes()];
    vnc.write_all(&[&[3, 0, 0, 0, 0, 0][..], &w, &h].concat()).await.unwrap();
    assert_eq!(vnc.read_u8().await.unwrap(), 0, "an update");
    vnc.read_u8().await.unwrap();
    let mut colours = HashSet::new();
    for _ in 0..vnc.read_u16().await.unwrap() {
        let mut rectangle = [0; 12];
        vnc.read_exact(&mut rectangle).await.unwrap();
        let size = |at: usize| usize::from(u16::from_be_bytes([rectangle[at], rectangle[at + 1]]));
        let mut pixels = vec![0; size(4) * size(6) * 4];
        vnc.read_exact(&mut pixels).await.unwrap();
        colours.extend(pixels.chunks_exact(4).map(<[u8]>::to_vec));
    }
    colours.len()
}
