//! The login under way: at most one. Requests and shim calls come in here, [`run`] does the work.

mod rpc;
mod run;

use std::{cell::RefCell, rc::Rc, time::Duration};

use polydev_core::{
    url_rule::{self, UrlRules, check_callback},
    wire::{AgentEvent, CallbackRule, ErrorCode, LoginSpec, Refusal, Reply},
};
use regex_lite::Regex;
use tokio::sync::{mpsc, oneshot};

use crate::{
    agent::Agent,
    callback,
    control::{refuse, refuse_os},
    files,
};

/// Most characters typed into a login at once.
const INPUT_MAX: usize = 16 << 10;
/// Bounds of the idle time limit.
const IDLE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));

/// Place for the login under way.
#[derive(Default)]
pub(crate) struct LoginSlot {
    running: RefCell<Option<Running>>,
}

/// What others need of the login under way.
#[derive(Clone)]
struct Running {
    commands: mpsc::Sender<Command>,
    rules: Rc<UrlRules>,
    callback: Option<CallbackRule>,
    sign_in: Rc<RefCell<Option<String>>>,
}

/// What the running login is told.
enum Command {
    /// The shim was called with an address.
    Url(String),
    /// Type this.
    Input(String, oneshot::Sender<Result<(), Refusal>>),
    /// Something happened outside that shows a person at work.
    Progress,
    /// End now.
    Cancel,
}

/// A specification with everything compiled.
struct Plan {
    spec: LoginSpec,
    rules: Rc<UrlRules>,
    device_code: Option<Regex>,
    expect: Vec<(Regex, String)>,
    success_output: Option<Regex>,
    idle: Duration,
    sign_in: Rc<RefCell<Option<String>>>,
}

pub(crate) fn start(agent: &Rc<Agent>, spec: LoginSpec) -> Result<Reply, Refusal> {
    if agent.login.is_running() {
        return Err(refuse(ErrorCode::Conflict, "a login is running"));
    }
    let plan = Plan::new(spec)?;
    files::put(&plan.spec.seed_files)?;
    agent.events.forget_login();
    let (commands, inbox) = mpsc::channel(32);
    *agent.login.running.borrow_mut() = Some(Running {
        commands,
        rules: plan.rules.clone(),
        callback: plan.spec.callback.clone(),
        sign_in: plan.sign_in.clone(),
    });
    let agent = agent.clone();
    tokio::task::spawn_local(async move {
        let program = plan.spec.argv.first().cloned().unwrap_or_default();
        agent.log.note("login", format_args!("{program} starts"));
        let (end, output_tail) = run::run(&agent, plan, inbox).await;
        agent.login.running.borrow_mut().take();
        agent.log.note("login", format_args!("{program}: {end:?}"));
        agent.events.emit(AgentEvent::LoginEnded { end, output_tail });
    });
    Ok(Reply::Done)
}

pub(crate) async fn input(agent: &Rc<Agent>, text: String) -> Result<Reply, Refusal> {
    if text.len() > INPUT_MAX {
        return Err(refuse(ErrorCode::BadRequest, "the text is too long"));
    }
    let (sender, receiver) = oneshot::channel();
    agent.login.tell(Command::Input(text, sender)).await?;
    receiver
        .await
        .unwrap_or_else(|_| Err(refuse(ErrorCode::Conflict, "the login has just ended")))
        .map(|()| Reply::Done)
}

pub(crate) async fn replay(agent: &Rc<Agent>, url: &str) -> Result<Reply, Refusal> {
    let running = agent.login.running.borrow().clone().ok_or_else(none_running)?;
    let rule = running.callback.ok_or_else(|| refuse(ErrorCode::Conflict, "this login has no callback"))?;
    let sign_in = running.sign_in.borrow().clone();
    let sign_in = sign_in.ok_or_else(|| refuse(ErrorCode::Conflict, "no sign-in page is known yet"))?;
    let checked =
        check_callback(&rule, &sign_in, url).map_err(|error| refuse(ErrorCode::UrlRefused, error))?;
    // Gone in between is no matter: the replay itself tells.
    let _ = running.commands.send(Command::Progress).await;
    let status =
        callback::replay(&checked).await.map_err(|error| refuse_os("hand over the callback", &error))?;
    if status >= 400 {
        return Err(refuse(
            ErrorCode::Conflict,
            format_args!("the program answered the callback with status {status}"),
        ));
    }
    Ok(Reply::Done)
}

pub(crate) async fn cancel(agent: &Rc<Agent>) -> Result<Reply, Refusal> {
    agent.login.tell(Command::Cancel).await.map(|()| Reply::Done)
}

/// The shim was called. What is not the login's own sign-in page goes no further.
pub(crate) async fn shim_called(agent: &Rc<Agent>, url: String) {
    let origin = url_rule::loggable(&url);
    if agent.login.tell(Command::Url(url)).await.is_err() {
        agent.log.note("shim", format_args!("refused {origin}: no login is running"));
        agent.events.emit(AgentEvent::UrlRefused { origin });
    }
}

impl LoginSlot {
    pub(crate) fn is_running(&self) -> bool {
        self.running.borrow().is_some()
    }

    /// Whether an address may be opened in the browser.
    pub(crate) fn accepts(&self, url: &str) -> bool {
        self.running.borrow().as_ref().is_some_and(|running| running.rules.accept_any(url).is_some())
    }

    async fn tell(&self, command: Command) -> Result<(), Refusal> {
        let commands = self.running.borrow().as_ref().map(|running| running.commands.clone());
        commands.ok_or_else(none_running)?.send(command).await.map_err(|_| none_running())
    }
}

fn none_running() -> Refusal {
    refuse(ErrorCode::Conflict, "no login is running")
}

impl Plan {
    fn new(spec: LoginSpec) -> Result<Self, Refusal> {
        let regex = |pattern: &str| {
            Regex::new(pattern)
                .map_err(|_| refuse(ErrorCode::BadRequest, format_args!("bad regex {pattern:?}")))
        };
        let rules = UrlRules::new(&spec.url_rules).map_err(|error| refuse(ErrorCode::BadRequest, error))?;
        let expect = spec.expect.iter().map(|step| Ok((regex(&step.regex)?, step.send.clone())));
        Ok(Self {
            rules: Rc::new(rules),
            device_code: spec.device_code_regex.as_deref().map(regex).transpose()?,
            expect: expect.collect::<Result<_, Refusal>>()?,
            success_output: spec.success.output_regex.as_deref().map(regex).transpose()?,
            idle: Duration::from_millis(spec.idle_timeout_ms).clamp(IDLE.0, IDLE.1),
            sign_in: Rc::default(),
            spec,
        })
    }
}
