//! The control stream.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::VmId;

use super::{
    files::{FileGet, FilePut, FileRead},
    login::{LoginEnd, LoginSpec, UrlYields},
};

/// A request with the number that its answer carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Chosen by the host, unique on the connection.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the host can ask of an agent. Every request is answered exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Must come first. Answer: [`Reply::Hello`].
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the host.
        version: u16,
    },
    /// Makes this VM one of its own after start or restore. Answer: [`Reply::Done`].
    Identify(Identity),
    /// Starts X server, window manager and browser (on an empty page). Idempotent. Answer: [`Reply::Done`] at once;
    /// [`AgentEvent::Desktop`] follows.
    StartDesktop {
        /// Width in pixels.
        width: u16,
        /// Height in pixels.
        height: u16,
    },
    /// Opens a page in the browser and makes sure that it is really there. Answer: [`Reply::Done`] at once;
    /// [`AgentEvent::PageOpen`] or [`AgentEvent::PageFailed`] follows.
    OpenPage {
        /// The address; must match a URL rule of the login under way.
        url: String,
    },
    /// Starts the login. Refused while one is running. Answer: [`Reply::Done`].
    StartLogin(LoginSpec),
    /// Types a line into the login (a pasted code). Answer: [`Reply::Done`].
    LoginInput {
        /// Text, with its newline if one is wanted.
        text: String,
    },
    /// Replays a callback address that reached the wrong machine. Answer: [`Reply::Done`] when the program took it.
    ReplayCallback {
        /// The address as the person's browser shows it.
        url: String,
    },
    /// Ends the login and its whole process group. Answer: [`Reply::Done`].
    CancelLogin,
    /// Writes files of the CLI user. All or none. Answer: [`Reply::Done`].
    PutFiles {
        /// What to write.
        files: Vec<FilePut>,
    },
    /// Reads files of the CLI user. Answer: [`Reply::Files`].
    GetFiles {
        /// What to read.
        files: Vec<FileGet>,
    },
    /// Runs a program to its end as the CLI user. Answer: [`Reply::Ran`].
    Run {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the CLI user's environment.
        env: BTreeMap<String, String>,
        /// Killed after this long.
        timeout_ms: u64,
    },
    /// Starts a terminal as the CLI user. Answer: [`Reply::Pty`].
    OpenPty {
        /// Program and arguments; empty = the login shell.
        argv: Vec<String>,
        /// Added to the CLI user's environment.
        env: BTreeMap<String, String>,
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Ends a terminal. Answer: [`Reply::Done`].
    ClosePty {
        /// Its id.
        id: u32,
    },
    /// The tail of the agent's own log and of the programs it supervises. Answer: [`Reply::Log`].
    ReadLog {
        /// Most bytes wanted.
        max_bytes: u32,
    },
    /// Prepares for a snapshot: writes everything out, forgets the host connection. In a VM nothing but the agent runs
    /// from then on, and programs are refused, until [`Request::Identify`]. Answer: [`Reply::Done`].
    Quiesce,
    /// Ends everything and powers the VM off. Answer: [`Reply::Done`], then the connection closes.
    PowerOff,
}

/// What makes a VM one of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name.
    pub hostname: String,
    /// 32 hex digits for `/etc/machine-id`.
    pub machine_id: String,
    /// Wall clock as milliseconds since the Unix epoch.
    pub unix_time_ms: u64,
    /// At least 32 random bytes, base64, for the kernel's pool.
    pub entropy: String,
    /// Environment of everything started for a person from now on.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether the guest may open egress streams at all.
    pub egress: bool,
}

impl Identity {
    /// Of a VM with a role that its host name tells. Clock and entropy are filled in when it is handed over.
    pub fn of(id: VmId, role: &str) -> Self {
        Self {
            hostname: format!("{role}-{}", id.short()),
            machine_id: id.as_uuid().simple().to_string(),
            unix_time_ms: 0,
            entropy: String::new(),
            env: BTreeMap::new(),
            egress: true,
        }
    }
}

