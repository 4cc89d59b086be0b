//! What a benchmark found.

use serde::Serialize;

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
}

/// One figure.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    n: usize,
    p50: f64,
    p95: f64,
    min: f64,
    max: f64,
    /// Upper limit of p50.
    goal: Option<f64>,
}

impl Report {
    pub(crate) fn new(bench: impl Into<String>, rows: Vec<Row>) -> Self {
        let head = read(command("git").args(["describe", "--always", "--dirty", "--abbrev=12"]));
        Self {
            bench: bench.into(),
            commit: head.map_or_else(|_| "unknown".into(), |head| head.trim().to_owned()),
            machine: setup::machine(),
            rows,
        }
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let name = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        let mut lines = vec![
            format!("{} at {} on {}", self.bench, self.commit, self.machine),
            format!(
                "{:name$}  {:>4}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  unit",
                "name", "n", "p50", "p95", "min", "max", "goal"
            ),
        ];
        lines.extend(self.rows.iter().map(|row| {
            let goal = row
                .goal
                .map_or_else(|| "-".into(), |goal| format!("{}{goal}", if row.missed() { "! " } else { "" }));
            let Row { n, p50, p95, min, max, unit, .. } = row;
            format!(
                "{:name$}  {n:>4}  {p50:>9.1}  {p95:>9.1}  {min:>9.1}  {max:>9.1}  {goal:>9}  {unit}",
                row.name
            )
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
            p50: percentile(&sorted, 50),
            p95: percentile(&sorted, 95),
            min,
            max,
            goal,
        })
    }

    fn missed(&self) -> bool {
        self.goal.is_some_and(|goal| self.p50 > goal)
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
    }
}
