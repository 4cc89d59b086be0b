//! Streams the display to the host: one loop that waits for damage, orders and room in the connection.
//!
//! ```text
//!            damage, pointer            orders (a thread reads them)
//! X server -----------------> loop <---------------------------------- host
//!          <-----------------      ----------------------------------->
//!            rows of pixels             frames, pointer, clipboard, counters
//! ```
//!
//! Nothing is captured while nobody watches, while nothing changes, or while the last frame has not left: changes add up
//! in the X server and become one later frame. So a slow host costs neither memory nor age, and nor does a viewer's slow
//! path, for which the host says when to hold.

mod codec;
mod counters;
mod cursor;
mod encoder;
mod link;
mod orders;
mod pace;
mod picture;
mod resize;
mod scale;
mod screen;

use std::{
    convert::Infallible,
    fs, io,
    os::{fd::AsFd, unix::net::UnixListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use polydev_core::desktop::{ContentMode, DESKTOP_VERSION, Frame, FromDesktop};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use x11rb::{
    connection::Connection as _,
    errors::{ConnectError, ConnectionError},
    protocol::Event,
    rust_connection::RustConnection,
};

use self::{
    counters::{Counters, thread_cpu},
    cursor::Cursor,
    encoder::{EncodeError, Encoder, Tuning},
    link::Link,
    orders::{Rate, ScreenWish},
    pace::{Pace, Purpose},
    picture::Picture,
    scale::Scale,
    screen::{Screen, ScreenError},
};
use crate::{
    input::{Injector, InputError},
    outbox::Outbox,
    wake::Wake,
};

/// Until the host says what the network can take.
const FIRST_RATE: Rate = Rate { kbps: 3000, fps: 30, mode: ContentMode::Auto };

/// Why streaming ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("no display: {0}")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Screen(#[from] ScreenError),
    #[error("display gone: {0}")]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("colours not converted: {0}")]
    Colours(#[from] yuv::YuvError),
    #[error("input: {0}")]
    Input(#[from] InputError),
    #[error("socket {path}: {source}")]
    Listen { path: String, source: io::Error },
    #[error("wait: {0}")]
    Wait(#[from] io::Error),
}

struct Streamer<'a> {
    x: &'a RustConnection,
    screen: Screen<'a>,
    scale: Scale<'a>,
    listener: UnixListener,
    wake: Wake,
    outbox: Outbox,
    injector: Arc<Injector>,
    /// The newest input that was injected.
    applied: Arc<AtomicU32>,
    counters: Counters,
    host: Option<Host>,
}

/// A host that is connected.
struct Host {
    link: Link,
    rate: Rate,
    /// Frames so far.
    seq: u32,
    applied_seen: u32,
    /// Pictures would only wait there.
    holds: bool,
    tuning: Option<Tuning>,
    view: Option<View>,
}

/// What exists while somebody watches.
struct View {
    encoder: Encoder,
    picture: Picture,
    pace: Pace,
    cursor: Cursor,
    began: Instant,
    /// The picture has nothing of the screen yet.
    blank: bool,
    key: bool,
    /// The due frame waits for room in the connection.
    held: bool,
    counters_due: Instant,
}

/// Streams until the display goes away.
pub(crate) fn run(socket: &Path) -> Result<Infallible, StreamError> {
    let (x, number) = x11rb::connect(None)?;
    if let Err(error) = resize::set_refresh(&x, x.setup().roots[number].root) {
        eprintln!("polydev-desktop: refresh rate: {error}");
    }
    let screen = Screen::open(&x, number)?;
    let scale = Scale::claim(&x, screen.root())?;
    let wake = Wake::new()?;
    let outbox = Outbox::new(wake.clone());
    let applied = Arc::new(AtomicU32::new(0));
    let injector = Arc::new(Injector::start(outbox.clone(), applied.clone(), wake.clone())?);
    let listener = listen(socket)
        .map_err(|source| StreamError::Listen { path: socket.display().to_string(), source })?;
    let counters = Counters::default();
    Streamer { x: &x, screen, scale, listener, wake, outbox, injector, applied, counters, host: None }.run()
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Streamer<'_> {
    fn run(&mut self) -> Result<Infallible, StreamError> {
        loop {
            self.wake.clear();
            self.injector.check()?;
            self.accept()?;
            self.heed_orders()?;
            self.heed_display()?;
            self.say()?;
            let now = Instant::now();
            match self.make_frame(now)? {
                // Events may have come with the answers of the display.
                Made::Frame => {}
                Made::Nothing { until } => self.wait(until, now)?,
            }
        }
    }

    /// Takes the newest connection.
    fn accept(&mut self) -> Result<(), StreamError> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    self.part();
                    match Link::new(socket, &self.injector, &self.wake) {
                        Ok(link) => self.greet(link),
                        Err(error) => eprintln!("polydev-desktop: host connection: {error}"),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(error.into());
                }
            }
        }
    }

    fn greet(&mut self, link: Link) {
        let (width, height) = self.screen.size();
        self.outbox.clear();
        let applied_seen = self.applied.load(Ordering::Acquire);
        let mut host =
            Host { link, rate: FIRST_RATE, seq: 0, applied_seen, holds: false, tuning: None, view: None };
        let hello = FromDesktop::Hello { version: DESKTOP_VERSION, width, height };
        if host.send(&hello.encode()) {
            self.host = Some(host);
        }
    }

    /// Lets go of a host and of what its viewers held.
    fn part(&mut self) {
        if self.host.take().is_some() {
            self.injector.input(0, polydev_core::desktop::InputEvent::ReleaseAll);
        }
    }

    fn heed_orders(&mut self) -> Result<(), StreamError> {
        let Some(host) = &mut self.host else { return Ok(()) };
        let orders = host.link.board.take();
        if orders.ended {
            self.part();
            return Ok(());
        }
        let now = Instant::now();
        if let Some(rate) = orders.rate {
            host.set_rate(rate)?;
        }
        host.holds = orders.hold.unwrap_or(host.holds);
        match orders.watch {
            Some(true) if host.view.is_none() => host.view = Some(host.view(&self.screen, now)?),
            Some(false) => host.view = None,
            _ => {}
        }
        if let Some(view) = host.view.as_mut().filter(|_| orders.keyframe) {
            view.key = true;
            view.pace.changed();
        }
        let applied = self.applied.load(Ordering::Acquire);
        if applied != host.applied_seen {
            host.applied_seen = applied;
            if let Some(view) = &mut host.view {
                view.pace.input();
                view.cursor.may_have_moved(now);
            }
        }
        match orders.screen {
            Some(wish) => self.resize(wish),
            None => Ok(()),
        }
    }

    fn resize(&mut self, wish: ScreenWish) -> Result<(), StreamError> {
        let (width, height) = resize::allowed(wish.width, wish.height);
        self.scale.set(scale::fitting(width, wish))?;
        if (width, height) != self.screen.size() {
            match resize::resize(self.x, self.screen.root(), width, height) {
                Ok(()) => {}
                Err(ScreenError::Connection(error)) => return Err(error.into()),
                Err(error) => eprintln!("polydev-desktop: size {width}x{height}: {error}"),
            }
            self.refresh()?;
        }
        Ok(())
    }

    /// Starts over if the screen has another size.
    fn refresh(&mut self) -> Result<(), StreamError> {
        if self.screen.refresh()?
            && let Some(host) = &mut self.host
            && host.view.is_some()
        {
            host.view = Some(host.view(&self.screen, Instant::now())?);
        }
        Ok(())
    }

    fn heed_display(&mut self) -> Result<(), StreamError> {
        let mut resized = false;
        while let Some(event) = self.x.poll_for_event()? {
            let view = self.host.as_mut().and_then(|host| host.view.as_mut());
            match (event, view) {
                (Event::DamageNotify(_), Some(view)) => {
                    view.pace.changed();
                    view.cursor.may_have_moved(Instant::now());
                }
                (Event::XfixesCursorNotify(_), Some(view)) => view.cursor.shape_changed(),
                (Event::ConfigureNotify(event), _) => resized |= event.window == self.screen.root(),
                _ => {}
            }
        }
        if resized { self.refresh() } else { Ok(()) }
    }

    /// Sends everything but frames, as far as there is room.
    fn say(&mut self) -> Result<(), StreamError> {
        let Some(host) = &mut self.host else { return Ok(()) };
        let mut whole = host.link.flush().is_ok();
        while whole && host.link.is_clear() {
            let now = Instant::now();
            let message = match (&mut host.view, self.outbox.take()) {
                (_, Some(message)) => Some(message),
                (Some(view), None) => match view.cursor.news(self.x, self.screen.root(), now)? {
                    None if view.counters_due <= now => {
                        view.counters_due = now + Counters::INTERVAL;
                        Some(FromDesktop::Stats(self.counters.read(self.injector.stats())))
                    }
                    news => news,
                },
                (None, None) => None,
            };
            let Some(message) = message else { break };
            whole = host.send(&message.encode());
        }
        if !whole {
            self.part();
        }
        Ok(())
    }

    fn make_frame(&mut self, now: Instant) -> Result<Made, StreamError> {
        let Some(host) = &mut self.host else { return Ok(Made::Nothing { until: None }) };
        let Some(view) = &mut host.view else { return Ok(Made::Nothing { until: None }) };
        let (purpose, due) = view.pace.next();
        // Only a connection that is clear takes them; room in it wakes the loop.
        let news = [view.cursor.next(now), Some(view.counters_due)].into_iter().flatten().min();
        let news = news.filter(|_| host.link.is_clear());
        if now < due {
            return Ok(Made::Nothing { until: news.into_iter().chain([due]).min() });
        }
        if host.holds || !host.link.is_ready() {
            if purpose == Purpose::Change && !std::mem::replace(&mut view.held, true) {
                self.counters.merged();
            }
            return Ok(Made::Nothing { until: news });
        }
        view.held = false;
        let input_seq = self.applied.load(Ordering::Acquire);
        let captured = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cpu = thread_cpu();
        if purpose == Purpose::Change {
            let took = match self.screen.grab(view.blank) {
                Ok(Some(rows)) => {
                    view.picture.take(rows.top, rows.bytes)?;
                    view.blank = false;
                    Ok(true)
                }
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            match took {
                Ok(true) => {}
                Ok(false) if view.key => {}
                Ok(false) => {
                    view.pace.unchanged();
                    return Ok(Made::Frame);
                }
                // Read while the size changed: the new one tells what to do.
                Err(ScreenError::Reply(_)) if self.screen.refresh()? => {
                    host.view = Some(host.view(&self.screen, now)?);
                    return Ok(Made::Frame);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Another tuning begins with a keyframe, which a path that just got slow cannot take: it waits for one that is
        // made anyway, or for stillness.
        if let Some(tuning) = host.tuning.filter(|tuning| *tuning != view.encoder.tuning())
            && (view.key || purpose == Purpose::KeepAlive)
        {
            let (width, height) = view.picture.size();
            view.encoder = Encoder::new(tuning, host.rate, width, height)?;
        }
        let captured_cpu = thread_cpu();
        let (key, data) = view.encoder.encode(&view.picture, now - view.began, view.key)?;
        self.counters.frame(key, data.len(), captured_cpu - cpu, thread_cpu() - captured_cpu);
        view.key = false;
        view.pace.made(purpose, now, data.len());
        let (width, height) = self.screen.size();
        let frame = Frame {
            key,
            keep_alive: purpose == Purpose::KeepAlive,
            seq: host.seq,
            captured_us: u64::try_from(captured.as_micros()).unwrap_or(u64::MAX),
            work_us: u32::try_from(now.elapsed().as_micros()).unwrap_or(u32::MAX),
            input_seq,
            width,
            height,
            data,
        };
        host.seq = host.seq.wrapping_add(1);
        if !host.send(&frame.encode()) {
            self.part();
        }
        Ok(Made::Frame)
    }

    /// Until there is something to do.
    fn wait(&self, until: Option<Instant>, now: Instant) -> Result<(), StreamError> {
        self.x.flush()?;
        let display = self.x.stream();
        let mut fds = vec![
            PollFd::from_borrowed_fd(display.as_fd(), PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        if let Some(host) = &self.host
            && (!host.link.is_clear() || host.wants_room(now))
        {
            fds.push(PollFd::new(&host.link, PollFlags::OUT));
        }
        let timeout = until.map(|until| {
            let pause = until.saturating_duration_since(now);
            Timespec { tv_sec: pause.as_secs().cast_signed(), tv_nsec: pause.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

enum Made {
    /// One, or the discovery that none is needed.
    Frame,
    /// And nothing will be due before.
    Nothing { until: Option<Instant> },
}

impl Host {
    /// Says whether the host is still there.
    fn send(&mut self, message: &[u8]) -> bool {
        self.link.send(message).is_ok()
    }

    /// Whether a picture is to be made as soon as there is room for it.
    fn wants_room(&self, now: Instant) -> bool {
        !self.holds && self.view.as_ref().is_some_and(|view| view.held || view.is_due(now))
    }

    fn view(&mut self, screen: &Screen<'_>, now: Instant) -> Result<View, StreamError> {
        let (width, height) = screen.size();
        let tuning = Tuning::choose(self.rate, self.tuning);
        self.tuning = Some(tuning);
        Ok(View {
            encoder: Encoder::new(tuning, self.rate, width, height)?,
            picture: Picture::new(width, height),
            pace: Pace::new(self.rate.fps, now),
            cursor: Cursor::new(now),
            began: now,
            blank: true,
            key: true,
            held: false,
            counters_due: now + Counters::INTERVAL,
        })
    }

    fn set_rate(&mut self, rate: Rate) -> Result<(), StreamError> {
        self.rate = rate;
        let tuning = Tuning::choose(rate, self.tuning);
        self.tuning = Some(tuning);
        let Some(view) = &mut self.view else { return Ok(()) };
        view.pace.set_fps(rate.fps);
        Ok(view.encoder.set_rate(rate)?)
    }
}

impl View {
    fn is_due(&self, now: Instant) -> bool {
        self.pace.next().1 <= now
    }
}
