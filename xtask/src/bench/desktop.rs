//! `bench desktop`: how old the picture is that a person sees, side by side with VNC, on this machine, in one run.
//!
//! A barcode on the X display tells the time; a real Chromium shows the desktop and reads the barcode back. The guest's
//! browser, its page, the receiving browser and the way of reading are the same for every lane.

mod barcode;
mod baseline;
mod child;
mod cpu;
mod display;
mod figures;
mod interrupt;
mod network;
mod options;
mod product;
mod receiver;
mod responder;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(super) use self::options::Options;
use self::{
    baseline::{Baseline, Server},
    cpu::CpuClock,
    display::{Display, Shown},
    figures::{Cell, Work},
    interrupt::pause,
    product::{Built, Product, SignIn},
    receiver::Receiver,
};
use super::{Report, Row};
use crate::{http::Api, run::step, setup, stack};

/// The page that scrolls, and the same standing still.
const PAGE: &str = "/polydev-demo/scroll";
const STILL_PAGE: &str = "/polydev-demo/scroll?still=1";
const PAGE_TITLE: &str = "Scrolling (polydev demo)";
const STILL_PAGE_TITLE: &str = "Still (polydev demo)";
/// Pictures of the first seconds are not counted: programs start, rates settle.
const SETTLE: Duration = Duration::from_secs(5);
const PAGE_LIMIT: Duration = Duration::from_secs(10);
const PAGE_TRIES: usize = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Of the controller, its log among it.
const STATE: &str = "state";
/// Lines of a program's log that are shown after a failure.
const LAST_WORDS: usize = 15;
const TMPFS: &str = "/dev/shm";

/// How a desktop gets to the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Lane {
    /// Xvfb, x11vnc, websockify, noVNC.
    X11vnc,
    /// Xtigervnc, websockify, noVNC.
    TigerVnc,
    /// Ours over UDP.
    WebRtc,
    /// Ours over ICE-TCP.
    Tcp,
    /// Ours over a WebSocket, decoded by WebCodecs.
    WebSocket,
}

/// What the desktop shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scene {
    /// Nothing but the barcode changes.
    Static,
    /// A page scrolls, 6 of every 8 seconds.
    Busy,
}

/// How large the desktop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Size {
    #[serde(rename = "720p")]
    Hd,
    #[serde(rename = "1080p")]
    FullHd,
}

impl Lane {
    const ALL: [Self; 5] = [Self::X11vnc, Self::TigerVnc, Self::WebRtc, Self::Tcp, Self::WebSocket];

    fn name(self) -> &'static str {
        match self {
            Self::X11vnc => "x11vnc",
            Self::TigerVnc => "tigervnc",
            Self::WebRtc => "webrtc",
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket",
        }
    }

    fn server(self) -> Option<Server> {
        match self {
            Self::X11vnc => Some(Server::X11vnc),
            Self::TigerVnc => Some(Server::TigerVnc),
            Self::WebRtc | Self::Tcp | Self::WebSocket => None,
        }
    }
}

impl Scene {
    const ALL: [Self; 2] = [Self::Static, Self::Busy];

    fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Busy => "busy",
        }
    }

    fn page(self) -> &'static str {
        match self {
            Self::Static => STILL_PAGE,
            Self::Busy => PAGE,
        }
    }

    /// How its page's title begins.
    fn title(self) -> &'static str {
        match self {
            Self::Static => STILL_PAGE_TITLE,
            Self::Busy => PAGE_TITLE,
        }
    }

    /// How long it is looked at: a hundred barcodes; whole rounds of the scrolling page.
    fn time(self) -> Duration {
        match self {
            Self::Static => Duration::from_secs(12),
            Self::Busy => Duration::from_secs(16),
        }
    }
}

impl Size {
    const ALL: [Self; 2] = [Self::Hd, Self::FullHd];

    fn name(self) -> &'static str {
        match self {
            Self::Hd => "720p",
            Self::FullHd => "1080p",
        }
    }

    fn sides(self) -> (u16, u16) {
        match self {
            Self::Hd => (1280, 720),
            Self::FullHd => (1920, 1080),
        }
    }
}

pub(super) fn desktop(options: &Options) -> Result<Report> {
    setup::test_packages()?;
    setup::node()?;
    setup::npm_modules("web")?;
    setup::npm_modules("e2e")?;
    setup::npm_modules("demo")?;
    let ours = options.lanes.iter().any(|lane| lane.server().is_none());
    if options.lanes.iter().any(|lane| lane.server().is_some()) {
        setup::bench_packages()?;
    }
    let built = if ours { Some(product::build(options.as_built)?) } else { None };
    interrupt::listen()?;

    let began = Instant::now();
    let place = Place::new()?;
    let mut run = Run { options, place: &place, cells: Vec::new(), rows: Vec::new() };
    let outcome = run.everything(built.as_ref());
    // What was measured before a failure is shown all the same.
    println!("{}\n", figures::table(&run.cells));
    if outcome.is_err() && interrupt::check().is_ok() {
        place.tell_logs();
    }
    outcome?;
    eprintln!("measured in {}", crate::run::seconds(began.elapsed()));
    let doubts: Vec<String> = run.cells.iter().filter_map(Cell::doubt).collect();
    for doubt in &doubts {
        println!("not to be believed: {doubt}");
    }
    let rows = [figures::goals(&run.cells), run.rows].concat();
    Ok(Report::new("desktop", rows)
        .with_detail("cells", json!(run.cells))
        .with_detail("doubts", json!(doubts)))
}

