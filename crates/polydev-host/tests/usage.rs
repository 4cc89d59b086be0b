//! What VMs take is limited, counted and told. Needs root, an image and the guest programs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/leftovers.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod leftovers;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod machine;

use std::time::{Duration, Instant};

use machine::{Kind, Machine, cli, new_id, run};
use polydev_core::wire::{Reply, Request};
use polydev_host::{CreateVm, LogKind, VmUsage};

const LIMIT: Duration = Duration::from_secs(120);

async fn usage_when(host: &polydev_host::Host, what: &str, holds: impl Fn(&VmUsage) -> bool) -> VmUsage {
    let began = Instant::now();
    loop {
        if let Some((_, usage)) = host.usage().into_iter().find(|(_, usage)| holds(usage)) {
            return usage;
        }
        assert!(began.elapsed() < LIMIT, "{what}: {:?}", host.usage());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

mod container {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_vm_takes_is_limited_counted_and_told() {
        let Some(machine) = Machine::new(Kind::Container, 2) else { return };
        let host = machine.host().await;
        let user = "usage-1".parse().unwrap();
        let id = new_id();
        let vm = host.create(CreateVm { memory_mib: 256, ..cli(id, &user) }).await.unwrap();
        run(&vm, &["sh", "-c", "dd if=/dev/zero of=$HOME/file bs=1M count=8 conv=fsync"]).await;
        let usage = usage_when(&host, "a sample", |usage| usage.pss_bytes.is_some()).await;
        assert!(!usage.browser && usage.tasks >= 1 && usage.cpu_us > 0, "{usage:?}");
        // Pages of the agent's program count in part only, as other VMs have them, too.
        assert!((100 << 10..256 << 20).contains(&usage.pss_bytes.unwrap()), "{usage:?}");
        assert!((1 << 20..=256 << 20).contains(&usage.memory_bytes), "{usage:?}");
        assert!(usage.workspace_bytes > 8 << 20, "{usage:?}");
        assert_eq!(usage.oom_kills, 0);

        // More than the VM has: the kernel ends the program, not the VM.
        let argv = ["tail", "/dev/zero"].map(str::to_owned).to_vec();
        let request = Request::Run { argv, env: Default::default(), timeout_ms: 60_000 };
        let reply = vm.agent.request(request).await.unwrap();
        assert!(!matches!(reply, Reply::Ran { exit_code: 0, .. }), "{reply:?}");
        usage_when(&host, "the end of a program", |usage| usage.oom_kills > 0).await;
        run(&vm, &["true"]).await;

        let starts = host.figures().starts;
        let of = |phase: &str| starts.iter().find(|it| it.kind == "cli" && it.phase == phase).unwrap().sum_s;
        let parts: f64 = starts.iter().filter(|it| it.phase != "total").map(|it| it.sum_s).sum();
        assert!(of("start") > 0.0 && (parts - of("total")).abs() < 1e-6, "{starts:?}");

        host.destroy(id).await.unwrap();
        let log = host.read_log(id, LogKind::Driver, 10_000).await.unwrap();
        assert!(log.contains("for want of memory"), "{log}");
        drop(host);
        machine.assert_nothing_left();
        let parents = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let left = parents.map(|it| it.path()).flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
        let name = id.to_string();
        assert!(!left.flatten().any(|it| it.path().join(&name).exists()), "a control group is left");
    }
}
