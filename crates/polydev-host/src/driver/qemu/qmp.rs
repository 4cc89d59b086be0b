//! QEMU's control socket (QMP): one command, one answer, events skipped.

use std::{io, path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

/// How long QEMU may take to make its socket.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long one command may take; those that take longer answer at once and are asked for.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// Pause between questions after something that takes a while.
const POLL: Duration = Duration::from_millis(10);
/// Longest line taken from QEMU.
const LINE_MAX: u64 = 1 << 20;

/// A connection in command mode.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU listens; `alive` tells whether that can still happen.
    pub(super) async fn connect(socket: &Path, alive: impl Fn() -> bool) -> io::Result<Self> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline || !alive() => return Err(error),
                Err(_) => sleep(POLL).await,
            }
        };
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line(deadline).await?;
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returned.
    pub(super) async fn run(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let mut line = serde_json::to_vec(&json!({ "execute": command, "arguments": arguments }))?;
        line.push(b'\n');
        let deadline = Instant::now() + COMMAND_LIMIT;
        self.stream.get_mut().write_all(&line).await?;
        loop {
            let answer = self.line(deadline).await?;
            if let Some(error) = answer.get("error") {
                let words = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(io::Error::other(format!("{command}: {words}")));
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }

    /// Waits until a migration in either direction is complete.
    pub(super) async fn migrated(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.run("query-migrate", json!({})).await?;
            match answer.get("status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => {
                    let words = answer.get("error-desc").and_then(Value::as_str).unwrap_or(status);
                    return Err(io::Error::other(format!("migration: {words}")));
                }
                _ if Instant::now() >= deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "migration takes too long"));
                }
                _ => sleep(POLL).await,
            }
        }
    }

    async fn line(&mut self, deadline: Instant) -> io::Result<Value> {
        let mut line = Vec::new();
        let read = async { (&mut self.stream).take(LINE_MAX).read_until(b'\n', &mut line).await };
        let count = timeout_at(deadline, read)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "QEMU does not answer"))??;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
