//! The provider files that are shipped, against recorded (and then falsified) sign-ins.

#![allow(clippy::unwrap_used)] // a test that cannot read its own fixtures has failed

use std::{collections::BTreeMap, fs, path::PathBuf};

use polydev_core::{
    provider::{Check, Placeholders, Provider, ProviderSet},
    session::Lane,
    url_rule::{HttpUrl, UrlRules, check_callback},
    wire::{FileRead, Request, UrlSource, UrlYields, files::FileBytes},
};
use serde::Deserialize;

/// `providers/fixtures/<id>/fixture.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    /// What the login printed, and what is in it.
    login: Recorded,
    /// Addresses handed to the browser that are the sign-in page.
    #[serde(default)]
    accept: Vec<String>,
    /// Addresses handed to the browser that are not.
    refuse: Vec<String>,
    /// The status command's answers.
    #[serde(default)]
    status: Vec<Status>,
    /// Credential files, by path.
    credential: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    output: String,
    url: Option<String>,
    code: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Status {
    exit_code: i32,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    signed_in: bool,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../providers")
}

fn shipped() -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn set() -> ProviderSet {
    ProviderSet::load(&shipped()).unwrap_or_else(|faults| panic!("{faults}"))
}

fn fixture(provider: &Provider) -> Fixture {
    let path = root().join("fixtures").join(provider.id().as_str()).join("fixture.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(fixture: &Fixture) -> Vec<FileRead> {
    let file = |(path, text): (&String, &String)| FileRead {
        path: path.clone(),
        mode: 0o644,
        data: FileBytes::new(text.clone().into_bytes()),
    };
    fixture.credential.iter().map(file).collect()
}

fn rules(provider: &Provider) -> UrlRules {
    UrlRules::new(&provider.definition().url).unwrap_or_else(|fault| panic!("{}: {fault}", provider.id()))
}

#[test]
fn every_shipped_definition_is_sound_and_known_by_its_old_names() {
    let set = set();
    let ids: Vec<_> = set.iter().map(|provider| provider.id().as_str()).collect();
    for wanted in ["claude", "codex", "demo", "gemini", "gh", "wrangler"] {
        assert!(ids.contains(&wanted), "{ids:?}");
    }
    let by_name = |name| set.get(name).map(|provider| provider.id().as_str());
    assert_eq!(by_name("claude_code"), Some("claude"));
    assert_eq!(by_name("gemini_cli"), Some("gemini"));
    assert_eq!(by_name("nonesuch"), None);
    assert!(set.without_demo().get("demo").is_none());
}

#[test]
fn every_provider_has_a_recording_that_its_rules_understand() {
    for provider in set().iter() {
        let id = provider.id();
        let recorded = fixture(provider);
        let shim = provider.definition().url.iter().any(|rule| rule.source == UrlSource::BrowserShim);
        assert_eq!(recorded.accept.is_empty(), !shim, "{id}: a shim rule needs a recorded address");
        for url in &recorded.accept {
            assert_eq!(
                rules(provider).accept(UrlSource::BrowserShim, url),
                Some(UrlYields::Loopback),
                "{id}: {url}"
            );
            let callback = provider.definition().callback.as_ref().unwrap();
            let address = HttpUrl::parse(url).unwrap();
            let (redirect, state) = (address.query("redirect_uri").unwrap(), address.query("state").unwrap());
            let back = format!("{redirect}?code=FAKE&state={state}");
            assert!(check_callback(callback, url, &back).is_ok(), "{id}: {back}");
            for wrong in
                [back.replace(&state, "other"), back.replace("http:", "https:"), back.replace("/", "//")]
            {
                assert!(check_callback(callback, url, &wrong).is_err(), "{id}: {wrong}");
            }
        }
        assert!(!recorded.refuse.is_empty(), "{id}");
        for url in &recorded.refuse {
            assert_eq!(rules(provider).accept(UrlSource::BrowserShim, url), None, "{id} accepts {url}");
        }
        let found = rules(provider).find(&recorded.login.output);
        assert_eq!(found.first().map(|found| found.url.clone()), recorded.login.url, "{id}");
        let spec = provider.login_spec(provider.default_lane(), &Placeholders::default());
        if let Some(code) = &recorded.login.code {
            let regex = regex_lite::Regex::new(spec.device_code_regex.as_ref().unwrap()).unwrap();
            assert_eq!(&regex.captures(&recorded.login.output).unwrap()[1], code, "{id}");
        }
        if let Some(wanted) = &spec.success.output_regex {
            assert!(regex_lite::Regex::new(wanted).unwrap().is_match(&recorded.login.output), "{id}");
        }
    }
}

#[test]
fn every_recorded_credential_is_complete_and_none_of_its_required_files_can_be_spared() {
    for provider in set().iter() {
        let id = provider.id();
        let recorded = fixture(provider);
        let all = files(&recorded);
        assert!(all.iter().all(|file| String::from_utf8_lossy(&file.data.0).contains("FAKE")), "{id}");
        let collected = provider.collect(all.clone()).unwrap_or_else(|fault| panic!("{id}: {fault}"));
        for put in provider.cli_files(collected) {
            let secret = provider.definition().success.file.iter().any(|file| file.path == put.path);
            assert!(!secret || put.mode == 0o600, "{id}: {} gets mode {:o}", put.path, put.mode);
        }
        for required in &provider.definition().success.file {
            let without: Vec<_> = all.iter().filter(|file| file.path != required.path).cloned().collect();
            assert!(provider.collect(without).is_err(), "{id} without {}", required.path);
            for key in &required.require {
                let name = key.rsplit('/').next().unwrap().trim_end_matches(':');
                let spoil = |file: &FileRead| {
                    let text = String::from_utf8_lossy(&file.data.0).replace(name, "spoiled");
                    FileRead { data: FileBytes::new(text.into_bytes()), ..file.clone() }
                };
                assert!(provider.collect(all.iter().map(spoil).collect()).is_err(), "{id} without {key}");
            }
        }
    }
}

#[test]
fn every_status_command_is_told_apart_by_its_recorded_answers() {
    for provider in set().iter() {
        let (id, recorded) = (provider.id(), fixture(provider));
        match provider.check(&Placeholders::default()) {
            Check::Run(Request::Run { argv, .. }) => {
                assert!(!argv.is_empty());
                for wanted in [true, false] {
                    assert!(
                        recorded.status.iter().any(|status| status.signed_in == wanted),
                        "{id}: no {wanted} answer"
                    );
                }
                for status in &recorded.status {
                    let verdict = provider.judge_run(status.exit_code, &status.stdout, &status.stderr);
                    assert_eq!(verdict.is_ok(), status.signed_in, "{id}: {status:?}: {verdict:?}");
                }
                assert!(provider.judge_files(&files(&recorded)).is_err());
            }
            Check::Read(Request::GetFiles { files: wanted }) => {
                assert!(!wanted.is_empty() && recorded.status.is_empty(), "{id}");
                assert_eq!(provider.judge_files(&files(&recorded)), Ok(()), "{id}");
                assert!(provider.judge_files(&[]).is_err());
            }
            other => panic!("{id}: {other:?}"),
        }
    }
}

#[test]
fn a_login_gets_the_shim_first_and_nothing_that_keeps_it_from_opening_a_browser() {
    for provider in set().iter() {
        let places = Placeholders { test_ca: Some("/etc/ssl/ca.pem".into()), ..Placeholders::default() };
        let spec = provider.login_spec(Lane::StreamedBrowser, &places);
        assert!(spec.env["PATH"].starts_with("/run/polydev/shim:/usr/local/bin"), "{}", spec.env["PATH"]);
        assert_eq!(spec.env["BROWSER"], "/run/polydev/shim/xdg-open");
        assert_eq!((spec.env["HOME"].as_str(), spec.env["DISPLAY"].as_str()), ("/home/dev", ":1"));
        for name in ["CI", "DEBIAN_FRONTEND", "NO_BROWSER"] {
            assert!(!spec.env.contains_key(name));
        }
        assert!(spec.env.values().any(|value| value == "/etc/ssl/ca.pem"), "{}", provider.id());
        assert!(!spec.env.values().any(|value| value.contains('{')), "{:?}", spec.env);
        let production = provider.login_spec(Lane::StreamedBrowser, &Placeholders::default());
        assert!(!production.env.values().any(|value| value == "/etc/ssl/ca.pem"));
    }
}

#[test]
fn lanes_follow_from_the_rules_and_a_device_sign_in_runs_its_own_command() {
    let set = set();
    let lanes = |name| set.get(name).unwrap().lanes();
    assert_eq!(lanes("codex"), [Lane::StreamedBrowser, Lane::CallbackRelay, Lane::DeviceCode]);
    assert_eq!(lanes("gemini"), [Lane::StreamedBrowser, Lane::CallbackRelay]);
    assert_eq!(lanes("gh"), [Lane::DeviceCode]);
    let argv = |lane| set.get("codex").unwrap().login_spec(lane, &Placeholders::default()).argv;
    assert_eq!(argv(Lane::DeviceCode), ["codex", "login", "--device-auth"]);
    assert_eq!(argv(Lane::CallbackRelay), ["codex", "login"]);
}

#[test]
fn only_a_text_that_looks_like_a_code_is_typed_into_a_login() {
    let set = set();
    let claude = set.get("claude").unwrap();
    assert_eq!(claude.paste_line(" FAKEcode#FAKEstate\n").as_deref(), Some("FAKEcode#FAKEstate\n"));
    for bad in ["", "FAKEcode", "FAKEcode#", "a#b\nrm -rf ~", "http://localhost:1/callback?code=FAKE"] {
        assert_eq!(claude.paste_line(bad), None, "{bad:?}");
    }
    assert_eq!(set.get("codex").unwrap().paste_line("FAKEcode#FAKEstate"), None);
}

#[test]
fn only_the_account_of_a_shared_settings_file_is_carried_over() {
    let set = set();
    let claude = set.get("claude").unwrap();
    let mut all = files(&fixture(claude));
    let settings = all.iter_mut().find(|file| file.path == ".claude.json").unwrap();
    settings.data = FileBytes::new(
        br#"{"oauthAccount":{"emailAddress":"FAKE"},"projects":{"/secret/path":{}}}"#.to_vec(),
    );
    let put = claude.cli_files(claude.collect(all).unwrap());
    let settings = put.iter().find(|file| file.path == ".claude.json").unwrap();
    assert_eq!(settings.merge_json, ["/oauthAccount"]);
    assert_eq!(&*settings.data.0, br#"{"oauthAccount":{"emailAddress":"FAKE"}}"#);
}

#[test]
fn a_whole_address_kind_needs_its_counterpart() {
    assert_eq!(set().get("claude").unwrap().definition().url[1].yields, UrlYields::PasteCode);
    let (_, text) = shipped().into_iter().find(|(name, _)| name == "claude.toml").unwrap();
    let broken =
        text.replace("[paste]", "[cli_vm.env]").replace("pasted_regex", "A").replace("send =", "B =");
    let faults = ProviderSet::load(&[("claude.toml", broken)]).unwrap_err();
    assert!(faults.to_string().contains("paste: goes together with a url rule"), "{faults}");
}

#[test]
fn all_faults_of_all_files_are_reported_at_once() {
    let mut files = shipped();
    for (name, text) in &mut files {
        match name.as_str() {
            "codex.toml" => {
                *text = text
                    .replace("schema = 1", "schema = 7")
                    .replace(r"\b([A-Z0-9]{4}-[A-Z0-9]{5})\b", "[A-Z]{4}")
                    .replacen("path = \".codex/auth.json\"", "path = \"../auth.json\"", 2)
                    .replace("hosts = [\"auth.openai.com\"", "hosts = [\"Auth.openai.com\"");
            }
            "claude.toml" => {
                *text = text
                    .replace("\"claude_code\"", "\"gemini_cli\", \"codex\"")
                    .replace(r"Login successful\.", "Login (")
                    .replace("CLAUDE_CODE_FULL_SIGN_IN_LINK = \"1\"", "CI = \"{nowhere}\"\n\"a b\" = \"\"");
            }
            "gh.toml" => {
                *text = text
                    .replace("mode = \"0600\"", "mode = \"0666\"")
                    .replace("regex = 'https://github", "regx = 'https://github")
            }
            "demo.toml" => *text = text.replace("network = true", "network = perhaps"),
            "wrangler.toml" => *text = text.replace("restore_mode = \"0600\"\n", ""),
            _ => {}
        }
    }
    let faults = ProviderSet::load(&files).unwrap_err();
    let text = faults.to_string();
    for wanted in [
        "codex.toml: schema: 7 is unknown",
        "codex.toml: device.code_regex: needs 1 group",
        "codex.toml: success.file[0].path: \"../auth.json\" is no clean path",
        "codex.toml: credential[0].path: \"../auth.json\" is no clean path",
        "codex.toml: egress.hosts[0]: \"Auth.openai.com\" is no lower-case host name",
        "claude.toml: success.output_regex: is no regular expression",
        "claude.toml: login.env: CI would keep the CLI",
        "claude.toml: login.env.CI: {nowhere} is unknown",
        "claude.toml: login.env: \"a b\" is no variable name",
        "claude.toml: aliases: codex is a provider's id",
        "gemini.toml: aliases: gemini_cli is an alias of claude already",
        "gh.toml: url[0].regx: is unknown",
        "gh.toml: url[0].regex: is needed",
        "gh.toml: credential[0].restore_mode: 0666 lets others read a secret",
        "wrangler.toml: credential[0].restore_mode: 0644 lets others read a secret",
        "demo.toml: -: TOML parse error",
    ] {
        assert!(text.contains(wanted), "missing {wanted:?} in:\n{text}");
    }
}

#[test]
fn a_provider_needs_the_hosts_it_lists_on_web_ports_unless_it_lists_others() {
    let with = |egress: &str| {
        let text = fs::read_to_string(root().join("demo.toml")).unwrap();
        let text = text.replace("hosts = [\"id.polydev.test\"]", egress);
        ProviderSet::load(&[("demo.toml", text)]).unwrap().get("demo").unwrap().clone()
    };
    let web = with("hosts = [\"id.example.test\", \".cdn.example.test\"]");
    let reached = [("id.example.test", 443), ("id.example.test", 80), ("a.cdn.example.test", 443)];
    let others =
        [("id.example.test", 22), ("cdn.example.test", 443), ("badcdn.example.test", 443), ("a.b.test", 443)];
    assert!(reached.iter().all(|(host, port)| web.needs_host(host, *port)));
    assert!(others.iter().all(|(host, port)| !web.needs_host(host, *port)));
    let git = with("hosts = [\"id.example.test\"]\nports = [22]");
    assert!(git.needs_host("id.example.test", 22) && !git.needs_host("id.example.test", 443));
}