/// A directory in memory: the guests of the baselines have no slower a disk than ours.
#[derive(Debug)]
struct Place(TempDir);

impl Place {
    fn new() -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("polydev-bench-");
        let dir = if Path::new(TMPFS).is_dir() { builder.tempdir_in(TMPFS) } else { builder.tempdir() };
        let dir = dir.context("create a directory")?;
        // The account of the baselines' browser passes through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).context("open the directory")?;
        Ok(Self(dir))
    }

    /// The last words of every program.
    fn tell_logs(&self) {
        let dirs = [self.0.path().to_owned(), self.0.path().join(STATE)];
        let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let files = files.map(|file| file.path());
        for file in files.filter(|file| file.extension().is_some_and(|ending| ending == "log")) {
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
            eprintln!("--- {}\n{}", file.file_name().unwrap_or_default().display(), last.join("\n"));
        }
    }

    fn sub(&self, name: &str) -> Result<std::path::PathBuf> {
        let dir = self.0.path().join(name);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }
}

struct Run<'a> {
    options: &'a Options,
    place: &'a Place,
    cells: Vec<Cell>,
    rows: Vec<Row>,
}

impl Run<'_> {
    fn everything(&mut self, built: Option<&Built>) -> Result<()> {
        let mut receiver = Receiver::start(&self.place.sub("receiver")?)?;
        let servers: Vec<Lane> =
            self.options.lanes.iter().copied().filter(|lane| lane.server().is_some()).collect();
        if !servers.is_empty() {
            let (_demo, api) = stack::start_demo(&self.place.sub("demo")?)?;
            for (size, scene) in self.options.scenes() {
                for lane in &servers {
                    let title = format!("{} {} {}", lane.name(), scene.name(), size.name());
                    step(&title, || self.baseline(&mut receiver, &api, *lane, scene, size))?;
                }
            }
        }
        if let Some(built) = built {
            let product = Product::start(built, &self.place.sub(STATE)?)?;
            for size in &self.options.sizes {
                self.product(&mut receiver, &product, *size)?;
            }
            if self.options.network {
                let rows = network::measure(&mut receiver, &product, self.options)?;
                self.rows.extend(rows);
            }
        }
        Ok(())
    }

    fn baseline(
        &mut self,
        receiver: &mut Receiver,
        demo: &Api,
        lane: Lane,
        scene: Scene,
        size: Size,
    ) -> Result<()> {
        let server = lane.server().context("the lane is a baseline")?;
        let page = format!("http://{}{}", demo.address, scene.page());
        let desktop = Baseline::start(server, size, &page, scene.title(), self.place.0.path())?;
        let _shown = Signs::show(&desktop.display)?;
        let load = load();
        receiver.ask(
            "open",
            json!({ "lane": "vnc", "url": desktop.url, "size": sides(size), "chromium": CHROMIUM }),
        )?;
        pause(SETTLE)?;
        let clock = CpuClock::start(&desktop.processes())?;
        let seen = receiver.look(self.options.time(scene))?;
        let cell = Cell::new(lane, scene, size, seen, Work::Baseline(clock.used()?), load);
        self.cells.push(cell);
        receiver.ask("close", json!({}))?;
        Ok(())
    }

    /// All of our own lanes and scenes at one size, in one sign-in.
    fn product(&mut self, receiver: &mut Receiver, product: &Product, size: Size) -> Result<()> {
        let sign_in = product.sign_in(&format!("bench-{}", size.name()))?;
        for scene in &self.options.scenes {
            for lane in self.options.lanes.iter().filter(|lane| lane.server().is_none()) {
                let title = format!("{} {} {}", lane.name(), scene.name(), size.name());
                step(&title, || {
                    open(receiver, product, &sign_in, *lane, size, &Way::default())?;
                    visit(receiver, &sign_in.display, *scene)?;
                    let shown = Signs::show(&sign_in.display)?;
                    let load = load();
                    pause(SETTLE)?;
                    let (before, clocks) = (Counters::read(product)?, sign_in.clocks()?);
                    let seen = receiver.look(self.options.time(*scene))?;
                    let (used, after) = (clocks.used()?, Counters::read(product)?);
                    let work = Work::Product {
                        used,
                        frames: after.frames - before.frames,
                        encode: after.encode - before.encode,
                    };
                    let cell = Cell::new(*lane, *scene, size, seen, work, load);
                    self.cells.push(cell);
                    drop(shown);
                    if *lane == Lane::WebRtc && *scene == Scene::Static {
                        self.idle(receiver, &sign_in, size)?;
                    }
                    receiver.ask("close", json!({})).map(drop)
                })?;
            }
        }
        product.cancel(&sign_in)
    }

    /// With a viewer, and nothing changing.
    fn idle(&mut self, receiver: &mut Receiver, sign_in: &SignIn, size: Size) -> Result<()> {
        let counted = |receiver: &mut Receiver| -> Result<[f64; 3]> {
            let counts = receiver.ask("bytes", json!({}))?;
            let figure = |name: &str| counts["figures"][name].as_f64().unwrap_or(0.0);
            let bytes = counts["bytes"].as_f64().context("the receiver counts bytes")?;
            Ok([bytes, figure("framesReceived"), figure("retransmittedPacketsReceived")])
        };
        // The sharpening after the last change is over.
        pause(SETTLE)?;
        let (before, clocks, began) = (counted(receiver)?, sign_in.clocks()?, Instant::now());
        pause(self.options.idle)?;
        let (used, after, seconds) = (clocks.used()?, counted(receiver)?, began.elapsed().as_secs_f64());
        let name = |what: &str| format!("idle {} webrtc: {what}", size.name());
        let share = |used: f64| [100.0 * used / seconds];
        for (what, seconds, goal) in [
            ("CPU of all our parts", used.total(), Some(1.0)),
            ("CPU of the desktop program", used.streamer, None),
            ("CPU of the watcher", used.watcher, None),
            ("CPU of the agent", used.agent, None),
            ("CPU of the controller", used.controller, None),
        ] {
            self.rows.extend(Row::of(name(what), "% of a core", &share(seconds), goal));
        }
        let rate = |at: usize| [(after[at] - before[at]) / seconds];
        self.rows.extend(Row::of(name("both ways"), "B/s", &rate(0), Some(2000.0)));
        self.rows.extend(Row::of(name("frames"), "1/s", &rate(1), None));
        self.rows.extend(Row::of(name("packets of resending and padding"), "1/s", &rate(2), None));
        Ok(())
    }
}

