//! The arrows between the states. One function per state; each names every event, so that a new event cannot be
//! forgotten in any state.

use crate::{ids::VmId, wire::UrlYields};

use super::{
    Effect, Event, FetchFailure, Lane, SealFailure, Session, SessionErrorCode as Code, Step,
    closing::{better, expired, failed, interrupted},
    phase::{BrowserVm, Delivery, Desktop, End, Page, Phase, Url},
};

type Effects = Vec<Effect>;

/// The data of [`Phase::AwaitingUser`].
pub(super) struct Awaiting {
    pub(super) vm: VmId,
    pub(super) desktop: Desktop,
    pub(super) yields: UrlYields,
    pub(super) page: Page,
    pub(super) by_ms: u64,
    pub(super) end_ms: u64,
}

impl From<Awaiting> for Phase {
    fn from(Awaiting { vm, desktop, yields, page, by_ms, end_ms }: Awaiting) -> Self {
        Self::AwaitingUser { vm, desktop, yields, page, by_ms, end_ms }
    }
}

impl Session {
    pub(super) fn next(&mut self, phase: Phase, event: Event, out: &mut Effects) -> Phase {
        match phase {
            Phase::Queued { position, by_ms } => self.queued(position, by_ms, event, out),
            Phase::Booting { vm, by_ms } => self.booting(vm, by_ms, event, out),
            Phase::Preparing { vm, desktop, url } => self.preparing(vm, desktop, url, event, out),
            Phase::AwaitingUser { vm, desktop, yields, page, by_ms, end_ms } => {
                self.awaiting(Awaiting { vm, desktop, yields, page, by_ms, end_ms }, event, out)
            }
            Phase::Collecting { vm, by_ms } => self.collecting(vm, by_ms, event, out),
            Phase::Sealing { browser, by_ms } => self.sealing(browser, by_ms, event, out),
            Phase::Delivering { browser, delivery } => self.delivering(browser, delivery, event, out),
            Phase::Leaving { outcome, tries, by_ms } => self.leaving(outcome, tries, by_ms, event, out),
            Phase::Closing { outcome, release } => self.closing(outcome, release, event, out),
            closed @ Phase::Closed { .. } => closed,
        }
    }

    fn queued(&mut self, position: Option<u32>, by_ms: u64, event: Event, out: &mut Effects) -> Phase {
        match event {
            Event::QueuePosition(position) => Phase::Queued { position: Some(position), by_ms },
            Event::QueueFull => {
                self.closed(failed(Code::NoSlot, "every slot is in use and the queue is full"))
            }
            Event::SlotGranted(vm) => {
                self.step(Step::VmRequested);
                out.push(Effect::CreateVm(vm));
                Phase::Booting { vm, by_ms: self.after(self.limits.boot_ms) }
            }
            Event::LaneChosen(lane) => {
                self.lane = lane;
                Phase::Queued { position, by_ms }
            }
            Event::Cancel => self.leave(End::Cancelled, out),
            // The place in the queue died with the process that kept the queue.
            Event::Restarted => self.closed(interrupted()),
            Event::LeftQueue => self.closed(failed(Code::NoSlot, "the place in the queue was lost")),
            Event::DeadlineReached => self.leave(
                expired(Code::QueueTimeout, "every slot stayed in use for the whole waiting time"),
                out,
            ),
            Event::VmReady
            | Event::VmFailed { .. }
            | Event::AgentGone
            | Event::DesktopReady
            | Event::DesktopFailed { .. }
            | Event::LoginStarted
            | Event::LoginRefused { .. }
            | Event::UrlCaptured(_)
            | Event::DeviceCode
            | Event::PageOpen
            | Event::PageFailed { .. }
            | Event::UserActive
            | Event::CallbackSeen
            | Event::CredentialSeen
            | Event::LoginEnded(_)
            | Event::Fetched
            | Event::FetchFailed { .. }
            | Event::Sealed
            | Event::SealFailed { .. }
            | Event::Transferred
            | Event::TransferFailed { .. }
            | Event::Verified
            | Event::VerifyFailed { .. }
            | Event::VmGone => Phase::Queued { position, by_ms },
        }
    }

