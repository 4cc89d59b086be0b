//! What a definition must fulfil beyond its types. Every rule is tried; nothing stops at the first fault.

use std::collections::{BTreeMap, BTreeSet};

use regex_lite::Regex;

use crate::wire::{RequiredFile, UrlRule, UrlSource, UrlYields};

use super::{
    Definition,
    definition::{SCHEMA, Verify},
    launch::NAMES,
};

type Report<'a> = &'a mut dyn FnMut(&str, String);

/// Variables that stop CLIs from handing their address to a browser.
const FORBIDDEN_ENV: [&str; 3] = ["CI", "DEBIAN_FRONTEND", "NO_BROWSER"];
const MAX_IDLE_S: u32 = 3_600;

pub(super) fn check(definition: &Definition, file: &str, fault: Report) {
    if definition.schema != SCHEMA {
        fault("schema", format!("{} is unknown; this version reads {SCHEMA}", definition.schema));
    }
    if file.strip_suffix(".toml") != Some(definition.id.as_str()) {
        fault("id", format!("{} does not fit the file's name", definition.id));
    }
    if definition.name.trim().is_empty() {
        fault("name", "is empty".into());
    }
    for alias in &definition.aliases {
        if alias.parse::<crate::ids::ProviderId>().is_err() {
            fault("aliases", format!("{alias:?} is no provider id"));
        }
    }
    install(definition, fault);
    login(definition, fault);
    urls(definition, fault);
    success(definition, fault);
    credentials(definition, fault);
    verify(definition, fault);
    env("cli_vm.env", &definition.cli_vm.env, fault);
    env("test.env", &definition.test.env, fault);
    if let Some(name) = definition.test.ca_env.as_ref().filter(|name| !is_env_name(name)) {
        fault("test.ca_env", format!("{name:?} is no variable name"));
    }
    for (at, host) in definition.egress.hosts.iter().enumerate().filter(|(_, host)| !is_host_pattern(host)) {
        fault(&format!("egress.hosts[{at}]"), format!("{host:?} is no lower-case host name"));
    }
    if definition.egress.ports.is_empty() || definition.egress.ports.contains(&0) {
        fault("egress.ports", "must name ports, and 0 is none".into());
    }
}

/// Reports misspelt fields of those tables whose types are shared with the guest channel, which lets unknown fields
/// pass for the sake of older agents.
pub(super) fn unknown_fields(file: &toml::Table, fault: Report) {
    const URL: &[&str] = &["source", "yields", "host", "path", "scheme", "port", "require_query", "regex"];
    const FILE: &[&str] = &["path", "format", "require"];
    let shared: [(&[&str], &[&str]); 6] = [
        (&["url"], URL),
        (&["callback"], &["ports", "path"]),
        (&["success", "file"], FILE),
        (&["login", "expect"], &["regex", "send"]),
        (&["login", "jsonrpc"], &["send", "wait_id"]),
        (&["login", "stdio", "pty"], &["cols", "rows"]),
    ];
    for (place, known) in shared {
        let value = place.iter().try_fold(file, |table, key| match table.get(*key) {
            Some(toml::Value::Table(table)) => Ok(table),
            other => Err(other),
        });
        let tables: Vec<&toml::Table> = match value {
            Ok(table) => vec![table],
            Err(Some(toml::Value::Array(tables))) => {
                tables.iter().filter_map(toml::Value::as_table).collect()
            }
            Err(_) => Vec::new(),
        };
        for (at, table) in tables.iter().enumerate() {
            for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
                let place = place.join(".");
                fault(&format!("{place}[{at}].{key}"), format!("is unknown; there are {}", known.join(", ")));
            }
        }
    }
}

fn install(definition: &Definition, fault: Report) {
    let install = &definition.install;
    let ways = [install.npm.is_some(), install.apt.is_some(), install.bundled];
    if ways.iter().filter(|way| **way).count() != 1 {
        fault("install", "needs exactly one of npm, apt and bundled".into());
    }
    if install.bundled != install.version.is_none() {
        fault("install.version", "must be pinned, except where bundled".into());
    }
}

fn login(definition: &Definition, fault: Report) {
    let login = &definition.login;
    argv("login.argv", &login.argv, fault);
    env("login.env", &login.env, fault);
    for name in FORBIDDEN_ENV.iter().filter(|name| login.env.contains_key(**name)) {
        fault("login.env", format!("{name} would keep the CLI from handing over its address"));
    }
    if login.idle_timeout_s == 0 || login.idle_timeout_s > MAX_IDLE_S {
        fault("login.idle_timeout_s", format!("must be 1 to {MAX_IDLE_S}"));
    }
    for (at, step) in login.expect.iter().enumerate() {
        regex(&format!("login.expect[{at}].regex"), &step.regex, 0, fault);
    }
    for (at, step) in login.jsonrpc.iter().enumerate() {
        let field = format!("login.jsonrpc[{at}]");
        match serde_json::from_str::<serde_json::Value>(&step.send) {
            Err(error) => fault(&format!("{field}.send"), format!("is no JSON: {error}")),
            Ok(_) if step.send.contains('\n') => {
                fault(&format!("{field}.send"), "is more than one line".into())
            }
            Ok(line) => {
                if step.wait_id.is_some()
                    && line.get("id").and_then(serde_json::Value::as_u64) != step.wait_id
                {
                    fault(&format!("{field}.wait_id"), "is not the id that is sent".into());
                }
            }
        }
    }
    if !login.jsonrpc.is_empty() && login.stdio != crate::wire::LoginStdio::Pipe {
        fault("login.stdio", "must be pipe where jsonrpc is used".into());
    }
}

