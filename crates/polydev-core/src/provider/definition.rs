//! A provider file, field by field.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    ids::ProviderId,
    wire::{CallbackRule, ExpectStep, JsonRpcStep, LoginStdio, RequiredFile, UrlRule},
};

/// The only schema version there is.
pub(super) const SCHEMA: u32 = 1;

/// A whole provider file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Version of this file format.
    pub schema: u32,
    /// Canonical id.
    pub id: ProviderId,
    /// For people.
    pub name: String,
    /// Other ids that mean this provider.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// For demonstrations and tests only.
    #[serde(default)]
    pub demo: bool,
    /// Where the CLI comes from.
    pub install: Install,
    /// The CLI's own login.
    pub login: Login,
    /// What the sign-in address looks like; the first rule that matches wins.
    pub url: Vec<UrlRule>,
    /// Where the CLI listens for the browser's return.
    pub callback: Option<CallbackRule>,
    /// Sign-in by a code that is typed at a page.
    pub device: Option<Device>,
    /// Sign-in by a code that the page shows and the CLI reads.
    pub paste: Option<Paste>,
    /// When the login counts as done.
    pub success: Success,
    /// The files that are the credential.
    pub credential: Vec<CredentialFile>,
    /// What the CLI VM needs besides.
    #[serde(default)]
    pub cli_vm: CliVm,
    /// How it is checked that the CLI accepts the credential in the CLI VM.
    pub verify: Verify,
    /// What a refresh does.
    pub refresh: Refresh,
    /// What the CLI's logout does.
    pub logout: Logout,
    /// What must be reachable.
    pub egress: Egress,
    /// For the demo and test network only.
    #[serde(default)]
    pub test: Test,
}

/// Where the CLI comes from: exactly one of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// npm package.
    pub npm: Option<String>,
    /// Debian package.
    pub apt: Option<String>,
    /// Brought by the demo's guest layer.
    #[serde(default)]
    pub bundled: bool,
    /// Pinned version.
    pub version: Option<String>,
}

/// The CLI's own login.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Standard streams.
    #[serde(deserialize_with = "stdio")]
    pub stdio: LoginStdio,
    /// The login is stopped when nothing happened for this long.
    pub idle_timeout_s: u32,
    /// Added to the environment that every login gets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Prompts and answers.
    #[serde(default)]
    pub expect: Vec<ExpectStep>,
    /// JSON-RPC lines.
    #[serde(default)]
    pub jsonrpc: Vec<JsonRpcStep>,
}

/// Sign-in by a code that is typed at a page.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Program and arguments when they differ from the ordinary login's.
    pub argv: Option<Vec<String>>,
    /// First group is the code.
    pub code_regex: String,
}

/// Sign-in by a code that the page shows and the CLI reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paste {
    /// What is typed; `{pasted}` stands for the code.
    pub send: String,
    /// What such a code looks like.
    pub pasted_regex: String,
}

/// When the login counts as done.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Success {
    /// Exit status.
    pub exit_code: Option<i32>,
    /// Must be found in the output.
    pub output_regex: Option<String>,
    /// The answer with this id must be a result.
    pub jsonrpc_result_id: Option<u64>,
    /// Files that must be there and complete.
    pub file: Vec<RequiredFile>,
}

/// A file that belongs to the credential.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialFile {
    /// Path relative to the CLI user's home.
    pub path: String,
    /// Mode that the CLI gives it.
    pub mode: Mode,
    /// Mode that it gets in the CLI VM, when another one is wanted.
    pub restore_mode: Option<Mode>,
    /// The sign-in is complete without it.
    #[serde(default)]
    pub optional: bool,
    /// When not empty: only these JSON pointers belong to the credential.
    #[serde(default)]
    pub merge_json: Vec<String>,
}

/// What the CLI VM needs besides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CliVm {
    /// Environment of everything that is started for the person.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// How it is checked that the CLI accepts the credential.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Verify {
    /// By its own status command.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// Exit status when signed in.
        exit_code: i32,
        /// Must be found in stdout or stderr.
        output_regex: Option<String>,
        /// Must not be found there.
        output_not_regex: Option<String>,
        /// stdout is JSON, and these pointers have these values.
        #[serde(default)]
        json_equals: BTreeMap<String, serde_json::Value>,
        /// The command asks the provider's servers.
        network: bool,
        /// Limit.
        #[serde(default = "verify_timeout_s")]
        timeout_s: u32,
    },
    /// By its file, where there is no such command.
    File(RequiredFile),
}

fn verify_timeout_s() -> u32 {
    30
}

/// What a refresh does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// A new refresh token is stored each time.
    pub rotates: bool,
    /// Only one VM may hold the credential.
    pub single_owner: bool,
}

/// What the CLI's logout does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logout {
    /// It revokes the tokens at the provider, so it is never used to clean up.
    pub revokes: bool,
}

/// What must be reachable.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Host names; `.example.com` means every name below `example.com`, but not itself.
    pub hosts: Vec<String>,
    /// On which ports.
    #[serde(default = "web_ports")]
    pub ports: Vec<u16>,
}

fn web_ports() -> Vec<u16> {
    vec![443, 80]
}

/// For the demo and test network only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// Variable that names a file with the certificate authority to trust.
    pub ca_env: Option<String>,
    /// More variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Permission bits, written as an octal text: `"0600"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mode(pub u32);

impl TryFrom<String> for Mode {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let octal =
            text.len() == 4 && text.starts_with('0') && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let bits = u32::from_str_radix(&text, 8).ok().filter(|_| octal);
        bits.map(Self).ok_or_else(|| format!("{text:?} is no mode; write four octal digits such as \"0600\""))
    }
}

fn stdio<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<LoginStdio, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Stdio {
        Null,
        Pipe,
        Pty { cols: u16, rows: u16 },
    }
    Ok(match Stdio::deserialize(deserializer)? {
        Stdio::Null => LoginStdio::Null,
        Stdio::Pipe => LoginStdio::Pipe,
        Stdio::Pty { cols, rows } => LoginStdio::Pty { cols, rows },
    })
}