    fn booting(&mut self, vm: VmId, by_ms: u64, event: Event, out: &mut Effects) -> Phase {
        match event {
            Event::VmReady => {
                self.step(Step::VmReady);
                let desktop = match self.lane {
                    Lane::StreamedBrowser => self.start_desktop(vm, out),
                    Lane::CallbackRelay | Lane::DeviceCode => Desktop::Off,
                };
                out.push(Effect::StartLogin(vm));
                Phase::Preparing { vm, desktop, url: Url::Coming { by_ms: self.after(self.limits.url_ms) } }
            }
            Event::LaneChosen(lane) => {
                self.lane = lane;
                Phase::Booting { vm, by_ms }
            }
            Event::DeadlineReached => self.close(
                vm,
                failed(Code::VmStartTimeout, "the browser VM's agent did not answer in time"),
                out,
            ),
            Event::VmFailed { .. } | Event::AgentGone | Event::VmGone | Event::Cancel | Event::Restarted => {
                self.broken(vm, event, out)
            }
            Event::QueuePosition(_)
            | Event::QueueFull
            | Event::SlotGranted(_)
            | Event::LeftQueue
            | Event::DesktopReady
            | Event::DesktopFailed { .. }
            | Event::LoginStarted
            | Event::LoginRefused { .. }
            | Event::UrlCaptured(_)
            | Event::DeviceCode
            | Event::PageOpen
            | Event::PageFailed { .. }
            | Event::UserActive
            | Event::CallbackSeen
            | Event::CredentialSeen
            | Event::LoginEnded(_)
            | Event::Fetched
            | Event::FetchFailed { .. }
            | Event::Sealed
            | Event::SealFailed { .. }
            | Event::Transferred
            | Event::TransferFailed { .. }
            | Event::Verified
            | Event::VerifyFailed { .. } => Phase::Booting { vm, by_ms },
        }
    }

    fn preparing(&mut self, vm: VmId, desktop: Desktop, url: Url, event: Event, out: &mut Effects) -> Phase {
        match event {
            Event::LoginStarted => {
                self.step(Step::CliStarted);
                Phase::Preparing { vm, desktop, url }
            }
            Event::LoginRefused { detail } => self.close(vm, failed(Code::CliNotStarted, &detail), out),
            Event::UrlCaptured(yields) => {
                self.step(Step::UrlCaptured);
                let yields = match url {
                    Url::Coming { .. } => yields,
                    Url::Known { yields: known } => better(known, yields),
                };
                self.prepared(vm, desktop, Url::Known { yields }, out)
            }
            Event::DeviceCode => {
                self.step(Step::UrlCaptured);
                self.lane = Lane::DeviceCode;
                self.prepared(vm, desktop, Url::Known { yields: UrlYields::Device }, out)
            }
            Event::DesktopReady => {
                self.step(Step::DesktopReady);
                self.prepared(vm, Desktop::Ready, url, out)
            }
            Event::DesktopFailed { detail } => match self.lane {
                Lane::StreamedBrowser => self.close(vm, failed(Code::DesktopFailed, &detail), out),
                Lane::CallbackRelay | Lane::DeviceCode => Phase::Preparing { vm, desktop: Desktop::Off, url },
            },
            Event::LaneChosen(lane) => {
                self.lane = lane;
                let desktop = self.wanted_desktop(vm, desktop, out);
                self.prepared(vm, desktop, url, out)
            }
            Event::CallbackSeen => {
                self.step(Step::CallbackSeen);
                Phase::Preparing { vm, desktop, url }
            }
            Event::CredentialSeen => {
                self.step(Step::CredentialSeen);
                Phase::Preparing { vm, desktop, url }
            }
            Event::LoginEnded(end) => self.login_ended(vm, matches!(url, Url::Known { .. }), end, out),
            Event::DeadlineReached => match (url, desktop) {
                (Url::Coming { by_ms }, _) if by_ms <= self.clock_ms => self.close(
                    vm,
                    failed(Code::UrlTimeout, "the tool runs, but handed over no sign-in page"),
                    out,
                ),
                (Url::Coming { .. } | Url::Known { .. }, _) => self.desktop_late(vm, desktop, url, out),
            },
            Event::VmFailed { .. } | Event::AgentGone | Event::VmGone | Event::Cancel | Event::Restarted => {
                self.broken(vm, event, out)
            }
            Event::QueuePosition(_)
            | Event::QueueFull
            | Event::SlotGranted(_)
            | Event::LeftQueue
            | Event::VmReady
            | Event::PageOpen
            | Event::PageFailed { .. }
            | Event::UserActive
            | Event::Fetched
            | Event::FetchFailed { .. }
            | Event::Sealed
            | Event::SealFailed { .. }
            | Event::Transferred
            | Event::TransferFailed { .. }
            | Event::Verified
            | Event::VerifyFailed { .. } => Phase::Preparing { vm, desktop, url },
        }
    }

