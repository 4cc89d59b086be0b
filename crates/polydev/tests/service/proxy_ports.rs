//! Users' proxy ports: who gets which, who may use them, and what goes through.

use std::time::Duration;

use axum::http::StatusCode;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use polydev_core::wire::EgressReply;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    app::{TestApp, until},
    egress::{ask, cli_vm, put, speaks},
    upstreams::{Manner, Proxy, mirror, parrot},
};

const LOGIN: Option<(&str, &str)> = Some(("proxy-user", "FAKE-upstream-password"));
const DEADLINE: Duration = Duration::from_secs(20);

fn port(decided: &Value) -> u16 {
    assert_eq!(decided["proxy"]["listening"], true, "{decided}");
    decided["proxy"]["port"].as_u64().unwrap().try_into().unwrap()
}

fn token(decided: &Value) -> String {
    decided["proxyToken"].as_str().unwrap().to_owned()
}

fn login(token: &str) -> String {
    format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("any:{token}")))
}

/// Sends a request to a proxy port and gives the head of its answer.
async fn request(port: u16, line: &str, fields: &str, body: &str) -> (String, TcpStream) {
    let talk = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream
            .write_all(format!("{line}\r\nHost: ignored.test\r\n{fields}\r\n{body}").as_bytes())
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        (String::from_utf8(head).unwrap(), stream)
    };
    tokio::time::timeout(DEADLINE, talk).await.unwrap()
}

async fn connect(port: u16, to: &str, token: &str) -> (String, TcpStream) {
    request(port, &format!("CONNECT {to} HTTP/1.1"), &login(token), "").await
}

fn upstream(proxy: &Proxy) -> Value {
    let (user, password) = LOGIN.unwrap();
    json!({ "policy": "upstream", "upstream": format!("http://{user}:{password}@{}", proxy.address) })
}

/// An open connection that answers.
struct Open(BufReader<TcpStream>);

impl Open {
    async fn at(port: u16, token: &str) -> Self {
        let (head, stream) = connect(port, "api.example.test:443", token).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut open = Self(BufReader::new(stream));
        assert!(open.answers().await, "the parrot's hello");
        open
    }

    /// Whether one more line comes; `false` at the connection's end.
    async fn answers(&mut self) -> bool {
        let mut line = String::new();
        let read = tokio::time::timeout(DEADLINE, self.0.read_line(&mut line))
            .await
            .expect("neither answer nor end");
        read.is_ok_and(|bytes| bytes > 0)
    }

    async fn repeats(&mut self) -> bool {
        self.0.write_all(b"still there\n").await.is_ok() && self.answers().await
    }
}

#[tokio::test]
async fn connections_end_with_the_policy_that_let_them_out_and_with_no_other_change() {
    let app = TestApp::builder().setting("proxy_ports", "27180-27189").start().await;
    let parrot = parrot().await;
    let proxy = Proxy::http(LOGIN, parrot, Manner::Serve).await;
    let (ann, bob) = (put(&app, "ann", upstream(&proxy)).await, put(&app, "bob", upstream(&proxy)).await);
    assert_eq!(ann["connectionsEnded"], true);
    let mut anns = Open::at(port(&ann), &token(&ann)).await;
    let mut bobs = Open::at(port(&bob), &token(&bob)).await;
    let vm = cli_vm(&app, "ann").await;
    let (reply, of_vm) = ask(&app, vm, "api.example.test", 443).await;
    assert_eq!(reply, EgressReply::Connected);
    let mut of_vm = BufReader::new(of_vm);
    let mut line = String::new();
    of_vm.read_line(&mut line).await.unwrap();
    assert_eq!(line, "hello\n");

    let renewed = put(&app, "ann", json!({ "policy": "upstream", "newProxyToken": true })).await;
    assert_eq!(renewed.get("connectionsEnded"), None);
    assert!(anns.repeats().await, "a new token is for new connections");

    let denied = put(&app, "ann", json!({ "policy": "deny" })).await;
    assert_eq!(denied["connectionsEnded"], true);
    assert!(!anns.answers().await, "her proxy port's connection has ended");
    let rest = tokio::time::timeout(DEADLINE, of_vm.read_line(&mut line))
        .await
        .expect("the VM's connection goes on");
    assert!(rest.is_err() || rest.is_ok_and(|bytes| bytes == 0));
    let (reply, _) = ask(&app, vm, "api.example.test", 443).await;
    assert!(matches!(reply, EgressReply::Refused { .. }));
    assert!(bobs.repeats().await, "what others have goes on");
}

