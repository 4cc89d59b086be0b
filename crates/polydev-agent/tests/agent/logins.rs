//! The login runner against scripts that behave as vendors' programs do at their best and worst.

use std::collections::BTreeMap;

use polydev_core::wire::{
    AgentEvent, CallbackRule, ErrorCode, ExpectStep, FileFormat, JsonRpcStep, LoginEnd, LoginSpec,
    LoginStdio, Request, RequiredFile, SuccessRule, UrlRule, UrlSource, UrlYields,
};

use crate::{client::Client, guest::Guest};

const PATH: &str = "/run/polydev/shim:/usr/local/bin:/usr/bin:/bin";
const SIGN_IN: &str =
    "https://id.test/authorize?client_id=FAKE&redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fcallback&state=s1";

/// A login that runs a shell script and is done when it exits with 0 and wrote a complete file.
fn spec(script: &str) -> LoginSpec {
    let rule = UrlRule {
        source: UrlSource::BrowserShim,
        yields: UrlYields::Loopback,
        host: Some("id.test".into()),
        path: Some("/authorize".into()),
        scheme: None,
        port: None,
        require_query: vec!["state".into()],
        regex: None,
    };
    let output = UrlRule {
        source: UrlSource::Output,
        yields: UrlYields::PasteCode,
        regex: Some(r"https://id\.test/paste\?\S+".into()),
        host: None,
        path: None,
        require_query: vec![],
        ..rule.clone()
    };
    let device = UrlRule {
        yields: UrlYields::Device,
        regex: Some(r"https://id\.test/device".into()),
        ..output.clone()
    };
    let require = vec!["/tokens/access".into()];
    LoginSpec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdio: LoginStdio::Null,
        env: BTreeMap::from([("PATH".into(), PATH.into()), ("HOME".into(), "/home/dev".into())]),
        seed_files: vec![],
        expect: vec![],
        jsonrpc: vec![],
        url_rules: vec![rule, output, device],
        device_code_regex: Some(r"code: ([A-Z]{4}-[0-9]{4})".into()),
        callback: Some(CallbackRule { ports: vec![1455], path: "/callback".into() }),
        success: SuccessRule {
            exit_code: Some(0),
            output_regex: None,
            jsonrpc_result_id: None,
            files: vec![RequiredFile { path: ".tool/auth.json".into(), format: FileFormat::Json, require }],
        },
        idle_timeout_ms: 20_000,
    }
}

const WRITE: &str =
    r#"mkdir -p .tool; printf '{"tokens":{"access":"FAKE"}}' > .tool/new; mv .tool/new .tool/auth.json; "#;

async fn start(host: &mut Client, spec: LoginSpec) {
    host.identify(false).await;
    host.ask(Request::StartLogin(spec)).await.expect("login starts");
}

async fn ended(host: &mut Client) -> (LoginEnd, String) {
    host.event(|event| match event {
        AgentEvent::LoginEnded { end, output_tail } => Some((end.clone(), output_tail.clone())),
        _ => None,
    })
    .await
}

