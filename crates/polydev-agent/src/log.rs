//! The agent's log: the last lines in memory, the important ones on the console too.
//!
//! Never receives a URL with a query, a code or file content; output of supervised programs is cleaned by
//! [`polydev_core::scrub`] before it comes here.

use std::{cell::RefCell, collections::VecDeque, fmt::Display, io::Write, rc::Rc, time::Instant};

/// Bytes kept.
const KEPT: usize = 256 << 10;
/// Longest line; the rest is cut off.
const LINE_MAX: usize = 1 << 10;

/// Handle to the log; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    ring: Rc<RefCell<Ring>>,
}

struct Ring {
    started: Instant,
    lines: VecDeque<String>,
    bytes: usize,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            ring: Rc::new(RefCell::new(Ring { started: Instant::now(), lines: VecDeque::new(), bytes: 0 })),
        }
    }

    /// A state change or a failure: kept and shown on the console.
    pub(crate) fn note(&self, source: &str, text: impl Display) {
        let line = self.keep(source, &text.to_string());
        // The console may be gone; there is nobody left to tell then.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    /// A line of a supervised program: kept only.
    pub(crate) fn output(&self, source: &str, text: &str) {
        self.keep(source, text);
    }

    /// At most `max` bytes of the end, whole lines.
    pub(crate) fn tail(&self, max: usize) -> String {
        let ring = self.ring.borrow();
        let mut size = 0;
        let fitting = ring.lines.iter().rev().take_while(|line| {
            size += line.len() + 1;
            size <= max
        });
        let mut lines: Vec<&str> = fitting.map(String::as_str).collect();
        lines.reverse();
        lines.iter().flat_map(|line| [line, "\n"]).collect()
    }

    /// What a source said last.
    pub(crate) fn last_of(&self, source: &str) -> Option<String> {
        let ring = self.ring.borrow();
        let said = |line: &String| {
            line.split_once(' ')?.1.strip_prefix(source)?.strip_prefix(": ").map(str::to_owned)
        };
        ring.lines.iter().rev().find_map(|line| said(&line.trim_start().to_owned()))
    }

    pub(crate) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.ring.borrow().started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn keep(&self, source: &str, text: &str) -> String {
        let uptime = self.uptime_ms();
        let clean: String = text.chars().filter(|c| !c.is_control() || *c == '\t').take(LINE_MAX).collect();
        let line = format!("{:>8}.{:03} {source}: {clean}", uptime / 1000, uptime % 1000);
        let mut ring = self.ring.borrow_mut();
        ring.bytes += line.len();
        ring.lines.push_back(line.clone());
        while ring.bytes > KEPT {
            let Some(oldest) = ring.lines.pop_front() else { break };
            ring.bytes -= oldest.len();
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_lines_within_its_size() {
        let log = Log::new();
        for n in 0..10_000 {
            log.output("test", &format!("line {n} {}", "x".repeat(100)));
        }
        assert!(log.ring.borrow().bytes <= KEPT);
        let tail = log.tail(300);
        assert!(tail.len() <= 300 && tail.contains("line 9999"), "{tail}");
        assert!(!log.tail(usize::MAX).contains("line 0 "));
        log.output("other", "said: this");
        assert_eq!(log.last_of("other").as_deref(), Some("said: this"));
    }
}