    fn awaiting(&mut self, mut at: Awaiting, event: Event, out: &mut Effects) -> Phase {
        match event {
            Event::LoginStarted => self.step(Step::CliStarted),
            Event::UrlCaptured(yields) => {
                // A second address replaces the first, unless it is a worse kind of the same sign-in.
                if better(at.yields, yields) == yields {
                    at.yields = yields;
                    self.open_page(&mut at, out);
                }
            }
            Event::DeviceCode => {
                self.lane = Lane::DeviceCode;
                at.yields = UrlYields::Device;
                self.open_page(&mut at, out);
            }
            Event::DesktopReady => {
                self.step(Step::DesktopReady);
                at.desktop = Desktop::Ready;
                if at.page == Page::Closed {
                    self.open_page(&mut at, out);
                }
            }
            Event::DesktopFailed { detail } => match self.lane {
                Lane::StreamedBrowser => return self.close(at.vm, failed(Code::DesktopFailed, &detail), out),
                Lane::CallbackRelay | Lane::DeviceCode => at.desktop = Desktop::Off,
            },
            Event::PageOpen => at.page = Page::Open,
            Event::PageFailed { detail } => return self.page_failed(at, &detail, out),
            Event::UserActive => {
                self.step(Step::UserActive);
                at.by_ms = self.user_deadline(&at);
            }
            Event::CallbackSeen => {
                self.step(Step::CallbackSeen);
                at.by_ms = self.user_deadline(&at);
            }
            Event::CredentialSeen => {
                self.step(Step::CredentialSeen);
                at.end_ms = at.end_ms.min(self.after(self.limits.settle_ms));
                at.by_ms = at.by_ms.min(at.end_ms);
            }
            Event::LaneChosen(lane) => {
                self.lane = lane;
                at.desktop = self.wanted_desktop(at.vm, at.desktop, out);
                if lane == Lane::StreamedBrowser && at.page == Page::Closed {
                    self.open_page(&mut at, out);
                }
            }
            Event::LoginEnded(end) => return self.login_ended(at.vm, true, end, out),
            Event::DeadlineReached => return self.user_late(at, out),
            Event::VmFailed { .. } | Event::AgentGone | Event::VmGone | Event::Cancel | Event::Restarted => {
                return self.broken(at.vm, event, out);
            }
            Event::QueuePosition(_)
            | Event::QueueFull
            | Event::SlotGranted(_)
            | Event::LeftQueue
            | Event::VmReady
            | Event::LoginRefused { .. }
            | Event::Fetched
            | Event::FetchFailed { .. }
            | Event::Sealed
            | Event::SealFailed { .. }
            | Event::Transferred
            | Event::TransferFailed { .. }
            | Event::Verified
            | Event::VerifyFailed { .. } => {}
        }
        at.into()
    }

    fn collecting(&mut self, vm: VmId, by_ms: u64, event: Event, out: &mut Effects) -> Phase {
        match event {
            Event::Fetched => {
                self.step(Step::CredentialSeen);
                out.push(Effect::Seal);
                Phase::Sealing { browser: BrowserVm::Held { vm }, by_ms: self.after(self.limits.seal_ms) }
            }
            Event::FetchFailed { cause, detail } => {
                let code = match cause {
                    FetchFailure::Incomplete => Code::CredentialIncomplete,
                    FetchFailure::Unreadable => Code::CredentialUnreadable,
                };
                self.close(vm, failed(code, &detail), out)
            }
            Event::CredentialSeen => {
                self.step(Step::CredentialSeen);
                Phase::Collecting { vm, by_ms }
            }
            Event::DeadlineReached => self.close(
                vm,
                failed(Code::CredentialUnreadable, "the browser VM did not hand the files over"),
                out,
            ),
            Event::VmFailed { .. } | Event::AgentGone | Event::VmGone | Event::Cancel | Event::Restarted => {
                self.broken(vm, event, out)
            }
            Event::QueuePosition(_)
            | Event::QueueFull
            | Event::SlotGranted(_)
            | Event::LeftQueue
            | Event::VmReady
            | Event::DesktopReady
            | Event::DesktopFailed { .. }
            | Event::LoginStarted
            | Event::LoginRefused { .. }
            | Event::UrlCaptured(_)
            | Event::DeviceCode
            | Event::PageOpen
            | Event::PageFailed { .. }
            | Event::UserActive
            | Event::CallbackSeen
            | Event::LaneChosen(_)
            | Event::LoginEnded(_)
            | Event::Sealed
            | Event::SealFailed { .. }
            | Event::Transferred
            | Event::TransferFailed { .. }
            | Event::Verified
            | Event::VerifyFailed { .. } => Phase::Collecting { vm, by_ms },
        }
    }

