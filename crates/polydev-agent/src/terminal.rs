//! Terminals: programs of the CLI user on pseudo-terminals that outlive the connection that watches them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use polydev_core::{
    guest::CLI_USER,
    wire::{
        ErrorCode, Refusal, Reply,
        pty::{Decoder, MAX_PAYLOAD, PtyFrame, SCROLLBACK},
    },
};
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    sync::Notify,
};

use crate::{
    agent::Agent,
    control::{refuse, refuse_os},
    mux::Stream,
    process::{Launch, Streams, signal_group},
};

/// Most terminals at one time, ended ones included.
const TERMINALS_MAX: usize = 16;
/// A watcher this far behind makes the terminal wait.
const LAG_MAX: u64 = (SCROLLBACK / 2) as u64;
/// How long output may still come after the program ended.
const DRAIN_LIMIT: Duration = Duration::from_millis(300);

/// All terminals.
#[derive(Default)]
pub(crate) struct Terminals {
    next: Cell<u32>,
    open: RefCell<BTreeMap<u32, Rc<Terminal>>>,
}

/// A pseudo-terminal's controlling side.
pub(crate) struct Master(AsyncFd<OwnedFd>);

struct Terminal {
    master: Master,
    pid: i32,
    output: RefCell<Scrollback>,
    exit: Cell<Option<i32>>,
    /// Grows with each attachment; only the newest is served.
    attachment: Cell<u64>,
    /// How far the newest attachment has got; `None` while nobody watches.
    watched_to: Cell<Option<u64>>,
    changed: Notify,
}

/// The last bytes of output, addressed by their place in all of it.
#[derive(Default)]
struct Scrollback {
    bytes: VecDeque<u8>,
    end: u64,
}

impl Scrollback {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.end += bytes.len() as u64;
        let surplus = self.bytes.len().saturating_sub(SCROLLBACK);
        self.bytes.drain(..surplus);
    }

    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Where a new watcher begins: at a line's start when the beginning is lost, not inside an escape sequence.
    fn entry(&self) -> u64 {
        if self.start() == 0 {
            return 0;
        }
        let line = self.bytes.iter().position(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
        self.start() + line
    }

    fn from(&self, place: u64) -> Vec<u8> {
        let skip = place.max(self.start()) - self.start();
        self.bytes
            .iter()
            .skip(usize::try_from(skip).unwrap_or(usize::MAX))
            .take(MAX_PAYLOAD)
            .copied()
            .collect()
    }
}

impl Terminals {
    pub(crate) fn open(
        &self,
        agent: &Rc<Agent>,
        argv: Vec<String>,
        env: BTreeMap<String, String>,
        cols: u16,
        rows: u16,
    ) -> Result<Reply, Refusal> {
        let argv = if argv.is_empty() { vec!["/bin/bash".into(), "-l".into()] } else { argv };
        let ended = self.open.borrow().iter().find(|(_, t)| t.exit.get().is_some()).map(|(id, _)| *id);
        if self.open.borrow().len() >= TERMINALS_MAX {
            let Some(ended) = ended else {
                return Err(refuse(ErrorCode::Conflict, format_args!("{TERMINALS_MAX} terminals are open")));
            };
            self.open.borrow_mut().remove(&ended);
        }
        let (master, slave) = pair(cols, rows).map_err(|error| refuse_os("open a terminal", &error))?;
        let mut environment = agent.person_env();
        environment.insert("TERM".into(), "xterm-256color".into());
        environment.extend(env);
        let launch =
            Launch { argv: &argv, env: &environment, account: &CLI_USER, streams: Streams::Terminal(slave) };
        let child = launch.start(&agent.reaper).map_err(|error| refuse_os("start the program", &error))?;
        let id = self.next.get() + 1;
        self.next.set(id);
        let terminal = Rc::new(Terminal {
            master,
            pid: child.pid,
            output: RefCell::default(),
            exit: Cell::new(None),
            attachment: Cell::new(0),
            watched_to: Cell::new(None),
            changed: Notify::new(),
        });
        self.open.borrow_mut().insert(id, terminal.clone());
        tokio::task::spawn_local(async move {
            let exit = terminal.collect(child.exit).await;
            terminal.exit.set(Some(exit));
            terminal.changed.notify_waiters();
        });
        Ok(Reply::Pty { id })
    }

    pub(crate) fn close(&self, id: u32) -> Result<Reply, Refusal> {
        let Some(terminal) = self.open.borrow_mut().remove(&id) else {
            return Err(refuse(ErrorCode::NotFound, format_args!("no terminal {id}")));
        };
        if terminal.exit.get().is_none() {
            signal_group(terminal.pid, libc::SIGHUP);
            let terminal = terminal.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                if terminal.exit.get().is_none() {
                    signal_group(terminal.pid, libc::SIGKILL);
                }
            });
        }
        terminal.attachment.set(terminal.attachment.get() + 1);
        terminal.changed.notify_waiters();
        Ok(Reply::Done)
    }

    /// Ids of those whose program still runs.
    pub(crate) fn running(&self) -> Vec<u32> {
        self.open.borrow().iter().filter(|(_, t)| t.exit.get().is_none()).map(|(id, _)| *id).collect()
    }
}

