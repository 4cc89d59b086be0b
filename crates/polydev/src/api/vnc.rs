//! The live browser by VNC: RFB (RFC 6143) between a WebSocket and the browser VM's own VNC server.
//!
//! A VNC viewer is a viewer like others: it joins the desktop, has or has not the control, and can be handed it. What it
//! sends is judged here, message by message, as no hub sees it. Pictures are copied chunk by chunk with no buffer in
//! between, so that a slow page slows its own connection down and nothing piles up here.

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
use polydev_host::AgentClient;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    app::{App, SocketCount},
    desktop::{
        Joined, Lane, Outgoing, ViewerLink, WordQueue,
        rfb::{Judged, RfbFilter},
    },
    session::Sessions,
};

use super::{
    body::{Id, Params},
    page::{SEND_LIMIT, close, sent},
    problem::{Code, Problem},
    sessions::find,
    stream::{PING_EVERY, SILENCE_LIMIT, StreamQuery, first_words, join},
};

/// RFB alone, as any VNC viewer for WebSockets speaks it.
const RFB: &str = "binary";
/// RFB in binary messages, and the words of the other lanes as text messages beside it.
const RFB_AND_WORDS: &str = "polydev.vnc.v1";
/// noVNC sends small messages; a clipboard text is the largest.
const CLIENT_MESSAGE_MAX: usize = 1 << 20;
const CHUNK: usize = 64 << 10;
/// The person's activity is told to the sign-in at most this often.
const ACTIVE_EVERY: Duration = Duration::from_secs(2);

