//! As much of an HTTP client as is needed to talk to a controller on this machine.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// A controller's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
}

impl Api {
    /// A request whose answer is JSON and whose status is 2xx.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, text) = self.send(method, path, body).with_context(|| format!("{method} {path}"))?;
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status}: {text}");
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: answer is no JSON"))
    }

    /// What a path shows as text.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let (status, text) = self.send("GET", path, None).with_context(|| format!("GET {path}"))?;
        if status != 200 {
            bail!("GET {path}: {status}: {text}");
        }
        Ok(text)
    }

    /// Whether it answers and says that it is healthy.
    pub(crate) fn is_healthy(&self) -> bool {
        self.call("GET", "/health", None).is_ok_and(|health| health["status"] == "healthy")
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.address, LIMIT).context("connect")?;
        stream.set_read_timeout(Some(LIMIT)).context("set limit")?;
        let body = body.map(Value::to_string).unwrap_or_default();
        // HTTP/1.0: no keep-alive, no chunks.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).context("send")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("receive")?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("answer has no head")?;
        let status =
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("answer has no status")?;
        Ok((status, body.to_owned()))
    }
}
