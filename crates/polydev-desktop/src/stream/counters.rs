//! What the streaming program did so far.

use std::time::Duration;

use polydev_core::desktop::GuestStats;
use rustix::time::{ClockId, clock_gettime};

/// Counts since the program started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    stats: GuestStats,
}

impl Counters {
    /// How often they are told.
    pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

    /// A frame was made.
    pub(crate) fn frame(&mut self, key: bool, bytes: usize, capture: Duration, encode: Duration) {
        self.stats.frames += 1;
        self.stats.keyframes += u64::from(key);
        self.stats.bytes += bytes as u64;
        self.stats.capture_cpu_us += micros(capture);
        self.stats.encode_cpu_us += micros(encode);
    }

    /// A change had to wait for the frame before it.
    pub(crate) fn merged(&mut self) {
        self.stats.merged += 1;
    }

    /// All of them, with `(injected, failed)` inputs.
    pub(crate) fn read(&self, (inputs, inputs_failed): (u64, u64)) -> GuestStats {
        GuestStats { cpu_us: micros(cpu(ClockId::ProcessCPUTime)), inputs, inputs_failed, ..self.stats }
    }
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Duration {
    cpu(ClockId::ThreadCPUTime)
}

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
