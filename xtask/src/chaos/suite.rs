//! Kill, start again, look; as often as asked.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use polydev_core::ids::{Slot, VmId};
use polydev_host::SeenVm;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::TempDir;

use super::{
    caller::{Caller, Failure},
    machine::Machine,
    manager::{Manager, Places, Starter},
    network::Baseline,
    options::{Driver, Options},
    orphans::{self, Expected},
    report::Report,
    track::{Goal, Known, Operation, Track},
};
use crate::{compile, random::Random, repo};

pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long what was released may take to be gone.
const SETTLE: Duration = Duration::from_secs(20);
/// How many of a plan's kills are at a random time, as a divisor.
const RANDOM_EVERY: usize = 4;
/// Where a kill was that hit no failpoint.
const AT_RANDOM: &str = "(random time)";
/// A suite that finds one fault after the other is ended.
const FAULTS_MAX: usize = 50;
/// How long VMs that are held ready may take to go, those included that are just being made.
const DRAIN_LIMIT: Duration = Duration::from_secs(100);
/// How often the controller dies with its manager.
const CONTROLLER_DIES: f64 = 0.3;
/// Slots that are free when every track has its VM.
const SPARE_SLOTS: u8 = 1;

/// See the module.
pub(super) struct Suite {
    pub(super) options: Options,
    pub(super) machine: Machine,
    baseline: Baseline,
    pub(super) starter: Starter,
    pub(super) tracks: Vec<Track>,
    /// By failpoint: what to ask for, to get there.
    pub(super) goals: BTreeMap<String, BTreeSet<Goal>>,
    /// Failpoints that are reached only while a template is made.
    pub(super) once: BTreeSet<String>,
    random: Random,
    pub(super) report: Report,
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
        let guest = match options.driver {
            Driver::Fake | Driver::Firecracker => dir.path().to_owned(),
            Driver::Container | Driver::Qemu => {
                compile::guest()?.agent.parent().context("the agent lies in a directory")?.to_path_buf()
            }
        };
        let slots = u8::try_from(options.driver.tracks()).unwrap_or(u8::MAX).saturating_add(SPARE_SLOTS);
        let places = Places {
            polydev: compile::controller_with_failpoints()?,
            dir: dir.path().to_owned(),
            data: data_dir,
            run: run_dir.clone(),
            images: repo::image_dir(),
            guest,
        };
        let starter = Starter::new(options.driver, slots, options.tap, places)?;
        Ok(Self {
            options: options.clone(),
            machine,
            baseline: Baseline::look(),
            report: Report::new(options.driver, starter.network, options.seed),
            starter,
            tracks: Vec::new(),
            goals: BTreeMap::new(),
            once: BTreeSet::new(),
            random: Random::new(options.seed),
            dir: Some(dir),
            run_dir,
        })
    }

    /// Everything; what was found is in the report, an error means that the suite itself cannot go on.
    pub(super) fn run(mut self) -> Result<Report> {
        let began = Instant::now();
        let ran = self.all();
        let cleared = self.clear();
        let reached: BTreeSet<String> = self.starter.reached().into_iter().collect();
        for line in self.starter.panics() {
            self.report.failed(line);
        }
        if ran.is_ok() {
            self.report.ended(began.elapsed(), &reached, self.options.all_failpoints);
        }
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
        // Whoever interrupts it has what it found so far, and nothing is left on the machine.
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("watch for signals")?;
        }
        self.rehearse()?;
        let goes_on = |suite: &Self| {
            let few = suite.report.kills() < suite.options.kills && suite.report.fault_count() < FAULTS_MAX;
            few && !interrupted.load(Ordering::Relaxed)
        };
        while goes_on(self) {
            let kill = self.next_kill();
            self.round(&kill)?;
            let kills = self.report.kills();
            if kills.is_multiple_of(10) {
                eprintln!("{kills} kills, {} faults", self.report.fault_count());
            }
        }
        self.last_look()
    }

    /// The plan: each failpoint in turn, and now and then a random time.
    fn next_kill(&mut self) -> Kill {
        let number = self.report.kills();
        let mut reached: BTreeSet<String> = self.starter.reached().into_iter().collect();
        reached.retain(|name| !self.once.contains(name));
        if reached.is_empty() || number % RANDOM_EVERY == RANDOM_EVERY - 1 {
            return Kill::After(self.options.driver.random_kill().mul_f64(self.random.unit()));
        }
        // Those that had the fewest turns, and of these what the VMs are nearest to.
        let rank = |name: &String| (self.report.turns(name), self.distance(name));
        let first = reached.iter().map(rank).min().unwrap_or_default();
        let names: Vec<&String> = reached.iter().filter(|name| rank(name) == first).collect();
        let at = (self.random.unit() * names.len() as f64) as usize;
        let name = names.get(at).copied().expect("there is one that comes first");
        let nth = 1 + (self.random.unit() * 2.0) as usize;
        Kill::At(name.clone(), if first.0 == 0 { 1 } else { nth })
    }

    /// How many requests it takes to get to a failpoint.
    fn distance(&self, name: &str) -> usize {
        let goals = self.goals.get(name).into_iter().flatten();
        let ways = goals.flat_map(|goal| self.tracks.iter().filter_map(|track| track.way_to(*goal)));
        let nearest = ways.map(|(requests, _)| requests).min();
        nearest.unwrap_or(if self.goals.contains_key(name) { usize::MAX } else { 0 })
    }

    /// The life of one manager.
    fn round(&mut self, kill: &Kill) -> Result<()> {
        let trap = match kill {
            Kill::At(name, nth) => Some(format!("{name}:{nth}")),
            Kill::After(_) => None,
        };
        let (mut manager, caller) = self.starter.start(trap.as_deref())?;
        let timer = Timer::start(&manager, kill);
        let goals = match kill {
            Kill::At(name, _) => self.goals.get(name).cloned().unwrap_or_default(),
            Kill::After(_) => BTreeSet::new(),
        };
        let done = match caller {
            None => Ok(()),
            Some(caller) => self.live(&caller, &mut manager, &goals),
        };
        // Where it was to die only if it did.
        let trapped = trap.is_some() && manager.is_trapped();
        drop(timer);
        manager.kill()?;
        if let Some(status) = manager.own_end() {
            self.report.failed(format!("the manager ended by itself: {status}"));
        }
        match kill {
            Kill::At(name, _) if trapped => self.report.killed(name),
            _ => {
                if let Kill::At(name, _) = kill {
                    self.report.missed(name);
                }
                self.report.killed(AT_RANDOM);
            }
        }
        let controller_dies = self.random.unit() < CONTROLLER_DIES;
        self.starter.ended(controller_dies)?;
        self.survivors();
        done
    }

    /// Takes over, then asks for this and that until the manager dies or its time is over.
    fn live(&mut self, caller: &Caller, manager: &mut Manager, goals: &BTreeSet<Goal>) -> Result<()> {
        match self.take_over(caller, manager.pid()) {
            Ok(()) => {}
            Err(Failure::Died) => return Ok(()),
            Err(failure) => {
                self.report.failed(format!("take-over: {failure}"));
                return Ok(());
            }
        }
        let (machine, report) = (&self.machine, &self.report);
        let answered: Vec<AtomicUsize> = self.tracks.iter().map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            let mut callers = Vec::new();
            for (track, answered) in self.tracks.iter_mut().zip(&answered) {
                callers.push(scope.spawn(move || {
                    loop {
                        let operation = track.next(goals);
                        match track.perform(operation, caller, machine, report) {
                            Ok(()) => _ = answered.fetch_add(1, Ordering::Relaxed),
                            Err(Failure::Died) => return,
                            Err(failure) => {
                                report.failed(format!("{operation:?}: {failure}"));
                                return;
                            }
                        }
                    }
                }));
            }
            let deadline = Instant::now() + self.options.driver.round();
            while manager.lives()? && Instant::now() < deadline {
                thread::sleep(LOOK_AGAIN);
            }
            // What was asked before is answered, or has its caller complain: a kill would hide that it hangs.
            let count = |answered: &AtomicUsize| answered.load(Ordering::Relaxed);
            let before: Vec<usize> = answered.iter().map(count).collect();
            let waits = || {
                let now = answered.iter().map(count).zip(&callers);
                now.zip(&before).any(|((now, caller), before)| now == *before && !caller.is_finished())
            };
            while manager.lives()? && waits() {
                thread::sleep(LOOK_AGAIN);
            }
            // Callers that wait for an answer wait no longer.
            manager.kill()
        })
    }

    /// VMs that ran and were left alone still run now that their manager is dead.
    fn survivors(&mut self) {
        let in_place = self.options.driver.sleeps_in_place();
        for track in &mut self.tracks {
            let is_process = |vm: &&Known| vm.is_settled() && (in_place || !vm.asleep);
            let Some(vm) = track.vm.as_ref().filter(is_process) else { continue };
            if !vm.process.is_some_and(super::machine::ProcessId::alive) {
                self.report.lost(format!("VM {} ended with its manager", vm.id));
                track.vm = None;
            }
        }
    }

    /// What a controller does after its manager was started, and all checks.
    fn take_over(&mut self, caller: &Caller, manager: i32) -> Result<(), Failure> {
        self.one_vm_a_slot(&caller.list()?);
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
        let wanted: HashSet<VmId> =
            self.tracks.iter().filter_map(|it| it.vm.as_ref()).map(|vm| vm.id).collect();
        caller.reclaim(&wanted)?;
        // Only now: a manager takes the warm ones of an earlier one over once it knows what is planned.
        caller.warm(self.options.driver.warm())?;
        let listed: BTreeMap<VmId, SeenVm> = caller.list()?.into_iter().map(|vm| (vm.id, vm)).collect();
        for track in &mut self.tracks {
            check_track(track, &listed, caller, &self.machine, &self.report)?;
        }
        let listed = caller.list()?;
        self.one_vm_a_slot(&listed);
        self.records_are_complete(&listed);
        self.nothing_is_left(caller, manager)
    }

    /// Looks until nothing is left over, or the kernel and the pool have had their time.
    fn nothing_is_left(&self, caller: &Caller, manager: i32) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let live: BTreeSet<VmId> = caller.list()?.iter().map(|vm| vm.id).collect();
            let slots_used = caller.status().slots_used;
            let expected = Expected { live: &live, manager: Some(manager), slots_used, drained: false };
            let found = orphans::look(&self.machine, &self.baseline, &expected);
            if found.is_empty() || Instant::now() >= deadline {
                self.report.orphans(found);
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN * 20);
        }
    }

    fn one_vm_a_slot(&self, listed: &[SeenVm]) {
        let mut taken: BTreeMap<Slot, VmId> = BTreeMap::new();
        for vm in listed {
            if let Some(other) = taken.insert(vm.slot, vm.id) {
                self.report.double_slot(format!("slot {} of {other} and {}", vm.slot.index(), vm.id));
            }
        }
    }

    fn records_are_complete(&self, listed: &[SeenVm]) {
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
        let caller = caller.context("a manager without a trap gets ready")?;
        let ended = |failure: Failure| anyhow::anyhow!("last manager: {failure}");
        self.take_over(&caller, manager.pid()).map_err(ended)?;
        for track in &mut self.tracks {
            if track.vm.is_some() {
                track.perform(Operation::Destroy, &caller, &self.machine, &self.report).map_err(ended)?;
            }
        }
        manager.drain()?;
        let listed = none_listed(&caller).map_err(ended)?;
        if !listed.is_empty() {
            self.report.failed(format!("VMs are listed after the last was destroyed: {listed:?}"));
        }
        self.nothing_is_left(&caller, manager.pid()).map_err(ended)?;
        manager.end()?;
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
        let caller = caller.context("a manager without a trap gets ready")?;
        manager.drain()?;
        if let Err(failure) = caller.reclaim(&HashSet::new()).and_then(|()| none_listed(&caller)) {
            eprintln!("what the suite left cannot be removed: {failure}");
        }
        manager.end()?;
        remove(&self.run_dir)
    }
}

