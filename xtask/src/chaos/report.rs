//! What a run of the suite found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};

use super::{
    options::Driver,
    orphans::{CLASSES, Orphans},
    track::Operation,
};

/// What is killed.
const MANAGER: &str = "polydev host";
/// With so many kills for each failpoint that is reached, one without any is a fault.
const KILLS_EACH: usize = 3;

/// So many attempts to kill at a failpoint that did not get there stand for a kill when the next one is chosen.
const MISSES_A_TURN: usize = 3;
/// Most faults that are kept in words.
const WORDS_MAX: usize = 60;

/// See the module. Shared by all callers.
#[derive(Debug, Default)]
pub(super) struct Report {
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    driver: &'static str,
    guest: &'static str,
    network: &'static str,
    seed: u64,
    took: Duration,
    /// By what they hit: a failpoint's name, or a time drawn at random.
    kills: BTreeMap<String, usize>,
    missed: BTreeMap<String, usize>,
    /// Failpoints that were reached and at which nothing was killed.
    spared: Vec<String>,
    operations: BTreeMap<Operation, usize>,
    lost: usize,
    double_slots: usize,
    corrupted: usize,
    incomplete: usize,
    failed: usize,
    uncovered: usize,
    orphans: BTreeMap<&'static str, usize>,
    words: Vec<String>,
}

impl Report {
    pub(super) fn new(driver: Driver, network: &'static str, seed: u64) -> Self {
        let (driver, guest) = (driver.name(), driver.guest());
        Self { found: Mutex::new(Found { driver, guest, network, seed, ..Found::default() }) }
    }

    pub(super) fn killed(&self, at: &str) {
        *self.found().kills.entry(at.to_owned()).or_default() += 1;
    }

    /// A failpoint at which it was to be killed and to which it did not get.
    pub(super) fn missed(&self, at: &str) {
        *self.found().missed.entry(at.to_owned()).or_default() += 1;
    }

    pub(super) fn performed(&self, operation: Operation) {
        *self.found().operations.entry(operation).or_default() += 1;
    }

    /// A VM that was running is not running any more, or is another one.
    pub(super) fn lost(&self, words: String) {
        self.found().fault(|found| &mut found.lost, "lost", words);
    }

    pub(super) fn double_slot(&self, words: String) {
        self.found().fault(|found| &mut found.double_slots, "double slot", words);
    }

    pub(super) fn corrupted(&self, words: String) {
        self.found().fault(|found| &mut found.corrupted, "user data", words);
    }

    pub(super) fn incomplete(&self, words: String) {
        self.found().fault(|found| &mut found.incomplete, "record", words);
    }

    /// The manager lives and did not do what it was asked.
    pub(super) fn failed(&self, words: String) {
        self.found().fault(|found| &mut found.failed, "failed", words);
    }

    pub(super) fn orphans(&self, orphans: Orphans) {
        let mut found = self.found();
        for (class, words) in orphans {
            let kind = format!("orphan {class}");
            found.fault(|found| found.orphans.entry(class).or_default(), &kind, words);
        }
    }

    /// Takes note of the failpoints that were reached. With `all`, each of them is to have had its kill.
    pub(super) fn ended(&self, took: Duration, reached: &BTreeSet<String>, all: bool) {
        let mut found = self.found();
        found.took = took;
        found.spared = reached.iter().filter(|name| !found.kills.contains_key(*name)).cloned().collect();
        let kills: usize = found.kills.values().sum();
        if all || kills >= KILLS_EACH * reached.len() {
            for name in found.spared.clone() {
                found.fault(
                    |found| &mut found.uncovered,
                    "not covered",
                    format!("nothing was killed at {name}"),
                );
            }
        }
    }

    pub(super) fn fault_count(&self) -> usize {
        self.found().fault_count()
    }

    /// How often a failpoint had its turn. One that was missed comes again, but not for ever before all others.
    pub(super) fn turns(&self, name: &str) -> usize {
        let found = self.found();
        let count = |counts: &BTreeMap<String, usize>| counts.get(name).copied().unwrap_or_default();
        count(&found.kills) + count(&found.missed) / MISSES_A_TURN
    }

