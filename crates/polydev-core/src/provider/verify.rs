//! Does the CLI accept the credential in the CLI VM?

use std::collections::BTreeMap;

use regex_lite::Regex;

use crate::wire::{FileGet, FileRead, Request};

use super::{DocumentFault, Placeholders, Provider, definition::Verify, document};

/// What to ask the CLI VM's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Run the status command; the answer goes to [`Provider::judge_run`].
    Run(Request),
    /// Read the file; the answer goes to [`Provider::judge_files`].
    Read(Request),
}

/// The CLI does not count as signed in. The text holds no output of the command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Another exit status.
    #[error("{command} ended with status {found} instead of {wanted}")]
    ExitCode {
        /// The command.
        command: String,
        /// What it should be.
        wanted: i32,
        /// What it was.
        found: i32,
    },
    /// The text that says so is missing, or the one that denies it is there.
    #[error("{command} does not say that it is signed in")]
    Output {
        /// The command.
        command: String,
    },
    /// Its JSON answer has another value.
    #[error("{command} answers with another {pointer}")]
    Json {
        /// The command.
        command: String,
        /// Where.
        pointer: String,
    },
    /// The file is not complete.
    #[error(transparent)]
    File(#[from] DocumentFault),
    /// The definition asks for the other kind of check.
    #[error("the answer does not belong to this provider's check")]
    WrongKind,
}

impl Provider {
    /// What to ask the agent of the CLI VM.
    pub fn check(&self, places: &Placeholders) -> Check {
        match &self.definition().verify {
            Verify::Command { argv, timeout_s, .. } => Check::Run(Request::Run {
                argv: argv.clone(),
                env: self.cli_env(places),
                timeout_ms: u64::from(*timeout_s) * 1_000,
            }),
            Verify::File(file) => Check::Read(Request::GetFiles {
                files: vec![FileGet { path: file.path.clone(), optional: true }],
            }),
        }
    }

    /// Judges the status command's end.
    pub fn judge_run(&self, found: i32, stdout: &str, stderr: &str) -> Result<(), Rejected> {
        let Verify::Command { argv, exit_code, output_regex, output_not_regex, json_equals, .. } =
            &self.definition().verify
        else {
            return Err(Rejected::WrongKind);
        };
        let command = argv.join(" ");
        if found != *exit_code {
            return Err(Rejected::ExitCode { command, wanted: *exit_code, found });
        }
        let says = |pattern: &String| {
            Regex::new(pattern).is_ok_and(|regex| regex.is_match(stdout) || regex.is_match(stderr))
        };
        if output_regex.as_ref().is_some_and(|wanted| !says(wanted))
            || output_not_regex.as_ref().is_some_and(says)
        {
            return Err(Rejected::Output { command });
        }
        judge_json(&command, json_equals, stdout)
    }

    /// Judges the files that were read.
    pub fn judge_files(&self, read: &[FileRead]) -> Result<(), Rejected> {
        let Verify::File(rule) = &self.definition().verify else { return Err(Rejected::WrongKind) };
        let file = read.iter().find(|file| file.path == rule.path);
        let file = file.ok_or_else(|| DocumentFault::Missing { path: rule.path.clone() })?;
        Ok(document::check(rule, &file.data.0)?)
    }
}

fn judge_json(
    command: &str,
    wanted: &BTreeMap<String, serde_json::Value>,
    stdout: &str,
) -> Result<(), Rejected> {
    if wanted.is_empty() {
        return Ok(());
    }
    let found: serde_json::Value =
        serde_json::from_str(stdout.trim()).map_err(|_| Rejected::Output { command: command.to_owned() })?;
    match wanted.iter().find(|(pointer, value)| found.pointer(pointer) != Some(value)) {
        Some((pointer, _)) => Err(Rejected::Json { command: command.to_owned(), pointer: pointer.clone() }),
        None => Ok(()),
    }
}
