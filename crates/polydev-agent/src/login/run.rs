//! Runs one login to its end.
//!
//! ```text
//! start --> output, shim, commands, credential files, idle time --> program ended or was ended --> success rule
//! ```

use std::{path::Path, rc::Rc, time::Duration};

use polydev_core::{
    guest::CLI_USER,
    url_rule::{HttpUrl, loggable},
    wire::{AgentEvent, ErrorCode, LoginEnd, LoginStdio, Refusal, UrlSource, UrlYields},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, timeout},
};

use super::{
    Command, Plan,
    rpc::{Answer, Rpc},
};
use crate::{
    agent::Agent,
    control::{refuse, refuse_os},
    credential_watch::CredentialWatch,
    output::{Lines, Output, tail},
    process::{Launch, Streams, signal_group},
    success::{self, Outcome},
    tcp_table,
    terminal::{self, Master},
};

/// How often the callback port is looked at: reading the kernel's counters has a price while a person takes their time.
const CALLBACK_TICK: Duration = Duration::from_millis(500);
/// A URL or code at the very end of the output counts when nothing followed it for this long.
const QUIET: Duration = Duration::from_millis(300);
/// How long typing may take when the program does not read.
const TYPE_LIMIT: Duration = Duration::from_secs(5);
/// How long output may still come after the program ended.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long a program that is told to end may take, per step (end of input, SIGTERM).
const END_LIMIT: Duration = Duration::from_secs(2);
/// Most different URLs told of in one login.
const URLS_MAX: usize = 32;

/// Where output comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Main,
    Errors,
}

/// The program's input.
enum Input {
    None,
    Pipe(pipe::Sender),
    Terminal(Rc<Master>),
}

struct Login<'a> {
    agent: &'a Rc<Agent>,
    plan: Plan,
    input: Input,
    main: Stream,
    errors: Stream,
    lines: Lines,
    rpc: Rpc,
    outcome: Outcome,
    captured: Vec<String>,
    device: (Option<String>, Option<String>),
    callback_seen: bool,
    visits: tcp_table::Visits,
    credential_seen: bool,
    typed: Vec<String>,
    progress: Instant,
    last_output: Instant,
}

/// One output stream and how far it was searched.
#[derive(Default)]
struct Stream {
    output: Output,
    searched: usize,
    expected: usize,
}

impl Stream {
    fn unsearched(&self) -> bool {
        self.searched < self.output.end()
    }
}

/// Why the loop stopped.
enum Stop {
    Exited(i32),
    SignedIn,
    Failed(String),
    TimedOut,
    Cancelled,
}

