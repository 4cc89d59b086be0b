//! Requests and answers of a real Firecracker, kept as a file; a proxy that hears them, a server that plays them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

/// What two processes were asked and answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tape {
    pub(crate) lives: Vec<Vec<Exchange>>,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exchange {
    request: String,
    #[serde(skip_serializing_if = "Value::is_null", default)]
    body: Value,
    status: u16,
    #[serde(skip_serializing_if = "Value::is_null", default)]
    answer: Value,
}

impl Tape {
    pub(crate) fn read(path: &Path) -> Self {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    pub(crate) fn write(&self, path: &Path) {
        fs::write(path, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
    }
}

/// Passes calls on to a real Firecracker and keeps what was said.
pub(crate) struct Recorder {
    heard: Arc<Mutex<Vec<Exchange>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    pub(crate) fn start(near: &Path, far: &Path) -> Self {
        let listener = UnixListener::bind(near).unwrap();
        let (heard, far) = (Arc::<Mutex<Vec<Exchange>>>::default(), far.to_owned());
        let task = tokio::spawn(record(listener, far, Arc::clone(&heard)));
        Self { heard, task }
    }

    pub(crate) async fn stop(self) -> Vec<Exchange> {
        self.task.abort();
        let _ = self.task.await;
        self.heard.lock().unwrap().clone()
    }
}

async fn record(listener: UnixListener, far: PathBuf, heard: Arc<Mutex<Vec<Exchange>>>) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let request = message(&mut near).await.unwrap();
        let mut far = UnixStream::connect(&far).await.unwrap();
        far.write_all(&request.bytes).await.unwrap();
        let answer = message(&mut far).await.unwrap();
        let words: Vec<&str> = request.head.split(' ').collect();
        let status = answer.head.split(' ').nth(1).unwrap().parse().unwrap();
        heard.lock().unwrap().push(Exchange {
            request: words[..2].join(" "),
            body: request.json(),
            status,
            answer: answer.json(),
        });
        near.write_all(&answer.bytes).await.unwrap();
    }
}

/// Answers as recorded, and only if it is asked as recorded.
pub(crate) struct Player {
    task: JoinHandle<()>,
}

impl Player {
    pub(crate) fn start(socket: &Path, life: Vec<Exchange>) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let task = tokio::spawn(async move {
            for expected in life {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = message(&mut stream).await.unwrap();
                assert!(request.head.starts_with(&format!("{} ", expected.request)), "{} came", request.head);
                assert_eq!(request.json(), expected.body, "{}", expected.request);
                let body =
                    if expected.answer.is_null() { String::new() } else { expected.answer.to_string() };
                let length = if body.is_empty() {
                    String::new()
                } else {
                    format!("Content-Length: {}\r\n", body.len())
                };
                let answer =
                    format!("HTTP/1.1 {} \r\nServer: Firecracker API\r\n{length}\r\n{body}", expected.status);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { task }
    }

    pub(crate) async fn all_played(self) {
        tokio::time::timeout(std::time::Duration::from_secs(10), self.task).await.unwrap().unwrap();
    }
}

struct Message {
    head: String,
    bytes: Vec<u8>,
    body: usize,
}

impl Message {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes[self.body..]).unwrap_or_default()
    }
}

/// Reads one HTTP message with its body.
async fn message(stream: &mut UnixStream) -> io::Result<Message> {
    let mut bytes = Vec::new();
    let body = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        bytes.push(stream.read_u8().await?);
    };
    let text = String::from_utf8(bytes.clone()).unwrap();
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    bytes.resize(body + length, 0);
    stream.read_exact(&mut bytes[body..]).await?;
    Ok(Message { head: text.lines().next().unwrap().to_owned(), bytes, body })
}
