//! Whether a login's end counts as signed in: exit status, output, answers and files have to agree.

use std::path::Path;

use polydev_core::wire::{ErrorCode, FileFormat, RequiredFile, SuccessRule};
use serde_json::Value;

use crate::files::read_beneath;

/// What was seen of a login.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) exit_code: Option<i32>,
    /// The pattern for success was in the output.
    pub(crate) output_found: bool,
    /// The decisive JSON-RPC request had a result.
    pub(crate) rpc_result: bool,
}

/// `Err` says in words which part does not hold.
pub(crate) fn check(rule: &SuccessRule, outcome: &Outcome, home: &Path) -> Result<(), String> {
    if rule.jsonrpc_result_id.is_some() && !outcome.rpc_result {
        return Err(match outcome.exit_code {
            Some(code) => format!("the program ended with status {code} before the sign-in was answered"),
            None => "the sign-in was never answered".to_owned(),
        });
    }
    if let Some(wanted) = rule.exit_code
        && outcome.exit_code != Some(wanted)
    {
        return Err(match outcome.exit_code {
            Some(code) => format!("the program ended with status {code}"),
            None => "the program did not end".to_owned(),
        });
    }
    if rule.output_regex.is_some() && !outcome.output_found {
        return Err("the program ended without reporting success".to_owned());
    }
    files_hold(&rule.files, home)
}

/// Whether every required file is there, well-formed and complete.
pub(crate) fn files_hold(files: &[RequiredFile], home: &Path) -> Result<(), String> {
    files.iter().try_for_each(|file| file_holds(file, home))
}

fn file_holds(file: &RequiredFile, home: &Path) -> Result<(), String> {
    let path = &file.path;
    let (_, data) = read_beneath(home, path).map_err(|refusal| match refusal.code {
        ErrorCode::NotFound => format!("{path} was not written"),
        _ => format!("{path} cannot be read"),
    })?;
    let text = std::str::from_utf8(&data).map_err(|_| format!("{path} is not text"))?;
    match file.format {
        FileFormat::Text => match file.require.iter().find(|wanted| !text.contains(wanted.as_str())) {
            Some(_) => Err(format!("{path} is incomplete")),
            None if text.trim().is_empty() => Err(format!("{path} is empty")),
            None => Ok(()),
        },
        FileFormat::Json => {
            let json: Value = serde_json::from_str(after_comments(text))
                .map_err(|_| format!("{path} is not well-formed"))?;
            let missing = file.require.iter().find(|pointer| json.pointer(pointer).is_none_or(is_empty));
            missing.map_or(Ok(()), |pointer| Err(format!("{path} lacks {pointer}")))
        }
    }
}

/// Some programs write `//` lines before their JSON.
fn after_comments(text: &str) -> &str {
    let mut rest = text.trim_start();
    while rest.starts_with("//") {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
    }
    rest
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_file(require: &[&str]) -> RequiredFile {
        let require = require.iter().map(|s| (*s).to_owned()).collect();
        RequiredFile { path: "c.json".into(), format: FileFormat::Json, require }
    }

    #[test]
    fn a_file_counts_only_whole_and_with_every_key_filled() {
        let home = tempfile::tempdir().unwrap();
        let rule = [json_file(&["/t/access", "/scopes"])];
        assert_eq!(files_hold(&rule, home.path()).unwrap_err(), "c.json was not written");
        for (content, why) in [
            ("", "c.json is not well-formed"),
            (r#"{"t":{"access":"FA"#, "c.json is not well-formed"),
            (r#"{"t":{"access":""},"scopes":["a"]}"#, "c.json lacks /t/access"),
            (r#"{"t":{"access":null},"scopes":["a"]}"#, "c.json lacks /t/access"),
            (r#"{"t":{"access":"FAKE"},"scopes":[]}"#, "c.json lacks /scopes"),
            (r#"{"t":{"access":"FAKE"}}"#, "c.json lacks /scopes"),
        ] {
            std::fs::write(home.path().join("c.json"), content).unwrap();
            assert_eq!(files_hold(&rule, home.path()).unwrap_err(), why, "{content}");
        }
        for content in [
            r#"{"t":{"access":"FAKE"},"scopes":["a"],"more":0}"#,
            "// note\n// note\n{\"t\":{\"access\":\"FAKE\"},\"scopes\":[1]}",
        ] {
            std::fs::write(home.path().join("c.json"), content).unwrap();
            assert_eq!(files_hold(&rule, home.path()), Ok(()), "{content}");
        }
    }

    #[test]
    fn every_given_part_has_to_hold() {
        let home = tempfile::tempdir().unwrap();
        let rule = SuccessRule { exit_code: Some(0), output_regex: Some("ok".into()), ..Default::default() };
        let outcome = |exit_code, output_found| Outcome { exit_code, output_found, rpc_result: false };
        assert_eq!(check(&rule, &outcome(Some(0), true), home.path()), Ok(()));
        assert_eq!(
            check(&rule, &outcome(Some(1), true), home.path()).unwrap_err(),
            "the program ended with status 1"
        );
        assert!(
            check(&rule, &outcome(Some(0), false), home.path())
                .unwrap_err()
                .contains("without reporting success")
        );
        let rpc = SuccessRule { jsonrpc_result_id: Some(1), ..Default::default() };
        assert!(
            check(&rpc, &outcome(Some(0), true), home.path())
                .unwrap_err()
                .contains("before the sign-in was answered")
        );
    }
}
