//! Ways out: how faults, deadlines and good ends lead to a closed session without a VM.

use crate::{
    ids::VmId,
    wire::{LoginEnd, UrlYields},
};

use super::{
    Effect, Event, Lane, Session, SessionError, SessionErrorCode as Code, Step, VmFailure,
    limits::{PAGE_TRIES, TRANSFER_TRIES, back_off_ms},
    phase::{BrowserVm, Delivery, Desktop, End, Outcome, Page, Phase, Release, Url},
    transition::Awaiting,
};

type Effects = Vec<Effect>;

pub(super) fn failed(code: Code, detail: &str) -> End {
    End::Failed { error: SessionError::new(code, detail) }
}

pub(super) fn expired(code: Code, detail: &str) -> End {
    End::Expired { error: SessionError::new(code, detail) }
}

pub(super) fn interrupted() -> End {
    failed(Code::Interrupted, "the controller was restarted while this sign-in was under way; start it again")
}

/// Of two ways through the same sign-in the one that asks least of the person.
pub(super) fn better(known: UrlYields, new: UrlYields) -> UrlYields {
    match (known, new) {
        (UrlYields::Loopback, UrlYields::PasteCode | UrlYields::Device) => known,
        (UrlYields::PasteCode, UrlYields::Device) => known,
        (UrlYields::Loopback, UrlYields::Loopback)
        | (UrlYields::PasteCode, UrlYields::Loopback | UrlYields::PasteCode)
        | (UrlYields::Device, UrlYields::Loopback | UrlYields::PasteCode | UrlYields::Device) => new,
    }
}

impl Session {
    /// Events that end every state with a VM in the same way.
    pub(super) fn broken(&mut self, vm: VmId, event: Event, out: &mut Effects) -> Phase {
        let end = match event {
            Event::Cancel => End::Cancelled,
            Event::Restarted => interrupted(),
            Event::VmGone => return self.closed(failed(Code::VmLost, "the browser VM is gone")),
            Event::VmFailed { cause, detail } => failed(vm_failure_code(cause), &detail),
            _ => failed(Code::VmLost, "the connection to the browser VM is gone"),
        };
        self.close(vm, end, out)
    }

    pub(super) fn login_ended(
        &mut self,
        vm: VmId,
        url_known: bool,
        end: LoginEnd,
        out: &mut Effects,
    ) -> Phase {
        let end = match end {
            LoginEnd::SignedIn => {
                out.push(Effect::FetchCredential(vm));
                return Phase::Collecting { vm, by_ms: self.after(self.limits.fetch_ms) };
            }
            LoginEnd::Failed { exit_code: None, reason } => failed(Code::CliNotStarted, &reason),
            LoginEnd::Failed { exit_code: Some(0), reason } if url_known => {
                failed(Code::CredentialIncomplete, &reason)
            }
            LoginEnd::Failed { exit_code: Some(_), reason } if url_known => {
                failed(Code::LoginFailed, &reason)
            }
            LoginEnd::Failed { exit_code: Some(status), reason } => {
                failed(Code::CliExitedEarly, &format!("exit status {status}: {reason}"))
            }
            LoginEnd::TimedOut => {
                expired(Code::LoginTimedOut, "nothing happened in the tool's login for too long")
            }
            LoginEnd::Cancelled => End::Cancelled,
        };
        self.close(vm, end, out)
    }

    /// Goes on to the person's part once everything that the lane needs is there.
    pub(super) fn prepared(&mut self, vm: VmId, desktop: Desktop, url: Url, out: &mut Effects) -> Phase {
        let Url::Known { yields } = url else { return Phase::Preparing { vm, desktop, url } };
        if self.lane == Lane::StreamedBrowser && desktop != Desktop::Ready {
            return Phase::Preparing { vm, desktop, url };
        }
        let end_ms = self.after(self.limits.user_total_ms);
        let by_ms = self.after(self.limits.user_ms).min(end_ms);
        let mut at = Awaiting { vm, desktop, yields, page: Page::Closed, by_ms, end_ms };
        self.open_page(&mut at, out);
        at.into()
    }

    pub(super) fn start_desktop(&self, vm: VmId, out: &mut Effects) -> Desktop {
        out.push(Effect::StartDesktop(vm));
        Desktop::Coming { by_ms: self.after(self.limits.desktop_ms) }
    }