async fn captured(host: &mut Client) -> (String, UrlYields) {
    host.event(|event| match event {
        AgentEvent::UrlCaptured { url, yields } => Some((url.clone(), *yields)),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_login_that_hands_over_its_url_and_writes_its_file_is_signed_in() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = format!(
        "id -u > who; env | sort > env; xdg-open '{SIGN_IN}'; while ! test -e go; do sleep 0.05; done; {WRITE}"
    );
    start(&mut host, spec(&script)).await;
    assert_eq!(captured(&mut host).await, (SIGN_IN.into(), UrlYields::Loopback));
    let second = host.ask(Request::StartLogin(spec("true"))).await;
    assert_eq!(second.unwrap_err().code, ErrorCode::Conflict);
    host.sh("touch go").await;
    host.event(|e| (*e == AgentEvent::CredentialSeen).then_some(())).await;
    assert_eq!(ended(&mut host).await.0, LoginEnd::SignedIn);
    let (_, text) = host.sh("cat who; grep -v -e PWD -e SHLVL -e '^_=' -e OLDPWD env").await;
    assert_eq!(text, format!("1000\nHOME=/home/dev\nPATH={PATH}\n"), "nothing is inherited");
    // A controller that comes back later hears how it ended.
    let mut later = guest.connect().await;
    assert_eq!(ended(&mut later).await.0, LoginEnd::SignedIn);
}

#[tokio::test]
async fn the_callback_is_seen_without_a_probe_and_may_be_replayed() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    // Like the pickiest real listener: gives up at the first request that is not the callback.
    let script = format!(
        r#"xdg-open '{SIGN_IN}'; python3 - <<'PY'
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if not self.path.startswith('/callback?'): sys.exit(7)
        self.send_response(302 if 'code=' in self.path else 200); self.send_header('Location', 'https://id.test/done'); self.end_headers()
    def log_message(self, *a): pass
s = http.server.HTTPServer(('127.0.0.1', 1455), H); open('listening', 'w').close(); s.handle_request()
PY
{WRITE}"#
    );
    start(&mut host, spec(&script)).await;
    captured(&mut host).await;
    host.sh("until test -e listening; do sleep 0.05; done").await;
    for (url, code) in [
        ("http://localhost:1455/callback?code=FAKE&state=other", ErrorCode::UrlRefused),
        ("http://localhost:22/callback?code=FAKE&state=s1", ErrorCode::UrlRefused),
        ("http://id.test:1455/callback?code=FAKE&state=s1", ErrorCode::UrlRefused),
    ] {
        let refusal = host.ask(Request::ReplayCallback { url: url.into() }).await.unwrap_err();
        assert_eq!(refusal.code, code, "{url}");
    }
    let url = "http://localhost:1455/callback?code=FAKE&state=s1".to_owned();
    host.ask(Request::ReplayCallback { url }).await.unwrap();
    host.event(|e| (*e == AgentEvent::CallbackSeen).then_some(())).await;
    assert_eq!(ended(&mut host).await.0, LoginEnd::SignedIn);
}

#[tokio::test]
async fn a_program_that_exits_early_fails_with_its_status_and_words() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    start(&mut host, spec("echo see https://id.test/x?secret=FAKE; echo cannot do it >&2; exit 3")).await;
    let (end, tail) = ended(&mut host).await;
    assert_eq!(
        end,
        LoginEnd::Failed { exit_code: Some(3), reason: "the program ended with status 3".into() }
    );
    assert!(tail.contains("cannot do it") && !tail.contains("FAKE"), "{tail}");
}