fn urls(definition: &Definition, fault: Report) {
    if definition.url.is_empty() {
        fault("url", "needs at least one rule".into());
    }
    for (at, rule) in definition.url.iter().enumerate() {
        url(&format!("url[{at}]"), rule, fault);
    }
    let yields = |wanted| definition.url.iter().any(|rule| rule.yields == wanted);
    if yields(UrlYields::Loopback) != definition.callback.is_some() {
        fault("callback", "goes together with a url rule that yields loopback".into());
    }
    if yields(UrlYields::PasteCode) != definition.paste.is_some() {
        fault("paste", "goes together with a url rule that yields paste-code".into());
    }
    if yields(UrlYields::Device) != definition.device.is_some() {
        fault("device", "goes together with a url rule that yields device".into());
    }
    if let Some(callback) = &definition.callback {
        if !is_url_path(&callback.path) {
            fault("callback.path", format!("{:?} is no absolute path", callback.path));
        }
        if callback.ports.contains(&0) {
            fault("callback.ports", "0 is no port".into());
        }
    }
    if let Some(device) = &definition.device {
        regex("device.code_regex", &device.code_regex, 1, fault);
        if let Some(device_argv) = &device.argv {
            argv("device.argv", device_argv, fault);
        }
    }
    if let Some(paste) = &definition.paste {
        regex("paste.pasted_regex", &paste.pasted_regex, 0, fault);
        if !paste.pasted_regex.starts_with('^') || !paste.pasted_regex.ends_with('$') {
            fault("paste.pasted_regex", "must cover the whole text: ^...$".into());
        }
        if paste.send.matches("{pasted}").count() != 1 {
            fault("paste.send", "must hold {pasted} once".into());
        }
        placeholders("paste.send", &paste.send, &["pasted"], fault);
    }
}

fn url(field: &str, rule: &UrlRule, fault: Report) {
    match rule.source {
        UrlSource::BrowserShim => {
            for (name, missing) in [("host", rule.host.is_none()), ("path", rule.path.is_none())] {
                if missing {
                    fault(
                        &format!("{field}.{name}"),
                        "is needed: the shim takes exact addresses only".into(),
                    );
                }
            }
            if rule.regex.is_some() {
                fault(&format!("{field}.regex"), "belongs to output rules".into());
            }
        }
        UrlSource::Output => match &rule.regex {
            None => fault(&format!("{field}.regex"), "is needed to find the address in output".into()),
            Some(pattern) => {
                regex(&format!("{field}.regex"), pattern, 0, fault);
                if !pattern.starts_with("https://") && !pattern.starts_with("http://") {
                    fault(&format!("{field}.regex"), "must begin with the scheme".into());
                }
                let host = pattern.split("://").nth(1).unwrap_or("").split('/').next().unwrap_or("");
                if host.is_empty() || host.contains(['*', '+', '[']) || host.replace("\\.", "").contains('.')
                {
                    fault(&format!("{field}.regex"), "must name its hosts literally".into());
                }
            }
        },
    }
    if let Some(host) = rule.host.as_ref().filter(|host| !is_host(host)) {
        fault(&format!("{field}.host"), format!("{host:?} is no lower-case host name"));
    }
    if let Some(path) = rule.path.as_ref().filter(|path| !is_url_path(path)) {
        fault(&format!("{field}.path"), format!("{path:?} is no absolute path"));
    }
    if let Some(scheme) = rule.scheme.as_ref().filter(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
        fault(&format!("{field}.scheme"), format!("{scheme:?} is neither http nor https"));
    }
    if rule.port == Some(0) {
        fault(&format!("{field}.port"), "0 is no port".into());
    }
}

fn success(definition: &Definition, fault: Report) {
    let success = &definition.success;
    if let Some(pattern) = &success.output_regex {
        regex("success.output_regex", pattern, 0, fault);
    }
    match success.jsonrpc_result_id {
        None if success.exit_code.is_none() => {
            fault("success", "needs exit_code or jsonrpc_result_id: a file alone is no proof".into());
        }
        Some(id) if !definition.login.jsonrpc.iter().any(|step| step.wait_id == Some(id)) => {
            fault("success.jsonrpc_result_id", format!("no step of login.jsonrpc waits for {id}"));
        }
        Some(_) | None => {}
    }
    if success.file.is_empty() {
        fault("success.file", "needs at least one file: an exit status alone is no proof".into());
    }
    for (at, file) in success.file.iter().enumerate() {
        required_file(&format!("success.file[{at}]"), file, fault);
        if !definition
            .credential
            .iter()
            .any(|credential| credential.path == file.path && !credential.optional)
        {
            fault(&format!("success.file[{at}].path"), "is no credential file that must be there".into());
        }
    }
}