    /// The desktop after a change of lane: a running one is kept, a missing one is started if it is needed now.
    pub(super) fn wanted_desktop(&self, vm: VmId, desktop: Desktop, out: &mut Effects) -> Desktop {
        match (self.lane, desktop) {
            (Lane::StreamedBrowser, Desktop::Off) => self.start_desktop(vm, out),
            (Lane::StreamedBrowser, Desktop::Coming { .. } | Desktop::Ready)
            | (
                Lane::CallbackRelay | Lane::DeviceCode,
                Desktop::Off | Desktop::Coming { .. } | Desktop::Ready,
            ) => desktop,
        }
    }

    /// Opens the page where there is a desktop to open it on.
    pub(super) fn open_page(&self, at: &mut Awaiting, out: &mut Effects) {
        if at.desktop == Desktop::Ready {
            out.push(Effect::OpenPage(at.vm, at.yields));
            at.page = Page::Opening { tries: 1, by_ms: self.after(self.limits.page_ms) };
        }
    }

    pub(super) fn page_failed(&mut self, mut at: Awaiting, detail: &str, out: &mut Effects) -> Phase {
        let Page::Opening { tries, .. } = at.page else { return at.into() };
        if tries < PAGE_TRIES {
            out.push(Effect::OpenPage(at.vm, at.yields));
            at.page = Page::Opening { tries: tries + 1, by_ms: self.after(self.limits.page_ms) };
            return at.into();
        }
        match self.lane {
            Lane::StreamedBrowser => self.close(at.vm, failed(Code::PageFailed, detail), out),
            Lane::CallbackRelay | Lane::DeviceCode => {
                at.page = Page::Closed;
                at.into()
            }
        }
    }

    pub(super) fn user_deadline(&self, at: &Awaiting) -> u64 {
        self.after(self.limits.user_ms).min(at.end_ms)
    }

    pub(super) fn user_late(&mut self, mut at: Awaiting, out: &mut Effects) -> Phase {
        if at.by_ms <= self.clock_ms {
            let end = if self.steps.at(Step::CredentialSeen).is_some() {
                expired(Code::LoginTimedOut, "the credential is complete, but the tool's login does not end")
            } else {
                expired(Code::UserTimeout, "nobody finished the sign-in")
            };
            return self.close(at.vm, end, out);
        }
        match at.page {
            Page::Opening { by_ms, .. } if by_ms <= self.clock_ms => {
                return self.page_failed(at, "the browser did not report the page in time", out);
            }
            Page::Opening { .. } | Page::Closed | Page::Open => {}
        }
        match self.lane {
            Lane::StreamedBrowser => self.close(at.vm, desktop_timeout(), out),
            Lane::CallbackRelay | Lane::DeviceCode => {
                at.desktop = Desktop::Off;
                at.into()
            }
        }
    }

    pub(super) fn desktop_late(&mut self, vm: VmId, desktop: Desktop, url: Url, out: &mut Effects) -> Phase {
        match (self.lane, desktop) {
            (Lane::StreamedBrowser, _) => self.close(vm, desktop_timeout(), out),
            (Lane::CallbackRelay | Lane::DeviceCode, _) => {
                Phase::Preparing { vm, desktop: Desktop::Off, url }
            }
        }
    }

    pub(super) fn transfer_failed(
        &mut self,
        browser: BrowserVm,
        tries: u32,
        detail: &str,
        out: &mut Effects,
    ) -> Phase {
        if tries < TRANSFER_TRIES {
            let by_ms = self.after(back_off_ms(tries));
            return Phase::Delivering { browser, delivery: Delivery::Pausing { tries, by_ms } };
        }
        let detail =
            format!("{detail}; the credential stays sealed and is handed over when the CLI VM starts next");
        self.settle(browser, failed(Code::TransferFailed, &detail), out)
    }

    pub(super) fn delivery_late(
        &mut self,
        browser: BrowserVm,
        delivery: Delivery,
        out: &mut Effects,
    ) -> Phase {
        if let BrowserVm::Releasing { release } = browser
            && release.by_ms <= self.clock_ms
        {
            let release = self.release_again(release, false, out);
            return Phase::Delivering { browser: BrowserVm::Releasing { release }, delivery };
        }
        match delivery {
            Delivery::Transferring { tries, .. } => {
                self.transfer_failed(browser, tries, "the hand-over took too long", out)
            }
            Delivery::Pausing { tries, .. } => {
                out.push(Effect::Transfer);
                let by_ms = self.after(self.limits.transfer_ms);
                Phase::Delivering { browser, delivery: Delivery::Transferring { tries: tries + 1, by_ms } }
            }
            Delivery::Verifying { .. } => self.settle(
                browser,
                failed(Code::VerifyFailed, "the tool's status command did not answer in time"),
                out,
            ),
        }
    }