#[tokio::test]
async fn two_users_have_two_ports_two_tokens_and_two_exits() {
    let app = TestApp::builder().setting("proxy_ports", "27100-27119").start().await;
    let parrot = parrot().await;
    let (ann_proxy, bob_proxy) =
        (Proxy::http(LOGIN, parrot, Manner::Serve).await, Proxy::http(LOGIN, parrot, Manner::Serve).await);
    let (ann, bob) =
        (put(&app, "ann", upstream(&ann_proxy)).await, put(&app, "bob", upstream(&bob_proxy)).await);
    assert_ne!(port(&ann), port(&bob));
    assert_ne!(token(&ann), token(&bob));
    for (decided, name) in [(&ann, "ann.example.test:443"), (&bob, "bob.example.test:443")] {
        let (head, stream) = connect(port(decided), name, &token(decided)).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        speaks(stream).await;
    }
    assert_eq!(ann_proxy.places(), ["ann.example.test:443"]);
    assert_eq!(bob_proxy.places(), ["bob.example.test:443"]);
    let seen = app.call("GET", "/api/users/ann/egress", None).await.json();
    assert_eq!((seen["proxy"]["connected"].as_u64(), seen.get("proxyToken")), (Some(1), None));
    until("the bytes are counted", async || {
        let seen = app.call("GET", "/api/users/ann/egress", None).await.json()["proxy"].clone();
        let sums = (seen["bytesOut"].as_u64()?, seen["bytesIn"].as_u64()?, seen["active"].as_u64()?);
        (sums == (15, 21, 0)).then_some(())
    })
    .await;
    let metrics = app.call("GET", "/metrics", None).await.text;
    let line = format!("polydev_proxy_port_bytes_total{{port=\"{}\",direction=\"in\"}} 21", port(&ann));
    assert!(metrics.contains(&line), "{metrics}");
}

