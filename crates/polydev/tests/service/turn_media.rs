//! The desktop for pages whose network lets nothing through but what a TURN server relays.

use std::net::SocketAddr;

use axum::http::StatusCode;
use polydev::desktop::turn::IceServer;
use polydev_core::{desktop::InputEvent, ids::SessionId};

use crate::{app::TestApp, turn_client::TurnClient, webrtc_client::Page};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_behind_a_relay_uses_the_desktop_by_indications() {
    let (app, id) = sign_in().await;
    let (turn, given) = server(&app);
    uses_the_desktop(&app, id, TurnClient::over_udp(turn, &given).await, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_behind_a_relay_uses_the_desktop_over_a_channel() {
    let (app, id) = sign_in().await;
    let (turn, given) = server(&app);
    uses_the_desktop(&app, id, TurnClient::over_udp(turn, &given).await, Some(0x4000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_behind_a_relay_and_without_udp_uses_the_desktop() {
    let (app, id) = sign_in().await;
    let (turn, given) = server(&app);
    uses_the_desktop(&app, id, TurnClient::over_tcp(turn, &given).await, Some(0x4000)).await;
}

/// A sign-in that waits for the person.
async fn sign_in() -> (TestApp, SessionId) {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    app.to_the_person(id).await;
    (app, id)
}

/// The built-in server, and what pages are given for it.
fn server(app: &TestApp) -> (SocketAddr, IceServer) {
    let turn = &app.app.turn;
    (turn.listen().unwrap(), turn.ice_servers("page").remove(0))
}

/// Connects through the relay and nothing else, sees a picture and types. `number`: of the channel, else indications.
async fn uses_the_desktop(app: &TestApp, id: SessionId, mut client: TurnClient, number: Option<u16>) {
    let endpoint = app.app.endpoint.address();
    let relayed = client.allocate().await.unwrap();
    match number {
        Some(number) => client.bind(number, endpoint).await.unwrap(),
        None => client.permit(endpoint).await.unwrap(),
    }
    let mut page = Page::relayed(client.into_tunnel(endpoint, number), relayed);
    let offer = page.offer();
    let answer = app.call("POST", &format!("/api/webrtc/session/{id}/offer"), Some(offer)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    page.answered(&answer.json());
    page.until("it is connected, with its channels", |got| got.connected && got.open.len() == 2).await;
    page.until("a keyframe has come", |got| got.pictures.iter().any(|picture| picture.key)).await;
    let text = InputEvent::Text { text: "typed FAKE".to_owned() };
    page.send("input", true, &text.encode()).await;
    page.until("what was typed has arrived", |got| {
        got.said("clipboard").is_some_and(|word| word["text"] == "typed FAKE")
    })
    .await;
    let stats = app.app.turn.stats();
    assert_eq!((stats.allocations_made, stats.datagrams_dropped, stats.malformed), (1, 0, 0));
    app.app.shut_down().await;
}