/// The live browser of a sign-in as a WebSocket with binary RFB. With the subprotocol `polydev.vnc.v1`, words as those of
/// `/api/stream/{id}` come and go beside it as text messages. Keys, pointer and sizes of a viewer that is not in control
/// are dropped, and clipboard texts of all.
#[utoipa::path(
    get, path = "/api/auth/session/{id}/vnc", tag = "stream", params(("id" = String, Path), StreamQuery),
    responses(
        (status = 101, description = "WebSocket, subprotocol `binary` or `polydev.vnc.v1`"),
        (status = 409, description = "There is no live browser now", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many watch", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn vnc(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Params(query): Params<StreamQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let shown = find(&app, id).await?;
    let upgrade = upgrade?;
    let vm = shown.vm.clone().ok_or_else(|| Problem::new(Code::Conflict, "there is no live browser now"))?;
    let count = app.socket_on(vm.id);
    let count =
        count.ok_or_else(|| Problem::new(Code::TooManyConnections, "close one of the other pages"))?;
    let Joined { link, words, viewer: _, frames: _ } = join(&app, id, &query, Lane::Vnc).await?;
    let upgrade = upgrade.protocols([RFB_AND_WORDS, RFB]).max_message_size(CLIENT_MESSAGE_MAX);
    let has_words = upgrade.selected_protocol().is_some_and(|protocol| protocol == RFB_AND_WORDS);
    let bridge =
        Bridge { agent: vm.agent, sessions: app.sessions.clone(), id, link, words, has_words, _count: count };
    let stop = app.stop.clone();
    Ok(upgrade.on_upgrade(async move |socket| {
        tokio::select! {
            () = bridge.run(socket) => {}
            () = stop.cancelled() => {}
        }
    }))
}

struct Bridge {
    agent: AgentClient,
    sessions: Sessions,
    id: SessionId,
    link: ViewerLink,
    words: WordQueue,
    has_words: bool,
    _count: SocketCount,
}

impl Bridge {
    async fn run(self, socket: WebSocket) {
        let Self { agent, sessions, id, link, words, has_words, _count } = self;
        let (mut to_page, mut from_page) = socket.split();
        let guest = match agent.vnc().await {
            Ok(guest) => guest,
            Err(error) => {
                tracing::warn!(session.id = %id, %error, "live browser is not there");
                let why = "the live browser is not there";
                return close(&mut to_page, &mut from_page, close_code::ERROR, why).await;
            }
        };
        if has_words && !sent(&mut to_page, first_words(&link), SEND_LIMIT).await {
            return;
        }
        let (from_guest, to_guest) = tokio::io::split(guest);
        let mut hands = Hands {
            control: link.watch_control(),
            link,
            sessions,
            id,
            has_words,
            filter: RfbFilter::default(),
            told: None,
        };
        tokio::select! {
            () = hands.pass(&mut from_page, to_guest) => {}
            () = show(from_guest, &mut to_page, words, has_words) => {}
            () = agent.closed() => {}
        }
        close(&mut to_page, &mut from_page, close_code::AWAY, "the live browser is gone").await;
    }
}

/// What the viewer does, on its way to the guest.
struct Hands {
    link: ViewerLink,
    control: watch::Receiver<bool>,
    sessions: Sessions,
    id: SessionId,
    has_words: bool,
    filter: RfbFilter,
    /// When the sign-in was last told of an activity.
    told: Option<Instant>,
}

impl Hands {
    async fn pass(&mut self, from_page: &mut SplitStream<WebSocket>, mut to_guest: impl AsyncWrite + Unpin) {
        let mut on = Vec::new();
        loop {
            on.clear();
            let mut control = self.control.clone();
            tokio::select! {
                // What is held is let go before anything else is judged.
                biased;
                changed = control.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if !*self.control.borrow_and_update() {
                        self.filter.let_go(&mut on);
                    }
                }
                message = timeout(SILENCE_LIMIT, from_page.next()) => {
                    let Ok(Some(Ok(message))) = message else { return };
                    self.link.sign_of_life();
                    match message {
                        Message::Binary(bytes) => if !self.judge(&bytes, &mut on) {
                            return;
                        },
                        Message::Text(text) if self.has_words => self.link.words(&text),
                        Message::Close(_) => return,
                        Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
                    }
                }
            }
            if !on.is_empty() && (to_guest.write_all(&on).await.is_err() || to_guest.flush().await.is_err()) {
                return;
            }
        }
    }

    /// Gives whether the viewer keeps to the protocol.
    fn judge(&mut self, bytes: &[u8], on: &mut Vec<u8>) -> bool {
        let is_in_control = *self.control.borrow();
        let Judged { acted, held_back } = match self.filter.take(bytes, is_in_control, on) {
            Ok(judged) => judged,
            Err(error) => {
                tracing::debug!(session.id = %self.id, %error, "VNC viewer is let go");
                return false;
            }
        };
        if held_back {
            self.link.held_back();
        }
        if acted && self.told.is_none_or(|at| at.elapsed() >= ACTIVE_EVERY) {
            self.told = Some(Instant::now());
            self.sessions.user_active(self.id);
        }
        true
    }
}

/// Takes the guest's pictures and the hub's words to the page.
async fn show(
    mut from_guest: impl AsyncRead + Unpin,
    to_page: &mut SplitSink<WebSocket, Message>,
    mut words: WordQueue,
    has_words: bool,
) {
    let mut chunk = vec![0; CHUNK];
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            read = from_guest.read(&mut chunk) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => Message::Binary(chunk[..count].to_vec().into()),
            },
            word = words.next() => match word {
                Some(Outgoing::Text(text)) if has_words => Message::Text((&*text).into()),
                // The pointer is part of RFB's own pictures.
                Some(Outgoing::Text(_) | Outgoing::Binary(_)) => continue,
                None => return,
            },
            _ = pings.tick() => Message::Ping(Vec::new().into()),
        };
        if !sent(to_page, message, SEND_LIMIT).await {
            return;
        }
    }
}

impl From<WebSocketUpgradeRejection> for Problem {
    fn from(_: WebSocketUpgradeRejection) -> Self {
        Self::new(Code::WebsocketNeeded, "connect with a WebSocket (RFC 6455)")
    }
}
