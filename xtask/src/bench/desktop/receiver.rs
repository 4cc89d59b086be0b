//! The person's browser: `bench/desktop/receiver.mjs`, which opens a lane and reads its pictures.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{ChildStdin, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{child::Child, interrupt};
use crate::{repo, setup::with_node};

const ANSWER_LIMIT: Duration = Duration::from_secs(90);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The program, as long as it lives.
#[derive(Debug)]
pub(super) struct Receiver {
    child: Child,
    requests: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

/// What a lane showed while it was looked at.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Seen {
    pub(super) seconds: f64,
    /// Age of each new barcode when the page could read it, milliseconds.
    pub(super) ages: Vec<f64>,
    /// From each click to the picture that shows it, milliseconds.
    pub(super) clicks: Vec<f64>,
    /// Clicks that no picture showed within 2 s.
    pub(super) missed: usize,
    /// Pictures whose barcode could not be read.
    pub(super) bad: usize,
    pub(super) pictures: usize,
    /// Between one picture and the next, milliseconds.
    pub(super) gaps: Vec<f64>,
    /// What grew meanwhile: bytes, and the browser's own counters.
    pub(super) grown: Value,
    /// What the viewer says it uses.
    pub(super) path: Option<String>,
    /// The last figures of the controller that the viewer got.
    pub(super) hub: Value,
}

impl Receiver {
    /// Temporary files, profiles among them, are made below `dir`.
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let mut node = with_node("node");
        node.arg(repo::root().join("bench/desktop/receiver.mjs"))
            .env("TMPDIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = Child::start_piped("receiver", &mut node)?;
        let requests = child.process.stdin.take();
        let lines = BufReader::new(child.process.stdout.take().context("the receiver's output is a pipe")?);
        let (send, answers) = mpsc::channel();
        thread::spawn(move || lines.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Ok(Self { child, requests, answers })
    }

    /// Asks for something and waits for the answer.
    pub(super) fn ask(&mut self, action: &str, request: Value) -> Result<Value> {
        let mut line = request;
        line["action"] = json!(action);
        let requests = self.requests.as_mut().context("the receiver takes requests")?;
        writeln!(requests, "{line}").with_context(|| format!("ask the receiver: {action}"))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let answer = loop {
            interrupt::check()?;
            match self.answers.recv_timeout(LOOK_AGAIN) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Disconnected) => bail!("the receiver ended ({action})"),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("the receiver did not answer within {} s: {action}", ANSWER_LIMIT.as_secs())
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        let mut answer: Value = serde_json::from_str(&answer).context("the receiver answers in JSON")?;
        match answer.get("error") {
            Some(error) => Err(anyhow!("receiver, {action}: {}", error.as_str().unwrap_or_default())),
            None => Ok(answer["ok"].take()),
        }
    }

    /// Looks at the open lane for some time.
    pub(super) fn look(&mut self, time: Duration) -> Result<Seen> {
        self.ask("start", json!({}))?;
        interrupt::pause(time)?;
        let seen = self.ask("stop", json!({}))?;
        serde_json::from_value(seen).context("read what the receiver saw")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // The end of its input is what ends it in order: it closes the browser, which is in a group of its own.
        drop(self.requests.take());
        let deadline = Instant::now() + CLOSE_LIMIT;
        while matches!(self.child.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(LOOK_AGAIN);
        }
    }
}