/// What an agent sends on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentFrame {
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: u64,
        /// What came of it.
        result: Result<Reply, Refusal>,
    },
    /// Something happened.
    Event {
        /// What.
        event: AgentEvent,
    },
}

/// Good answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is done, or under way where the request says so.
    Done,
    /// Answer to [`Request::Hello`].
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the agent.
        version: u16,
        /// The agent's crate version.
        agent: String,
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// Milliseconds since the agent started.
        uptime_ms: u64,
        /// Whether a login is running.
        login_running: bool,
        /// State of the desktop.
        desktop: DesktopState,
        /// Terminals that are open.
        ptys: Vec<u32>,
    },
    /// Answer to [`Request::GetFiles`]; optional files that are absent are left out.
    Files {
        /// What was read.
        files: Vec<FileRead>,
    },
    /// Answer to [`Request::Run`].
    Ran {
        /// Exit status; 128 + signal when killed.
        exit_code: i32,
        /// Standard output, at most 64 KiB, invalid UTF-8 replaced.
        stdout: String,
        /// Standard error, likewise.
        stderr: String,
    },
    /// Answer to [`Request::OpenPty`].
    Pty {
        /// The terminal's id.
        id: u32,
    },
    /// Answer to [`Request::ReadLog`].
    Log {
        /// Text, oldest line first.
        text: String,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For the log; holds no secret.
    pub message: String,
}

/// Classes of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or out of range.
    BadRequest,
    /// Host and agent speak different protocol versions.
    VersionMismatch,
    /// Not possible in the present state.
    Conflict,
    /// The file, program or terminal is not there.
    NotFound,
    /// A URL that no rule accepts.
    UrlRefused,
    /// The guest's disk is full.
    NoSpace,
    /// The operating system refused.
    Os,
    /// It took too long.
    TimedOut,
}

/// State of one supervised program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not asked for.
    #[default]
    Off,
    /// Started, not yet known to work.
    Starting,
    /// Works.
    Up,
    /// Ended; will be started again after a pause.
    Restarting,
}

/// State of the desktop's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DesktopState {
    /// X server.
    pub x_server: ServiceState,
    /// Window manager.
    pub window_manager: ServiceState,
    /// Chromium.
    pub browser: ServiceState,
    /// The screen shows a browser window.
    pub painted: bool,
}

/// What an agent reports unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AgentEvent {
    /// A part of the desktop changed.
    Desktop {
        /// How it is now.
        state: DesktopState,
    },
    /// The sign-in page's address is known. Sent again when the program hands over another one.
    UrlCaptured {
        /// The address; a secret until the sign-in is over: never logged.
        url: String,
        /// What following it ends in.
        yields: UrlYields,
    },
    /// A page and a code to type there.
    DeviceCode {
        /// The page.
        url: String,
        /// The code.
        code: String,
    },
    /// The shim was called with an address that no rule accepts.
    UrlRefused {
        /// Scheme, host and path only.
        origin: String,
    },
    /// The page asked for is on the screen.
    PageOpen,
    /// The page asked for did not come up.
    PageFailed {
        /// In words; no address in it.
        reason: String,
    },
    /// The browser reached the program's loopback listener.
    CallbackSeen,
    /// A credential file that fulfils its rule was written.
    CredentialSeen,
    /// The login is over.
    LoginEnded {
        /// How.
        end: LoginEnd,
        /// Last lines of its output, with URLs and codes removed.
        output_tail: String,
    },
    /// A supervised program ended unasked.
    ServiceDied {
        /// Its name.
        name: String,
        /// Exit status; 128 + signal when killed.
        exit_code: i32,
    },
    /// Connections that programs in the guest tried and did not get, so far.
    EgressRefused {
        /// Host name asked for.
        host: String,
    },
}
