//! VMs' traffic by users' policies, through real upstream proxies.

use std::time::Duration;

use axum::http::StatusCode;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use polydev_core::{ids::VmId, wire::EgressReply};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use crate::{
    app::TestApp,
    upstreams::{Manner, Proxy, parrot},
};

const USER: &str = "proxy-user";
const PASSWORD: &str = "FAKE-upstream-password-7f3a";
const LOGIN: Option<(&str, &str)> = Some((USER, PASSWORD));
/// Nothing that a test waits for takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// Decides about a user's traffic; the answer must be good.
pub(crate) async fn put(app: &TestApp, user: &str, body: Value) -> Value {
    let answer = app.call("PUT", &format!("/api/users/{user}/egress"), Some(body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

pub(crate) async fn cli_vm(app: &TestApp, user: &str) -> VmId {
    let answer = app.call("POST", "/api/vms", Some(json!({ "userId": user }))).await;
    answer.json()["id"].as_str().unwrap_or_else(|| panic!("{}", answer.text)).parse().unwrap()
}

/// What a VM is told that asks for a connection, and the connection.
pub(crate) async fn ask(
    app: &TestApp,
    vm: VmId,
    host: &str,
    port: u16,
) -> (EgressReply, impl AsyncRead + AsyncWrite + Unpin) {
    tokio::time::timeout(DEADLINE, app.driver.egress(vm, host, port)).await.unwrap().unwrap()
}

/// The parrot at the other end says hello, and back what it is told.
pub(crate) async fn speaks(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let talk = async {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        stream.write_all(b"there and back\n").await.unwrap();
        stream.flush().await.unwrap();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "hello\nthere and back\n");
    };
    tokio::time::timeout(DEADLINE, talk).await.unwrap();
}

fn refusal(reply: EgressReply) -> String {
    match reply {
        EgressReply::Refused { reason } => reason,
        EgressReply::Connected => panic!("it was let out"),
    }
}

#[tokio::test]
async fn a_vm_goes_out_through_its_users_upstream_whatever_kind_it_is_and_names_stay_names() {
    let app = TestApp::builder().setting("proxy_ports", "27000-27019").start().await;
    let parrot = parrot().await;
    let proxies = [
        ("http", "ann", "", Proxy::http(None, parrot, Manner::Serve).await, "CONNECT"),
        (
            "http",
            "bea",
            "proxy-user:FAKE-upstream-password-7f3a@",
            Proxy::http(LOGIN, parrot, Manner::Serve).await,
            "CONNECT",
        ),
        ("socks5", "cat", "", Proxy::socks5(None, parrot, Manner::Serve).await, "socks5"),
        (
            "socks5",
            "dot",
            "proxy-user:FAKE-upstream-password-7f3a@",
            Proxy::socks5(LOGIN, parrot, Manner::Serve).await,
            "socks5",
        ),
    ];
    for (scheme, user, login, proxy, how) in &proxies {
        let vm = cli_vm(&app, user).await;
        let refused = refusal(ask(&app, vm, "api.example.test", 443).await.0);
        assert!(refused.contains("nothing may leave"), "{refused}");
        let upstream = format!("{scheme}://{login}{}", proxy.address);
        let decided = put(&app, user, json!({ "policy": "upstream", "upstream": upstream })).await;
        assert_eq!(decided["upstream"]["hasCredentials"], !login.is_empty());
        let (reply, stream) = ask(&app, vm, "API.example.test.", 443).await;
        assert_eq!(reply, EgressReply::Connected);
        speaks(stream).await;
        let seen = proxy.seen();
        assert_eq!(
            (seen.len(), seen[0].how.as_str(), seen[0].what.as_str()),
            (1, *how, "api.example.test:443")
        );
        let counts = app.call("GET", &format!("/api/vms/{vm}"), None).await.json()["egress"].clone();
        assert_eq!((&counts["allowed"], &counts["refused"]), (&json!(1), &json!(1)));
    }
}

#[tokio::test]
async fn an_upstream_that_fails_is_told_apart_and_never_gone_around() {
    let app =
        TestApp::builder().setting("proxy_ports", "27020-27029").setting("egress", "direct").start().await;
    let parrot = parrot().await;
    let vm = cli_vm(&app, "ann").await;
    let gone = Proxy::http(None, parrot, Manner::Serve).await;
    let gone_address = gone.address;
    gone.stop().await;
    let http = Proxy::http(LOGIN, parrot, Manner::Serve).await;
    let socks = Proxy::socks5(LOGIN, parrot, Manner::Serve).await;
    let forbids = Proxy::http(None, parrot, Manner::Forbid).await;
    let rules = Proxy::socks5(None, parrot, Manner::Forbid).await;
    let (mail, web) =
        (Proxy::http(None, parrot, Manner::Babble).await, Proxy::socks5(None, parrot, Manner::Babble).await);
    let cases = [
        (format!("http://{gone_address}"), "cannot be connected to"),
        (format!("http://u:FAKE-wrong@{}", http.address), "does not take the user name and password"),
        (format!("http://{}", http.address), "does not take the user name and password"),
        (format!("socks5://u:FAKE-wrong@{}", socks.address), "does not take the user name and password"),
        (format!("socks5://{}", socks.address), "does not take the user name and password"),
        (format!("http://{}", forbids.address), "forbids it"),
        (format!("socks5://{}", rules.address), "forbids it"),
        (format!("http://{}", mail.address), "does not speak its protocol"),
        (format!("socks5://{}", web.address), "does not speak its protocol"),
        ("http://no-such-proxy.invalid:3128".to_owned(), "name does not resolve"),
    ];
    for (upstream, why) in &cases {
        put(&app, "ann", json!({ "policy": "upstream", "upstream": upstream })).await;
        let reason = refusal(ask(&app, vm, "example.test", 443).await.0);
        assert!(reason.contains(why), "{upstream}: {reason}");
        assert!(!reason.contains("FAKE") && !reason.contains("127.0.0.1"), "{reason}");
    }
    for inside in ["10.0.0.1", "169.254.169.254", "localhost", "metadata.google.internal", "127.1", "[::1]"] {
        let reply = ask(&app, vm, inside, 80).await.0;
        refusal(reply);
    }
    let counts = app.call("GET", &format!("/api/vms/{vm}"), None).await.json()["egress"].clone();
    assert_eq!(counts["allowed"], 0);
    assert!(http.places().is_empty() && socks.places().is_empty());
}

#[tokio::test]
async fn a_browser_vm_belongs_to_its_user_and_tool() {
    let app = TestApp::builder()
        .setting("proxy_ports", "27030-27039")
        .setting("egress_strict", "sign_in")
        .setting("egress_hosts", "login.corp.test")
        .start()
        .await;
    let proxy = Proxy::http(LOGIN, parrot().await, Manner::Serve).await;
    let upstream = format!("http://{USER}:{PASSWORD}@{}", proxy.address);
    put(&app, "ann", json!({ "policy": "upstream", "upstream": upstream })).await;
    let id = app.begin("ann").await;
    let (vm, _) = app.to_the_person(id).await;
    for listed in ["id.example.test", "login.corp.test"] {
        assert_eq!(ask(&app, vm, listed, 443).await.0, EgressReply::Connected, "{listed}");
    }
    for (host, port) in [("accounts.other.test", 443), ("id.example.test", 22)] {
        assert!(refusal(ask(&app, vm, host, port).await.0).contains("not on the list"), "{host}:{port}");
    }
    assert_eq!(proxy.places(), ["id.example.test:443", "login.corp.test:443"]);
}

#[tokio::test]
async fn the_upstreams_password_is_in_no_answer_log_or_file() {
    let logged = crate::logged::everything();
    let app = TestApp::builder().setting("proxy_ports", "27040-27049").start().await;
    let proxy = Proxy::http(LOGIN, parrot().await, Manner::Serve).await;
    let wrong = Proxy::http(Some((USER, "FAKE-other")), parrot().await, Manner::Serve).await;
    let vm = cli_vm(&app, "ann").await;
    let mut texts = Vec::new();
    for place in [wrong.address, proxy.address] {
        let upstream = format!("http://{USER}:{PASSWORD}@{place}");
        texts.push(put(&app, "ann", json!({ "policy": "upstream", "upstream": upstream })).await.to_string());
        texts.push(format!("{:?}", ask(&app, vm, "example.test", 443).await.0));
    }
    assert_eq!(proxy.places(), ["example.test:443"], "the password was used");
    let mistaken = json!({ "policy": format!("http://{USER}:{PASSWORD}@{}", proxy.address) });
    let unknown =
        json!({ "policy": "deny", "upstream": format!("gopher://{USER}:{PASSWORD}@{}", proxy.address) });
    for body in [mistaken, unknown] {
        let answer = app.call("PUT", "/api/users/ann/egress", Some(body)).await;
        assert!(answer.status.is_client_error(), "{}", answer.text);
        texts.push(answer.text);
    }
    for path in ["/api/users", "/api/users/ann/egress", "/api/vms", "/metrics", "/health"] {
        texts.push(app.call("GET", path, None).await.text);
    }
    texts.push(format!("{:?}", app.app.store.audit_entries(100).await.unwrap()));
    texts.push(format!("{:?}", app.driver.agent(vm).unwrap().requests()));
    let database = app.database();
    let dir = database.parent().unwrap().to_owned();
    let files = || {
        let names = ["polydev.db", "polydev.db-wal", "polydev.db-shm"];
        names.iter().filter_map(|name| std::fs::read(dir.join(name)).ok()).flatten().collect::<Vec<u8>>()
    };
    let mut bytes = files();
    let kept = app.crash().await;
    bytes.extend(files());
    drop(kept);
    let log = logged.lock().unwrap().clone();
    assert!(String::from_utf8_lossy(&log).contains("egress policy changed"), "the log was looked at");
    assert!(contains(&bytes, b"egress_policies"), "the file was looked at");
    let spellings = [
        PASSWORD.to_owned(),
        PASSWORD.replace('-', "%2D"),
        STANDARD.encode(format!("{USER}:{PASSWORD}")),
        STANDARD.encode(PASSWORD),
    ];
    for spelling in &spellings {
        let spelling = spelling.trim_end_matches('=');
        for text in &texts {
            assert!(!text.contains(spelling), "{text}");
        }
        assert!(!contains(&bytes, spelling.as_bytes()), "it is in the database");
        assert!(!contains(&log, spelling.as_bytes()), "it is in the log");
    }
}

#[tokio::test]
async fn what_is_no_policy_is_refused_with_a_code() {
    let app = TestApp::builder().setting("proxy_ports", "27050-27059").start().await;
    let cases = [
        (json!({ "policy": "through" }), StatusCode::BAD_REQUEST, "invalid_request"),
        (json!({ "policy": "deny", "colour": 1 }), StatusCode::BAD_REQUEST, "invalid_request"),
        (json!({ "policy": "upstream" }), StatusCode::UNPROCESSABLE_ENTITY, "invalid_upstream"),
        (
            json!({ "policy": "upstream", "upstream": "https://p.test:1" }),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_upstream",
        ),
        (
            json!({ "policy": "direct", "upstream": "http://p.test:1" }),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_upstream",
        ),
        (
            json!({ "policy": "upstream", "upstream": "http://127.0.0.1:27055" }),
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_upstream",
        ),
    ];
    for (body, status, code) in cases {
        let answer = app.call("PUT", "/api/users/ann/egress", Some(body.clone())).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}");
    }
    let answer = app.call("PUT", "/api/users/a%2Fb/egress", Some(json!({ "policy": "deny" }))).await;
    assert_eq!(answer.code(), "invalid_user_id");
    assert_eq!(app.call("GET", "/api/users", None).await.json(), json!({ "users": [] }));
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
