use std::{net::SocketAddr, time::Duration};

use axum::http::StatusCode;
use polydev_core::{desktop::InputEvent, ids::SessionId};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{
    app::{Answer, TestApp, until},
    webrtc_client::{Got, Page},
};

/// A sign-in that waits for the person.
async fn desktop(app: &TestApp) -> SessionId {
    let id = app.begin("alice").await;
    app.to_the_person(id).await;
    id
}

async fn post(app: &TestApp, id: SessionId, body: Value) -> Answer {
    app.call("POST", &format!("/api/webrtc/session/{id}/offer"), Some(body)).await
}

/// Has the page connect; gives the answer to its offer.
async fn connect(app: &TestApp, id: SessionId, page: &mut Page, more: Value) -> Value {
    let mut offer = page.offer();
    offer.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let answer = post(app, id, offer).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let answer = answer.json();
    page.answered(&answer);
    page.until("the page is connected and its channels are open", |got| got.connected && got.open.len() == 2)
        .await;
    answer
}

fn typed(got: &Got, text: &str) -> bool {
    got.said("clipboard").is_some_and(|word| word["text"] == text)
}

fn text(text: &str) -> Vec<u8> {
    InputEvent::Text { text: text.to_owned() }.encode()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_connects_sees_the_desktop_and_types_into_it() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    let answer = connect(&app, id, &mut page, json!({})).await;
    page.until("a keyframe has come", |got| got.pictures.iter().any(|picture| picture.key)).await;
    assert!(page.got.pictures.iter().all(|picture| picture.no_delay), "{:?}", page.got.pictures);
    page.until("it was greeted", |got| got.said("hello").is_some()).await;
    let hello = page.got.said("hello").unwrap();
    assert_eq!(
        (hello["viewer"].clone(), hello["role"].clone()),
        (answer["viewerId"].clone(), json!("control"))
    );
    page.send("input", true, &text("typed FAKE")).await;
    page.until("what was typed has arrived", |got| typed(got, "typed FAKE")).await;
    let before = page.got.pictures.len();
    page.send("moves", true, &InputEvent::Move { x: 5, y: 6 }.encode()).await;
    page.until("the move shows", |got| got.pictures.len() > before).await;
    page.send("input", false, br#"{"type":"ping","at":7}"#).await;
    page.until("the ping is answered", |got| got.said("pong").is_some_and(|word| word["at"] == 7.0)).await;
    app.session_until(id, "the person is active", |s| s["steps"].to_string().contains("user_active")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_picture_is_followed_by_a_keyframe() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    connect(&app, id, &mut page, json!({})).await;
    page.until("a keyframe has come", |got| got.pictures.iter().any(|picture| picture.key)).await;
    let newest = page.got.pictures.last().unwrap().number;
    page.lose_the_picture().await;
    page.until("another keyframe has come", |got| {
        got.pictures.iter().any(|picture| picture.key && picture.number > newest)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pauses_between_small_pictures_are_not_filled() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    let agent = app.driver.agent(vm).unwrap();
    let mut page = Page::udp().await;
    connect(&app, id, &mut page, json!({})).await;
    page.until("a keyframe has come", |got| got.pictures.iter().any(|picture| picture.key)).await;
    // As while a person types: one picture of a letter or two after the other, each in one packet.
    let (packets, pictures) = (page.got.media_packets, page.got.pictures.len());
    for shown in 1..=50 {
        agent.desktop().show(false, 200);
        page.until("a small picture has come", |got| got.pictures.len() >= pictures + shown).await;
        page.goes_on(Duration::from_millis(50), |_| false).await;
    }
    let (packets, pictures) = (page.got.media_packets - packets, page.got.pictures.len() - pictures);
    assert!(packets < pictures + 10, "{packets} packets for {pictures} pictures");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_udp_connects_over_tcp_to_the_same_port() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::tcp(app.app.endpoint.address()).await;
    connect(&app, id, &mut page, json!({})).await;
    page.until("a keyframe has come", |got| got.pictures.iter().any(|picture| picture.key)).await;
    page.send("input", true, &text("over TCP")).await;
    page.until("what was typed has arrived", |got| typed(got, "over TCP")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_offer_gets_the_same_answer_and_no_second_viewer() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    let offer = page.offer();
    let (first, second) = tokio::join!(post(&app, id, offer.clone()), post(&app, id, offer.clone()));
    let again = post(&app, id, offer).await;
    assert_eq!(again.status, StatusCode::OK);
    for answer in [&first, &second] {
        if answer.status == StatusCode::OK {
            assert_eq!(answer.text, again.text);
        } else {
            assert_eq!(answer.code(), "conflict");
        }
    }
    assert_eq!(app.app.endpoint.viewers(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ice_restart_goes_on_with_the_same_viewer_and_encryption() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    let answer = connect(&app, id, &mut page, json!({})).await;
    let again = json!({ "sdp": page.restart(), "viewerId": answer["viewerId"], "resume": answer["resume"] });
    let stranger = json!({ "sdp": again["sdp"], "viewerId": answer["viewerId"], "resume": "FAKE" });
    assert_eq!(post(&app, id, stranger).await.code(), "viewer_unknown");
    let restarted = post(&app, id, again).await;
    assert_eq!(restarted.status, StatusCode::OK, "{}", restarted.text);
    let restarted = restarted.json();
    assert_eq!((&restarted["viewerId"], &restarted["resume"]), (&answer["viewerId"], &answer["resume"]));
    let line = |answer: &Value, name: &str| {
        let sdp = answer["answer"]["sdp"].as_str().unwrap().to_owned();
        sdp.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
    };
    assert_ne!(line(&answer, "a=ice-ufrag:"), line(&restarted, "a=ice-ufrag:"));
    assert_eq!(line(&answer, "a=fingerprint:"), line(&restarted, "a=fingerprint:"));
    page.answered(&restarted);
    page.send("input", true, &text("after the restart")).await;
    page.until("the channels still work", |got| typed(got, "after the restart")).await;
    assert_eq!(app.app.endpoint.viewers(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_comes_again_with_its_token_is_the_same_viewer() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    let first = connect(&app, id, &mut page, json!({})).await;
    let mut reloaded = Page::udp().await;
    let second = connect(&app, id, &mut reloaded, json!({ "resume": first["resume"] })).await;
    assert_eq!(first["viewerId"], second["viewerId"]);
    reloaded.until("it is greeted", |got| got.said("hello").is_some()).await;
    assert_eq!(reloaded.got.said("hello").unwrap()["role"], "control");
    page.until("the former connection is closed", |got| got.closed).await;
    until("one viewer is left", async || (app.app.endpoint.viewers() == 1).then_some(())).await;
    let mut other = Page::udp().await;
    let offer = json!({ "sdp": other.offer()["sdp"], "resume": "FAKE-token" });
    let refused = post(&app, id, offer).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::GONE, "viewer_unknown".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_may_not_type_and_is_told_so() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    connect(&app, id, &mut page, json!({ "role": "view" })).await;
    page.until("it is greeted", |got| got.said("hello").is_some()).await;
    assert_eq!(page.got.said("hello").unwrap()["mayControl"], false);
    page.send("input", true, &text("no")).await;
    page.until("it is refused", |got| got.said("refused").is_some_and(|word| word["code"] == "view_only"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_on_the_channels_is_refused_and_harms_nobody() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let mut page = Page::udp().await;
    connect(&app, id, &mut page, json!({})).await;
    page.send("input", true, &[0x99, 1, 2]).await;
    let refused = |got: &Got, code: &str| {
        got.words.iter().any(|word| word["type"] == "refused" && word["code"] == code)
    };
    page.until("rubbish is refused", |got| refused(got, "bad_message")).await;
    page.send("input", true, &text(&"x".repeat(20_000))).await;
    page.until("what is too long is refused", |got| refused(got, "too_long")).await;
    page.send("moves", true, &text("not by this channel")).await;
    page.send("moves", false, b"words").await;
    page.send("input", true, &text("still well")).await;
    page.until("the rest works", |got| typed(got, "still well")).await;
    assert!(!typed(&page.got, "not by this channel"));
}

#[tokio::test]
async fn bad_offers_are_refused_with_a_code() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let good = Page::udp().await.offer()["sdp"].as_str().unwrap().to_owned();
    let without = |part: &str| {
        good.lines().filter(|line| !line.contains(part)).map(|line| format!("{line}\r\n")).collect::<String>()
    };
    let other_codec = good.replace("H264/90000", "VP8/90000");
    for (sdp, status, code) in [
        ("garbage".to_owned(), 422, "offer_refused"),
        (String::new(), 422, "offer_refused"),
        (format!("v=0\r\n{}", "x".repeat(40_000)), 413, "body_too_large"),
        ("x".repeat(200_000), 413, "body_too_large"),
        (without("a=fingerprint"), 422, "offer_refused"),
        (without("m=video"), 422, "offer_refused"),
        (good.replace("a=recvonly", "a=sendonly"), 422, "codec_missing"),
        (good.replace("a=recvonly", "a=inactive"), 422, "codec_missing"),
        (other_codec, 422, "codec_missing"),
        (good.replace("packetization-mode=1", "packetization-mode=0"), 422, "codec_missing"),
    ] {
        let answer = post(&app, id, json!({ "sdp": sdp })).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{}", answer.text);
        assert!(!answer.text.contains("ice-pwd"));
    }
    let answer = post(&app, id, json!({ "sdp": good, "colour": 1 })).await;
    assert_eq!(answer.code(), "invalid_request");
    let unknown: SessionId = "7b0a2f0e-61a8-4f6c-8f6e-0a6f0e2b9c11".parse().unwrap();
    assert_eq!(post(&app, unknown, json!({ "sdp": good })).await.code(), "not_found");
    let queued = app.begin("bob").await;
    let early = post(&app, queued, json!({ "sdp": good })).await;
    assert_eq!(early.code(), "conflict", "{}", early.text);
    assert_eq!(app.app.endpoint.viewers(), 0, "nobody has joined");
}

#[tokio::test]
async fn more_viewers_than_may_are_refused() {
    let app = TestApp::builder().setting("desktop_viewers_max", "1").start().await;
    let id = desktop(&app).await;
    let (mut first, mut second) = (Page::udp().await, Page::udp().await);
    assert_eq!(post(&app, id, first.offer()).await.status, StatusCode::OK);
    assert_eq!(post(&app, id, second.offer()).await.code(), "too_many_viewers");
}

#[tokio::test]
async fn the_origins_routes_tell_what_was_said_last() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let path = |what: &str| format!("/api/webrtc/session/{id}/{what}");
    for what in ["offer", "answer", "candidates"] {
        assert_eq!(app.call("GET", &path(what), None).await.code(), "not_found");
    }
    let mut page = Page::udp().await;
    let answer = post(&app, id, page.offer()).await.json();
    let last = app.call("GET", &path("answer"), None).await.json();
    assert_eq!(last["answer"], answer["answer"]);
    assert_eq!(app.call("GET", &path("offer"), None).await.json()["offer"]["type"], "offer");
    let viewer = answer["viewerId"].as_u64().unwrap();
    let of = app.call("GET", &format!("{}?viewerId={viewer}", path("candidates")), None).await.json();
    let port = app.app.endpoint.address().port().to_string();
    let lines: Vec<&str> =
        of["candidates"].as_array().unwrap().iter().map(|line| line["candidate"].as_str().unwrap()).collect();
    assert!(lines.iter().all(|line| line.contains(&port)), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains(" udp ")));
    assert!(lines.iter().any(|line| line.contains(" tcp ") && line.contains("tcptype passive")), "{lines:?}");
    assert_eq!(app.call("GET", &format!("{}?viewerId=99", path("answer")), None).await.code(), "not_found");
    assert_eq!(app.call("POST", &path("answer"), Some(json!({ "sdp": "v=0" }))).await.code(), "conflict");
    let told = json!({ "viewerId": viewer, "candidates": [
        { "candidate": "candidate:1 1 udp 2113929471 192.0.2.7 10100 typ host", "sdpMid": "0", "sdpMLineIndex": 0 },
        { "candidate": "candidate:1 1 udp 1 8a2b3c4d-0000-4000-8000-000000000000.local 5 typ host" },
        { "candidate": "candidate:1 1 udp 1 224.0.0.1 5 typ host" },
        { "candidate": "rubbish" },
    ] });
    let taken = app.call("POST", &path("candidates"), Some(told)).await.json();
    assert_eq!(taken["results"], json!(["noted", "local_name", "foreign_address", "malformed"]));
    let many = json!({ "candidates": vec![json!({ "candidate": "" }); 65] });
    assert_eq!(app.call("POST", &path("candidates"), Some(many)).await.code(), "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_at_the_port_harms_nobody_and_gets_no_answer() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let endpoint = app.app.endpoint.address();
    let noise = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    noise.connect(endpoint).await.unwrap();
    let mut stun = vec![0, 1, 0, 12, 0x21, 0x12, 0xA4, 0x42];
    stun.resize(20, 7);
    stun.extend([0, 6, 0, 8]);
    stun.extend(b"FAKE:FAK");
    for round in 0_u8..200 {
        noise.send(&[round; 60]).await.unwrap();
        noise.send(&vec![round; usize::from(round)]).await.unwrap();
        noise.send(&stun).await.unwrap();
    }
    // A connection that does not begin with a request to a viewer is closed.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 4, 1, 2, 3, 4]] {
        let mut stream = TcpStream::connect(endpoint).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut got = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut got)).await;
        assert!(closed.is_ok(), "it is still open");
        assert!(got.is_empty());
    }
    let mut page = Page::udp().await;
    connect(&app, id, &mut page, json!({})).await;
    page.until("a keyframe has come", |got| got.pictures.iter().any(|picture| picture.key)).await;
    assert!(noise.try_recv(&mut [0; 100]).is_err(), "nothing came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_told_when_the_service_ends_and_the_port_is_free_again() {
    let app = TestApp::start().await;
    let id = desktop(&app).await;
    let endpoint = app.app.endpoint.address();
    let mut page = Page::udp().await;
    connect(&app, id, &mut page, json!({})).await;
    let ending = tokio::spawn({
        let app = app.app.clone();
        async move { app.shut_down().await }
    });
    page.until("the page is told", |got| got.closed).await;
    ending.await.unwrap();
    assert_free(endpoint).await;
    let after = post(&app, id, Page::udp().await.offer()).await;
    assert!(!after.status.is_success(), "{}", after.text);
}

async fn assert_free(address: SocketAddr) {
    TcpListener::bind(address).await.expect("TCP is free");
    UdpSocket::bind(address).await.expect("UDP is free");
}
