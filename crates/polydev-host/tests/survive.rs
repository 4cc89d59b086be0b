//! What a host makes of the records of an earlier one: after a reboot of the machine, with a process that is another,
//! and when it is to take nothing new.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

use std::{collections::HashSet, fs, path::Path, sync::Arc};

use polydev_core::{
    ids::{UserId, VmId},
    wire::{FileGet, FilePut, Identity, Reply, Request, files::FileBytes},
};
use polydev_host::{
    CreateVm, DriverChoice, Host, HostConfig, HostError, NoEgress, VmKind, driver::fake::FakeDriver,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

struct Machine {
    dir: TempDir,
    driver: FakeDriver,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), driver: FakeDriver::default() }
    }

    fn host(&self) -> Host {
        let dir = self.dir.path();
        let config = HostConfig {
            driver: DriverChoice::Auto,
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            image_dir: dir.join("images"),
            agent_path: dir.join("agent"),
            desktop_path: dir.join("desktop"),
            overlay_dir: None,
            slots: 8,
            log_bytes_max: 1 << 20,
            log_vms_max: 10,
            keep_failed: false,
            capacity: None,
            network: polydev_host::NetworkChoice::Channel,
            egress_limits: Default::default(),
            firecracker: Default::default(),
            resources: Default::default(),
        };
        Host::with_driver(config, Arc::new(NoEgress), Arc::new(self.driver.clone())).unwrap()
    }

    /// Changes a record as a former host might have left it.
    fn edit(&self, id: VmId, change: impl Fn(&mut Value)) {
        let path = self.dir.path().join("data/vms").join(format!("{id}.json"));
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, record.to_string()).unwrap();
    }

    fn run_dir_of(&self, id: VmId) -> bool {
        Path::new(self.dir.path()).join("run/vm").join(id.to_string()).exists()
    }
}

fn create(kind: VmKind) -> CreateVm {
    let id = VmId::from_uuid(Uuid::new_v4());
    CreateVm { id, kind, vcpus: 1, memory_mib: 128, identity: Identity::of(id, "vm") }
}

fn cli(user: &str) -> CreateVm {
    create(VmKind::Cli { user: user.parse::<UserId>().unwrap() })
}

#[tokio::test]
async fn after_a_reboot_vms_of_before_are_gone_and_disks_and_those_asleep_on_disk_stay() {
    let machine = Machine::new();
    let host = machine.host();
    let (browser, awake, asleep) = (create(VmKind::Browser), cli("awake"), cli("asleep"));
    let now = host.create(create(VmKind::Browser)).await.unwrap();
    for vm in [&browser, &awake, &asleep] {
        host.create(vm.clone()).await.unwrap();
    }
    let file = FilePut {
        path: "kept".to_owned(),
        mode: 0o600,
        data: FileBytes::new(b"FAKE".to_vec()),
        merge_json: Vec::new(),
    };
    let disk = host.adopt(awake.id).await.unwrap();
    disk.agent.request(Request::PutFiles { files: vec![file] }).await.unwrap();
    host.hibernate(asleep.id).await.unwrap();
    drop((disk, host));
    for vm in [&browser, &awake, &asleep] {
        machine.edit(vm.id, |record| record["boot_id"] = "another boot".into());
    }

    let host = machine.host();
    let wanted = HashSet::from([browser.id, awake.id, asleep.id, now.id]);
    let report = host.reclaim(&wanted).await.unwrap();
    let earlier: HashSet<VmId> = report.earlier_boot.into_iter().collect();
    assert_eq!(earlier, HashSet::from([browser.id, awake.id]));
    assert!(report.destroyed.is_empty());
    let left: HashSet<VmId> = host.list().await.unwrap().into_iter().map(|vm| vm.id).collect();
    assert_eq!(left, HashSet::from([asleep.id, now.id]));
    assert!(!machine.run_dir_of(browser.id) && !machine.run_dir_of(awake.id));
    host.resume(asleep.id).await.unwrap();
    drop(host);
    let host = machine.host();
    host.adopt(asleep.id).await.unwrap();
    let report = host.reclaim(&HashSet::from([asleep.id, now.id])).await.unwrap();
    assert!(report.earlier_boot.is_empty() && report.destroyed.is_empty(), "it has run in this boot since");
    let again = host.create(cli("awake")).await.unwrap();
    let wanted = vec![FileGet { path: "kept".to_owned(), optional: false }];
    match again.agent.request(Request::GetFiles { files: wanted }).await.unwrap() {
        Reply::Files { files } => assert_eq!(&**files[0].data.0, b"FAKE"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_vm_whose_process_is_another_one_now_is_neither_shown_as_running_nor_taken_over() {
    let machine = Machine::new();
    let host = machine.host();
    let vm = host.create(create(VmKind::Browser)).await.unwrap();
    drop(host);
    // This very process, at another time.
    let (pid, boot) = (std::process::id(), fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap());
    let other = json!({ "pid": pid, "start_ticks": 1, "boot_id": boot.trim(), "program": null });
    machine.edit(vm.id, |record| record["process"] = other.clone());

    let host = machine.host();
    assert!(host.list().await.unwrap().iter().all(|seen| seen.id == vm.id && !seen.running));
    assert!(matches!(host.adopt(vm.id).await, Err(HostError::NoSuchVm(id)) if id == vm.id));
    assert_eq!(host.reclaim(&HashSet::new()).await.unwrap().destroyed, [vm.id]);
}

#[tokio::test]
async fn a_vm_that_was_being_destroyed_is_destroyed_whoever_still_wants_it() {
    let machine = Machine::new();
    let host = machine.host();
    let vm = host.create(create(VmKind::Browser)).await.unwrap();
    drop(host);
    machine.edit(vm.id, |record| record["phase"] = "destroying".into());
    let report = machine.host().reclaim(&HashSet::from([vm.id])).await.unwrap();
    assert_eq!(report.destroyed, [vm.id]);
    assert!(!machine.run_dir_of(vm.id));
}

#[tokio::test]
async fn a_host_that_is_drained_takes_no_new_vms_and_leaves_the_others_alone() {
    let machine = Machine::new();
    let host = machine.host();
    let vm = host.create(cli("somebody")).await.unwrap();
    host.drain().await.unwrap();
    assert!(matches!(host.create(cli("another")).await, Err(HostError::Unavailable { .. })));
    drop(host);
    let next = machine.host();
    assert!(next.list().await.unwrap().iter().any(|seen| seen.id == vm.id && seen.running));
    next.adopt(vm.id).await.unwrap();
    next.create(cli("another")).await.unwrap();
}
