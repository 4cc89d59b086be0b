//! What the person does, done on the X display: pointer, keys, text; and the clipboard beside it.
//!
//! A wrong character in a password locks people out, so a character is typed right or not at all (and then counted).
//! Keys are meant by their keysym, what the key means under the person's layout; which physical key it is only helps.
//! Nothing here logs or shows what is typed.
//!
//! | module | for |
//! |---|---|
//! | [`queue`] | what waits for the input thread |
//! | [`mod@pointer`] | moves, buttons, wheel |
//! | [`keysym`] | what keysyms mean |
//! | [`keymap`] | which key makes which character under the server's map |
//! | [`spare`] | keys without meaning that are lent to characters the map lacks |
//! | [`settle`] | waiting until the program with the focus has seen a changed map |
//! | [`keyboard`] | keys and texts, by all of these |

mod display;
mod keyboard;
mod keymap;
mod keysym;
mod pointer;
mod queue;
mod settle;
mod spare;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use polydev_core::desktop::InputEvent;
use rustix::event::{PollFd, PollFlags, poll};
use x11rb::{
    errors::{ConnectError, ConnectionError, ReplyError, ReplyOrIdError},
    rust_connection::RustConnection,
};

use crate::{clipboard::Clipboard, outbox::Outbox, wake::Wake};
use display::Display;
use keyboard::Keyboard;
use pointer::Pointer;
use queue::{Order, Queue};

