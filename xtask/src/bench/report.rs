//! What a benchmark found.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::{
    run::{command, read},
    setup,
};

/// All of one benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    bench: String,
    commit: String,
    machine: String,
    rows: Vec<Row>,
    /// More than rows can say, by name.
    #[serde(flatten)]
    details: BTreeMap<&'static str, Value>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    n: usize,
    pub(crate) p5: f64,
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    min: f64,
    pub(crate) max: f64,
    /// Upper limit of p50.
    goal: Option<f64>,
    /// Upper limit of p95.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_p95: Option<f64>,
}

impl Report {
    pub(crate) fn new(bench: impl Into<String>, rows: Vec<Row>) -> Self {
        let head = read(command("git").args(["describe", "--always", "--dirty", "--abbrev=12"]));
        Self {
            bench: bench.into(),
            commit: head.map_or_else(|_| "unknown".into(), |head| head.trim().to_owned()),
            machine: setup::machine(),
            rows,
            details: BTreeMap::new(),
        }
    }

    /// The same with more for the JSON.
    pub(crate) fn with_detail(mut self, name: &'static str, detail: Value) -> Self {
        self.details.insert(name, detail);
        self
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let name = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        let mut lines = vec![
            format!("{} at {} on {}", self.bench, self.commit, self.machine),
            format!(
                "{:name$}  {:>4}  {:>9}  {:>9}  {:>9}  {:>9}  {:>13}  unit",
                "name", "n", "p50", "p95", "min", "max", "goal"
            ),
        ];
        lines.extend(self.rows.iter().map(|row| {
            let goal = row.goals();
            let Row { n, p50, p95, min, max, unit, .. } = row;
            let decimals = if *unit == "x" { 2 } else { 1 };
            let numbers = [p50, p95, min, max].map(|number| format!("{number:>9.decimals$}")).join("  ");
            format!("{:name$}  {n:>4}  {numbers}  {goal:>13}  {unit}", row.name)
        }));
        lines.join("\n")
    }

    /// Rows whose goal is missed.
    pub(crate) fn missed(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| row.missed()).map(|row| row.name.as_str()).collect()
    }
}

impl Row {
    /// `None` without samples.
    pub(crate) fn of(
        name: impl Into<String>,
        unit: &'static str,
        samples: &[f64],
        goal: Option<f64>,
    ) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            name: name.into(),
            unit,
            n: sorted.len(),
            p5: percentile(&sorted, 5),
            p50: percentile(&sorted, 50),
            p95: percentile(&sorted, 95),
            min,
            max,
            goal,
            goal_p95: None,
        })
    }

    /// The same with an upper limit of p95.
    pub(crate) fn with_p95_goal(mut self, goal: f64) -> Self {
        self.goal_p95 = Some(goal);
        self
    }

    fn missed(&self) -> bool {
        self.goal.is_some_and(|goal| self.p50 > goal) || self.goal_p95.is_some_and(|goal| self.p95 > goal)
    }

    fn goals(&self) -> String {
        let goals = match (self.goal, self.goal_p95) {
            (None, None) => return "-".into(),
            (Some(goal), None) => goal.to_string(),
            (None, Some(p95)) => format!("p95 {p95}"),
            (Some(goal), Some(p95)) => format!("{goal}, p95 {p95}"),
        };
        if self.missed() { format!("! {goals}") } else { goals }
    }
}

/// Nearest rank: a value that was really measured.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        let row = Row::of("x", "ms", &samples, Some(9.0)).expect("there are samples");
        assert_eq!((row.n, row.p50, row.p95, row.min, row.max), (20, 10.0, 19.0, 1.0, 20.0));
        assert!(row.missed());
        assert_eq!(Row::of("x", "ms", &[], None), None);
        let one = Row::of("x", "ms", &[7.0], Some(7.0)).expect("there is a sample");
        assert_eq!((one.p50, one.p95, one.missed()), (7.0, 7.0, false));
        assert!(one.with_p95_goal(6.0).missed());
    }
}
