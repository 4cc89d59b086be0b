//! One vendor login, as the agent runs it. Made by the host from a provider definition: all placeholders are
//! filled in, so the agent needs to know nothing about providers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::files::FilePut;

/// A login to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginSpec {
    /// Program and arguments; the program is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// What the program's standard streams are.
    pub stdio: LoginStdio,
    /// The complete environment: nothing else is inherited.
    pub env: BTreeMap<String, String>,
    /// Files written before the program starts.
    #[serde(default)]
    pub seed_files: Vec<FilePut>,
    /// Prompts that are answered, each at most once, in order.
    #[serde(default)]
    pub expect: Vec<ExpectStep>,
    /// JSON-RPC lines exchanged on stdin and stdout, in order.
    #[serde(default)]
    pub jsonrpc: Vec<JsonRpcStep>,
    /// Which URLs are the sign-in page; the first rule that matches wins, others are refused.
    pub url_rules: Vec<UrlRule>,
    /// First group is the code a person has to type at the device page.
    #[serde(default)]
    pub device_code_regex: Option<String>,
    /// Where the program listens for the browser's return.
    #[serde(default)]
    pub callback: Option<CallbackRule>,
    /// When the login counts as done.
    pub success: SuccessRule,
    /// The login is stopped when nothing happened for this long.
    pub idle_timeout_ms: u64,
}

/// Standard streams of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LoginStdio {
    /// stdin is `/dev/null`; stdout and stderr are pipes.
    Null,
    /// All three are pipes; stdin stays open until the login ends.
    Pipe,
    /// A pseudo-terminal.
    Pty {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// Waits for output, then types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectStep {
    /// Searched in the output with escape sequences removed.
    pub regex: String,
    /// Written to stdin.
    pub send: String,
}

/// Sends one JSON-RPC line and waits for the answer with that id. Lines that are not JSON are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonRpcStep {
    /// The line, without its newline.
    pub send: String,
    /// Id whose result ends this step; `None` goes on at once.
    #[serde(default)]
    pub wait_id: Option<u64>,
}

/// Where a URL was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UrlSource {
    /// Handed to the browser shim.
    BrowserShim,
    /// Printed on stdout or stderr.
    Output,
}

/// What following the URL ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UrlYields {
    /// A redirect to the program's own loopback listener.
    Loopback,
    /// A code that the person pastes back.
    PasteCode,
    /// A page where a code that the program printed is typed.
    Device,
}

/// One kind of URL that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlRule {
    /// Where it must have been seen.
    pub source: UrlSource,
    /// What it is good for.
    pub yields: UrlYields,
    /// Exact host name, lower case; required for `BrowserShim`.
    #[serde(default)]
    pub host: Option<String>,
    /// Exact path; required for `BrowserShim`.
    #[serde(default)]
    pub path: Option<String>,
    /// `https` unless given (the demo provider and tests use `http`).
    #[serde(default)]
    pub scheme: Option<String>,
    /// TCP port when it is not the scheme's own.
    #[serde(default)]
    pub port: Option<u16>,
    /// Query parameters that must be present and not empty.
    #[serde(default)]
    pub require_query: Vec<String>,
    /// For `Output`: finds the URL in text with escape sequences removed.
    #[serde(default)]
    pub regex: Option<String>,
}

/// The program's own loopback listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackRule {
    /// Ports it may use; empty = the one named in the captured URL's `redirect_uri`.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Exact path.
    pub path: String,
}

/// All that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SuccessRule {
    /// Exit status of the program.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Must be found in the output.
    #[serde(default)]
    pub output_regex: Option<String>,
    /// A JSON-RPC answer with this id must be a result, not an error; the program is then stopped.
    #[serde(default)]
    pub jsonrpc_result_id: Option<u64>,
    /// Files that must be there, well-formed and complete. Read after the program ended.
    #[serde(default)]
    pub files: Vec<RequiredFile>,
}

/// A file that proves the sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredFile {
    /// Path relative to the CLI user's home.
    pub path: String,
    /// How it is parsed.
    pub format: FileFormat,
    /// JSON pointers that must be there and neither null nor empty. For `Text`: substrings.
    #[serde(default)]
    pub require: Vec<String>,
}

/// Formats that credential files come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// JSON; leading `//` comment lines are tolerated.
    Json,
    /// Anything else: required substrings only.
    Text,
}

/// How a login ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum LoginEnd {
    /// Every part of the [`SuccessRule`] holds.
    SignedIn,
    /// The program ended and the rule does not hold.
    Failed {
        /// Exit status; 128 + signal when killed; `None` if it never started.
        exit_code: Option<i32>,
        /// Which part does not hold, in words for a person; holds no secret.
        reason: String,
    },
    /// Nothing happened for the allowed time.
    TimedOut,
    /// The host asked for it.
    Cancelled,
}