    pub(super) fn kills(&self) -> usize {
        self.found().kills.values().sum()
    }

    /// In words; empty if all is well.
    pub(super) fn faults(&self) -> Vec<String> {
        let found = self.found();
        let more = found.fault_count().saturating_sub(found.words.len());
        let rest = (more > 0).then(|| format!("and {more} more"));
        found.words.iter().cloned().chain(rest).collect()
    }

    pub(super) fn json(&self) -> Value {
        let found = self.found();
        let mut json = Map::new();
        for (name, number) in found.numbers() {
            json.insert(name, number.into());
        }
        json.insert("driver".into(), found.driver.into());
        json.insert("manager".into(), MANAGER.into());
        json.insert("guest".into(), found.guest.into());
        json.insert("network".into(), found.network.into());
        json.insert("seed".into(), found.seed.into());
        json.insert("seconds".into(), found.took.as_secs().into());
        json.insert("kills_at".into(), json!(found.kills));
        json.insert("missed".into(), json!(found.missed));
        json.insert("not_killed_at".into(), json!(found.spared));
        let operations = found.operations.iter().map(|(it, count)| (format!("{it:?}").to_lowercase(), count));
        json.insert("operations".into(), json!(operations.collect::<BTreeMap<_, _>>()));
        json.insert("faults".into(), json!(found.words));
        Value::Object(json)
    }

    pub(super) fn table(&self) -> String {
        let found = self.found();
        let Found { driver, guest, network, seed, took, .. } = &*found;
        let mut table = format!("chaos {driver} (seed {seed}, {} s)\n", took.as_secs());
        let _ = writeln!(table, "  manager: {MANAGER}; guest: {guest}; network: {network}");
        for (name, number) in found.numbers() {
            let _ = writeln!(table, "  {name:<24} {number:>6}");
        }
        table.push_str("kills at\n");
        for (name, number) in &found.kills {
            let _ = writeln!(table, "  {name:<40} {number:>6}");
        }
        if !found.spared.is_empty() {
            let _ =
                writeln!(table, "WARNING: reached, and nothing killed there: {}", found.spared.join(", "));
        }
        table
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn fault(&mut self, count: impl Fn(&mut Self) -> &mut usize, kind: &str, words: String) {
        *count(self) += 1;
        eprintln!("FAULT {kind}: {words}");
        if self.words.len() < WORDS_MAX {
            self.words.push(format!("{kind}: {words}"));
        }
    }

    fn fault_count(&self) -> usize {
        self.lost
            + self.double_slots
            + self.corrupted
            + self.incomplete
            + self.failed
            + self.uncovered
            + self.orphans.values().sum::<usize>()
    }

    fn numbers(&self) -> Vec<(String, usize)> {
        let mut numbers = vec![
            ("kills".to_owned(), self.kills.values().sum()),
            ("lost_running_vms".to_owned(), self.lost),
            ("double_slots".to_owned(), self.double_slots),
        ];
        let orphans = CLASSES
            .iter()
            .map(|class| (format!("orphan_{class}"), self.orphans.get(class).copied().unwrap_or_default()));
        numbers.extend(orphans);
        numbers.extend([
            ("corrupted_disks".to_owned(), self.corrupted),
            ("incomplete_records".to_owned(), self.incomplete),
            ("failed_operations".to_owned(), self.failed),
            ("uncovered_failpoints".to_owned(), self.uncovered),
        ]);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(kills: usize, all: bool) -> usize {
        let report = Report::new(Driver::Fake, "tap", 1);
        (0..kills).for_each(|_| report.killed("create/recorded"));
        report.missed("destroy/recorded");
        let reached = ["create/recorded", "destroy/recorded"].map(str::to_owned).into();
        report.ended(Duration::ZERO, &reached, all);
        assert_eq!(report.json()["not_killed_at"], json!(["destroy/recorded"]));
        report.fault_count()
    }

    #[test]
    fn a_failpoint_without_a_kill_is_a_fault_when_there_were_enough_or_when_each_is_asked_for() {
        assert_eq!(faults(2 * KILLS_EACH - 1, false), 0);
        assert_eq!(faults(2 * KILLS_EACH, false), 1);
        assert_eq!(faults(1, true), 1);
    }
}
