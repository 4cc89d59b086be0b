//! X server, window manager, browser, watcher and streamer of a browser VM, supervised.
//!
//! ```text
//! X server --socket is there--> window manager, browser, watcher --painted, titles--> page opening
//!                               streamer <--desktop streams-- host
//! ```

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    time::Duration,
};

use polydev_core::{
    guest::{BROWSER_USER, VNC_SOCKET},
    scrub::scrub,
    wire::{AgentEvent, DesktopState, ErrorCode, Refusal, Reply, ServiceState},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::UnixStream,
    sync::Notify,
    time::Instant,
};

use crate::{
    agent::Agent,
    browser,
    control::{refuse, refuse_os},
    mux::Stream,
    output::Lines,
    page,
    process::{Child, Launch, Streams, signal_group},
};

/// Sides of the screen.
const SIDE: std::ops::RangeInclusive<u16> = 320..=4096;
/// Shortest and longest pause before a program that ended is started again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A program that ran for this long starts over with the shortest pause.
const STEADY: Duration = Duration::from_secs(30);
/// How often the X server's sockets are looked for.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Bytes on their way from the host and to it: a picture should not need many steps.
const JOIN_BUFFERS: (usize, usize) = (8 << 10, 64 << 10);
/// Emulated machines are slow to start one.
const X_LIMIT: Duration = Duration::from_secs(120);

/// State of the desktop.
#[derive(Default)]
pub(crate) struct Desktop {
    state: Cell<DesktopState>,
    started: Cell<bool>,
    title: RefCell<String>,
    /// Process group of the watcher, to start it over when the browser does.
    watcher: Cell<i32>,
    changed: Notify,
    pub(crate) page: page::PageSlot,
}

/// What the watcher tells. `polydev-desktop` holds the same definition.
#[derive(Debug, Deserialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
enum Seen {
    Display,
    Painted,
    Title { title: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    XServer,
    WindowManager,
    Browser,
    Watcher,
    Streamer,
}

pub(crate) fn start(agent: &Rc<Agent>, width: u16, height: u16) -> Result<Reply, Refusal> {
    if !SIDE.contains(&width) || !SIDE.contains(&height) {
        return Err(refuse(ErrorCode::BadRequest, "the screen's size is out of range"));
    }
    if agent.desktop.started.get() {
        return Ok(Reply::Done);
    }
    browser::prepare().map_err(|error| refuse_os("prepare the desktop", &error))?;
    agent.desktop.started.set(true);
    for (service, argv) in [
        (Service::XServer, browser::x_server(width, height)),
        (Service::WindowManager, browser::window_manager()),
        (Service::Browser, browser::chromium(None)),
        (Service::Watcher, browser::desktop_program("watch")),
        (Service::Streamer, browser::desktop_program("stream")),
    ] {
        tokio::task::spawn_local(supervise(agent.clone(), service, argv));
    }
    Ok(Reply::Done)
}

/// Joins a stream of the host with one of the desktop's sockets.
pub(crate) async fn join(agent: &Rc<Agent>, socket: &str, mut stream: Stream) {
    match UnixStream::connect(socket).await {
        Ok(mut socket) => {
            // Either side may go at any time.
            let (up, down) = JOIN_BUFFERS;
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut socket, up, down).await;
        }
        Err(error) => agent.log.note("desktop", format_args!("{socket}: {error}")),
    }
}

impl Desktop {
    pub(crate) fn state(&self) -> DesktopState {
        self.state.get()
    }

    pub(crate) fn title(&self) -> String {
        self.title.borrow().clone()
    }

    /// Returns when the state or the title changed since the call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::XServer => "x-server",
            Self::WindowManager => "window-manager",
            Self::Browser => "browser",
            Self::Watcher => "watcher",
            Self::Streamer => "streamer",
        }
    }
}

fn change(agent: &Agent, change: impl FnOnce(&mut DesktopState)) {
    let old = agent.desktop.state.get();
    let mut new = old;
    change(&mut new);
    if new != old {
        agent.desktop.state.set(new);
        agent.events.emit(AgentEvent::Desktop { state: new });
    }
    agent.desktop.changed.notify_waiters();
}

fn set(agent: &Agent, service: Service, to: ServiceState) {
    change(agent, |state| match service {
        Service::XServer => state.x_server = to,
        Service::WindowManager => state.window_manager = to,
        Service::Browser => {
            state.browser = to;
            state.painted &= to == ServiceState::Up;
        }
        Service::Watcher | Service::Streamer => {}
    });
}

