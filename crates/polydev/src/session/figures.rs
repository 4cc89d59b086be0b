//! How long the phases of sign-ins took, as Prometheus reads them. A phase ends with the step it is named after and
//! begins where the one before ended, so the phases of a sign-in add up to the whole of it.

use polydev_core::session::{SessionView, Step};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Seconds; a start from a warm VM takes less than one, a person some minutes.
const BOUNDS_S: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 900.0];
const TOTAL: &str = "total";

/// Figures of all sign-ins.
#[derive(Debug)]
pub struct Figures(Family<Label, Histogram>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    phase: &'static str,
    outcome: &'static str,
}

impl Default for Figures {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BOUNDS_S)))
    }
}

impl Figures {
    /// Adds them to what is shown.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Phases of sign-ins that were closed; they add up to `total`";
        registry.register_with_unit("sign_in", help, Unit::Seconds, self.0.clone());
    }

    /// Counts a sign-in that has been closed.
    pub(super) fn closed(&self, started_ms: u64, view: &SessionView) {
        let outcome = view.state.as_str();
        for (phase, took_ms) in phases(started_ms, view) {
            let seconds = std::time::Duration::from_millis(took_ms).as_secs_f64();
            self.0.get_or_create(&Label { phase, outcome }).observe(seconds);
        }
    }
}

fn phases(started_ms: u64, view: &SessionView) -> Vec<(&'static str, u64)> {
    let mut steps: Vec<(u64, Step)> = view.steps.as_slice().iter().map(|it| (it.at_ms, it.step)).collect();
    // The wall clock may have been set back meanwhile.
    steps.sort_by_key(|(at_ms, _)| *at_ms);
    let mut since_ms = started_ms;
    let mut phases = Vec::with_capacity(steps.len() + 1);
    for (at_ms, step) in steps {
        phases.push((name(step), at_ms.saturating_sub(since_ms)));
        since_ms = since_ms.max(at_ms);
    }
    phases.push((TOTAL, since_ms.saturating_sub(started_ms)));
    phases
}

const fn name(step: Step) -> &'static str {
    match step {
        Step::VmRequested => "vm_requested",
        Step::VmReady => "vm_ready",
        Step::CliStarted => "cli_started",
        Step::UrlCaptured => "url_captured",
        Step::DesktopReady => "desktop_ready",
        Step::UserActive => "user_active",
        Step::CallbackSeen => "callback_seen",
        Step::CredentialSeen => "credential_seen",
        Step::Sealed => "sealed",
        Step::Transferred => "transferred",
        Step::Closed => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polydev_core::session::{Lane, State, Steps};

    fn view(steps: &str) -> SessionView {
        let steps: Steps = serde_json::from_str(steps).unwrap();
        let (state, lane) = (State::Succeeded, Lane::default());
        let step = steps.last();
        SessionView {
            state,
            step,
            lane,
            steps,
            error: None,
            queue_position: None,
            ended_at_ms: None,
            closed: true,
        }
    }

    #[test]
    fn phases_of_a_sign_in_add_up_to_the_whole() {
        let ended = view(
            r#"[{"step":"vm_requested","atMs":1000},{"step":"desktop_ready","atMs":1900},{"step":"vm_ready","atMs":1400},
                {"step":"closed","atMs":61000}]"#,
        );
        let all = phases(990, &ended);
        assert_eq!(
            all,
            [
                ("vm_requested", 10),
                ("vm_ready", 400),
                ("desktop_ready", 500),
                ("closed", 59_100),
                (TOTAL, 60_010)
            ]
        );
        let (total, parts): (Vec<_>, Vec<_>) = all.into_iter().partition(|(phase, _)| *phase == TOTAL);
        assert_eq!(parts.iter().map(|(_, ms)| ms).sum::<u64>(), total[0].1);
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_huge_phase() {
        let ended = view(r#"[{"step":"vm_requested","atMs":400},{"step":"closed","atMs":1200}]"#);
        assert_eq!(phases(1000, &ended), [("vm_requested", 0), ("closed", 200), (TOTAL, 200)]);
    }
}
