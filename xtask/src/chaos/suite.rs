//! Kill, start again, look; as often as asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use polydev_core::ids::{Slot, VmId};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{
    caller::{Ask, Caller, Failure, Listed, Status},
    machine::Machine,
    manager::{Manager, Starter},
    options::{Driver, Options},
    orphans::{self, Baseline, Expected},
    report::Report,
    serve::Config,
    track::{Operation, Track},
};
use crate::{compile, random::Random, repo};

const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long what was released may take to be gone.
const SETTLE: Duration = Duration::from_secs(8);
/// How many of a plan's kills are at a random time, as a divisor.
const RANDOM_EVERY: usize = 4;
/// Where a kill was that hit no failpoint.
const AT_RANDOM: &str = "(random time)";
/// A suite that finds one fault after the other is ended.
const FAULTS_MAX: usize = 50;
/// Slots that are free when every track has its VM.
const SPARE_SLOTS: u8 = 1;

/// See the module.
pub(super) struct Suite {
    options: Options,
    machine: Machine,
    baseline: Baseline,
    starter: Starter,
    tracks: Vec<Track>,
    random: Random,
    report: Report,
    /// Removed at the end, unless something was found.
    dir: Option<TempDir>,
    run_dir: PathBuf,
}

/// When a manager dies.
#[derive(Debug, Clone)]
enum Kill {
    /// At a failpoint, the nth time it gets there.
    At(String, usize),
    After(Duration),
}

