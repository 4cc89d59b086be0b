//! A small client of the API, for the command line on the same machine.

use std::time::Duration;

use serde_json::Value;

use crate::{config::Config, serve::token_file};

const LIMIT: Duration = Duration::from_secs(300);

/// Why a running controller could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The API token cannot be read.
    #[error("API token in {path}: {source}")]
    NoToken {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nobody answers.
    #[error("no polydev at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// It said no.
    #[error("{title}: {detail} ({code})")]
    Answer {
        /// Stable code.
        code: String,
        /// One line.
        title: String,
        /// What exactly.
        detail: String,
    },
}

/// Talks to a running controller.
pub(super) struct Client {
    agent: ureq::Agent,
    base_url: String,
    token: String,
}

impl Client {
    pub(super) fn new(config: &Config) -> Result<Self, ClientError> {
        let path = token_file(config);
        let token = std::fs::read_to_string(&path)
            .map_err(|source| ClientError::NoToken { path: path.display().to_string(), source })?;
        let settings =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(LIMIT)).proxy(None);
        Ok(Self {
            agent: settings.build().into(),
            base_url: format!("http://{}", config.server.listen),
            token: format!("Bearer {}", token.trim()),
        })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, ClientError> {
        let url = format!("{}{path}", self.base_url);
        let request = self.agent.get(&url).header("authorization", &self.token);
        self.json(request.call())
    }

    pub(super) fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let url = format!("{}{path}", self.base_url);
        let answer = self.agent.get(&url).header("authorization", &self.token).call();
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let text = answer.body_mut().read_to_string().map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() { Ok(text) } else { Err(problem(&text)) }
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let url = format!("{}{path}", self.base_url);
        let request = self.agent.post(&url).header("authorization", &self.token);
        self.json(request.send_json(body))
    }

    pub(super) fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let url = format!("{}{path}", self.base_url);
        let request = self.agent.put(&url).header("authorization", &self.token);
        self.json(request.send_json(body))
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value, ClientError> {
        let url = format!("{}{path}", self.base_url);
        let request = self.agent.delete(&url).header("authorization", &self.token);
        self.json(request.call())
    }

    fn json(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, ClientError> {
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let text = answer.body_mut().read_to_string().map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(problem(&text));
        }
        serde_json::from_str(&text).map_err(|_| problem(&text))
    }

    fn unreachable(&self, error: &ureq::Error) -> ClientError {
        ClientError::Unreachable { url: self.base_url.clone(), reason: error.to_string() }
    }
}

fn problem(text: &str) -> ClientError {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let field = |name: &str, other: &str| body[name].as_str().unwrap_or(other).to_owned();
    ClientError::Answer {
        code: field("code", "unknown"),
        title: field("title", "The controller gave an unexpected answer"),
        detail: field("detail", "it is not the API of polydev"),
    }
}
