use std::{net::SocketAddr, time::Duration};

use futures::{SinkExt, StreamExt};
use polydev_core::desktop::ToDesktop;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{app::TestApp, desktop::Scene};

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(crate) async fn listen(app: &TestApp) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = app.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

pub(crate) async fn connect(
    app: &TestApp,
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Socket, Error> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    request.headers_mut().insert("host", HeaderValue::from_static("127.0.0.1:4000"));
    let bearer = format!("Bearer {}", app.token);
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    tokio_tungstenite::connect_async(request).await.map(|(socket, _)| socket)
}

async fn binary(socket: &mut Socket) -> Vec<u8> {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => return bytes.to_vec(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The version a VNC viewer answers with, no password, and a wish to throw others out.
const HANDSHAKE: &[u8] = b"RFB 003.008\n\x01\x00";
const KEY_DOWN: [u8; 8] = [4, 1, 0, 0, 0, 0, 0, 97];
const KEY_UP: [u8; 8] = [4, 0, 0, 0, 0, 0, 0, 97];
const CLICK: [u8; 6] = [5, 1, 0, 7, 0, 9];
const WORDS: (&str, &str) = ("sec-websocket-protocol", "polydev.vnc.v1");
const RFB_ALONE: (&str, &str) = ("sec-websocket-protocol", "binary");

/// A VNC viewer of a guest that echoes: what comes back is what the controller let through.
struct Vnc {
    socket: Socket,
    echoed: Vec<u8>,
    words: Vec<Value>,
    updates: u8,
}

impl Vnc {
    async fn connect(app: &TestApp, address: SocketAddr, path: &str, protocol: (&'static str, &str)) -> Self {
        let socket = connect(app, address, path, &[protocol]).await.unwrap();
        let mut vnc = Self { socket, echoed: Vec::new(), words: Vec::new(), updates: 0 };
        vnc.until("the server's version", |vnc| vnc.echoed.len() == 12).await;
        assert_eq!(std::mem::take(&mut vnc.echoed), b"RFB 003.008\n");
        vnc.send(HANDSHAKE).await;
        vnc.until("the handshake has passed", |vnc| vnc.echoed.len() == HANDSHAKE.len()).await;
        assert_eq!(std::mem::take(&mut vnc.echoed), b"RFB 003.008\n\x01\x01", "nobody is thrown out");
        vnc
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.send(Message::Binary(bytes.to_vec().into())).await.unwrap();
    }

    async fn say(&mut self, words: Value) {
        self.socket.send(Message::Text(words.to_string().into())).await.unwrap();
    }

    /// Sends this and a request for a picture, and gives what was let through before that.
    async fn passed(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.updates += 1;
        let request = [3, 1, 0, 0, 0, 0, 0, 1, 0, self.updates];
        self.send(&[bytes, &request].concat()).await;
        self.until("the request has passed", |vnc| vnc.echoed.ends_with(&request)).await;
        let mut echoed = std::mem::take(&mut self.echoed);
        echoed.truncate(echoed.len() - request.len());
        echoed
    }

    async fn word(&mut self, kind: &str) -> Value {
        self.until(kind, |vnc| vnc.words.iter().any(|word| word["type"] == kind)).await;
        let at = self.words.iter().position(|word| word["type"] == kind).unwrap();
        self.words.drain(..=at).next_back().unwrap()
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let hearing = async {
            while !wanted(self) {
                match self.socket.next().await.unwrap().unwrap() {
                    Message::Binary(bytes) => self.echoed.extend_from_slice(&bytes),
                    Message::Text(text) => self.words.push(serde_json::from_str(&text).unwrap()),
                    Message::Ping(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        timeout(DEADLINE, hearing).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

#[tokio::test]
async fn a_vnc_viewer_acts_only_while_it_is_in_control_and_lets_go_when_it_hands_it_over() {
    let scene = Scene::new().await;
    let address = listen(&scene.app).await;
    let path = format!("/api/auth/session/{}/vnc", scene.id);
    let mut first = Vnc::connect(&scene.app, address, &path, WORDS).await;
    assert_eq!(first.word("hello").await["role"], "control");
    let mut second = Vnc::connect(&scene.app, address, &path, WORDS).await;
    let hello = second.word("hello").await;
    assert_eq!((&hello["role"], &hello["mayControl"]), (&json!("view"), &json!(true)));
    let mut looker = Vnc::connect(&scene.app, address, &format!("{path}?role=view"), WORDS).await;

    let cut_text = [&[6, 0, 0, 0, 0, 0, 0, 4][..], b"FAKE"].concat();
    let resize = [&[251, 0, 3, 0, 2, 0, 1, 0][..], &[0; 16]].concat();
    let deeds = [&KEY_DOWN[..], &CLICK, &cut_text, &resize, &KEY_UP].concat();
    assert_eq!(second.passed(&deeds).await, b"", "it watches");
    assert_eq!(second.word("refused").await["code"], "view_only");
    assert_eq!(looker.passed(&deeds).await, b"", "it may never do more");
    looker.say(json!({ "type": "requestControl" })).await;
    assert_eq!(looker.word("refused").await["code"], "view_only");
    let held = [&KEY_DOWN[..], &CLICK].concat();
    assert_eq!(first.passed(&held).await, held);

    second.say(json!({ "type": "requestControl" })).await;
    assert_eq!(first.word("controlRequested").await["viewer"], 2);
    first.say(json!({ "type": "releaseControl", "to": 2 })).await;
    assert_eq!(second.word("role").await["role"], "control");
    let let_go = [&KEY_UP[..], &[5, 0, 0, 7, 0, 9]].concat();
    first.until("what it held is let go", |vnc| vnc.echoed == let_go).await;
    first.echoed.clear();
    assert_eq!(first.passed(&deeds).await, b"");
    let allowed = [&KEY_DOWN[..], &CLICK, &resize, &KEY_UP].concat();
    assert_eq!(second.passed(&deeds).await, allowed, "all but the text");
}

#[tokio::test]
async fn viewers_of_all_lanes_share_one_control_and_vnc_alone_needs_no_stream() {
    let scene = Scene::new().await;
    let address = listen(&scene.app).await;
    let watches = || scene.agent.desktop().heard().contains(&ToDesktop::Watch(true));
    let path = format!("/api/auth/session/{}/vnc", scene.id);
    // Any VNC viewer for WebSockets: it knows no words and gets none.
    let mut plain = Vnc::connect(&scene.app, address, &path, RFB_ALONE).await;
    assert_eq!(plain.passed(&KEY_DOWN).await, KEY_DOWN);
    scene
        .app
        .session_until(scene.id, "the person is active", |s| s["steps"].to_string().contains("user_active"))
        .await;
    assert!(!watches(), "nobody looks at the stream");
    let stream = format!("/api/stream/{}", scene.id);
    let mut other = connect(&scene.app, address, &stream, &[]).await.unwrap();
    scene.told("somebody looks at the stream", |told| *told == ToDesktop::Watch(true)).await;
    other.send(Message::Text(json!({ "type": "requestControl" }).to_string().into())).await.unwrap();
    drop(plain);
    let role = async {
        loop {
            if let Message::Text(text) = other.next().await.unwrap().unwrap()
                && text.contains(r#""type":"role""#)
            {
                return text;
            }
        }
    };
    assert!(timeout(DEADLINE, role).await.unwrap().contains("control"));
    let mut plain = Vnc::connect(&scene.app, address, &path, RFB_ALONE).await;
    assert_eq!(plain.passed(&KEY_DOWN).await, b"", "the other one has it");
    assert!(plain.words.is_empty());
}

#[tokio::test]
async fn what_is_no_rfb_ends_the_connection_of_its_viewer_only() {
    let scene = Scene::new().await;
    let address = listen(&scene.app).await;
    let path = format!("/api/auth/session/{}/vnc", scene.id);
    let mut good = Vnc::connect(&scene.app, address, &path, WORDS).await;
    let mut wild = Vnc::connect(&scene.app, address, &path, WORDS).await;
    wild.send(&[7, 7, 7]).await;
    let ends = async { while let Some(Ok(_)) = wild.socket.next().await {} };
    timeout(DEADLINE, ends).await.expect("the connection ends");
    assert_eq!(good.passed(&KEY_DOWN).await, KEY_DOWN);
}

#[tokio::test]
async fn the_live_browser_goes_both_ways_counts_as_activity_and_ends_with_its_vm() {
    let app = TestApp::start().await;
    let address = listen(&app).await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    let path = format!("/api/auth/session/{id}/vnc");
    let Vnc { mut socket, .. } = {
        let mut vnc = Vnc::connect(&app, address, &path, RFB_ALONE).await;
        assert_eq!(vnc.passed(&KEY_DOWN).await, KEY_DOWN);
        vnc
    };
    app.session_until(id, "the person is active", |s| s["steps"].to_string().contains("user_active")).await;
    app.driver.kill(vm);
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
}

#[tokio::test]
async fn a_socket_from_another_page_is_refused() {
    let app = TestApp::start().await;
    let address = listen(&app).await;
    let id = app.begin("alice").await;
    app.to_the_person(id).await;
    let path = format!("/api/auth/session/{id}/vnc");
    let refused = connect(&app, address, &path, &[("origin", "http://evil.example.test")]).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 403));
}

#[tokio::test]
async fn a_terminal_echoes_resizes_and_tells_the_shells_end() {
    let app = TestApp::start().await;
    let address = listen(&app).await;
    let vm = app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await.json();
    let path = format!("/api/vms/{}/terminal?cols=100&rows=30", vm["id"].as_str().unwrap());
    let mut socket = connect(&app, address, &path, &[]).await.unwrap();
    socket.send(Message::Binary(b"hello".to_vec().into())).await.unwrap();
    assert_eq!(binary(&mut socket).await, b"hello");
    socket.send(Message::Text(r#"{"type":"resize","cols":120,"rows":40}"#.into())).await.unwrap();
    assert_eq!(binary(&mut socket).await, b"120x40");
    socket.send(Message::Binary(b"exit\n".to_vec().into())).await.unwrap();
    let text = loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => break text,
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(text.as_str(), r#"{"type":"exit","code":0}"#);
}
