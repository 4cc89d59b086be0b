//! The live browser: RFB (RFC 6143) between a WebSocket and the browser VM's VNC server.
//!
//! Both directions are copied chunk by chunk with no buffer in between, so that a slow page slows the guest down and
//! nothing piles up here.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures::{SinkExt, StreamExt, stream::SplitSink};
use polydev_core::ids::SessionId;
use polydev_host::AgentClient;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use crate::{
    app::{App, SocketCount},
    session::Sessions,
};

use super::{
    body::Id,
    problem::{Code, Problem},
    sessions::find,
};

/// noVNC sends small messages; a clipboard text is the largest.
const CLIENT_MESSAGE_MAX: usize = 1 << 20;
const CHUNK: usize = 64 << 10;
/// A page that takes nothing for this long is gone.
const SEND_LIMIT: Duration = Duration::from_secs(30);
const PING_EVERY: Duration = Duration::from_secs(20);
/// The person's activity is told to the sign-in at most this often.
const ACTIVE_EVERY: Duration = Duration::from_secs(2);
/// RFB client messages that a hand makes: key, key with its scan code (type 255, submessage 0, down as two bytes), and
/// pointer with a button held.
const KEY_EVENT: u8 = 4;
const QEMU_MESSAGE: u8 = 255;
const QEMU_KEY_EVENT: u8 = 0;
const POINTER_EVENT: u8 = 5;

/// The live browser of a sign-in as a WebSocket with binary RFB.
#[utoipa::path(
    get, path = "/api/auth/session/{id}/vnc", tag = "stream", params(("id" = String, Path)),
    responses(
        (status = 101, description = "WebSocket, subprotocol `binary`"),
        (status = 409, description = "There is no live browser now", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn vnc(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let shown = find(&app, id).await?;
    let upgrade = upgrade?;
    let vm = shown.vm.clone().ok_or_else(|| Problem::new(Code::Conflict, "there is no live browser now"))?;
    let count = app.socket_on(vm.id);
    let count =
        count.ok_or_else(|| Problem::new(Code::TooManyConnections, "close one of the other pages"))?;
    let bridge = Bridge { agent: vm.agent, sessions: app.sessions.clone(), id, _count: count };
    let stop = app.stop.clone();
    let upgrade = upgrade.protocols(["binary"]).max_message_size(CLIENT_MESSAGE_MAX);
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
    _count: SocketCount,
}

impl Bridge {
    async fn run(self, socket: WebSocket) {
        let (mut to_page, mut from_page) = socket.split();
        let guest = match self.agent.vnc().await {
            Ok(guest) => guest,
            Err(error) => {
                tracing::warn!(session.id = %self.id, %error, "live browser is not there");
                return close(&mut to_page, close_code::ERROR, "the live browser is not there").await;
            }
        };
        let (mut from_guest, mut to_guest) = tokio::io::split(guest);
        let upstream = async {
            let mut told: Option<Instant> = None;
            while let Some(Ok(message)) = from_page.next().await {
                let bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Close(_) => return,
                    Message::Text(_) | Message::Ping(_) | Message::Pong(_) => continue,
                };
                if is_active(&bytes) && told.is_none_or(|at| at.elapsed() >= ACTIVE_EVERY) {
                    told = Some(Instant::now());
                    self.sessions.user_active(self.id);
                }
                if to_guest.write_all(&bytes).await.is_err() || to_guest.flush().await.is_err() {
                    return;
                }
            }
        };
        let downstream = async {
            let mut chunk = vec![0; CHUNK];
            loop {
                let message = match timeout(PING_EVERY, from_guest.read(&mut chunk)).await {
                    Ok(Ok(0) | Err(_)) => return,
                    Ok(Ok(count)) => Message::Binary(chunk[..count].to_vec().into()),
                    Err(_) => Message::Ping(Vec::new().into()),
                };
                if !matches!(timeout(SEND_LIMIT, to_page.send(message)).await, Ok(Ok(()))) {
                    return;
                }
            }
        };
        tokio::select! {
            () = upstream => {}
            () = downstream => {}
            () = self.agent.closed() => {}
        }
        close(&mut to_page, close_code::AWAY, "the live browser is gone").await;
    }
}

fn is_active(message: &[u8]) -> bool {
    match message {
        [KEY_EVENT, down, ..] | [QEMU_MESSAGE, QEMU_KEY_EVENT, _, down, ..] => *down != 0,
        [POINTER_EVENT, buttons, ..] => *buttons != 0,
        _ => false,
    }
}

pub(super) async fn close(socket: &mut SplitSink<WebSocket, Message>, code: u16, reason: &'static str) {
    let frame = CloseFrame { code, reason: reason.into() };
    // The other side may be gone already.
    let _ = timeout(SEND_LIMIT, socket.send(Message::Close(Some(frame)))).await;
}

impl From<WebSocketUpgradeRejection> for Problem {
    fn from(_: WebSocketUpgradeRejection) -> Self {
        Self::new(Code::WebsocketNeeded, "connect with a WebSocket (RFC 6455)")
    }
}
