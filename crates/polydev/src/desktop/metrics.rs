//! The desktop's figures for all sign-ins together, as Prometheus reads them.

use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::Duration,
};

use polydev_core::desktop::{Frame, GuestStats};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{Lane, seat::Refusal, stats::Left, talk::ViewerReport};

/// A figure of a viewer above this is nonsense.
const REPORTED_MAX_MS: f64 = 60_000.0;

/// Figures of all desktops.
#[derive(Debug, Default)]
pub struct Metrics {
    viewers: Family<LaneLabel, Gauge<i64, AtomicI64>>,
    frames: Family<LaneLabel, Counter>,
    keyframes: Family<LaneLabel, Counter>,
    bytes: Family<LaneLabel, Counter>,
    dropped: Family<LaneLabel, Counter>,
    freezes: Family<LaneLabel, Counter>,
    refused: Family<CodeLabel, Counter>,
    inputs: Counter,
    keyframes_asked: Counter,
    interruptions: Counter,
    guest_cpu: Counter<f64, AtomicU64>,
    guest_encode_cpu: Counter<f64, AtomicU64>,
    server: Delays,
    input_server: Delays,
    input_to_picture: Delays,
    glass_to_glass: Delays,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug)]
struct Delays(Family<LaneLabel, Histogram>);

impl Default for Delays {
    fn default() -> Self {
        /// Seconds; densest where it is decided whether a desktop feels local.
        const BOUNDS: [f64; 14] =
            [0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.045, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5];
        Self(Family::new_with_constructor(|| Histogram::new(BOUNDS)))
    }
}

impl Delays {
    fn observe(&self, lane: Lane, delay: Duration) {
        self.0.get_or_create(&label(lane)).observe(delay.as_secs_f64());
    }
}

fn label(lane: Lane) -> LaneLabel {
    LaneLabel { lane: lane.as_str() }
}

impl Metrics {
    /// Names every figure in the registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("desktop");
        registry.register("viewers", "Viewers now", self.viewers.clone());
        registry.register("frames", "Pictures sent to viewers", self.frames.clone());
        registry.register("keyframes", "Of these, pictures that stand alone", self.keyframes.clone());
        registry.register_with_unit("sent", "Pictures sent to viewers", Unit::Bytes, self.bytes.clone());
        registry.register("frames_dropped", "Pictures a viewer was too slow for", self.dropped.clone());
        registry.register("freezes", "Freezes above 500 ms that viewers saw", self.freezes.clone());
        registry.register("refused", "Messages of viewers that were refused", self.refused.clone());
        registry.register("inputs", "Input events passed to guests", self.inputs.clone());
        registry.register("keyframes_asked", "Keyframes asked of guests", self.keyframes_asked.clone());
        registry.register(
            "interruptions",
            "Times that a picture was interrupted",
            self.interruptions.clone(),
        );
        let guest = "CPU of the guests' desktop programs";
        registry.register_with_unit("guest_cpu", guest, Unit::Seconds, self.guest_cpu.clone());
        let encode = "CPU of the guests' encoders";
        registry.register_with_unit("guest_encode_cpu", encode, Unit::Seconds, self.guest_encode_cpu.clone());
        let delays = [
            ("server", "From reading the screen to leaving the controller", &self.server),
            (
                "input_server",
                "From an input's arrival at the controller to its picture's leaving",
                &self.input_server,
            ),
            (
                "input_to_picture",
                "From an input to its picture, as viewers measured it",
                &self.input_to_picture,
            ),
            (
                "glass_to_glass",
                "Estimate from reading the screen to showing it: server, half a round trip, presentation",
                &self.glass_to_glass,
            ),
        ];
        for (name, help, delays) in delays {
            registry.register_with_unit(name, help, Unit::Seconds, delays.0.clone());
        }
    }

    pub(super) fn came(&self, lane: Lane) {
        self.viewers.get_or_create(&label(lane)).inc();
    }

    pub(super) fn left(&self, lane: Lane) {
        self.viewers.get_or_create(&label(lane)).dec();
    }

    pub(super) fn sent(&self, lane: Lane, frame: &Frame, bytes: usize, left: &Left) {
        let label = label(lane);
        self.frames.get_or_create(&label).inc();
        self.bytes.get_or_create(&label).inc_by(bytes as u64);
        if frame.key {
            self.keyframes.get_or_create(&label).inc();
        }
        if let Some(server) = left.server {
            self.server.observe(lane, server);
        }
        left.inputs.iter().for_each(|input| self.input_server.observe(lane, *input));
    }

    pub(super) fn dropped(&self, lane: Lane, frames: usize) {
        if frames > 0 {
            self.dropped.get_or_create(&label(lane)).inc_by(frames as u64);
        }
    }

    /// A viewer's own figures, with what the way to its transport took last.
    pub(super) fn report(&self, lane: Lane, report: &ViewerReport, server: Option<Duration>) {
        let sound = |ms: Option<f64>| {
            ms.filter(|ms| (0.0..=REPORTED_MAX_MS).contains(ms))
                .map(|ms| Duration::from_secs_f64(ms / 1000.0))
        };
        if let Some(delay) = sound(report.input_to_picture_ms) {
            self.input_to_picture.observe(lane, delay);
        }
        if let (Some(server), Some(rtt), Some(present)) =
            (server, sound(report.rtt_ms), sound(report.present_ms))
        {
            self.glass_to_glass.observe(lane, server + rtt / 2 + present);
        }
        /// More than one a second would not be freezes.
        const FREEZES_MAX: u64 = 60;
        if let Some(freezes) = report.freezes.filter(|freezes| (1..=FREEZES_MAX).contains(freezes)) {
            self.freezes.get_or_create(&label(lane)).inc_by(freezes);
        }
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused.get_or_create(&CodeLabel { code: refusal.as_str() }).inc();
    }

    pub(super) fn input(&self) {
        self.inputs.inc();
    }

    pub(super) fn keyframe_asked(&self) {
        self.keyframes_asked.inc();
    }

    pub(super) fn interrupted(&self) {
        self.interruptions.inc();
    }

    /// What a guest used since it last said so.
    pub(super) fn guest(&self, used: &GuestStats) {
        let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
        self.guest_cpu.inc_by(seconds(used.cpu_us));
        self.guest_encode_cpu.inc_by(seconds(used.encode_cpu_us));
    }
}
