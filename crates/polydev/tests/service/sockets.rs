use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::app::TestApp;

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

#[tokio::test]
async fn the_live_browser_goes_both_ways_counts_as_activity_and_ends_with_its_vm() {
    let app = TestApp::start().await;
    let address = listen(&app).await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    let path = format!("/api/auth/session/{id}/vnc");
    let mut socket = connect(&app, address, &path, &[("sec-websocket-protocol", "binary")]).await.unwrap();
    assert_eq!(binary(&mut socket).await, b"RFB 003.008\n");
    let key = [4u8, 1, 0, 0, 0, 0, 0, 97];
    socket.send(Message::Binary(key.to_vec().into())).await.unwrap();
    assert_eq!(binary(&mut socket).await, key);
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