impl Suite {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("polydev-chaos-").tempdir().context("create a directory")?;
        let (data_dir, run_dir) =
            (dir.path().join("data"), PathBuf::from(format!("/run/polydev-chaos-{}", std::process::id())));
        for place in [&data_dir, &run_dir] {
            fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
        }
        let machine = Machine::new(&run_dir, &data_dir).context("look up the directories")?;
        let guest_dir = match options.driver {
            Driver::Fake | Driver::Firecracker => PathBuf::new(),
            Driver::Container | Driver::Qemu => {
                compile::guest()?.agent.parent().context("the agent lies in a directory")?.to_path_buf()
            }
        };
        let tracks = options.driver.tracks();
        let config = Config {
            driver: options.driver.name().to_owned(),
            socket: run_dir.join("manager.sock"),
            data_dir,
            run_dir: run_dir.clone(),
            image_dir: repo::image_dir(),
            guest_dir,
            slots: u8::try_from(tracks).unwrap_or(u8::MAX).saturating_add(SPARE_SLOTS),
            vcpus: 1,
            memory_mib: options.driver.memory_mib(),
            tap: options.tap,
        };
        let starter = Starter::new(config, dir.path().to_owned(), options.driver.patience())?;
        Ok(Self {
            options: options.clone(),
            machine,
            baseline: Baseline::look(),
            starter,
            tracks: Vec::new(),
            random: Random::new(options.seed),
            report: Report::new(options.driver.name(), options.seed),
            dir: Some(dir),
            run_dir,
        })
    }

    /// Everything; what was found is in the report, an error means that the suite itself cannot go on.
    pub(super) fn run(mut self) -> Result<Report> {
        let began = Instant::now();
        let ran = self.all();
        let cleared = self.clear();
        let reached = self.starter.reached();
        let killed = self.report.killed_at();
        self.report.ended(began.elapsed(), reached.difference(&killed).cloned().collect());
        if ran.is_err() || self.report.fault_count() > 0 {
            // The manager's log is what explains it.
            if let Some(dir) = self.dir.take() {
                eprintln!("kept: {}", dir.keep().display());
            }
        }
        ran?;
        cleared?;
        Ok(std::mem::take(&mut self.report))
    }

    fn all(&mut self) -> Result<()> {
        self.rehearse()?;
        while self.report.kills() < self.options.kills && self.report.fault_count() < FAULTS_MAX {
            let kill = self.next_kill();
            self.round(&kill)?;
            let kills = self.report.kills();
            if kills.is_multiple_of(10) {
                eprintln!("{kills} kills, {} faults", self.report.fault_count());
            }
        }
        self.last_look()
    }

    /// One life of every track without a kill, which shows the failpoints there are.
    fn rehearse(&mut self) -> Result<()> {
        let (mut manager, caller) = self.starter.start(None)?;
        let mut caller = caller.context("a manager without a trap gets ready")?;
        let dead = |failure: Failure| anyhow::anyhow!("without any kill: {failure}");
        caller.ask::<()>(&Ask::Prepare).map_err(dead)?;
        let (count, seed) = (self.options.driver.tracks(), self.options.seed);
        let has_disk = self.options.driver.has_disk();
        self.tracks = (0..count).map(|index| Track::new(index, seed, has_disk)).collect();
        use Operation::{Create, Destroy, Get, Hibernate, Ping, Put, Resume};
        let life = [Create, Ping, Put, Get, Hibernate, Resume, Ping, Get, Destroy];
        for (index, track) in self.tracks.iter_mut().take(2).enumerate() {
            let for_all = |it: &Operation| matches!(it, Create | Ping | Destroy);
            for operation in life.into_iter().filter(|it| index == 0 || for_all(it)) {
                track.perform(operation, &mut caller, &self.machine, &self.report).map_err(dead)?;
            }
        }
        if self.report.fault_count() > 0 {
            bail!("there are faults without any kill:\n  {}", self.report.faults().join("\n  "));
        }
        manager.kill()
    }

    /// The plan: each failpoint in turn, and now and then a random time.
    fn next_kill(&mut self) -> Kill {
        let number = self.report.kills();
        let reached: Vec<String> = self.starter.reached().into_iter().collect();
        if reached.is_empty() || number % RANDOM_EVERY == RANDOM_EVERY - 1 {
            return Kill::After(self.options.driver.random_kill().mul_f64(self.random.unit()));
        }
        // As often as others, the new ones first.
        let killed = self.report.kills_by_name();
        let count = |name: &String| killed.get(name).copied().unwrap_or_default();
        let least = reached.iter().map(count).min().unwrap_or_default();
        let names: Vec<&String> = reached.iter().filter(|name| count(name) == least).collect();
        let at = (self.random.unit() * names.len() as f64) as usize;
        let name = names.get(at).copied().expect("there is one with the least");
        let nth = 1 + (self.random.unit() * 2.0) as usize;
        Kill::At(name.clone(), if least == 0 { 1 } else { nth })
    }

    /// The life of one manager.
    fn round(&mut self, kill: &Kill) -> Result<()> {
        let trap = match kill {
            Kill::At(name, nth) => Some(format!("{name}:{nth}")),
            Kill::After(_) => None,
        };
        let began = Instant::now();
        let (mut manager, caller) = self.starter.start(trap.as_deref())?;
        let timer = Timer::start(&manager, kill);
        let done = match caller {
            None => Ok(()),
            Some(caller) => self.live(caller, &mut manager, began),
        };
        // Where it was to die only if it did.
        let trapped = trap.is_some() && manager.was_killed();
        drop(timer);
        manager.kill()?;
        match kill {
            Kill::At(name, _) if trapped => self.report.killed(name),
            _ => {
                if let Kill::At(name, _) = kill {
                    self.report.missed(name);
                }
                self.report.killed(AT_RANDOM);
            }
        }
        self.survivors();
        done
    }

    /// Takes over, then asks for this and that until the manager dies or its time is over.
    fn live(&mut self, mut caller: Caller, manager: &mut Manager, began: Instant) -> Result<()> {
        match self.take_over(&mut caller, manager.pid()) {
            Ok(()) => {}
            Err(Failure::Died) => {
                // Its end of the line goes before it does.
                let deadline = Instant::now() + SETTLE;
                while manager.lives()? && Instant::now() < deadline {
                    thread::sleep(LOOK_AGAIN);
                }
                return Ok(());
            }
            Err(failure) => {
                self.report.failed(format!("take-over: {failure}"));
                return Ok(());
            }
        }
        drop(caller);
        let over = AtomicBool::new(false);
        let (machine, report, starter) = (&self.machine, &self.report, &self.starter);
        thread::scope(|scope| {
            for track in &mut self.tracks {
                let over = &over;
                scope.spawn(move || {
                    let Ok(mut caller) = starter.caller() else { return };
                    while !over.load(Ordering::Relaxed) {
                        let operation = track.next();
                        match track.perform(operation, &mut caller, machine, report) {
                            Ok(()) => {}
                            Err(Failure::Died) => return,
                            Err(failure) => {
                                report.failed(format!("{operation:?}: {failure}"));
                                return;
                            }
                        }
                    }
                });
            }
            let deadline = began + self.options.driver.round();
            while manager.lives()? && Instant::now() < deadline {
                thread::sleep(LOOK_AGAIN);
            }
            // Callers that wait for an answer wait no longer.
            over.store(true, Ordering::Relaxed);
            if manager.lives()? {
                manager.kill()?;
            }
            Ok(())
        })
    }

    /// VMs that ran and were left alone still run now that their manager is dead.
    fn survivors(&mut self) {
        for track in &mut self.tracks {
            let Some(vm) = track.vm.as_ref().filter(|vm| vm.is_settled() && !vm.asleep) else { continue };
            if !vm.process.is_some_and(super::machine::ProcessId::alive) {
                self.report.lost(format!("VM {} ended with its manager", vm.id));
                track.vm = None;
            }
        }
    }

    /// What a controller does after its manager was started, and all checks.
    fn take_over(&mut self, caller: &mut Caller, manager: Option<i32>) -> Result<(), Failure> {
        self.one_vm_a_slot(&caller.ask::<Vec<Listed>>(&Ask::List)?);
        // Whether one that was just being made is still wanted is up to its caller.
        for track in &mut self.tracks {
            let unwanted = match track.vm.as_ref().and_then(|vm| vm.doing) {
                Some(Operation::Destroy) => true,
                Some(Operation::Create) => self.random.unit() < 0.5,
                _ => false,
            };
            if unwanted {
                track.vm = None;
            }
        }
        let wanted: BTreeSet<VmId> =
            self.tracks.iter().filter_map(|it| it.vm.as_ref()).map(|vm| vm.id).collect();
        caller.ask::<Vec<VmId>>(&Ask::Reclaim { wanted })?;
        // Only now: a manager takes the warm ones of an earlier one over once it knows what is planned.
        caller.ask::<()>(&Ask::Warm { high: self.options.driver.warm() })?;
        let listed: BTreeMap<VmId, Listed> =
            caller.ask::<Vec<Listed>>(&Ask::List)?.into_iter().map(|vm| (vm.id, vm)).collect();
        for track in &mut self.tracks {
            check_track(track, &listed, caller, &self.machine, &self.report)?;
        }
        let listed = caller.ask::<Vec<Listed>>(&Ask::List)?;
        self.one_vm_a_slot(&listed);
        self.records_are_complete(&listed);
        self.nothing_is_left(caller, manager)
    }

    /// Looks until nothing is left over, or the kernel and the pool have had their time.
    fn nothing_is_left(&self, caller: &mut Caller, manager: Option<i32>) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let status: Status = caller.ask(&Ask::Status)?;
            let listed = caller.ask::<Vec<Listed>>(&Ask::List)?;
            let live: BTreeSet<VmId> = listed.iter().map(|vm| vm.id).collect();
            let expected = Expected { live: &live, manager, slots_used: status.slots_used, drained: false };
            let found = orphans::look(&self.machine, &self.baseline, &expected);
            if found.is_empty() || Instant::now() >= deadline {
                self.report.orphans(found);
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN * 20);
        }
    }

    fn one_vm_a_slot(&self, listed: &[Listed]) {
        let mut taken: BTreeMap<Slot, VmId> = BTreeMap::new();
        for vm in listed {
            if let Some(other) = taken.insert(vm.slot, vm.id) {
                self.report.double_slot(format!("slot {} of {other} and {}", vm.slot.index(), vm.id));
            }
        }
    }

    fn records_are_complete(&self, listed: &[Listed]) {
        let records = self.machine.records();
        for vm in listed.iter().filter(|vm| vm.running) {
            let complete = records.get(&vm.id).and_then(Option::as_ref).is_some_and(|record| {
                record["phase"] == "running"
                    && record["slot"] == vm.slot.index()
                    && record["boot_id"].is_string()
                    && record["process"]["program"]["inode"].is_u64()
            });
            if !complete {
                self.report.incomplete(format!("of running VM {}: {:?}", vm.id, records.get(&vm.id)));
            }
        }
    }

    /// A last manager removes everything, and nothing is left.
    fn last_look(&mut self) -> Result<()> {
        let (manager, caller) = self.starter.start(None)?;
        let mut caller = caller.context("a manager without a trap gets ready")?;
        let ended = |failure: Failure| anyhow::anyhow!("last manager: {failure}");
        self.take_over(&mut caller, manager.pid()).map_err(ended)?;
        for track in &mut self.tracks {
            if track.vm.is_some() {
                track.perform(Operation::Destroy, &mut caller, &self.machine, &self.report).map_err(ended)?;
            }
        }
        caller.ask::<serde_json::Value>(&Ask::Drain).map_err(ended)?;
        let listed: Vec<Listed> = caller.ask(&Ask::List).map_err(ended)?;
        if !listed.is_empty() {
            self.report.failed(format!("VMs are listed after the last was destroyed: {listed:?}"));
        }
        self.nothing_is_left(&mut caller, manager.pid()).map_err(ended)?;
        manager.end(&mut caller)?;
        let deadline = Instant::now() + SETTLE;
        loop {
            let live = BTreeSet::new();
            let expected = Expected { live: &live, manager: None, slots_used: 0, drained: true };
            let found = orphans::look(&self.machine, &self.baseline, &expected);
            if found.is_empty() || Instant::now() >= deadline {
                self.report.orphans(found);
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN * 20);
        }
    }

    /// Removes what a suite that broke off left.
    fn clear(&mut self) -> Result<()> {
        if !is_anything_left(&self.machine) {
            return remove(&self.run_dir);
        }
        let (manager, caller) = self.starter.start(None)?;
        let mut caller = caller.context("a manager without a trap gets ready")?;
        let cleared = caller.ask::<Vec<VmId>>(&Ask::Reclaim { wanted: BTreeSet::new() });
        let drained = caller.ask::<serde_json::Value>(&Ask::Drain);
        for failure in [cleared.err(), drained.err()].into_iter().flatten() {
            eprintln!("what the suite left cannot be removed: {failure}");
        }
        manager.end(&mut caller)?;
        remove(&self.run_dir)
    }
}