/// Kills a manager after a time.
struct Timer {
    stop: std::sync::mpsc::Sender<()>,
}

impl Timer {
    fn start(manager: &Manager, kill: &Kill) -> Option<Self> {
        let (Kill::After(delay), Some(pid)) = (kill, Pid::from_raw(manager.pid())) else {
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
    listed: &BTreeMap<VmId, SeenVm>,
    caller: &Caller,
    machine: &Machine,
    report: &Report,
) -> Result<(), Failure> {
    let Some(vm) = &mut track.vm else { return Ok(()) };
    let (id, doing) = (vm.id, vm.doing);
    let found = listed.get(&id);
    if doing == Some(Operation::Create) {
        // A warm VM that was drawn and not claimed is the pool's, which hands it to the next one who asks.
        let is_ours = machine.recorded_state(id).as_deref() == Some("active");
        return match found.filter(|found| found.running && is_ours) {
            Some(found) => {
                (vm.slot, vm.process, vm.doing) = (Some(found.slot), machine.recorded_process(id), None);
                track.answers(caller, machine, report)
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
        track.answers(caller, machine, report)?;
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
    track.answers(caller, machine, report)?;
    if track.user.is_some() { track.read_back(caller, report) } else { Ok(()) }
}

/// What is still listed of VMs that are on their way out, when they have had their time.
fn none_listed(caller: &Caller) -> Result<Vec<SeenVm>, Failure> {
    let deadline = Instant::now() + DRAIN_LIMIT;
    loop {
        let listed = caller.list()?;
        if listed.is_empty() || Instant::now() >= deadline {
            return Ok(listed);
        }
        thread::sleep(LOOK_AGAIN * 20);
    }
}

fn is_anything_left(machine: &Machine) -> bool {
    let names = |place: &str| super::machine::names(&machine.run.join(place));
    ["vm", "layers", "netns"].iter().any(|place| !names(place).is_empty()) || !machine.records().is_empty()
}

pub(super) fn remove(dir: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
