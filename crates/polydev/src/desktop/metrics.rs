//! The desktop's figures for all sign-ins together, as Prometheus reads them.

use std::time::Duration;

use polydev_core::desktop::Frame;

use super::{Lane, seat::Refusal, stats::Left, talk::ViewerReport};

/// Figures of all desktops.
#[derive(Debug, Default)]
pub struct Metrics {}

impl Metrics {
    pub(super) fn sent(&self, _lane: Lane, _frame: &Frame, _bytes: usize, _left: &Left) {}
    pub(super) fn report(&self, _lane: Lane, _report: &ViewerReport, _server: Option<Duration>) {}
    pub(super) fn refused(&self, _refusal: Refusal) {}
    pub(super) fn dropped(&self, _lane: Lane, _frames: usize) {}
}