/// Kills a manager after a time.
struct Timer {
    stop: std::sync::mpsc::Sender<()>,
}

impl Timer {
    fn start(manager: &Manager, kill: &Kill) -> Option<Self> {
        let (Kill::After(delay), Some(pid)) = (kill, manager.pid().and_then(Pid::from_raw)) else {
            return None;
        };
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let delay = *delay;
        thread::spawn(move || {
            if stopped.recv_timeout(delay) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                // Nobody has waited for it: the number is still its own.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Some(Self { stop })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // It may have fired.
        let _ = self.stop.send(());
    }
}

/// What one caller finds of its VM under a new manager.
fn check_track(
    track: &mut Track,
    listed: &BTreeMap<VmId, Listed>,
    caller: &mut Caller,
    machine: &Machine,
    report: &Report,
) -> Result<(), Failure> {
    let Some(vm) = &mut track.vm else { return Ok(()) };
    let (id, doing) = (vm.id, vm.doing);
    let found = listed.get(&id);
    if doing == Some(Operation::Create) {
        return match found.filter(|found| found.running) {
            Some(found) => {
                (vm.slot, vm.process, vm.doing) = (Some(found.slot), machine.recorded_process(id), None);
                track.answers(caller, report)
            }
            None => track.perform(Operation::Destroy, caller, machine, report),
        };
    }
    let Some(found) = found else {
        report.lost(format!("VM {id} is gone; last asked: {doing:?}"));
        track.vm = None;
        return Ok(());
    };
    if vm.slot != Some(found.slot) {
        report.double_slot(format!("VM {id} moved from {:?} to slot {}", vm.slot, found.slot.index()));
    }
    if matches!(doing, Some(Operation::Hibernate | Operation::Resume)) {
        // Whichever way it was going: it is to run again, from the memory it had.
        vm.asleep = true;
        track.perform(Operation::Resume, caller, machine, report)?;
        track.answers(caller, report)?;
        return track.read_back(caller, report);
    }
    if vm.asleep {
        if machine.recorded_state(id).as_deref() != Some("hibernated") {
            report.lost(format!("VM {id} slept and does not any more"));
            vm.asleep = false;
        }
        return Ok(());
    }
    if !found.running
        || machine.recorded_process(id) != vm.process
        || !vm.process.is_some_and(|it| it.alive())
    {
        let record = machine.records().remove(&id).flatten().unwrap_or_default();
        report.lost(format!(
            "VM {id} does not run as it did: {found:?}, was {:?}; asked: {doing:?}; record: {record}",
            vm.process
        ));
        return track.perform(Operation::Destroy, caller, machine, report);
    }
    track.answers(caller, report)?;
    if track.user.is_some() { track.read_back(caller, report) } else { Ok(()) }
}

fn is_anything_left(machine: &Machine) -> bool {
    let names = |place: &str| super::machine::names(&machine.run.join(place));
    !names("vm").is_empty() || !names("layers").is_empty() || !machine.records().is_empty()
}

fn remove(dir: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