pub(super) async fn run(agent: &Rc<Agent>, plan: Plan, inbox: mpsc::Receiver<Command>) -> (LoginEnd, String) {
    let terminal = match plan.spec.stdio {
        LoginStdio::Pty { cols, rows } => match terminal::pair(cols, rows) {
            Ok(pair) => Some(pair),
            Err(error) => return never_started(format!("no terminal: {error}")),
        },
        LoginStdio::Null | LoginStdio::Pipe => None,
    };
    let (master, streams) = match (terminal, plan.spec.stdio) {
        (Some((master, slave)), _) => (Some(Rc::new(master)), Streams::Terminal(slave)),
        (None, LoginStdio::Pipe) => (None, Streams::Pipes),
        (None, _) => (None, Streams::Output),
    };
    let launch = Launch { argv: &plan.spec.argv, env: &plan.spec.env, account: &CLI_USER, streams };
    let mut child = match launch.start(&agent.reaper) {
        Ok(child) => child,
        Err(error) => {
            let program = plan.spec.argv.first().map_or("", String::as_str);
            return never_started(format!("{program} could not be started: {error}"));
        }
    };
    let (chunks, received) = mpsc::channel(16);
    if let Some(master) = &master {
        let master = master.clone();
        tokio::task::spawn_local(async move {
            let mut chunk = vec![0; 8192];
            while let Ok(count @ 1..) = master.read(&mut chunk).await {
                if chunks.send((From::Main, chunk[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        });
    } else {
        tokio::task::spawn_local(forward(child.stdout.take(), From::Main, chunks.clone()));
        tokio::task::spawn_local(forward(child.stderr.take(), From::Errors, chunks));
    }
    let input = match (master, child.stdin.take()) {
        (Some(master), _) => Input::Terminal(master),
        (None, Some(stdin)) => Input::Pipe(stdin),
        (None, None) => Input::None,
    };
    let rpc = Rpc::new(&plan.spec.jsonrpc, plan.spec.success.jsonrpc_result_id);
    let now = Instant::now();
    let mut login = Login {
        agent,
        plan,
        input,
        main: Stream::default(),
        errors: Stream::default(),
        lines: Lines::default(),
        rpc,
        outcome: Outcome::default(),
        captured: Vec::new(),
        device: (None, None),
        callback_seen: false,
        visits: tcp_table::Visits::default(),
        credential_seen: false,
        typed: Vec::new(),
        progress: now,
        last_output: now,
    };
    let end = login.conduct(child.pid, child.exit, received, inbox).await;
    let text = format!("{}\n{}", login.main.output.text(), login.errors.output.text());
    (end, tail(&text, &login.typed))
}

fn never_started(reason: String) -> (LoginEnd, String) {
    (LoginEnd::Failed { exit_code: None, reason }, String::new())
}

async fn forward(pipe: Option<impl AsyncRead + Unpin>, from: From, to: mpsc::Sender<(From, Vec<u8>)>) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 8192];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        if to.send((from, chunk[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

impl Login<'_> {
    async fn conduct(
        &mut self,
        pid: i32,
        mut exit: oneshot::Receiver<i32>,
        mut received: mpsc::Receiver<(From, Vec<u8>)>,
        mut inbox: mpsc::Receiver<Command>,
    ) -> LoginEnd {
        let stop = self.watch(&mut exit, &mut received, &mut inbox).await;
        // A quick program may have had its visitor and ended between two looks.
        self.visits = tcp_table::Visits::default();
        self.look_for_callback();
        let exit_code = match stop {
            Stop::Exited(code) => Some(code),
            Stop::SignedIn | Stop::Failed(_) | Stop::TimedOut | Stop::Cancelled => {
                self.input = Input::None;
                let graceful = matches!(stop, Stop::SignedIn) && self.plan.spec.stdio == LoginStdio::Pipe;
                end_program(pid, &mut exit, graceful).await
            }
        };
        // Last words, then whatever is left of the process group.
        let _ = timeout(DRAIN_LIMIT, async {
            while let Some((from, bytes)) = received.recv().await {
                let _ = self.take_output(from, &bytes);
            }
        })
        .await;
        signal_group(pid, libc::SIGKILL);
        self.search(From::Main, true);
        self.search(From::Errors, true);
        match stop {
            Stop::TimedOut => return LoginEnd::TimedOut,
            Stop::Cancelled => return LoginEnd::Cancelled,
            Stop::Failed(reason) => return LoginEnd::Failed { exit_code, reason },
            Stop::Exited(_) | Stop::SignedIn => {}
        }
        self.outcome.exit_code = exit_code;
        match success::check(&self.plan.spec.success, &self.outcome, Path::new(CLI_USER.home)) {
            Ok(()) => {
                self.tell_credential();
                LoginEnd::SignedIn
            }
            Err(reason) => LoginEnd::Failed { exit_code, reason },
        }
    }

    async fn watch(
        &mut self,
        exit: &mut oneshot::Receiver<i32>,
        received: &mut mpsc::Receiver<(From, Vec<u8>)>,
        inbox: &mut mpsc::Receiver<Command>,
    ) -> Stop {
        let paths: Vec<String> = self.plan.spec.success.files.iter().map(|file| file.path.clone()).collect();
        let mut credentials = match CredentialWatch::new(Path::new(CLI_USER.home), &paths) {
            Ok(watch) => watch,
            Err(error) => return Stop::Failed(format!("credential files cannot be watched: {error}")),
        };
        let mut callback_tick = tokio::time::interval(CALLBACK_TICK);
        callback_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for line in self.rpc.advance() {
            if let Err(refusal) = self.send(&line).await {
                return Stop::Failed(refusal.message);
            }
        }
        let mut output_open = true;
        loop {
            let idle_end = self.progress + self.plan.idle;
            let quiet_end = self.last_output + QUIET;
            let unsearched = self.main.unsearched() || self.errors.unsearched();
            tokio::select! {
                chunk = received.recv(), if output_open => match chunk {
                    Some((from, bytes)) => {
                        for answer in self.take_output(from, &bytes) {
                            match answer {
                                Answer::Nothing => {}
                                Answer::Send(lines) => for line in lines {
                                    if let Err(refusal) = self.send(&line).await {
                                        return Stop::Failed(refusal.message);
                                    }
                                },
                                Answer::SignedIn => {
                                    self.outcome.rpc_result = true;
                                    return Stop::SignedIn;
                                }
                                Answer::Failed(reason) => return Stop::Failed(reason),
                            }
                        }
                        if let Err(refusal) = self.answer_prompts().await {
                            return Stop::Failed(refusal.message);
                        }
                    }
                    None => output_open = false,
                },
                code = &mut *exit => return Stop::Exited(code.unwrap_or(-1)),
                command = inbox.recv() => match command {
                    Some(Command::Url(url)) => self.take_shim_url(url),
                    Some(Command::Input(text, reply)) => {
                        let typed = self.send(&text).await;
                        self.typed.push(text);
                        self.progress = Instant::now();
                        // The asker may be gone.
                        let _ = reply.send(typed);
                    }
                    Some(Command::Progress) => self.progress = Instant::now(),
                    Some(Command::Cancel) | None => return Stop::Cancelled,
                },
                () = credentials.changed() => {
                    self.progress = Instant::now();
                    if success::files_hold(&self.plan.spec.success.files, Path::new(CLI_USER.home)).is_ok() {
                        self.tell_credential();
                    }
                }
                () = tokio::time::sleep_until(quiet_end), if unsearched => {
                    self.search(From::Main, true);
                    self.search(From::Errors, true);
                }
                _ = callback_tick.tick() => self.look_for_callback(),
                () = tokio::time::sleep_until(idle_end) => return Stop::TimedOut,
            }
        }
    }

    /// Takes output in; the answers are for JSON-RPC lines among it.
    fn take_output(&mut self, from: From, bytes: &[u8]) -> Vec<Answer> {
        let now = Instant::now();
        (self.progress, self.last_output) = (now, now);
        let links = self.stream(from).output.push(bytes);
        for link in links {
            if let Some(yields) = self.plan.rules.accept(UrlSource::Output, &link) {
                self.capture(link, yields);
            }
        }
        self.search(from, false);
        if from == From::Errors
            || (self.plan.spec.jsonrpc.is_empty() && self.plan.spec.success.jsonrpc_result_id.is_none())
        {
            return Vec::new();
        }
        let lines = self.lines.push(bytes);
        lines.iter().map(|line| self.rpc.take_line(line)).collect()
    }

    fn stream(&mut self, from: From) -> &mut Stream {
        match from {
            From::Main => &mut self.main,
            From::Errors => &mut self.errors,
        }
    }

    /// Looks for URLs, codes and success in what was not searched yet. A hit at the very end waits for more output
    /// unless this is `all` there is.
    fn search(&mut self, from: From, all: bool) {
        let stream = self.stream(from);
        let text = stream.output.from(stream.searched).to_owned();
        if text.is_empty() {
            return;
        }
        let searched = match (all, text.rfind('\n')) {
            (true, _) => stream.output.end(),
            (false, Some(line_end)) => stream.output.end() - text.len() + line_end + 1,
            (false, None) => stream.searched,
        };
        stream.searched = searched;
        self.outcome.output_found |=
            self.plan.success_output.as_ref().is_some_and(|regex| regex.is_match(&text));
        for found in self.plan.rules.find(&text) {
            if all || !found.at_end {
                self.capture(found.url, found.yields);
            }
        }
        let code = self.plan.device_code.as_ref().and_then(|regex| {
            let hit = regex.captures(&text)?;
            let code = hit.get(1).or_else(|| hit.get(0))?;
            (all || code.end() < text.len()).then(|| code.as_str().to_owned())
        });
        if code.is_some() && self.device.1 != code {
            self.device.1 = code;
            self.tell_device();
        }
    }

    fn take_shim_url(&mut self, url: String) {
        match self.plan.rules.accept(UrlSource::BrowserShim, &url) {
            Some(yields) => {
                self.progress = Instant::now();
                self.capture(url, yields);
            }
            None => {
                let origin = loggable(&url);
                self.agent.log.note("shim", format_args!("refused {origin}"));
                self.agent.events.emit(AgentEvent::UrlRefused { origin });
            }
        }
    }

    fn capture(&mut self, url: String, yields: UrlYields) {
        if self.captured.contains(&url) || self.captured.len() >= URLS_MAX {
            return;
        }
        self.agent.log.note("login", format_args!("sign-in page known, {yields:?}"));
        self.captured.push(url.clone());
        match yields {
            UrlYields::Loopback => *self.plan.sign_in.borrow_mut() = Some(url.clone()),
            UrlYields::Device => self.device.0 = Some(url.clone()),
            UrlYields::PasteCode => {}
        }
        self.agent.events.emit(AgentEvent::UrlCaptured { url, yields });
        if yields == UrlYields::Device {
            self.tell_device();
        }
    }

    fn tell_device(&mut self) {
        if let (Some(url), Some(code)) = &self.device {
            self.agent.events.emit(AgentEvent::DeviceCode { url: url.clone(), code: code.clone() });
        }
    }

    fn tell_credential(&mut self) {
        if !self.credential_seen && !self.plan.spec.success.files.is_empty() {
            self.credential_seen = true;
            self.agent.events.emit(AgentEvent::CredentialSeen);
        }
    }

    /// Whether the browser has reached the program's listener, seen from outside.
    fn look_for_callback(&mut self) {
        if self.callback_seen {
            return;
        }
        let Some(rule) = &self.plan.spec.callback else { return };
        let sign_in = self.plan.sign_in.borrow().clone();
        let Some(sign_in) = sign_in else { return };
        if !self.visits.may_be_new(&std::fs::read_to_string("/proc/net/snmp").unwrap_or_default()) {
            return;
        }
        let redirect = HttpUrl::parse(&sign_in).ok().and_then(|url| url.query("redirect_uri"));
        let named = redirect.and_then(|redirect| HttpUrl::parse(&redirect).ok().map(|url| url.port));
        let ports: Vec<u16> = named.map_or_else(|| rule.ports.clone(), |port| vec![port]);
        let seen = ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
            let table = std::fs::read_to_string(table).unwrap_or_default();
            ports.iter().any(|port| tcp_table::shows_visitor(&table, *port))
        });
        if seen {
            self.callback_seen = true;
            self.progress = Instant::now();
            self.agent.events.emit(AgentEvent::CallbackSeen);
        }
    }

    async fn answer_prompts(&mut self) -> Result<(), Refusal> {
        while let Some((regex, send)) = self.plan.expect.first() {
            let hit = [From::Main, From::Errors].into_iter().find(|from| {
                let stream = if *from == From::Main { &self.main } else { &self.errors };
                regex.is_match(stream.output.from(stream.expected))
            });
            let Some(from) = hit else { return Ok(()) };
            let send = send.clone();
            let stream = self.stream(from);
            stream.expected = stream.output.end();
            self.plan.expect.remove(0);
            self.send(&send).await?;
        }
        Ok(())
    }

    async fn send(&mut self, text: &str) -> Result<(), Refusal> {
        let written = match &mut self.input {
            Input::None => return Err(refuse(ErrorCode::Conflict, "the program takes no input")),
            Input::Pipe(pipe) => timeout(TYPE_LIMIT, pipe.write_all(text.as_bytes())).await,
            Input::Terminal(master) => timeout(TYPE_LIMIT, master.write_all(text.as_bytes())).await,
        };
        match written {
            Ok(written) => written.map_err(|error| refuse_os("the program does not read its input", &error)),
            Err(_) => Err(refuse(ErrorCode::TimedOut, "the program does not read its input")),
        }
    }
}

/// Ends a program that is of no more use: by the end of its input if it may, else by signals.
async fn end_program(pid: i32, exit: &mut oneshot::Receiver<i32>, graceful: bool) -> Option<i32> {
    if graceful && let Ok(code) = timeout(END_LIMIT, &mut *exit).await {
        return code.ok();
    }
    signal_group(pid, libc::SIGTERM);
    if let Ok(code) = timeout(END_LIMIT, &mut *exit).await {
        return code.ok();
    }
    signal_group(pid, libc::SIGKILL);
    timeout(END_LIMIT, exit).await.ok()?.ok()
}
