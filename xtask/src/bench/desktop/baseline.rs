//! What the product is measured against: the same browser on the same page, seen through VNC servers and noVNC.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use polydev_core::guest::BROWSER_FLAGS;

use super::{
    Size,
    child::Child,
    cpu,
    display::{Display, authority, socket_of},
};
use crate::run::command;

/// Displays that are looked through for a free one.
const DISPLAYS: std::ops::Range<u32> = 70..80;
const START_LIMIT: Duration = Duration::from_secs(20);
const CONNECT_LIMIT: Duration = Duration::from_millis(200);
/// Chromium refuses to sandbox itself under root: nobody runs it.
const NOBODY: u32 = 65534;
const COOKIE: [u8; 16] = *b"polydev-bench-co";
/// As in the guest: the browser fills the screen.
const OPENBOX: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<openbox_config xmlns="http://openbox.org/3.4/rc">
  <keyboard/>
  <applications>
    <application role="browser" type="normal"><decor>no</decor><maximized>yes</maximized></application>
  </applications>
</openbox_config>
"#;

/// Which VNC server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// Looks at the display of another X server.
    X11vnc,
    /// Is an X server itself.
    TigerVnc,
}

/// One desktop and everything up to its WebSocket. Ended when dropped, in the order of the fields.
#[derive(Debug)]
pub(super) struct Baseline {
    _websockify: Child,
    _vnc: Option<Child>,
    _browser: Child,
    _window_manager: Child,
    _x_server: Child,
    pub(super) display: Display,
    /// Of noVNC's WebSocket.
    pub(super) url: String,
    /// What lies between the screen and the WebSocket.
    pub(super) pids: Vec<u32>,
}

impl Baseline {
    /// Starts everything, with the browser on a page whose title is known.
    pub(super) fn start(server: Server, size: Size, page: &str, title: &str, work: &Path) -> Result<Self> {
        let number = DISPLAYS
            .into_iter()
            .find(|number| !socket_of(*number).exists() && !lock_of(*number).exists())
            .with_context(|| format!("the X displays {DISPLAYS:?} are all in use"))?;
        let home = work.join(format!("guest-{number}"));
        own_dir(&home)?;
        let auth = home.join("xauthority");
        fs::write(&auth, authority(number, COOKIE)).context("write the display's authority file")?;
        give(&auth, 0o600)?;
        let name = format!(":{number}");
        let display = Display::of_number(number, COOKIE);
        let rfb = free_port()?;

        let (width, height) = size.sides();
        let mut x_server = match server {
            Server::X11vnc => {
                let mut xvfb = command("Xvfb");
                xvfb.args([&name, "-screen", "0"]).arg(format!("{width}x{height}x24")).arg("-noreset");
                xvfb
            }
            Server::TigerVnc => {
                let mut xvnc = command("Xtigervnc");
                xvnc.args([&name, "-geometry"]).arg(format!("{width}x{height}")).args([
                    "-depth",
                    "24",
                    "-localhost",
                    "-SecurityTypes",
                    "None",
                    "-AlwaysShared",
                    "-rfbport",
                ]);
                xvnc.arg(rfb.to_string());
                xvnc
            }
        };
        x_server.args(["-nolisten", "tcp", "-auth"]).arg(&auth);
        let mut x_server = Child::start("x-server", &mut x_server, work)?;
        x_server.until("takes connections", START_LIMIT, || display.connect().is_ok())?;

        let environment = [("DISPLAY", name.as_str()), ("XAUTHORITY", path(&auth)?)];
        let settings = home.join("openbox.xml");
        fs::write(&settings, OPENBOX).context("write the window manager's settings")?;
        give(&settings, 0o600)?;
        let mut openbox = as_guest("openbox", &home);
        openbox.args(["--sm-disable", "--config-file"]).arg(&settings).envs(environment);
        let mut window_manager = Child::start("openbox", &mut openbox, work)?;
        window_manager.until("manages windows", START_LIMIT, || display.has_window_manager())?;

        let mut chromium = as_guest("chromium", &home);
        chromium.arg(format!("--user-data-dir={}", home.join("profile").display())).args(BROWSER_FLAGS);
        let mut browser = Child::start("chromium", chromium.arg(page).envs(environment), work)?;
        browser.until("shows the page", START_LIMIT, || display.shows_window(title))?;

        let vnc = match server {
            Server::TigerVnc => None,
            Server::X11vnc => {
                let mut x11vnc = command("x11vnc");
                x11vnc.args(["-display", &name, "-rfbport", &rfb.to_string()]);
                x11vnc.args(["-localhost", "-noipv6", "-nopw", "-forever", "-shared", "-auth"]).arg(&auth);
                Some(Child::start("x11vnc", &mut x11vnc, work)?)
            }
        };
        let web = free_port()?;
        let (mut vnc, mut x_server) = (vnc, x_server);
        vnc.as_mut().unwrap_or(&mut x_server).until("serves VNC", START_LIMIT, || answers(rfb))?;
        let mut websockify = command("websockify");
        websockify.args([local(web).to_string(), local(rfb).to_string()]);
        let mut websockify = Child::start("websockify", &mut websockify, work)?;
        websockify.until("serves WebSockets", START_LIMIT, || answers(web))?;

        let server_pid = vnc.as_ref().unwrap_or(&x_server).pid();
        Ok(Self {
            url: format!("ws://{}", local(web)),
            // websockify has a process for each connection: the tree is looked up when it is there.
            pids: vec![server_pid, websockify.pid()],
            _websockify: websockify,
            _vnc: vnc,
            _browser: browser,
            _window_manager: window_manager,
            _x_server: x_server,
            display,
        })
    }

    /// All processes between the screen and the WebSocket, now.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.pids.iter().flat_map(|pid| cpu::tree(*pid)).collect()
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("the work directory's name is text")
}

fn lock_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/.X{number}-lock"))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn answers(port: u16) -> bool {
    TcpStream::connect_timeout(&local(port), CONNECT_LIMIT).is_ok()
}

/// A port that was free a moment ago: the programs that get it cannot choose one themselves.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(local(0)).context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn own_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    give(dir, 0o700)
}

fn give(file: &Path, mode: u32) -> Result<()> {
    let text = || format!("hand {} to the browser's account", file.display());
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).with_context(text)?;
    if is_root() {
        chown(file, Some(NOBODY), Some(NOBODY)).with_context(text)?;
    }
    Ok(())
}

/// A program of the desktop: with no more environment than in the guest.
fn as_guest(program: &str, home: &Path) -> Command {
    let mut command = command(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", home).env("TMPDIR", home);
    command.env("XDG_RUNTIME_DIR", home).env("LANG", "C.UTF-8").current_dir(home);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