/// Barcode and window for clicks.
#[derive(Debug)]
struct Signs {
    _responder: Shown,
    _barcode: Shown,
}

impl Signs {
    fn show(display: &Display) -> Result<Self> {
        Ok(Self { _barcode: barcode::show(display)?, _responder: responder::show(display)? })
    }
}

/// The controller's own counters, over all desktops.
#[derive(Debug, Clone, Copy)]
struct Counters {
    /// Pictures that went to viewers.
    frames: f64,
    /// CPU seconds of the encoder.
    encode: f64,
}

impl Counters {
    fn read(product: &Product) -> Result<Self> {
        let text = product.stack().api.text("/metrics")?;
        let sum = |name: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Self {
            frames: sum("polydev_desktop_frames_total"),
            encode: sum("polydev_desktop_guest_encode_cpu_seconds_total"),
        })
    }
}

/// The person's browser.
const CHROMIUM: &str = "/usr/bin/chromium";

/// What else is to hold for a lane.
#[derive(Debug, Default)]
struct Way {
    /// Stands between the page and the endpoint's UDP port.
    relay: Option<SocketAddr>,
    /// The viewer chooses its lane itself.
    any_lane: bool,
}

/// Opens one of our lanes with the control of a desktop, which becomes that large.
fn open(
    receiver: &mut Receiver,
    product: &Product,
    sign_in: &SignIn,
    lane: Lane,
    size: Size,
    way: &Way,
) -> Result<Value> {
    let stack = product.stack();
    receiver.ask(
        "open",
        json!({
            "lane": lane.name(),
            "session": sign_in.id,
            "size": sides(size),
            "origin": format!("http://{}", stack.api.address),
            "link": stack.link,
            "chromium": CHROMIUM,
            "relay": way.relay.map(|relay| json!({ "address": relay.to_string(), "keepTcp": way.any_lane })),
            "anyLane": way.any_lane,
        }),
    )
}

/// Opens a scene's page as a person does, by the keys of the lane that is open; again if something went wrong.
fn visit(receiver: &mut Receiver, display: &Display, scene: Scene) -> Result<()> {
    for _ in 0..PAGE_TRIES {
        receiver.ask("visit", json!({ "url": Product::guest_page(scene.page()) }))?;
        let began = Instant::now();
        while began.elapsed() < PAGE_LIMIT {
            if display.shows_window(scene.title()) {
                return Ok(());
            }
            pause(LOOK_AGAIN)?;
        }
        eprintln!("the page did not open; trying again");
    }
    bail!("the guest's browser does not show the page after {PAGE_TRIES} tries")
}

fn sides(size: Size) -> Value {
    let (width, height) = size.sides();
    json!([width, height])
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