#[tokio::test]
async fn a_port_opens_to_its_own_token_only_and_a_new_one_ends_the_old() {
    let app = TestApp::builder().setting("proxy_ports", "27120-27139").start().await;
    let proxy = Proxy::http(LOGIN, parrot().await, Manner::Serve).await;
    let (ann, bob) = (put(&app, "ann", upstream(&proxy)).await, put(&app, "bob", upstream(&proxy)).await);
    let ask = async |fields: String| request(port(&ann), "CONNECT a.test:443 HTTP/1.1", &fields, "").await.0;
    let bearer = format!("Proxy-Authorization: Bearer {}\r\n", token(&ann));
    for wrong in [String::new(), login(""), login(&token(&bob)), login(&app.token), bearer] {
        let head = ask(wrong.clone()).await;
        assert!(head.starts_with("HTTP/1.1 407 "), "{wrong}: {head}");
        assert!(head.contains("Proxy-Authenticate: Basic realm=\"polydev\"\r\n"), "{head}");
    }
    assert!(proxy.places().is_empty());
    let kept = put(&app, "ann", json!({ "policy": "upstream" })).await;
    assert!(kept.get("proxyToken").is_none(), "a token is shown once");
    assert!(ask(login(&token(&ann))).await.starts_with("HTTP/1.1 200 "));
    let renewed = put(&app, "ann", json!({ "policy": "upstream", "newProxyToken": true })).await;
    assert_eq!(port(&renewed), port(&ann));
    assert!(ask(login(&token(&ann))).await.starts_with("HTTP/1.1 407 "));
    assert!(ask(login(&token(&renewed))).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn plain_requests_go_through_every_kind_of_upstream_without_the_token() {
    let app = TestApp::builder().setting("proxy_ports", "27140-27149").start().await;
    let mirror = mirror().await;
    let http = Proxy::http(LOGIN, mirror, Manner::Serve).await;
    let socks = Proxy::socks5(LOGIN, mirror, Manner::Serve).await;
    let decided = put(&app, "ann", upstream(&http)).await;
    let (port, token) = (port(&decided), token(&decided));
    let fields = format!("{}Content-Length: 4\r\nX-Mine: 1\r\n", login(&token));
    let ask = async || {
        let (head, mut stream) = request(port, "POST http://web.test/path?q HTTP/1.1", &fields, "body").await;
        let mut text = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        text
    };
    ask().await;
    let seen = http.seen();
    assert_eq!((seen[0].how.as_str(), seen[0].what.as_str()), ("POST", "http://web.test/path?q"));
    assert!(seen[0].head.contains("\r\nX-Mine: 1\r\n"), "{}", seen[0].head);
    assert!(!seen[0].head.contains(&STANDARD.encode(format!("any:{token}"))));
    let (user, password) = LOGIN.unwrap();
    let through = format!("socks5://{user}:{password}@{}", socks.address);
    put(&app, "ann", json!({ "policy": "upstream", "upstream": through })).await;
    let text = ask().await;
    assert!(text.starts_with("POST /path?q HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\nbody") && !text.contains("Proxy-Authorization"), "{text}");
    assert_eq!(socks.places(), ["web.test:80"]);
    // The upstream's own question for a password never reaches the client.
    let wrong = format!("http://u:FAKE-wrong@{}", http.address);
    put(&app, "ann", json!({ "policy": "upstream", "upstream": wrong })).await;
    let (head, _) = request(port, "GET http://web.test/ HTTP/1.1", &login(&token), "").await;
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("error=proxy_configuration_error"), "{head}");
}

#[tokio::test]
async fn who_answered_a_plain_request_gets_no_other_one() {
    const ANSWER: &str = "HTTP/1.1 103 Early Hints\r\n\r\n\
                          HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\n";
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (to, routes) = (server.local_addr().unwrap(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(routes.path(), format!("[[route]]\nhost='a.test'\nport=80\nto='{to}'\n")).unwrap();
    let app = TestApp::builder()
        .setting("proxy_ports", "27160-27169")
        .setting("egress_routes", routes.path().to_str().unwrap())
        .start()
        .await;
    let decided = put(&app, "ann", json!({ "policy": "direct" })).await;
    let (port, login) = (port(&decided), login(&token(&decided)));
    let (said_more, client_said_more) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(async move {
        let mut stream = BufReader::new(server.accept().await.unwrap().0);
        let mut heard = String::new();
        while !heard.ends_with("\r\n\r\n") {
            stream.read_line(&mut heard).await.unwrap();
        }
        stream.get_mut().write_all(format!("{ANSWER}go").as_bytes()).await.unwrap();
        client_said_more.await.unwrap();
        stream.get_mut().write_all(b"ne").await.unwrap();
        stream.get_mut().shutdown().await.unwrap();
        stream.read_to_string(&mut heard).await.unwrap();
        heard
    });
    let (hints, mut client) = request(port, "GET http://a.test/ HTTP/1.1", &login, "").await;
    assert!(hints.starts_with("HTTP/1.1 103 "), "{hints}");
    client.write_all(format!("GET http://b.test/ HTTP/1.1\r\n{login}\r\n").as_bytes()).await.unwrap();
    said_more.send(()).unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngone");
    drop(client);
    let heard = tokio::time::timeout(DEADLINE, serving).await.unwrap().unwrap();
    assert_eq!(heard, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    let (head, _) = request(port, "TRACE http://a.test/ HTTP/1.1", &login, "").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
}

#[tokio::test]
async fn refusals_say_why_in_a_way_programs_can_read() {
    let routes = tempfile::NamedTempFile::new().unwrap();
    let to = parrot().await;
    std::fs::write(routes.path(), format!("[[route]]\nhost='a.test'\nport=443\nto='{to}'\n")).unwrap();
    let app = TestApp::builder()
        .setting("proxy_ports", "27150-27159")
        .setting("egress_routes", routes.path().to_str().unwrap())
        .start()
        .await;
    let decided = put(&app, "ann", json!({ "policy": "direct" })).await;
    let (port, token) = (port(&decided), token(&decided));
    let (head, stream) = connect(port, "a.test:443", &token).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    speaks(stream).await;
    for (to, status, error) in [
        ("127.0.0.1:4000", "403", "http_request_denied"),
        ("169.254.169.254:80", "403", "http_request_denied"),
        ("[::1]:80", "403", "http_request_denied"),
        ("0x7f.1:80", "400", "http_request_error"),
        ("no-such-host.invalid:443", "502", "dns_error"),
    ] {
        let (head, _) = connect(port, to, &token).await;
        let wanted = format!("Proxy-Status: polydev; error={error}\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains(&wanted), "{to}: {head}");
    }
    put(&app, "ann", json!({ "policy": "deny" })).await;
    assert!(connect(port, "a.test:443", &token).await.0.starts_with("HTTP/1.1 403 "));
    let (head, _) = request(port, "GET / HTTP/1.1", &login(&token), "").await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[tokio::test]
async fn ports_and_tokens_outlive_a_crash_and_a_policy_that_is_taken_back() {
    let ports = ("proxy_ports", "27160-27169");
    let app = TestApp::builder().setting(ports.0, ports.1).start().await;
    let proxy = Proxy::http(LOGIN, parrot().await, Manner::Serve).await;
    let (ann, bob) = (put(&app, "ann", upstream(&proxy)).await, put(&app, "bob", upstream(&proxy)).await);
    let app = app.crash().await.setting(ports.0, ports.1).start().await;
    for (user, before) in [("ann", &ann), ("bob", &bob)] {
        let now = app.call("GET", &format!("/api/users/{user}/egress"), None).await.json();
        assert_eq!(port(&now), port(before));
        let (head, stream) = connect(port(before), "a.test:443", &token(before)).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        speaks(stream).await;
    }
    let reset = app.call("DELETE", "/api/users/ann/egress", None).await.json();
    assert_eq!((reset["policy"].as_str(), &reset["proxy"]), (Some("default"), &Value::Null));
    assert!(TcpStream::connect(("127.0.0.1", port(&ann))).await.is_err(), "the port is still open");
    let again = put(&app, "ann", upstream(&proxy)).await;
    assert_eq!(port(&again), port(&ann));
    assert_ne!(token(&again), token(&ann));
}

#[tokio::test]
async fn a_small_range_is_exhausted_with_a_code_and_a_removed_users_port_rests() {
    let app = TestApp::builder().setting("proxy_ports", "27170-27171").start().await;
    let direct = json!({ "policy": "direct" });
    let ann = put(&app, "ann", direct.clone()).await;
    put(&app, "bob", direct.clone()).await;
    let full = app.call("PUT", "/api/users/cleo/egress", Some(direct.clone())).await;
    let exhausted = (StatusCode::SERVICE_UNAVAILABLE, "proxy_ports_exhausted".to_owned());
    assert_eq!((full.status, full.code()), exhausted);
    let users = app.call("GET", "/api/users", None).await.json()["users"].as_array().unwrap().len();
    assert_eq!(users, 2, "who was refused is not kept");
    assert_eq!(
        app.call("DELETE", "/api/users/ann", None).await.json(),
        json!({ "success": true, "existed": true })
    );
    assert!(TcpStream::connect(("127.0.0.1", port(&ann))).await.is_err(), "the port is still open");
    let full = app.call("PUT", "/api/users/cleo/egress", Some(direct.clone())).await;
    assert_eq!((full.status, full.code()), exhausted, "the port was not given a rest");
    let rest = ("proxy_port_rest_s", "0");
    let app = app.crash().await.setting("proxy_ports", "27170-27171").setting(rest.0, rest.1).start().await;
    let cleo = put(&app, "cleo", direct).await;
    assert_eq!(port(&cleo), port(&ann), "after its rest it is given out again");
    assert!(connect(port(&cleo), "a.test:443", &token(&ann)).await.0.starts_with("HTTP/1.1 407 "));
}

#[tokio::test]
async fn a_port_that_another_program_has_is_left_alone() {
    let other = tokio::net::TcpListener::bind("127.0.0.1:27180").await.unwrap();
    let app = TestApp::builder().setting("proxy_ports", "27180-27181").start().await;
    let ann = put(&app, "ann", json!({ "policy": "direct" })).await;
    assert_eq!(port(&ann), 27181);
    drop(other);
    let app = app.crash().await;
    let thief = tokio::net::TcpListener::bind("127.0.0.1:27181").await.unwrap();
    let app = app.setting("proxy_ports", "27180-27181").start().await;
    let seen = app.call("GET", "/api/users/ann/egress", None).await.json();
    assert_eq!(
        (seen["proxy"]["port"].as_u64(), seen["proxy"]["listening"].as_bool()),
        (Some(27181), Some(false))
    );
    let busy = app.call("PUT", "/api/users/ann/egress", Some(json!({ "policy": "direct" }))).await;
    assert_eq!(busy.code(), "proxy_port_busy");
    drop(thief);
    assert_eq!(port(&put(&app, "ann", json!({ "policy": "direct" })).await), 27181);
}
