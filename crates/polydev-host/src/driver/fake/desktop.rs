//! A desktop program without a desktop: answers to what it is told with pictures that hold nothing but their number.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use polydev_core::desktop::{
    Cutter, DESKTOP_VERSION, Frame, FromDesktop, InputEvent, TO_DESKTOP_MAX, ToDesktop, framed,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast,
    time::{MissedTickBehavior, interval},
};
use tokio_util::compat::Compat;

const SIZE: (u16, u16) = (1280, 800);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const WORK_US: u32 = 1000;
/// Orders of a test that may wait.
const ORDERS: usize = 1024;

/// The desktop program of a fake VM, for a test to look at and to disturb.
pub struct FakeDesktop {
    heard: Mutex<Vec<ToDesktop>>,
    orders: broadcast::Sender<Order>,
}

#[derive(Debug, Clone)]
enum Order {
    Say(FromDesktop),
    Show { key: bool, bytes: usize },
    Garble,
    Quit,
    Freeze(bool),
}

impl FakeDesktop {
    pub(super) fn new() -> Self {
        Self { heard: Mutex::default(), orders: broadcast::channel(ORDERS).0 }
    }

    /// What it was told so far, over all connections.
    pub fn heard(&self) -> Vec<ToDesktop> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.orders.receiver_count()
    }

    /// Says something that is no picture.
    pub fn say(&self, message: FromDesktop) {
        self.order(Order::Say(message));
    }

    /// Shows a picture of so many bytes.
    pub fn show(&self, key: bool, bytes: usize) {
        self.order(Order::Show { key, bytes });
    }

    /// Sends bytes that are no message.
    pub fn garble(&self) {
        self.order(Order::Garble);
    }

    /// Ends as a crash would; the next connection finds a new one.
    pub fn quit(&self) {
        self.order(Order::Quit);
    }

    /// Stops as a VM that is held does, or goes on.
    pub fn freeze(&self, frozen: bool) {
        self.order(Order::Freeze(frozen));
    }

    fn order(&self, order: Order) {
        // Without a connection there is nobody to see it.
        let _ = self.orders.send(order);
    }

    /// Speaks the protocol until the other side goes. Each of `watch`, `keyframe`, `resize` and `input` is answered by
    /// one picture, and while somebody watches one more comes each second; text typed comes back as clipboard text.
    pub(super) async fn serve(&self, mut stream: Compat<yamux::Stream>) -> io::Result<()> {
        let mut orders = self.orders.subscribe();
        let mut screen = Screen { width: SIZE.0, height: SIZE.1, seq: 0, watched: false, input_seq: 0 };
        let hello = FromDesktop::Hello { version: DESKTOP_VERSION, width: SIZE.0, height: SIZE.1 };
        tell(&mut stream, &hello).await?;
        let mut cutter = Cutter::new(TO_DESKTOP_MAX);
        let mut chunk = [0; 4096];
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(message) = cutter.next().map_err(io::Error::other)? {
                let message = ToDesktop::decode(message).map_err(io::Error::other)?;
                self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
                if let ToDesktop::Input { event: InputEvent::Text { text }, .. } = &message {
                    tell(&mut stream, &FromDesktop::Clipboard(text.clone())).await?;
                }
                if let Some(frame) = screen.answer(message) {
                    tell(&mut stream, &FromDesktop::Frame(frame)).await?;
                }
            }
            tokio::select! {
                count = stream.read(&mut chunk) => match count? {
                    0 => return Ok(()),
                    count => cutter.extend(&chunk[..count]),
                },
                _ = keep_alive.tick(), if screen.watched => {
                    let frame = Frame { keep_alive: true, ..screen.frame(false, 4) };
                    tell(&mut stream, &FromDesktop::Frame(frame)).await?;
                }
                order = orders.recv() => match order {
                    Ok(Order::Say(message)) => tell(&mut stream, &message).await?,
                    Ok(Order::Show { key, bytes }) => {
                        tell(&mut stream, &FromDesktop::Frame(screen.frame(key, bytes))).await?;
                    }
                    Ok(Order::Garble) => {
                        stream.write_all(&framed(b"\xffnot a message")).await?;
                        stream.flush().await?;
                    }
                    Ok(Order::Freeze(true)) => {
                        while !matches!(orders.recv().await, Ok(Order::Freeze(false) | Order::Quit)) {}
                    }
                    Ok(Order::Freeze(false)) => {}
                    Ok(Order::Quit) | Err(_) => return Ok(()),
                },
            }
        }
    }
}

struct Screen {
    width: u16,
    height: u16,
    seq: u32,
    watched: bool,
    input_seq: u32,
}

impl Screen {
    fn answer(&mut self, message: ToDesktop) -> Option<Frame> {
        let key = match message {
            ToDesktop::Watch(watched) => {
                self.watched = watched;
                watched.then_some(true)?
            }
            ToDesktop::Keyframe => true,
            ToDesktop::Resize { width, height, .. } => {
                (self.width, self.height) = (width, height);
                true
            }
            ToDesktop::Input { seq, .. } => {
                self.input_seq = seq;
                false
            }
            ToDesktop::Hold(_) | ToDesktop::Rate { .. } | ToDesktop::Clipboard(_) | ToDesktop::Wipe => {
                return None;
            }
        };
        Some(self.frame(key, 4))
    }

    fn frame(&mut self, key: bool, bytes: usize) -> Frame {
        self.seq += 1;
        let data = picture(key, self.seq, bytes);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Frame {
            key,
            keep_alive: false,
            seq: self.seq,
            captured_us: u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(u64::from(WORK_US)),
            work_us: WORK_US,
            input_seq: self.input_seq,
            width: self.width,
            height: self.height,
            data,
        }
    }
}

/// The units of an H.264 picture (Annex B) of at least so many bytes, but with its number as text in place of what would
/// be a picture. As in a real stream, a keyframe begins with parameter sets.
fn picture(key: bool, seq: u32, bytes: usize) -> Vec<u8> {
    const PARAMETER_SETS: &[u8] = b"\0\0\0\x01\x67\x42\xe0\x1f\x8c\0\0\0\x01\x68\xce\x3c\x80";
    let (before, unit): (&[u8], u8) = if key { (PARAMETER_SETS, 0x65) } else { (&[], 0x41) };
    let number = format!("picture {seq} ");
    let mut data = [before, &[0, 0, 0, 1, unit], number.as_bytes()].concat();
    // Zeros could look like the beginning of another unit.
    data.resize(bytes.max(data.len()), b'.');
    data
}

async fn tell(stream: &mut Compat<yamux::Stream>, message: &FromDesktop) -> io::Result<()> {
    stream.write_all(&framed(&message.encode())).await?;
    stream.flush().await
}
