//! Client of QEMU's control socket (QEMU `docs/interop/qmp-spec.txt`): one command at a time, events are skipped.
//!
//! QEMU serves one client per socket: drop the client when done, so that the next one is greeted.

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

/// Longest line taken from QEMU.
const LINE_MAX: usize = 1 << 20;
/// Most events skipped while waiting for one answer.
const SKIPPED_MAX: usize = 1000;
/// Pause between attempts to connect to a QEMU that is still starting.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU's control socket cannot be reached.
    #[error("connect to QEMU: {0}")]
    Connect(#[source] io::Error),
    /// QEMU ended or closed the connection.
    #[error("QEMU closed its control connection during {command}")]
    Closed {
        /// Which command was under way.
        command: &'static str,
    },
    /// No answer in time.
    #[error("QEMU did not answer {command} within {limit_ms} ms")]
    TimedOut {
        /// Which command.
        command: &'static str,
        /// The limit.
        limit_ms: u64,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// Which command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// QEMU sent something that the protocol does not allow.
    #[error("QEMU broke the control protocol during {command}: {what}")]
    Protocol {
        /// Which command was under way.
        command: &'static str,
        /// What was wrong.
        what: &'static str,
    },
}

/// A connection that has left the negotiation behind.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    last_id: u64,
}

#[derive(Serialize)]
struct Command<'a> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    arguments: Value,
    id: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Fault>,
    event: Option<String>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Fault {
    desc: String,
}

impl Qmp {
    /// Connects, trying again while QEMU is still starting, and negotiates.
    pub async fn connect(socket: &Path, limit: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(QmpError::Connect(error)),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => sleep(RETRY_PAUSE).await,
                    _ => return Err(QmpError::Connect(error)),
                },
            }
        };
        let mut qmp = Self { stream, received: Vec::new(), last_id: 0 };
        let command = "greeting";
        let greeting = timeout_at(deadline, qmp.line(command)).await.map_err(|_| timed_out(command, limit))??;
        if greeting.greeting.is_none() {
            return Err(QmpError::Protocol { command, what: "no greeting" });
        }
        qmp.execute("qmp_capabilities", Value::Null, deadline.saturating_duration_since(Instant::now())).await?;
        Ok(qmp)
    }

    /// Carries out a command and returns its answer. `Value::Null` means no arguments.
    ///
    /// A late answer is skipped by the next command; it does not confuse it.
    pub async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        timeout_at(Instant::now() + limit, self.exchange(command, arguments))
            .await
            .unwrap_or_else(|_| Err(timed_out(command, limit)))
    }

    async fn exchange(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = serde_json::to_vec(&Command { execute: command, arguments, id })
            .map_err(|_| QmpError::Protocol { command, what: "arguments are no JSON" })?;
        line.push(b'\n');
        self.stream.write_all(&line).await.map_err(|_| QmpError::Closed { command })?;
        for _ in 0..SKIPPED_MAX {
            let line = self.line(command).await?;
            if line.event.is_some() || line.id.is_some_and(|answered| answered != id) {
                continue;
            }
            return match (line.answer, line.error) {
                (Some(answer), None) => Ok(answer),
                (None, Some(fault)) => Err(QmpError::Refused { command, reason: fault.desc }),
                _ => Err(QmpError::Protocol { command, what: "neither an answer nor an error" }),
            };
        }
        Err(QmpError::Protocol { command, what: "nothing but events" })
    }

    /// The next line. What was received of it is kept when the future is dropped.
    async fn line(&mut self, command: &'static str) -> Result<Line, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=searched + at).collect();
                return serde_json::from_slice(&line)
                    .map_err(|_| QmpError::Protocol { command, what: "a line is not the JSON expected" });
            }
            searched = self.received.len();
            if searched > LINE_MAX {
                return Err(QmpError::Protocol { command, what: "a line is too long" });
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(QmpError::Closed { command }),
            }
        }
    }
}

fn timed_out(command: &'static str, limit: Duration) -> QmpError {
    QmpError::TimedOut { command, limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::{io::AsyncBufReadExt, net::UnixListener};

    const LIMIT: Duration = Duration::from_secs(10);
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}"#;

    /// A peer that greets, then sends one of `answers` per command; `ID` in them is the command's.
    fn peer(answers: Vec<&'static str>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            write.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
            let mut lines = tokio::io::BufReader::new(read).lines();
            for answer in std::iter::once(r#"{"return": {}, "id": ID}"#).chain(answers) {
                let Some(line) = lines.next_line().await.unwrap() else { return };
                let command: Value = serde_json::from_str(&line).unwrap();
                let answer = answer.replace("ID", &command["id"].to_string());
                write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        });
        (dir, path)
    }

    #[tokio::test]
    async fn events_and_late_answers_are_skipped() {
        let answers = concat!(
            r#"{"event": "STOP", "timestamp": {"seconds": 1}}"#,
            "\n",
            r#"{"return": {"status": "late"}, "id": 0}"#,
            "\n",
            r#"{"return": {"status": "paused"}, "id": ID}"#
        );
        let (_dir, path) = peer(vec![answers]);
        let mut qmp = Qmp::connect(&path, LIMIT).await.unwrap();
        let answer = qmp.execute("query-status", Value::Null, LIMIT).await.unwrap();
        assert_eq!(answer, json!({"status": "paused"}));
    }

    #[tokio::test]
    async fn refusals_rubbish_and_a_lost_connection_are_told_apart() {
        let refused = r#"{"error": {"class": "GenericError", "desc": "no such thing"}, "id": ID}"#;
        let (_dir, path) = peer(vec![refused, "rubbish"]);
        let mut qmp = Qmp::connect(&path, LIMIT).await.unwrap();
        let refusal = qmp.execute("cont", Value::Null, LIMIT).await.unwrap_err();
        assert!(matches!(refusal, QmpError::Refused { ref reason, .. } if reason == "no such thing"));
        let rubbish = qmp.execute("cont", Value::Null, LIMIT).await.unwrap_err();
        assert!(matches!(rubbish, QmpError::Protocol { .. }), "{rubbish}");
        let closed = qmp.execute("cont", Value::Null, LIMIT).await.unwrap_err();
        assert!(matches!(closed, QmpError::Closed { .. }), "{closed}");
    }

    #[tokio::test]
    async fn silence_and_endless_lines_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let endless = tokio::spawn(async move {
            let (_silent, _) = listener.accept().await.unwrap();
            let (mut endless, _) = listener.accept().await.unwrap();
            while endless.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
        });
        let silent = Qmp::connect(&path, Duration::from_millis(30)).await.unwrap_err();
        assert!(matches!(silent, QmpError::TimedOut { .. }), "{silent}");
        let too_long = Qmp::connect(&path, LIMIT).await.unwrap_err();
        assert!(matches!(too_long, QmpError::Protocol { what: "a line is too long", .. }), "{too_long}");
        endless.await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_never_appears_is_reported_at_the_deadline() {
        let missing = Qmp::connect(Path::new("/nonexistent/qmp.sock"), Duration::from_millis(30)).await;
        assert!(matches!(missing, Err(QmpError::Connect(_))));
    }
}