async fn supervise(agent: Rc<Agent>, service: Service, argv: Vec<String>) {
    let mut pause = PAUSE.0;
    loop {
        while service != Service::XServer && agent.desktop.state().x_server != ServiceState::Up {
            agent.desktop.changed().await;
        }
        let began = Instant::now();
        set(&agent, service, ServiceState::Starting);
        let exit_code = run_once(&agent, service, &argv).await;
        if service == Service::Browser {
            agent.desktop.title.borrow_mut().clear();
            signal_group(agent.desktop.watcher.get(), libc::SIGKILL);
        }
        set(&agent, service, ServiceState::Restarting);
        if service != Service::Watcher {
            let words = agent.log.last_of(service.name()).unwrap_or_default();
            agent.log.note(service.name(), format_args!("ended with {exit_code}: {words}"));
            agent.events.emit(AgentEvent::ServiceDied { name: service.name().to_owned(), exit_code });
        }
        if began.elapsed() > STEADY {
            pause = PAUSE.0;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn run_once(agent: &Rc<Agent>, service: Service, argv: &[String]) -> i32 {
    if service == Service::XServer {
        for stale in [VNC_SOCKET, browser::X_SOCKET, "/tmp/.X1-lock"] {
            let _ = std::fs::remove_file(stale);
        }
    }
    if service == Service::Browser
        && let Err(error) = browser::fresh_profile()
    {
        agent.log.note(service.name(), format_args!("profile not renewed: {error}"));
    }
    let env = browser::environment();
    let launch = Launch { argv, env: &env, account: &BROWSER_USER, streams: Streams::Output };
    let Child { pid, stdout, stderr, mut exit, .. } = match launch.start(&agent.reaper) {
        Ok(child) => child,
        Err(error) => {
            agent.log.note(service.name(), format_args!("not started: {error}"));
            return 127;
        }
    };
    tokio::task::spawn_local(keep_output(agent.clone(), service, stderr));
    match service {
        Service::Watcher => {
            agent.desktop.watcher.set(pid);
            tokio::task::spawn_local(listen(agent.clone(), stdout));
        }
        Service::XServer | Service::WindowManager | Service::Browser | Service::Streamer => {
            tokio::task::spawn_local(keep_output(agent.clone(), service, stdout));
        }
    }
    match service {
        Service::XServer => {
            tokio::select! {
                up = x_is_up() => if up {
                    set(agent, service, ServiceState::Up);
                } else {
                    agent.log.note(service.name(), "did not come up in time");
                    signal_group(pid, libc::SIGKILL);
                },
                code = &mut exit => return code.unwrap_or(-1),
            }
        }
        Service::WindowManager => set(agent, service, ServiceState::Up),
        Service::Browser | Service::Watcher | Service::Streamer => {}
    }
    let code = exit.await.unwrap_or(-1);
    // Helpers of a browser that crashed must not hold its profile.
    signal_group(pid, libc::SIGKILL);
    code
}

async fn x_is_up() -> bool {
    let deadline = Instant::now() + X_LIMIT;
    while Instant::now() < deadline {
        if Path::new(VNC_SOCKET).exists() && UnixStream::connect(browser::X_SOCKET).await.is_ok() {
            return browser::close_display_to_others().is_ok();
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    false
}

async fn keep_output(agent: Rc<Agent>, service: Service, pipe: Option<impl AsyncRead + Unpin>) {
    read_lines(pipe, |line| {
        if !line.is_empty() {
            agent.log.output(service.name(), &scrub(&line));
        }
    })
    .await;
}

async fn listen(agent: Rc<Agent>, pipe: Option<impl AsyncRead + Unpin>) {
    read_lines(pipe, |line| match serde_json::from_str(&line) {
        Ok(Seen::Display) => {}
        Ok(Seen::Painted) => {
            agent.log.note("desktop", "painted");
            change(&agent, |state| {
                state.browser = ServiceState::Up;
                state.painted = true;
            });
            page::browser_is_up(&agent);
        }
        Ok(Seen::Title { title }) => {
            // Titles are page content: used, never logged.
            *agent.desktop.title.borrow_mut() = title;
            agent.desktop.changed.notify_waiters();
        }
        Err(_) => agent.log.note("watcher", "said something that is not understood"),
    })
    .await;
}

async fn read_lines(pipe: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(String)) {
    let Some(mut pipe) = pipe else { return };
    let mut lines = Lines::default();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        lines.push(&chunk[..count]).into_iter().for_each(&mut take);
    }
}