#[tokio::test]
async fn success_without_the_file_or_with_half_of_it_is_a_failure() {
    for (script, why) in [
        ("exit 0", "was not written"),
        (r#"mkdir .tool; printf '{"tokens":{"access":"FA' > .tool/auth.json"#, "not well-formed"),
        (r#"mkdir .tool; printf '{"tokens":{"access":""}}' > .tool/auth.json"#, "lacks /tokens/access"),
        ("mkdir .tool; ln -s /etc/hostname .tool/auth.json", "cannot be read"),
    ] {
        let Some(guest) = Guest::start() else { return };
        let mut host = guest.connect().await;
        start(&mut host, spec(script)).await;
        let (end, _) = ended(&mut host).await;
        assert!(
            matches!(&end, LoginEnd::Failed { exit_code: Some(0), reason } if reason.contains(why)),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn a_missing_program_is_an_end_not_a_refusal() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    start(&mut host, LoginSpec { argv: vec!["no-such-tool".into()], ..spec("") }).await;
    let (end, _) = ended(&mut host).await;
    assert!(
        matches!(&end, LoginEnd::Failed { exit_code: None, reason } if reason.contains("no-such-tool")),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_foreign_url_is_refused_and_told_without_its_query() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = "xdg-open 'https://evil.test/authorize?state=FAKE'; sensible-browser --new-window 'https://id.test/authorize?state=s'; sleep 20";
    start(&mut host, spec(script)).await;
    // The two calls are separate connections; either may be heard first.
    let origin = host
        .event(|e| match e {
            AgentEvent::UrlRefused { origin } => Some(origin.clone()),
            _ => None,
        })
        .await;
    assert_eq!(origin, "https://evil.test/authorize");
    let known = |e: &AgentEvent| matches!(e, AgentEvent::UrlCaptured { url, .. } if url == "https://id.test/authorize?state=s");
    if !host.passed().iter().any(known) {
        captured(&mut host).await;
    }
    host.ask(Request::CancelLogin).await.unwrap();
    assert_eq!(ended(&mut host).await.0, LoginEnd::Cancelled);
}

#[tokio::test]
async fn a_silent_program_times_out_and_its_whole_group_is_killed() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = "trap '' TERM; sleep 4321 & sleep 4321";
    start(&mut host, LoginSpec { idle_timeout_ms: 500, ..spec(script) }).await;
    assert_eq!(ended(&mut host).await.0, LoginEnd::TimedOut);
    let left = "for i in $(seq 100); do grep -qs '^4321$' /proc/[0-9]*/comm || cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep [4]321' || exit 0; sleep 0.1; done; exit 1";
    assert_eq!(host.sh(left).await.0, 0, "nothing of the login is left");
}

#[tokio::test]
async fn output_counts_as_progress() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = format!("for i in 1 2 3 4 5 6 7 8; do echo working; sleep 0.3; done; {WRITE}");
    start(&mut host, LoginSpec { idle_timeout_ms: 1500, ..spec(&script) }).await;
    assert_eq!(ended(&mut host).await.0, LoginEnd::SignedIn);
}

#[tokio::test]
async fn urls_and_codes_are_found_in_coloured_output_even_in_pieces_and_without_a_line_end() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = r"printf 'go to \033[1mhttps://id.test/'; sleep 0.1; printf 'device\033[0m\nyour code: \033[36mABCD'; sleep 0.1; printf -- '-1234\033[0m'; sleep 20";
    start(&mut host, spec(script)).await;
    let device = host
        .event(|e| match e {
            AgentEvent::DeviceCode { url, code } => Some((url.clone(), code.clone())),
            _ => None,
        })
        .await;
    assert_eq!(device, ("https://id.test/device".into(), "ABCD-1234".into()));
}

#[tokio::test]
async fn prompts_are_answered_in_a_terminal_and_a_pasted_code_arrives() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = format!(
        "tty >/dev/null || exit 9; printf 'plain file? (y/N) '; read a; echo https://id.test/paste?x=1; printf 'code: '; read c; test \"$a$c\" = yFAKEcode#FAKEstate || exit 8; {WRITE}"
    );
    let mut spec = spec(&script);
    spec.stdio = LoginStdio::Pty { cols: 200, rows: 40 };
    spec.expect = vec![ExpectStep { regex: r"\(y/N\)".into(), send: "y\n".into() }];
    start(&mut host, spec).await;
    assert_eq!(captured(&mut host).await, ("https://id.test/paste?x=1".into(), UrlYields::PasteCode));
    host.ask(Request::LoginInput { text: "FAKEcode#FAKEstate\n".into() }).await.unwrap();
    let (end, tail) = ended(&mut host).await;
    assert_eq!(end, LoginEnd::SignedIn);
    assert!(!tail.contains("FAKE"), "{tail}");
}

fn rpc(script: &str) -> LoginSpec {
    let step = |send: &str, wait_id| JsonRpcStep { send: send.into(), wait_id };
    let mut spec = spec(script);
    spec.stdio = LoginStdio::Pipe;
    spec.jsonrpc = vec![
        step(r#"{"id":0,"method":"initialize"}"#, Some(0)),
        step(r#"{"id":1,"method":"authenticate"}"#, Some(1)),
    ];
    spec.success.exit_code = None;
    spec.success.jsonrpc_result_id = Some(1);
    spec
}

#[tokio::test]
async fn a_json_rpc_login_survives_junk_and_stops_the_program_at_its_result() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = format!(
        r#"read a; echo 'Loaded cached junk {{'; echo '{{"id":0,"result":{{}}}}'; read b; xdg-open '{SIGN_IN}'
echo 'Enter the code:'; until test -e go; do sleep 0.05; done; {WRITE} echo '{{"method":"update","id":1}}'; echo '{{"id":1,"result":{{}}}}'; while :; do sleep 1; done"#
    );
    start(&mut host, rpc(&script)).await;
    assert_eq!(captured(&mut host).await.0, SIGN_IN);
    host.sh("touch go").await;
    assert_eq!(ended(&mut host).await.0, LoginEnd::SignedIn);
}

#[tokio::test]
async fn a_json_rpc_error_is_a_failure_even_when_the_file_is_there() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let script = format!(
        r#"read a; echo '{{"id":0,"result":{{}}}}'; read b; {WRITE} echo '{{"id":1,"error":{{"message":"not eligible"}}}}'; sleep 20"#
    );
    start(&mut host, rpc(&script)).await;
    let (end, _) = ended(&mut host).await;
    assert!(matches!(&end, LoginEnd::Failed { reason, .. } if reason.contains("not eligible")), "{end:?}");
}