    fn sealing(&mut self, browser: BrowserVm, by_ms: u64, event: Event, out: &mut Effects) -> Phase {
        match event {
            Event::Sealed => {
                self.step(Step::Sealed);
                let browser = self.let_go(browser, out);
                out.push(Effect::Transfer);
                let by_ms = self.after(self.limits.transfer_ms);
                Phase::Delivering { browser, delivery: Delivery::Transferring { tries: 1, by_ms } }
            }
            Event::SealFailed { cause, detail } => {
                let code = match cause {
                    SealFailure::NoSpace => Code::NoSpace,
                    SealFailure::Other => Code::SealFailed,
                };
                self.settle(browser, failed(code, &detail), out)
            }
            Event::Restarted => self.settle(browser, interrupted(), out),
            Event::DeadlineReached => {
                self.settle(browser, failed(Code::SealFailed, "the vault did not answer in time"), out)
            }
            // The files are read: nothing more is wanted of the VM.
            Event::VmGone => Phase::Sealing { browser: BrowserVm::Gone, by_ms },
            Event::QueuePosition(_)
            | Event::QueueFull
            | Event::SlotGranted(_)
            | Event::LeftQueue
            | Event::VmReady
            | Event::VmFailed { .. }
            | Event::AgentGone
            | Event::DesktopReady
            | Event::DesktopFailed { .. }
            | Event::LoginStarted
            | Event::LoginRefused { .. }
            | Event::UrlCaptured(_)
            | Event::DeviceCode
            | Event::PageOpen
            | Event::PageFailed { .. }
            | Event::UserActive
            | Event::CallbackSeen
            | Event::CredentialSeen
            | Event::LaneChosen(_)
            | Event::LoginEnded(_)
            | Event::Fetched
            | Event::FetchFailed { .. }
            | Event::Transferred
            | Event::TransferFailed { .. }
            | Event::Verified
            | Event::VerifyFailed { .. }
            | Event::Cancel => Phase::Sealing { browser, by_ms },
        }
    }

    fn delivering(
        &mut self,
        browser: BrowserVm,
        delivery: Delivery,
        event: Event,
        out: &mut Effects,
    ) -> Phase {
        match (event, delivery) {
            (Event::Transferred, Delivery::Transferring { .. } | Delivery::Pausing { .. }) => {
                self.step(Step::Transferred);
                out.push(Effect::Verify);
                let by_ms = self.after(self.limits.verify_ms);
                Phase::Delivering { browser, delivery: Delivery::Verifying { by_ms } }
            }
            (Event::TransferFailed { detail }, Delivery::Transferring { tries, .. }) => {
                self.transfer_failed(browser, tries, &detail, out)
            }
            (Event::Verified, Delivery::Verifying { .. }) => self.settle(browser, End::Succeeded, out),
            (Event::VerifyFailed { detail }, Delivery::Verifying { .. }) => {
                self.settle(browser, failed(Code::VerifyFailed, &detail), out)
            }
            // The credential is stored, so a new process can go on where the old one stopped.
            (Event::Restarted, delivery) => {
                let browser = self.let_go(browser, out);
                let delivery = match delivery {
                    Delivery::Transferring { tries, .. } | Delivery::Pausing { tries, .. } => {
                        out.push(Effect::Transfer);
                        Delivery::Transferring { tries, by_ms: self.after(self.limits.transfer_ms) }
                    }
                    Delivery::Verifying { .. } => {
                        out.push(Effect::Verify);
                        Delivery::Verifying { by_ms: self.after(self.limits.verify_ms) }
                    }
                };
                Phase::Delivering { browser, delivery }
            }
            (Event::VmGone, delivery) => {
                self.step(Step::Closed);
                Phase::Delivering { browser: BrowserVm::Gone, delivery }
            }
            (Event::DeadlineReached, delivery) => self.delivery_late(browser, delivery, out),
            (
                Event::QueuePosition(_)
                | Event::QueueFull
                | Event::SlotGranted(_)
                | Event::LeftQueue
                | Event::VmReady
                | Event::VmFailed { .. }
                | Event::AgentGone
                | Event::DesktopReady
                | Event::DesktopFailed { .. }
                | Event::LoginStarted
                | Event::LoginRefused { .. }
                | Event::UrlCaptured(_)
                | Event::DeviceCode
                | Event::PageOpen
                | Event::PageFailed { .. }
                | Event::UserActive
                | Event::CallbackSeen
                | Event::CredentialSeen
                | Event::LaneChosen(_)
                | Event::LoginEnded(_)
                | Event::Fetched
                | Event::FetchFailed { .. }
                | Event::Sealed
                | Event::SealFailed { .. }
                | Event::Transferred
                | Event::TransferFailed { .. }
                | Event::Verified
                | Event::VerifyFailed { .. }
                | Event::Cancel,
                delivery,
            ) => Phase::Delivering { browser, delivery },
        }
    }
}
