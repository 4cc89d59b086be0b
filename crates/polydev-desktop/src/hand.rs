//! Injects moves, buttons and plain keys by XTEST.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use polydev_core::desktop::InputEvent;
use x11rb::{
    connection::Connection as _,
    errors::{ConnectError, ConnectionError, ReplyError},
    protocol::{xproto, xproto::ConnectionExt as _, xtest::ConnectionExt as _},
    rust_connection::RustConnection,
};

use crate::{outbox::Outbox, wake::Wake};

#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("no display: {0}")]
    Connect(#[from] ConnectError),
    #[error("display gone: {0}")]
    Connection(#[from] ConnectionError),
    #[error("display refused: {0}")]
    Reply(#[from] ReplyError),
}

pub(crate) struct Injector {
    x: RustConnection,
    root: u32,
    first: u8,
    keys: Vec<Vec<u32>>,
    held: Mutex<Vec<(u8, u8)>>,
    applied: Arc<AtomicU32>,
    wake: Wake,
    inputs: AtomicU64,
    failed: AtomicU64,
}

impl Injector {
    pub(crate) fn start(_: Outbox, applied: Arc<AtomicU32>, wake: Wake) -> Result<Self, InputError> {
        let (x, screen) = x11rb::connect(None)?;
        x.xtest_get_version(2, 2)?.reply()?;
        let (root, first) = (x.setup().roots[screen].root, x.setup().min_keycode);
        let map = x.get_keyboard_mapping(first, x.setup().max_keycode - first + 1)?.reply()?;
        let keys = map.keysyms.chunks(map.keysyms_per_keycode.into()).map(<[u32]>::to_vec).collect();
        let (held, inputs, failed) = Default::default();
        Ok(Self { x, root, first, keys, held, applied, wake, inputs, failed })
    }

    pub(crate) fn input(&self, seq: u32, event: InputEvent) {
        let counter = if self.inject(event).is_ok_and(|done| done) { &self.inputs } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.applied.store(seq, Ordering::Release);
        self.wake.wake();
    }

    #[expect(clippy::unused_self, reason = "no clipboard here")]
    pub(crate) fn clipboard(&self, _: String) {}

    pub(crate) fn wipe(&self) {
        self.input(self.applied.load(Ordering::Acquire), InputEvent::ReleaseAll);
    }

    pub(crate) fn stats(&self) -> (u64, u64) {
        (self.inputs.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    fn inject(&self, event: InputEvent) -> Result<bool, InputError> {
        let done = match event {
            InputEvent::Move { x, y } => self.move_to(x, y)?,
            InputEvent::Button { button, down, x, y } => {
                self.move_to(x, y)?;
                self.press(xproto::BUTTON_PRESS_EVENT, button, down)?
            }
            InputEvent::Wheel { dx, dy, x, y } => {
                self.move_to(x, y)?;
                for (amount, back, on) in [(dy, 4, 5), (dx, 6, 7)] {
                    if amount != 0 {
                        let button = if amount < 0 { back } else { on };
                        self.press(xproto::BUTTON_PRESS_EVENT, button, true)?;
                        self.press(xproto::BUTTON_PRESS_EVENT, button, false)?;
                    }
                }
                true
            }
            InputEvent::Key { down, keysym, .. } => {
                match self.keys.iter().position(|syms| syms.contains(&keysym)) {
                    Some(index) => {
                        let code = self.first.saturating_add(u8::try_from(index).unwrap_or(u8::MAX));
                        self.press(xproto::KEY_PRESS_EVENT, code, down)?
                    }
                    None => false,
                }
            }
            InputEvent::Text { .. } => false,
            InputEvent::ReleaseAll => {
                let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
                for (kind, code) in held {
                    self.press(kind, code, false)?;
                }
                true
            }
        };
        self.x.flush()?;
        Ok(done)
    }

    fn move_to(&self, x: u16, y: u16) -> Result<bool, InputError> {
        let [x, y] = [x, y].map(|place| i16::try_from(place).unwrap_or(i16::MAX));
        self.x.xtest_fake_input(xproto::MOTION_NOTIFY_EVENT, 0, 0, self.root, x, y, 0)?;
        Ok(true)
    }

    fn press(&self, kind: u8, code: u8, down: bool) -> Result<bool, InputError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|other| *other != (kind, code));
        if down {
            held.push((kind, code));
        }
        // Releases follow presses by one in the protocol.
        self.x.xtest_fake_input(kind + u8::from(!down), code, 0, self.root, 0, 0, 0)?;
        Ok(true)
    }
}
