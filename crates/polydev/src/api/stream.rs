//! The live desktop over a WebSocket: the pictures that WebRTC would carry, for pages that get no WebRTC through.
//!
//! A picture is only taken from its queue when the one before has been handed to the kernel, and the kernel is told not
//! to keep much (see [`crate::serve`]): what a slow page cannot take is dropped where it is known which picture to go on
//! with, not piled up on the way.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures::{
    StreamExt,
    stream::{SplitSink, SplitStream},
};
use polydev_core::ids::SessionId;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, timeout};
use utoipa::IntoParams;
use zeroize::Zeroizing;

use crate::{
    app::App,
    desktop::{
        FrameQueue, JoinError, Joined, Lane, Outgoing, ViewerLink, WordQueue,
        talk::{Role, WORDS_MAX},
    },
};

use super::{
    body::{Id, Params},
    page::{FAREWELL_LIMIT, say_goodbye, sent},
    problem::Problem,
};

const SUBPROTOCOL: &str = "polydev.desktop.v1";
/// A page that takes nothing for this long is gone.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// A page that says nothing for this long, not even an answer to a ping, is gone.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(20);
/// Well below what a viewer in control may be silent for.
pub(super) const PING_EVERY: Duration = Duration::from_secs(2);

/// How to watch.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// What the page wants to do; `control` unless told otherwise. One viewer at a time has it.
    #[param(value_type = Option<Role>)]
    role: Option<Role>,
    /// The token of the viewer this page was, to keep its number and role. One that is too old is not heeded.
    #[param(value_type = Option<String>)]
    resume: Option<Zeroizing<String>>,
}

/// Comes before everything else.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum First<'a> {
    /// What to come again with.
    Resume { token: &'a str },
}

/// The first words to a viewer.
pub(super) fn first_words(link: &ViewerLink) -> Message {
    let token = Zeroizing::new(link.reconnect_token());
    let first = serde_json::to_string(&First::Resume { token: &token }).expect("a text is JSON");
    Message::Text(first.into())
}

/// Joins as the viewer that the page was, or else as a new one.
pub(super) async fn join(
    app: &App,
    id: SessionId,
    query: &StreamQuery,
    lane: Lane,
) -> Result<Joined, JoinError> {
    let again = match &query.resume {
        Some(token) => app.desktops.rejoin(id, token, lane).await,
        None => Err(JoinError::UnknownViewer),
    };
    match again {
        Err(JoinError::UnknownViewer) => {
            app.desktops.join(id, query.role.unwrap_or(Role::Control), lane).await
        }
        joined => joined,
    }
}

/// The live desktop of a sign-in as a WebSocket. The service sends binary messages (pictures, pointer) and words as JSON
/// text, of which `{"type":"resume","token"}` is the first; the page sends binary input events and words as JSON text.
#[utoipa::path(
    get, path = "/api/stream/{id}", tag = "stream", params(("id" = String, Path), StreamQuery),
    responses(
        (status = 101, description = "WebSocket, subprotocol `polydev.desktop.v1`"),
        (status = 404, description = "There is no such sign-in", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "There is no live browser now", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many watch", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stream(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Params(query): Params<StreamQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade?;
    let joined = join(&app, id, &query, Lane::WebSocket).await?;
    let upgrade = upgrade.protocols([SUBPROTOCOL]).max_message_size(WORDS_MAX).max_frame_size(WORDS_MAX);
    Ok(upgrade.on_upgrade(async move |socket| serve(socket, joined).await))
}

async fn serve(socket: WebSocket, joined: Joined) {
    let Joined { viewer: _, link, frames, words } = joined;
    let (to_page, from_page) = socket.split();
    // Whichever way ends first ends the other; with them the viewer has left.
    let mut listening = std::pin::pin!(listen(from_page, &link));
    tokio::select! {
        () = &mut listening => return,
        () = send(to_page, frames, words, &link) => {}
    }
    // For the reason that `page::close` has.
    let _ = timeout(FAREWELL_LIMIT, listening).await;
}

async fn listen(mut from_page: SplitStream<WebSocket>, link: &ViewerLink) {
    while let Ok(Some(Ok(message))) = timeout(SILENCE_LIMIT, from_page.next()).await {
        link.sign_of_life();
        match message {
            Message::Binary(bytes) => link.input(&bytes),
            Message::Text(text) => link.words(&text),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return,
        }
    }
}

async fn send(
    mut to_page: SplitSink<WebSocket, Message>,
    mut frames: FrameQueue,
    mut words: WordQueue,
    link: &ViewerLink,
) {
    if !sent(&mut to_page, first_words(link), SEND_LIMIT).await {
        return;
    }
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pictures = true;
    loop {
        tokio::select! {
            biased;
            // Words are few and small, and the first of them tells the page what it is.
            word = words.next() => {
                let message = match word {
                    Some(Outgoing::Text(text)) => Message::Text((&*text).into()),
                    Some(Outgoing::Binary(bytes)) => Message::Binary(bytes),
                    None => return say_goodbye(&mut to_page, close_code::NORMAL, "nothing more comes").await,
                };
                if !sent(&mut to_page, message, SEND_LIMIT).await {
                    return;
                }
            }
            frame = frames.next(), if pictures => {
                let Some(frame) = frame else {
                    pictures = false;
                    continue;
                };
                let message = frame.encode();
                let bytes = message.len();
                if !sent(&mut to_page, Message::Binary(message.into()), SEND_LIMIT).await {
                    return;
                }
                link.sent(&frame, bytes);
            }
            _ = pings.tick() => {
                if !sent(&mut to_page, Message::Ping(Vec::new().into()), SEND_LIMIT).await {
                    return;
                }
            }
        }
    }
}