    /// Gives the place in the queue back.
    pub(super) fn leave(&mut self, end: End, out: &mut Effects) -> Phase {
        out.push(Effect::LeaveQueue);
        Phase::Leaving { outcome: self.outcome(end), tries: 0, by_ms: self.after(back_off_ms(0)) }
    }

    pub(super) fn leaving(
        &mut self,
        outcome: Outcome,
        tries: u32,
        by_ms: u64,
        event: Event,
        out: &mut Effects,
    ) -> Phase {
        match event {
            Event::SlotGranted(vm) => {
                let release = self.release(vm, is_failure(&outcome.end), out);
                Phase::Closing { outcome, release }
            }
            Event::LeftQueue | Event::QueueFull | Event::Restarted => {
                self.step(Step::Closed);
                Phase::Closed { outcome }
            }
            Event::DeadlineReached => {
                out.push(Effect::LeaveQueue);
                let tries = tries + 1;
                Phase::Leaving { outcome, tries, by_ms: self.after(back_off_ms(tries)) }
            }
            _ => Phase::Leaving { outcome, tries, by_ms },
        }
    }

    /// Settles the outcome and lets a VM go that is still in use.
    pub(super) fn close(&mut self, vm: VmId, end: End, out: &mut Effects) -> Phase {
        let release = self.release(vm, is_failure(&end), out);
        Phase::Closing { outcome: self.outcome(end), release }
    }

    /// Settles the outcome where the VM may be on its way out already.
    pub(super) fn settle(&mut self, browser: BrowserVm, end: End, out: &mut Effects) -> Phase {
        match browser {
            BrowserVm::Held { vm } => self.close(vm, end, out),
            BrowserVm::Releasing { release } => Phase::Closing { outcome: self.outcome(end), release },
            BrowserVm::Gone => self.closed(end),
        }
    }

    /// Releases a VM from which nothing more is wanted, in the middle of a session.
    pub(super) fn let_go(&self, browser: BrowserVm, out: &mut Effects) -> BrowserVm {
        match browser {
            BrowserVm::Held { vm } | BrowserVm::Releasing { release: Release { vm, .. } } => {
                BrowserVm::Releasing { release: self.release(vm, false, out) }
            }
            BrowserVm::Gone => BrowserVm::Gone,
        }
    }

    pub(super) fn closing(
        &mut self,
        outcome: Outcome,
        release: Release,
        event: Event,
        out: &mut Effects,
    ) -> Phase {
        let failed = is_failure(&outcome.end);
        match event {
            Event::VmGone => {
                self.step(Step::Closed);
                Phase::Closed { outcome }
            }
            Event::Restarted => Phase::Closing { release: self.release(release.vm, failed, out), outcome },
            Event::DeadlineReached => {
                Phase::Closing { release: self.release_again(release, failed, out), outcome }
            }
            _ => Phase::Closing { outcome, release },
        }
    }

    /// Ends a session that holds nothing.
    pub(super) fn closed(&mut self, end: End) -> Phase {
        self.step(Step::Closed);
        Phase::Closed { outcome: self.outcome(end) }
    }

    fn release(&self, vm: VmId, failed: bool, out: &mut Effects) -> Release {
        out.push(Effect::ReleaseVm { vm, failed });
        Release { vm, tries: 0, by_ms: self.after(back_off_ms(0)) }
    }

    fn release_again(&self, Release { vm, tries, .. }: Release, failed: bool, out: &mut Effects) -> Release {
        out.push(Effect::ReleaseVm { vm, failed });
        let tries = tries + 1;
        Release { vm, tries, by_ms: self.after(back_off_ms(tries)) }
    }

    fn outcome(&self, end: End) -> Outcome {
        Outcome { at_ms: self.clock_ms, end }
    }
}

fn is_failure(end: &End) -> bool {
    match end {
        End::Failed { .. } | End::Expired { .. } => true,
        End::Succeeded | End::Cancelled => false,
    }
}

fn desktop_timeout() -> End {
    failed(Code::DesktopTimeout, "no browser window came up on the screen")
}

fn vm_failure_code(cause: VmFailure) -> Code {
    match cause {
        VmFailure::NoSlot => Code::NoSlot,
        VmFailure::ImageMissing => Code::ImageMissing,
        VmFailure::ImageDamaged => Code::ImageDamaged,
        VmFailure::DriverUnusable => Code::DriverUnusable,
        VmFailure::NoSpace => Code::NoSpace,
        VmFailure::StartFailed => Code::VmStartFailed,
        VmFailure::TimedOut => Code::VmStartTimeout,
        VmFailure::Died => Code::VmLost,
    }
}