impl Terminal {
    /// Reads output until the program ended and its last words came.
    async fn collect(&self, exit: tokio::sync::oneshot::Receiver<i32>) -> i32 {
        let mut exit = exit;
        let mut chunk = vec![0; 16 << 10];
        let read_on = async |chunk: &mut [u8]| loop {
            let changed = self.changed.notified();
            let lag = self.watched_to.get().map_or(0, |place| self.output.borrow().end.saturating_sub(place));
            if lag > LAG_MAX {
                changed.await;
                continue;
            }
            match self.master.read(chunk).await {
                Ok(count @ 1..) => {
                    self.output.borrow_mut().push(&chunk[..count]);
                    self.changed.notify_waiters();
                }
                // EIO: nobody has the other side open any more.
                Ok(0) | Err(_) => return,
            }
        };
        let code = tokio::select! {
            code = &mut exit => code,
            () = read_on(&mut chunk) => exit.await,
        };
        let _ = tokio::time::timeout(DRAIN_LIMIT, read_on(&mut chunk)).await;
        code.unwrap_or(-1)
    }
}

/// Serves a terminal stream until it goes or a newer one comes.
pub(crate) async fn attach(agent: &Rc<Agent>, id: u32, stream: Stream) {
    let Some(terminal) = agent.terminals.open.borrow().get(&id).cloned() else { return };
    let mine = terminal.attachment.get() + 1;
    terminal.attachment.set(mine);
    terminal.watched_to.set(Some(terminal.output.borrow().entry()));
    terminal.changed.notify_waiters();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let told_exit = tokio::select! {
        told = show(&terminal, mine, &mut writer) => told.unwrap_or(false),
        _ = type_in(&terminal, &mut reader) => false,
    };
    // A half-closed stream would keep the host waiting.
    let _ = tokio::time::timeout(DRAIN_LIMIT, writer.shutdown()).await;
    if terminal.attachment.get() == mine {
        terminal.watched_to.set(None);
        terminal.changed.notify_waiters();
        if told_exit {
            agent.terminals.open.borrow_mut().remove(&id);
        }
    }
}

/// Sends output; `true` when the exit was told.
async fn show(terminal: &Terminal, mine: u64, writer: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<bool> {
    let mut place = terminal.watched_to.get().unwrap_or(0);
    loop {
        let changed = terminal.changed.notified();
        if terminal.attachment.get() != mine {
            return Ok(false);
        }
        let (bytes, end) = {
            let output = terminal.output.borrow();
            (output.from(place), output.end)
        };
        if !bytes.is_empty() {
            place = place.max(end - terminal.output.borrow().bytes.len() as u64) + bytes.len() as u64;
            writer.write_all(&PtyFrame::Data(bytes).encode()).await?;
            writer.flush().await?;
            if terminal.attachment.get() == mine {
                terminal.watched_to.set(Some(place));
                terminal.changed.notify_waiters();
            }
            continue;
        }
        if let Some(code) = terminal.exit.get() {
            writer.write_all(&PtyFrame::Exit(code).encode()).await?;
            writer.flush().await?;
            return Ok(true);
        }
        changed.await;
    }
}

/// Takes input and sizes.
async fn type_in(terminal: &Terminal, reader: &mut (impl AsyncReadExt + Unpin)) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; 4096];
    loop {
        let count = reader.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        decoder.extend(&chunk[..count]);
        while let Some(frame) = decoder.next().map_err(io::Error::other)? {
            match frame {
                PtyFrame::Data(bytes) => terminal.master.write_all(&bytes).await?,
                PtyFrame::Resize { cols, rows } => terminal.master.resize(cols, rows)?,
                PtyFrame::Exit(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

impl Master {
    pub(crate) async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *into)?)).await
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn resize(&self, cols: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }
}

/// A new pseudo-terminal: the controlling side and the program's side.
pub(crate) fn pair(cols: u16, rows: u16) -> io::Result<(Master, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(CLI_USER.uid)), None)
        .or_else(|error| if rustix::process::geteuid().is_root() { Err(error) } else { Ok(()) })?;
    rustix::fs::fchmod(&slave, Mode::from_raw_mode(0o620))?;
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    // SAFETY: the descriptor is owned, so it stays the same open file until it is dropped with its registration.
    let master = Master(unsafe { AsyncFd::register(master) }?);
    master.resize(cols.clamp(1, 1000), rows.clamp(1, 1000))?;
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrollback_keeps_the_end_and_starts_a_new_watcher_at_a_line() {
        let mut output = Scrollback::default();
        output.push(b"first\nsecond");
        assert_eq!(output.entry(), 0);
        assert_eq!(output.from(6), b"second");
        for _ in 0..SCROLLBACK / 8 {
            output.push(b"1234567\n");
        }
        assert_eq!(output.bytes.len(), SCROLLBACK);
        let shown = output.from(output.entry());
        assert!(shown.starts_with(b"1234567\n") && shown.len() == MAX_PAYLOAD);
    }
}