/// Why input cannot be injected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("no display: {0}")]
    Connect(#[from] ConnectError),
    #[error("display gone: {0}")]
    Connection(#[from] ConnectionError),
    #[error("display refused: {0}")]
    Reply(#[from] ReplyError),
    #[error("display refused: {0}")]
    Id(#[from] ReplyOrIdError),
    #[error("display lacks {0}")]
    Lacks(&'static str),
    #[error("wait for the display: {0}")]
    Wait(#[source] io::Error),
    #[error("start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a thread ended, for whoever looks next; the first one says why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<InputError>>>);

impl Fault {
    fn slot(&self) -> MutexGuard<'_, Option<InputError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, error: InputError) {
        self.slot().get_or_insert(error);
    }
}

/// Events done and events that could not be done.
#[derive(Debug, Default)]
struct Counters {
    inputs: AtomicU64,
    failed: AtomicU64,
}

/// Takes input for the display and does it on threads of its own. Dropping it lets go of everything held.
#[derive(Debug)]
pub(crate) struct Injector {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    fault: Fault,
    clipboard: Clipboard,
    thread: Option<JoinHandle<()>>,
}

impl Injector {
    /// Starts on the display that the environment names. `applied` becomes the number of the newest input that was
    /// handed to the X server; after that `wake` is called. Texts that programs put on the clipboard go to `outbox`.
    pub(crate) fn start(outbox: Outbox, applied: Arc<AtomicU32>, wake: Wake) -> Result<Self, InputError> {
        Self::start_on(None, outbox, applied, wake)
    }

    fn start_on(
        display: Option<&str>,
        outbox: Outbox,
        applied: Arc<AtomicU32>,
        wake: Wake,
    ) -> Result<Self, InputError> {
        let fault = Fault::default();
        let clipboard = Clipboard::start(display, outbox, fault.clone(), wake.clone())?;
        let hands = Hands::new(display)?;
        let queue = Arc::new(Queue::new().map_err(InputError::Wait)?);
        let counters = Arc::new(Counters::default());
        let run = {
            let (queue, counters, fault) = (queue.clone(), counters.clone(), fault.clone());
            move || {
                if let Err(error) = hands.work(&queue, &counters, &applied, &wake) {
                    fault.set(error);
                    wake.wake();
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("input".to_owned()).spawn(run).map_err(InputError::Thread)?;
        Ok(Self { queue, counters, fault, clipboard, thread: Some(thread) })
    }

    /// Does an event as soon as those before it are done. Never blocks.
    pub(crate) fn input(&self, seq: u32, event: InputEvent) {
        let dropped = self.queue.push(Order::Input { seq, event });
        self.counters.failed.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Puts a text on the display's clipboard. Never blocks.
    pub(crate) fn clipboard(&self, text: String) {
        self.clipboard.set(text);
    }

    /// Empties the display's selections and lets go of everything held. Never blocks.
    pub(crate) fn wipe(&self) {
        self.clipboard.wipe();
        let dropped = self.queue.push(Order::Wipe);
        self.counters.failed.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Events done, and events that could not be done.
    pub(crate) fn stats(&self) -> (u64, u64) {
        (self.counters.inputs.load(Ordering::Relaxed), self.counters.failed.load(Ordering::Relaxed))
    }

    /// An error once nothing is done any more because the display went away. The `wake` was called then.
    pub(crate) fn check(&self) -> Result<(), InputError> {
        self.fault.slot().take().map_or(Ok(()), Err)
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// What the input thread works with.
#[derive(Debug)]
struct Hands {
    display: Display,
    pointer: Pointer,
    keyboard: Keyboard,
}

impl Hands {
    fn new(display: Option<&str>) -> Result<Self, InputError> {
        let display = Display::open(display)?;
        let pointer = Pointer::new(&display)?;
        let keyboard = Keyboard::new(&display)?;
        Ok(Self { display, pointer, keyboard })
    }

    fn work(
        mut self,
        queue: &Queue,
        counters: &Counters,
        applied: &AtomicU32,
        wake: &Wake,
    ) -> Result<(), InputError> {
        loop {
            self.keyboard.notice(&mut self.display)?;
            let Some(orders) = queue.take() else {
                self.release_all()?;
                return Ok(self.display.flush()?);
            };
            if orders.is_empty() {
                self.display.flush()?;
                wait(self.display.connection(), queue)?;
                continue;
            }
            let mut newest = None;
            for order in orders {
                match order {
                    Order::Input { seq, event } => {
                        let done = self.perform(&event)?;
                        let counter = if done { &counters.inputs } else { &counters.failed };
                        counter.fetch_add(1, Ordering::Relaxed);
                        newest = Some(seq);
                    }
                    Order::Wipe => {
                        self.release_all()?;
                        self.keyboard.release_strays(&self.display)?;
                    }
                }
            }
            self.display.flush()?;
            if let Some(seq) = newest {
                applied.store(seq, Ordering::Release);
                wake.wake();
            }
        }
    }

    /// Whether it could be done.
    fn perform(&mut self, event: &InputEvent) -> Result<bool, InputError> {
        let display = &mut self.display;
        match event {
            InputEvent::Move { x, y } => self.pointer.go(display, *x, *y)?,
            InputEvent::Button { button, down, x, y } => {
                self.pointer.button(display, *button, *down, *x, *y)?;
            }
            InputEvent::Wheel { dx, dy, x, y } => self.pointer.wheel(display, *dx, *dy, *x, *y)?,
            InputEvent::Key { down: true, keysym, code } => {
                return self.keyboard.down(display, *keysym, code);
            }
            InputEvent::Key { down: false, keysym, code } => self.keyboard.up(display, *keysym, code)?,
            InputEvent::Text { text } => return self.keyboard.text(display, text),
            InputEvent::ReleaseAll => self.release_all()?,
        }
        Ok(true)
    }

    fn release_all(&mut self) -> Result<(), InputError> {
        self.pointer.release_all(&self.display)?;
        self.keyboard.release_all(&self.display)
    }
}

/// Returns when the display or the queue has something.
fn wait(connection: &RustConnection, queue: &Queue) -> Result<(), InputError> {
    let mut both =
        [PollFd::new(connection.stream(), PollFlags::IN), PollFd::new(queue.wake(), PollFlags::IN)];
    match poll(&mut both, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(InputError::Wait(error.into())),
    }
}