fn required_file(field: &str, file: &RequiredFile, fault: Report) {
    path(&format!("{field}.path"), &file.path, fault);
    if file.require.is_empty() {
        fault(&format!("{field}.require"), "is empty: that a file exists proves nothing".into());
    }
    if file.format == crate::wire::FileFormat::Json {
        pointers(&format!("{field}.require"), &file.require, fault);
    }
}

fn credentials(definition: &Definition, fault: Report) {
    let mut seen = BTreeSet::new();
    for (at, file) in definition.credential.iter().enumerate() {
        let field = format!("credential[{at}]");
        path(&format!("{field}.path"), &file.path, fault);
        pointers(&format!("{field}.merge_json"), &file.merge_json, fault);
        if !seen.insert(&file.path) {
            fault(&format!("{field}.path"), format!("{} is listed twice", file.path));
        }
        let mode = file.restore_mode.unwrap_or(file.mode).0;
        let secret = definition.success.file.iter().any(|required| required.path == file.path);
        if secret && mode & 0o077 != 0 {
            fault(&format!("{field}.restore_mode"), format!("{mode:04o} lets others read a secret"));
        }
    }
    if !definition.credential.iter().any(|file| !file.optional && file.merge_json.is_empty()) {
        fault("credential", "needs at least one file that must be there".into());
    }
}

fn verify(definition: &Definition, fault: Report) {
    match &definition.verify {
        Verify::Command {
            argv: command,
            output_regex,
            output_not_regex,
            json_equals,
            timeout_s,
            exit_code: _,
            network: _,
        } => {
            argv("verify.argv", command, fault);
            let patterns =
                [("verify.output_regex", output_regex), ("verify.output_not_regex", output_not_regex)];
            for (field, pattern) in patterns {
                if let Some(pattern) = pattern {
                    regex(field, pattern, 0, fault);
                }
            }
            pointers("verify.json_equals", json_equals.keys(), fault);
            if !(1..=300).contains(timeout_s) {
                fault("verify.timeout_s", "must be 1 to 300".into());
            }
        }
        Verify::File(file) => required_file("verify", file, fault),
    }
}

fn argv(field: &str, argv: &[String], fault: Report) {
    if argv.first().is_none_or(String::is_empty) {
        fault(field, "names no program".into());
    }
    for (at, argument) in argv.iter().enumerate() {
        placeholders(&format!("{field}[{at}]"), argument, &NAMES, fault);
        if argument.contains('\0') {
            fault(&format!("{field}[{at}]"), "holds a NUL".into());
        }
    }
}

fn env(field: &str, env: &BTreeMap<String, String>, fault: Report) {
    for (name, value) in env {
        if !is_env_name(name) {
            fault(field, format!("{name:?} is no variable name"));
        }
        placeholders(&format!("{field}.{name}"), value, &NAMES, fault);
    }
}

fn regex(field: &str, pattern: &str, groups: usize, fault: Report) {
    match Regex::new(pattern) {
        Err(error) => fault(field, format!("is no regular expression: {error}")),
        Ok(regex) if regex.captures_len() - 1 < groups => fault(field, format!("needs {groups} group")),
        Ok(_) => {}
    }
}

fn path(field: &str, path: &str, fault: Report) {
    let clean = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !clean || path.contains(['\0', '\\', '~']) {
        fault(field, format!("{path:?} is no clean path below the home"));
    }
}

fn pointers<'a>(field: &str, pointers: impl IntoIterator<Item = &'a String>, fault: Report) {
    for pointer in pointers {
        if !pointer.starts_with('/') || pointer.len() < 2 {
            fault(field, format!("{pointer:?} is no JSON pointer"));
        }
    }
}

/// Reports `{name}` for names that nothing is filled in for. Braces around anything else are text.
fn placeholders(field: &str, text: &str, known: &[&str], fault: Report) {
    for part in text.split('{').skip(1) {
        let Some((name, _)) = part.split_once('}') else { continue };
        let like_one = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if like_one && !known.contains(&name) {
            fault(field, format!("{{{name}}} is unknown; there are {}", known.join(", ")));
        }
    }
}

fn is_env_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// Whether a text is a host name, or the end of host names after a dot.
pub fn is_host_pattern(pattern: &str) -> bool {
    is_host(pattern.strip_prefix('.').unwrap_or(pattern))
}

/// Whether a lower-case host name is the one that a pattern names, or below the one it names after a dot.
pub fn host_fits(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('.') {
        Some(_) => host.len() > pattern.len() && host.ends_with(pattern),
        None => host == pattern,
    }
}

fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    host.len() <= 253 && host.contains('.') && host.split('.').all(label)
}

fn is_url_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains(['?', '#', ' '])
        && !path.split('/').any(|part| matches!(part, "." | ".."))
}
