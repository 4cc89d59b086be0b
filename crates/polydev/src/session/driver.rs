//! The task that owns one sign-in.
//!
//! Messages come in, the machine is fed, its effects are carried out in order. Whatever takes time runs in a task of
//! its own that reports back with a message, so that a cancel or a deadline is never kept waiting.

use std::{sync::Arc, time::Duration};

use polydev_core::{
    ids::VmId,
    provider::Provider,
    session::{Effect, Event, SealFailure, Session, State},
    url_rule::{BadCallback, UrlRules, check_callback},
    wire::{AgentEvent, FileRead, Request, UrlSource, UrlYields},
};
use polydev_host::{AgentError, Vm, VmKind};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use crate::{
    slots::{Permit, Ticket},
    store::{StoreError, sessions::SessionRecord},
};

use super::{
    INPUT_MAX, Live, MAILBOX, Parts,
    shown::{Captured, DeviceCode, Kept, Shown},
    work::{self, Gone},
};

/// What a session's task is told.
pub(super) enum Message {
    Happened(Event),
    /// A place, and the id that the VM there is to have.
    Granted(Permit, VmId),
    /// The VM could not be removed yet, so that its place stays taken.
    StillThere(Permit),
    Created(Vm),
    Agent(AgentEvent),
    Fetched(Vec<FileRead>),
    Transferred(VmId),
    Command(Command, oneshot::Sender<Result<(), CommandRefused>>),
    ShutDown,
}

