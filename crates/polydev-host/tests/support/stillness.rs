//! What a VM does between a snapshot and its identity, which is nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polydev_core::{
    ids::UserId,
    wire::{ErrorCode, Identity, Request},
};
use polydev_host::{AgentError, Vm};
use tokio::time::timeout;

use super::machine::{Kind, Machine, cli, new_id, run};

/// How far the clock is put forward, as if the VM had slept for so long.
const SLEPT: Duration = Duration::from_secs(3600);
/// How long it is watched while it is to stand still; it writes ten times a second otherwise.
const WATCHED: Duration = Duration::from_secs(2);
/// Outlives the request that starts it once it is in a session of its own.
const CLOCK_READER: &str = "setsid sh -c 'while :; do date +%s.%N; sleep 0.1; done' >times 2>&1 </dev/null &
while ! test -s times; do sleep 0.1; done";
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const ENTROPY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

pub(crate) async fn a_vm_that_lay_down_runs_nothing_before_its_clock_is_set_and_stays_what_it_is() {
    let Some(machine) = Machine::new(Kind::Qemu, 1) else { return };
    let host = machine.host().await;
    let user: UserId = "sleeper".parse().unwrap();
    let create = cli(new_id(), &user);
    let identity = create.identity.clone();
    let vm = host.create(create).await.unwrap();
    let began = now();
    run(&vm, &["sh", "-c", CLOCK_READER]).await;
    let boot = run(&vm, &["cat", "/proc/sys/kernel/random/boot_id"]).await;
    let ticks = async { while times(&vm).await.len() < 2 {} };
    timeout(machine.patience(), ticks).await.expect("it writes down the time");

    vm.agent.request(Request::Quiesce).await.unwrap();
    let lay_down = now();
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        // The connection is made anew first: that a host is there wakes nothing.
        let asked = Request::Run { argv: vec!["true".to_owned()], env: [].into(), timeout_ms: 1000 };
        match vm.agent.request(asked).await {
            Err(AgentError::Refused { refusal, .. }) => assert_eq!(refusal.code, ErrorCode::Conflict),
            Err(AgentError::Closed) => {}
            other => panic!("a program was started in a VM that is to stand still: {other:?}"),
        }
        tokio::task::yield_now().await;
    }
    let unix_time_ms = u64::try_from((now() + SLEPT).as_millis()).unwrap();
    let identity = Identity { unix_time_ms, entropy: ENTROPY.to_owned(), ..identity };
    vm.agent.request(Request::Identify(identity)).await.unwrap();
    let goes_on = async { while times(&vm).await.last().is_none_or(|last| *last < lay_down + SLEPT) {} };
    timeout(machine.patience(), goes_on).await.expect("it goes on");

    let all = times(&vm).await;
    let (before, after): (Vec<_>, Vec<_>) = all.into_iter().partition(|time| *time < began + SLEPT);
    assert!(!before.is_empty() && !after.is_empty());
    let late: Vec<_> = before.iter().filter(|time| **time > lay_down + Duration::from_millis(500)).collect();
    assert!(late.is_empty(), "ran on with the old clock after {lay_down:?}: {late:?}");
    // It slept, it was not cloned.
    assert_eq!(run(&vm, &["cat", "/proc/sys/kernel/random/boot_id"]).await, boot);

    // Saved for real: its clock has stood still meanwhile, and nobody inside may read it before it is set. The time is
    // that of the host again, from here on.
    host.hibernate(vm.id).await.unwrap();
    let (saved, watched) = (now(), Instant::now());
    while watched.elapsed() < WATCHED {
        assert_eq!(host.list().await.unwrap().len(), 1, "it is not given up");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let woken = now();
    let resumed = host.resume(vm.id).await.unwrap();
    assert_eq!(resumed.memory_lost, None);
    let vm = resumed.vm;
    let goes_on =
        async { while !times(&vm).await.iter().any(|time| (woken..began + SLEPT).contains(time)) {} };
    timeout(machine.patience(), goes_on).await.expect("it goes on");
    let late: Vec<_> = times(&vm).await.into_iter().filter(|time| (saved..woken).contains(time)).collect();
    assert!(late.is_empty(), "ran with the clock of when it was saved, {saved:?}: {late:?}");
    assert_eq!(run(&vm, &["cat", "/proc/sys/kernel/random/boot_id"]).await, boot);
    host.destroy(vm.id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

/// What a program inside read off the clock, again and again.
async fn times(vm: &Vm) -> Vec<Duration> {
    let text = run(vm, &["cat", "/home/dev/times"]).await;
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| Duration::from_secs_f64(line.parse().unwrap())).collect()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}
