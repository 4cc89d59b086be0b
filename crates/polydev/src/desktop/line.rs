//! The line to one guest's desktop program. It is made again for as long as the VM lives: the program and the display it
//! shows start anew at times. A program that does not keep to the protocol is hung up on.
//!
//! The guest's bytes are input: whatever it says, the worst that follows is that it is asked again later.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use polydev_core::desktop::{DESKTOP_VERSION, FromDesktop, ToDesktop};
use polydev_host::{AgentClient, AgentError, DesktopReader, DesktopWriter};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::outbox::{Full, Outbox};

/// Events that may wait for the hub. While they do, the guest's side is not read, so that the guest waits too.
const EVENTS_MAX: usize = 8;
/// First and longest wait before the line is made again.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// A line that held this long was a good one: the next wait is short again.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// How long the guest may take for its first message.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// A guest that takes no message for this long is hung up on.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// What happens on the line.
pub(super) enum LineEvent {
    /// The guest is there and shows a screen of this size.
    Up { width: u16, height: u16 },
    /// It says something, which arrived then; in microseconds since the Unix epoch, too.
    Said { message: FromDesktop, arrived: Instant, arrived_us: u64 },
    /// It is gone. The line is made again.
    Down,
}

/// Why a line ended.
#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("open the desktop stream: {0}")]
    Open(#[from] AgentError),
    #[error("the desktop program said nothing within {} s", HELLO_LIMIT.as_secs())]
    NoHello,
    #[error("the desktop program began with something other than hello")]
    NotHello,
    #[error("the desktop program speaks version {0}, not {DESKTOP_VERSION}")]
    Version(u16),
    #[error("read the desktop stream: {0}")]
    Read(#[source] io::Error),
    #[error("write the desktop stream: {0}")]
    Write(#[source] io::Error),
    #[error("the desktop program took nothing for {} s", SEND_LIMIT.as_secs())]
    TakesNothing,
    #[error("the desktop program has ended")]
    Ended,
}

/// A line to a guest; dropping it hangs up.
pub(super) struct Line {
    shared: Arc<Shared>,
    events: mpsc::Receiver<LineEvent>,
    task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    outbox: Mutex<Out>,
    filled: Notify,
}

#[derive(Default)]
struct Out {
    waiting: Outbox,
    /// What waits is the last that is said.
    closing: bool,
}

impl Line {
    pub(super) fn new(agent: AgentClient) -> Self {
        let shared = Arc::new(Shared::default());
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let task = AbortOnDropHandle::new(tokio::spawn(keep(agent, Arc::clone(&shared), tell)));
        Self { shared, events, task }
    }

    /// The next event. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> LineEvent {
        match self.events.recv().await {
            Some(event) => event,
            // Only a line that is finished ends, and that one is not listened to.
            None => std::future::pending().await,
        }
    }

    /// Says something to the guest. What is said while it is not there is lost.
    pub(super) fn say(&self, message: ToDesktop) -> Result<(), Full> {
        let said = self.shared.lock().waiting.push(message);
        self.shared.filled.notify_one();
        said
    }

    /// Takes back the input that the guest has not taken.
    pub(super) fn forget_input(&self) {
        self.shared.lock().waiting.forget_input();
    }

    /// Says what waits, at most for so long, and hangs up.
    pub(super) async fn finish(self, limit: Duration) {
        let Self { shared, mut events, task } = self;
        shared.lock().closing = true;
        shared.filled.notify_one();
        // What the guest says meanwhile is of no interest, but it must not hold the line up.
        let listen = async { while events.recv().await.is_some() {} };
        let _ = timeout(limit, listen).await;
        task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Out> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn keep(agent: AgentClient, shared: Arc<Shared>, tell: mpsc::Sender<LineEvent>) {
    let mut again = AGAIN_FIRST;
    loop {
        let begun = Instant::now();
        match hold(&agent, &shared, &tell).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "desktop line is down"),
        }
        if begun.elapsed() >= GOOD_AFTER {
            again = AGAIN_FIRST;
        }
        if tell.send(LineEvent::Down).await.is_err() || shared.lock().closing {
            return;
        }
        sleep(again).await;
        again = (again * 2).min(AGAIN_MAX);
    }
}

/// One connection from its beginning to its end; no error if the line was closed on our side.
async fn hold(agent: &AgentClient, shared: &Shared, tell: &mpsc::Sender<LineEvent>) -> Result<(), LineError> {
    let (mut reader, writer) = agent.desktop().await?;
    let hello = timeout(HELLO_LIMIT, reader.next()).await.map_err(|_| LineError::NoHello)?;
    let (width, height) = match hello.map_err(LineError::Read)?.ok_or(LineError::Ended)? {
        FromDesktop::Hello { version: DESKTOP_VERSION, width, height } => (width, height),
        FromDesktop::Hello { version, .. } => return Err(LineError::Version(version)),
        FromDesktop::Frame(_)
        | FromDesktop::CursorShape(_)
        | FromDesktop::CursorMoved { .. }
        | FromDesktop::Clipboard(_)
        | FromDesktop::Stats(_) => return Err(LineError::NotHello),
    };
    // What was said to the one before is not for this one.
    shared.lock().waiting.clear();
    if tell.send(LineEvent::Up { width, height }).await.is_err() {
        return Ok(());
    }
    tokio::select! {
        end = listen(reader, tell) => end,
        end = speak(writer, shared) => end,
    }
}

async fn listen(mut reader: DesktopReader, tell: &mpsc::Sender<LineEvent>) -> Result<(), LineError> {
    loop {
        let message = reader.next().await.map_err(LineError::Read)?.ok_or(LineError::Ended)?;
        let arrived_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let arrived_us = u64::try_from(arrived_us).unwrap_or(u64::MAX);
        let said = LineEvent::Said { message, arrived: Instant::now(), arrived_us };
        if tell.send(said).await.is_err() {
            return Ok(());
        }
    }
}

async fn speak(mut writer: DesktopWriter, shared: &Shared) -> Result<(), LineError> {
    loop {
        let filled = shared.filled.notified();
        let (message, closing) = {
            let mut out = shared.lock();
            (out.waiting.pop(), out.closing)
        };
        match message {
            Some(message) => {
                let sent = timeout(SEND_LIMIT, writer.send(&message)).await;
                sent.map_err(|_| LineError::TakesNothing)?.map_err(LineError::Write)?;
            }
            None if closing => return Ok(()),
            None => filled.await,
        }
    }
}