/// What a person can ask of a sign-in.
#[derive(Debug)]
pub enum Command {
    /// Call it off.
    Cancel,
    /// Take a code that the sign-in page showed.
    PasteCode(Zeroizing<String>),
    /// Take the address at which the person's own browser ended.
    CallbackUrl(Zeroizing<String>),
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandRefused {
    /// Too late or too early for it.
    #[error("{0}")]
    State(&'static str),
    /// The text is not what the tool takes.
    #[error("{0}")]
    Input(&'static str),
    /// The address is not the one the tool waits for.
    #[error(transparent)]
    Callback(#[from] BadCallback),
    /// The agent said no.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Owns one sign-in.
pub(super) struct Driver {
    parts: Arc<Parts>,
    record: SessionRecord,
    provider: Provider,
    rules: UrlRules,
    now: Shown,
    show: watch::Sender<Arc<Shown>>,
    mailbox: mpsc::Receiver<Message>,
    report: mpsc::Sender<Message>,
    /// The place in the queue that the start came with.
    ticket: Option<Ticket>,
    /// Waiting for a slot; ended by being dropped, which gives the ticket back.
    waiting: Option<AbortOnDropHandle<()>>,
    permit: Option<Permit>,
    /// Ends when [`Effect::CreateVm`] has ended one way or the other.
    creating: Option<watch::Receiver<bool>>,
    fetched: Option<Vec<FileRead>>,
    listening: Option<AbortHandle>,
    desktop_told: bool,
}

impl Driver {
    pub(super) fn new(
        parts: Arc<Parts>,
        record: &SessionRecord,
        provider: Provider,
        kept: Kept,
    ) -> (Self, Live) {
        let now = Shown::new(record, kept);
        let (show, shown) = watch::channel(Arc::new(now.clone()));
        let (report, mailbox) = mpsc::channel(MAILBOX);
        let live = Live { mailbox: report.clone(), shown };
        let rules =
            UrlRules::new(&provider.definition().url).expect("definitions are checked when they are loaded");
        let driver = Self {
            parts,
            record: record.clone(),
            provider,
            rules,
            now,
            show,
            mailbox,
            report,
            ticket: None,
            waiting: None,
            permit: None,
            creating: None,
            fetched: None,
            listening: None,
            desktop_told: false,
        };
        (driver, live)
    }

    /// A new sign-in, to its end. `told` learns whether it could be written down; if not, nothing is begun.
    pub(super) async fn run(
        mut self,
        ticket: Ticket,
        effects: Vec<Effect>,
        told: oneshot::Sender<Result<(), StoreError>>,
    ) {
        let noted = match self.parts.store.ensure_user(&self.now.user, self.parts.clock.now_db()).await {
            Ok(()) => self.write_down().await,
            Err(error) => Err(error),
        };
        let good = noted.is_ok();
        // A caller that has gone does not end the sign-in: it can be found again.
        let _ = told.send(noted);
        if !good {
            return;
        }
        tracing::info!(session.id = %self.now.id, user = %self.now.user, provider = %self.now.provider, "sign-in started");
        self.ticket = Some(ticket);
        for effect in effects {
            self.carry_out(effect).await;
        }
        self.live().await;
    }

    /// A sign-in that a former controller left, to its end.
    pub(super) async fn resume(mut self) {
        self.feed(Event::Restarted).await;
        self.live().await;
    }

    /// A VM that a former controller made takes a place until it is gone.
    pub(super) fn occupy_held_vm(&mut self) {
        if self.machine().held_vm().is_some() {
            self.permit = Some(self.parts.slots.occupy());
        }
    }

    async fn live(&mut self) {
        while !self.machine().is_closed() {
            let due_ms = self.machine().next_deadline().unwrap_or(u64::MAX);
            let wait = Duration::from_millis(due_ms.saturating_sub(self.parts.clock.now_ms()));
            tokio::select! {
                message = self.mailbox.recv() => {
                    let message = message.expect("the driver holds a sender itself");
                    self.take(message).await;
                }
                () = tokio::time::sleep(wait) => self.feed(Event::DeadlineReached).await,
            }
        }
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
        let view = self.machine().view();
        self.parts.figures.closed(self.machine().started_ms(), &view);
        tracing::info!(session.id = %self.now.id, state = view.state.as_str(), "sign-in closed");
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Happened(event) => self.feed(event).await,
            Message::Granted(permit, vm) => {
                self.permit = Some(permit);
                self.waiting = None;
                self.now.kept.browser_vm = Some(vm);
                self.feed(Event::SlotGranted(vm)).await;
            }
            Message::StillThere(permit) => self.permit = Some(permit),
            Message::Created(vm) => {
                self.now.kept.slot = Some(vm.slot);
                let listening = work::listen(&vm, self.report.clone());
                if let Some(former) = self.listening.replace(listening) {
                    former.abort();
                }
                self.now.vm = Some(vm);
                self.feed(Event::VmReady).await;
            }
            Message::Agent(event) => {
                if let Some(event) = self.hear(event) {
                    self.feed(event).await;
                }
            }
            Message::Fetched(files) => {
                self.fetched = Some(files);
                self.feed(Event::Fetched).await;
                self.fetched = None;
            }
            Message::Transferred(vm) => {
                self.now.kept.cli_vm = Some(vm);
                self.feed(Event::Transferred).await;
            }
            Message::Command(command, reply) => self.obey(command, reply).await,
            Message::ShutDown => {
                if self.machine().cancellable() {
                    self.feed(Event::Restarted).await;
                }
            }
        }
    }

    pub(super) fn told_desktop(&mut self) -> bool {
        std::mem::replace(&mut self.desktop_told, true)
    }

    /// Keeps an address. One that leads back to the tool by itself is not given up for one that needs a code pasted,
    /// which some tools print beside it.
    pub(super) fn captured(&mut self, url: String, yields: UrlYields) {
        let kept = self.now.captured.as_ref().map(|captured| captured.yields);
        if kept == Some(UrlYields::Loopback) && yields == UrlYields::PasteCode {
            return;
        }
        self.now.captured = Some(Captured { url: Zeroizing::new(url), yields });
    }

    pub(super) fn device(&mut self, url: String, code: String) {
        self.captured(url.clone(), UrlYields::Device);
        self.now.device = Some(DeviceCode { url, code });
    }

    /// Whether the provider's rules take an address that the guest reported.
    pub(super) fn accepts(&self, url: &str, yields: UrlYields) -> bool {
        [UrlSource::BrowserShim, UrlSource::Output]
            .into_iter()
            .any(|source| self.rules.accept(source, url) == Some(yields))
    }

    pub(super) fn id(&self) -> polydev_core::ids::SessionId {
        self.now.id
    }

    fn machine(&self) -> &Session {
        &self.now.kept.machine
    }

    async fn feed(&mut self, event: Event) {
        let before = self.machine().state();
        let now_ms = self.parts.clock.now_ms();
        let effects = self.now.kept.machine.handle(now_ms, event);
        let view = self.machine().view();
        if view.state != before {
            let (code, detail) = match &view.error {
                Some(error) => (Some(error.code.as_str()), Some(error.detail.as_str())),
                None => (None, None),
            };
            let elapsed_ms = now_ms.saturating_sub(self.machine().started_ms());
            let (id, state) = (self.now.id, view.state.as_str());
            tracing::info!(session.id = %id, state, error = code, detail, elapsed_ms, "sign-in changed");
        }
        for effect in effects {
            self.carry_out(effect).await;
        }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish => self.publish().await,
            Effect::RequestSlot => match self.ticket.take().map_or_else(|| self.parts.slots.enter(), Ok) {
                Ok(ticket) => self.wait_for_slot(ticket),
                Err(_) => self.later(async { Message::Happened(Event::QueueFull) }),
            },
            Effect::LeaveQueue => {
                // A permit may be in the mailbox already: then it comes before this answer, and is released again.
                self.waiting = None;
                self.later(async { Message::Happened(Event::LeftQueue) });
            }
            Effect::CreateVm(vm) => self.create(vm),
            Effect::StartDesktop(_) => {
                let (width, height) = self.parts.desktop_px;
                self.ask_agent(Request::StartDesktop { width, height }, |result| {
                    Some(Event::DesktopFailed { detail: result.err()?.to_string() })
                });
            }
            Effect::StartLogin(_) => {
                let lane = self.machine().view().lane;
                let spec = self.provider.login_spec(lane, &self.parts.places);
                self.ask_agent(Request::StartLogin(spec), |result| {
                    Some(match result {
                        Ok(_) => Event::LoginStarted,
                        Err(error) => Event::LoginRefused { detail: error.to_string() },
                    })
                });
            }
            Effect::OpenPage(_, yields) => self.open_page(yields),
            Effect::FetchCredential(_) => {
                if let Some(vm) = &self.now.vm {
                    self.later(work::fetch(vm.agent.clone(), self.provider.clone()));
                }
            }
            Effect::Seal => self.seal(),
            Effect::Transfer => {
                let (user, provider) = (self.now.user.clone(), self.now.provider.clone());
                let workspaces = self.parts.workspaces.clone();
                self.later(async move {
                    match workspaces.deliver(&user, &provider).await {
                        Ok(vm) => Message::Transferred(vm),
                        Err(error) => Message::Happened(Event::TransferFailed { detail: error.to_string() }),
                    }
                });
            }
            Effect::Verify => {
                let (user, provider) = (self.now.user.clone(), self.provider.clone());
                let workspaces = self.parts.workspaces.clone();
                self.later(async move {
                    Message::Happened(match workspaces.verify(&user, &provider).await {
                        Ok(Ok(())) => Event::Verified,
                        Ok(Err(detail)) => Event::VerifyFailed { detail },
                        Err(error) => Event::VerifyFailed { detail: error.to_string() },
                    })
                });
            }
            Effect::ReleaseVm { vm, failed } => self.release(vm, failed),
        }
    }

    async fn publish(&mut self) {
        if let Err(error) = self.write_down().await {
            // The sign-in goes on in memory; after a crash it would be found as it was last written.
            tracing::error!(session.id = %self.now.id, %error, "sign-in could not be written down");
        }
        self.show.send_replace(Arc::new(self.now.clone()));
    }

    async fn write_down(&mut self) -> Result<(), StoreError> {
        let view = self.machine().view();
        self.record.state = view.state.as_str().to_owned();
        self.record.ended = view.closed;
        self.record.ended_unix_ms = view.ended_at_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
        self.record.snapshot = serde_json::to_string(&self.now.kept).expect("a session is plain data");
        self.parts.store.put_session(&self.record).await
    }

    fn wait_for_slot(&mut self, ticket: Ticket) {
        let (report, parts) = (self.report.clone(), Arc::clone(&self.parts));
        let waiting = tokio::spawn(async move {
            let moves = report.clone();
            let permit = ticket
                .wait(|position| {
                    // A full mailbox only loses a place number; the next move tells it again.
                    let _ = moves.try_send(Message::Happened(Event::QueuePosition(position)));
                })
                .await;
            // That of a VM which is ready, if there is one.
            let vm = parts.machines.draw(&VmKind::Browser, parts.size.vcpus, parts.size.memory_mib).await;
            let _ = report.send(Message::Granted(permit, vm)).await;
        });
        self.waiting = Some(AbortOnDropHandle::new(waiting));
    }

    fn create(&mut self, vm: VmId) {
        let (ended, creating) = watch::channel(false);
        self.creating = Some(creating);
        let making = work::create(Arc::clone(&self.parts), self.now.id, self.now.user.clone(), vm);
        let report = self.report.clone();
        tokio::spawn(async move {
            let message = match making.await {
                Ok(vm) => Message::Created(vm),
                Err(error) => {
                    let detail = error.to_string();
                    Message::Happened(Event::VmFailed { cause: error.cause(), detail })
                }
            };
            ended.send_replace(true);
            // A session that is over has released the VM by its id already.
            let _ = report.send(message).await;
        });
    }

    fn open_page(&mut self, yields: UrlYields) {
        let url = self.now.captured.as_ref().filter(|captured| captured.yields == yields);
        let Some(url) = url.map(|captured| captured.url.to_string()) else {
            let detail = "no sign-in address of that kind is known".to_owned();
            return self.later(async { Message::Happened(Event::PageFailed { detail }) });
        };
        self.ask_agent(Request::OpenPage { url }, |result| {
            Some(Event::PageFailed { detail: result.err()?.to_string() })
        });
    }

    fn seal(&mut self) {
        let Some(files) = self.fetched.take() else {
            let detail = "the files are no longer there".to_owned();
            return self
                .later(async { Message::Happened(Event::SealFailed { cause: SealFailure::Other, detail }) });
        };
        let parts = Arc::clone(&self.parts);
        let (user, provider) = (self.now.user.clone(), self.now.provider.clone());
        self.later(async move {
            Message::Happened(match work::seal(&parts, user, provider, files).await {
                Ok(()) => Event::Sealed,
                Err(error) => {
                    tracing::error!(%error, "credential could not be sealed");
                    Event::SealFailed { cause: error.cause(), detail: error.to_string() }
                }
            })
        });
    }

    fn release(&mut self, vm: VmId, failed: bool) {
        self.now.vm = None;
        self.now.device = None;
        self.now.captured = None;
        self.show.send_replace(Arc::new(self.now.clone()));
        let parts = Arc::clone(&self.parts);
        let (creating, report) = (self.creating.clone(), self.report.clone());
        // The place stays taken until the VM is really gone.
        let permit = self.permit.take();
        tokio::spawn(async move {
            match work::release(&parts, vm, failed, creating).await {
                Gone::Yes => {
                    drop(permit);
                    let _ = report.send(Message::Happened(Event::VmGone)).await;
                }
                Gone::NotYet => {
                    if let Some(permit) = permit {
                        let _ = report.send(Message::StillThere(permit)).await;
                    }
                }
            }
        });
    }

    async fn obey(&mut self, command: Command, reply: oneshot::Sender<Result<(), CommandRefused>>) {
        if matches!(command, Command::Cancel) {
            let answer = if self.machine().cancellable() {
                self.feed(Event::Cancel).await;
                Ok(())
            } else if self.machine().state() == State::Cancelled {
                Ok(())
            } else {
                Err(CommandRefused::State(
                    "it is too late to cancel: the sign-in is being stored or has ended",
                ))
            };
            let _ = reply.send(answer);
            return;
        }
        let answer = self.input(command);
        match answer {
            Err(refused) => drop(reply.send(Err(refused))),
            Ok((vm, request)) => {
                self.feed(Event::UserActive).await;
                tokio::spawn(async move {
                    let answer = vm.agent.request(request).await;
                    let _ = reply.send(answer.map(drop).map_err(CommandRefused::Agent));
                });
            }
        }
    }

    fn input(&self, command: Command) -> Result<(Vm, Request), CommandRefused> {
        let waiting = self.machine().state() == State::AwaitingUser;
        let vm = self.now.vm.clone().filter(|_| waiting);
        let vm = vm.ok_or(CommandRefused::State("the sign-in does not wait for the person"))?;
        let request = match command {
            Command::PasteCode(text) if text.len() <= INPUT_MAX => {
                let line = self.provider.paste_line(&text);
                let text = line.ok_or(CommandRefused::Input("this is no code that the tool takes"))?;
                Request::LoginInput { text }
            }
            Command::CallbackUrl(url) if url.len() <= INPUT_MAX => {
                let Some(rule) = &self.provider.definition().callback else {
                    return Err(CommandRefused::Input("this tool does not wait for a callback address"));
                };
                let sign_in = self.now.sign_in_url().unwrap_or_default();
                check_callback(rule, sign_in, url.trim())?;
                Request::ReplayCallback { url: url.trim().to_owned() }
            }
            Command::PasteCode(_) | Command::CallbackUrl(_) => {
                return Err(CommandRefused::Input("the text is too long"));
            }
            Command::Cancel => return Err(CommandRefused::State("a cancel is no input")),
        };
        Ok((vm, request))
    }

    /// Asks the browser VM's agent; what `judge` makes of the answer is reported.
    fn ask_agent(
        &self,
        request: Request,
        judge: impl FnOnce(Result<(), AgentError>) -> Option<Event> + Send + 'static,
    ) {
        let Some(agent) = self.now.vm.as_ref().map(|vm| vm.agent.clone()) else { return };
        let report = self.report.clone();
        tokio::spawn(async move {
            if let Some(event) = judge(agent.request(request).await.map(drop)) {
                let _ = report.send(Message::Happened(event)).await;
            }
        });
    }

    /// Reports what the future says.
    fn later(&self, future: impl Future<Output = Message> + Send + 'static) {
        let report = self.report.clone();
        tokio::spawn(async move {
            // The session may have closed meanwhile; nobody needs the answer then.
            let _ = report.send(future.await).await;
        });
    }
}
