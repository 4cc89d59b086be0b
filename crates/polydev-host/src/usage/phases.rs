//! How long the phases of VMs' starts took, from the request on. Every moment of a start belongs to exactly one phase, so
//! the phases add up to the whole.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use polydev_core::vm::Step;
use serde::{Deserialize, Serialize};

use crate::host::VmKind;

/// Upper bounds of the buckets in seconds; one more takes the rest.
pub(crate) const BOUNDS_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// The whole start, beside its phases.
const TOTAL: &str = "total";
/// What comes before anything is done: waiting for others' steps and for room.
const ADMIT: &str = "admit";

/// A histogram of one phase of one kind of VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseFigures {
    /// `browser` or `cli`.
    pub kind: String,
    /// How it came about: `new`, `ahead` (for the pool), `claimed` (from the pool) or `woken`.
    #[serde(default)]
    pub start: String,
    /// The phase, or `total`.
    pub phase: String,
    /// All durations together.
    pub sum_s: f64,
    /// Upper bound in seconds and how many lie below it but not below the one before; the last has no bound.
    pub buckets: Vec<(Option<f64>, u64)>,
}

#[derive(Debug, Clone, Default)]
struct Histogram {
    sum: Duration,
    counts: [u64; BOUNDS_S.len() + 1],
}

/// How a VM comes to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// It is made for whoever waits for it.
    New,
    /// It is made for the pool; nobody waits.
    Ahead,
    /// It is taken from the pool.
    Claimed,
    /// It slept.
    Woken,
}

impl Start {
    const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Ahead => "ahead",
            Self::Claimed => "claimed",
            Self::Woken => "woken",
        }
    }
}

/// All histograms. There are as many as kinds times starts times steps.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    all: Mutex<BTreeMap<[&'static str; 3], Histogram>>,
}

/// Measures one start.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    phases: &'a Phases,
    kind: &'static str,
    start: Start,
    began: Instant,
    since: Instant,
    now: &'static str,
    laps: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// Begins to measure a start.
    pub(crate) fn watch(&self, kind: &VmKind, start: Start) -> Watch<'_> {
        let kind = match kind {
            VmKind::Browser => "browser",
            VmKind::Cli { .. } => "cli",
        };
        let began = Instant::now();
        Watch { phases: self, kind, start, began, since: began, now: ADMIT, laps: Vec::new() }
    }

    /// All of them so far.
    pub(crate) fn figures(&self) -> Vec<PhaseFigures> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let bounds = || BOUNDS_S.into_iter().map(Some).chain([None]);
        let figures = all.iter().map(|([kind, start, phase], histogram)| PhaseFigures {
            kind: (*kind).to_owned(),
            start: (*start).to_owned(),
            phase: (*phase).to_owned(),
            sum_s: histogram.sum.as_secs_f64(),
            buckets: bounds().zip(histogram.counts).collect(),
        });
        figures.collect()
    }
}

impl Watch<'_> {
    /// The step that is taken next, or none when the VM is up; only then the start counts.
    pub(crate) fn step(&mut self, next: Option<Step>) -> Option<Step> {
        match next {
            Some(step) => self.enter(name(step)),
            // A VM that was up already was not started.
            None if self.laps.is_empty() => {}
            None => self.finish(),
        }
        next
    }

    /// From here on it is this phase.
    pub(crate) fn enter(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.laps.push((self.now, now - self.since));
        (self.now, self.since) = (phase, now);
    }

    fn finish(&mut self) {
        self.enter(TOTAL);
        self.laps.push((TOTAL, self.since - self.began));
        let mut all = self.phases.all.lock().unwrap_or_else(PoisonError::into_inner);
        for (phase, took) in self.laps.drain(..) {
            let histogram = all.entry([self.kind, self.start.name(), phase]).or_default();
            histogram.sum += took;
            let bucket = BOUNDS_S.iter().position(|bound| took.as_secs_f64() <= *bound);
            histogram.counts[bucket.unwrap_or(BOUNDS_S.len())] += 1;
        }
    }
}

const fn name(step: Step) -> &'static str {
    match step {
        Step::Record => "record",
        Step::Start => "start",
        Step::Connect => "connect",
        Step::Identify => "identify",
        Step::Paint => "paint",
        Step::Wake => "wake",
        Step::GiveUp => "give_up",
        Step::Quiesce => "quiesce",
        Step::Hold => "hold",
        Step::Stop => "stop",
        Step::KeepLogs => "keep_logs",
        Step::Release => "release",
        Step::Forget => "forget",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_a_start_add_up_to_the_whole() {
        let phases = Phases::default();
        let mut watch = phases.watch(&VmKind::Browser, Start::New);
        for step in [Some(Step::Record), Some(Step::Start), Some(Step::Connect), Some(Step::Identify), None] {
            assert_eq!(watch.step(step), step);
        }
        let figures = phases.figures();
        let names: Vec<&str> = figures.iter().map(|it| it.phase.as_str()).collect();
        assert_eq!(names, ["admit", "connect", "identify", "record", "start", "total"]);
        let (total, parts): (Vec<_>, Vec<_>) = figures.iter().partition(|it| it.phase == TOTAL);
        let sum: f64 = parts.iter().map(|it| it.sum_s).sum();
        assert!((sum - total[0].sum_s).abs() < 1e-9, "{sum} and {}", total[0].sum_s);
        assert!(figures.iter().all(|it| it.buckets.iter().map(|(_, count)| count).sum::<u64>() == 1));
    }

    #[test]
    fn a_start_that_failed_does_not_count() {
        let phases = Phases::default();
        let mut watch = phases.watch(&VmKind::Browser, Start::New);
        watch.step(Some(Step::Record));
        watch.step(Some(Step::GiveUp));
        drop(watch);
        assert!(phases.figures().is_empty());
    }
}
