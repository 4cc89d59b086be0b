//! The live desktop over a WebSocket.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use polydev_core::desktop::{FromDesktop, InputEvent};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::{
    app::TestApp,
    desktop::Scene,
    sockets::{Socket, connect, listen},
};

const DEADLINE: Duration = Duration::from_secs(20);
const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "polydev.desktop.v1");

async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = timeout(DEADLINE, socket.next()).await.expect("a message comes").unwrap().unwrap();
        if !matches!(message, Message::Ping(_) | Message::Pong(_)) {
            return message;
        }
    }
}

async fn word(socket: &mut Socket, kind: &str) -> Value {
    loop {
        if let Message::Text(text) = next(socket).await {
            let word: Value = serde_json::from_str(&text).unwrap();
            if word["type"] == kind {
                return word;
            }
        }
    }
}

async fn keyframe(socket: &mut Socket) {
    loop {
        if let Message::Binary(bytes) = next(socket).await
            && let FromDesktop::Frame(frame) = FromDesktop::decode(&bytes).unwrap()
            && frame.key
        {
            return;
        }
    }
}

#[tokio::test]
async fn a_page_gets_its_token_then_hello_then_pictures_and_acts() {
    let scene = Scene::new().await;
    let address = listen(&scene.app).await;
    let path = format!("/api/stream/{}?role=control", scene.id);
    let mut socket = connect(&scene.app, address, &path, &[PROTOCOL]).await.unwrap();
    let Message::Text(first) = next(&mut socket).await else { panic!("the first message is text") };
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first["type"], "resume");
    let Message::Text(hello) = next(&mut socket).await else { panic!("the second message is text") };
    assert!(hello.contains(r#""type":"hello""#) && hello.contains(r#""role":"control""#), "{hello}");
    keyframe(&mut socket).await;
    let text = InputEvent::Text { text: "FAKE typed".to_owned() };
    socket.send(Message::Binary(text.encode().into())).await.unwrap();
    assert_eq!(word(&mut socket, "clipboard").await["text"], "FAKE typed");
    socket.send(Message::Text(json!({ "type": "nonsense" }).to_string().into())).await.unwrap();
    assert_eq!(word(&mut socket, "refused").await["code"], "bad_message");
    // A connection that breaks off, and comes again with the token.
    drop(socket);
    let again = format!("{path}&resume={}", first["token"].as_str().unwrap());
    let mut socket = connect(&scene.app, address, &again, &[PROTOCOL]).await.unwrap();
    let hello = word(&mut socket, "hello").await;
    assert_eq!((&hello["viewer"], &hello["role"]), (&json!(1), &json!("control")));
    let stale = format!("/api/stream/{}?role=view&resume=0123", scene.id);
    let mut socket = connect(&scene.app, address, &stale, &[PROTOCOL]).await.unwrap();
    assert_eq!(word(&mut socket, "hello").await["viewer"], 2);
}

#[tokio::test]
async fn a_message_that_is_far_too_large_ends_the_connection_and_only_that() {
    let scene = Scene::new().await;
    let address = listen(&scene.app).await;
    let path = format!("/api/stream/{}", scene.id);
    let mut wild = connect(&scene.app, address, &path, &[PROTOCOL]).await.unwrap();
    let mut other = connect(&scene.app, address, &path, &[PROTOCOL]).await.unwrap();
    keyframe(&mut other).await;
    // The connection may be reset while this is still being written.
    let _ = wild.send(Message::Binary(vec![0; 4 << 20].into())).await;
    let ends = async { while let Some(Ok(_)) = wild.next().await {} };
    timeout(DEADLINE, ends).await.expect("the connection ends");
    other.send(Message::Text(json!({ "type": "ping", "at": 7.0 }).to_string().into())).await.unwrap();
    assert_eq!(word(&mut other, "pong").await["at"], 7.0);
}

#[tokio::test]
async fn the_end_of_the_browser_is_told_and_closes_the_socket() {
    let scene = Scene::new().await;
    let address = listen(&scene.app).await;
    let path = format!("/api/stream/{}", scene.id);
    let mut socket = connect(&scene.app, address, &path, &[PROTOCOL]).await.unwrap();
    keyframe(&mut socket).await;
    scene.app.driver.kill(scene.vm);
    word(&mut socket, "ended").await;
    assert!(matches!(next(&mut socket).await, Message::Close(Some(frame)) if u16::from(frame.code) == 1000));
}

#[tokio::test]
async fn who_cannot_watch_is_told_why_before_the_upgrade() {
    let app = TestApp::builder().setting("desktop_viewers_max", "1").start().await;
    let scene = Scene::of(app).await;
    let address = listen(&scene.app).await;
    let path = format!("/api/stream/{}", scene.id);
    let mut first = connect(&scene.app, address, &path, &[PROTOCOL]).await.unwrap();
    keyframe(&mut first).await;
    let ended = scene.app.begin("bob").await;
    scene.app.call("POST", &format!("/api/auth/session/{ended}/cancel"), None).await;
    scene.app.closed(ended).await;
    for (path, status) in [
        (path.clone(), 429),
        (format!("{path}?role=king"), 400),
        ("/api/stream/00000000-0000-4000-8000-000000000000".to_owned(), 404),
        ("/api/stream/nonsense".to_owned(), 400),
        (format!("/api/stream/{ended}"), 409),
    ] {
        match connect(&scene.app, address, &path, &[PROTOCOL]).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), status, "{path}"),
            Err(error) => panic!("{path}: {error}"),
            Ok(_) => panic!("{path} was let in"),
        }
    }
    let evil = connect(&scene.app, address, &path, &[PROTOCOL, ("origin", "http://evil.example.test")]).await;
    assert!(matches!(evil, Err(Error::Http(response)) if response.status() == 403));
}
