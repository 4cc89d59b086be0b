//! A terminal in a CLI VM over a WebSocket. The shell lives in the VM: a page that comes back finds it again.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures::StreamExt;
use polydev_core::{
    ids::VmId,
    wire::{PROTOCOL_VERSION, Reply, Request, pty::PtyFrame},
};
use polydev_host::{AgentClient, AgentError, PtyStream};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::IntoParams;

use crate::{
    app::{App, SocketCount},
    store::vms::VmRole,
};

use super::{
    body::{Id, Params},
    page::{SEND_LIMIT, close, sent},
    problem::{Code, Problem},
    vms::find,
};

const CLIENT_MESSAGE_MAX: usize = 256 << 10;
const PING_EVERY: Duration = Duration::from_secs(20);
const SIDE_MAX: u16 = 1000;

/// Size of the window.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TerminalQuery {
    /// Columns, 1 to 1000.
    #[serde(default = "default_cols")]
    cols: u16,
    /// Rows, 1 to 1000.
    #[serde(default = "default_rows")]
    rows: u16,
}

fn default_cols() -> u16 {
    80
}

fn default_rows() -> u16 {
    24
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum FromPage {
    Resize { cols: u16, rows: u16 },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ToPage {
    Exit { code: i32 },
}

/// A terminal: binary messages are its data both ways; the page sends text `{"type":"resize","cols","rows"}`, the
/// service sends text `{"type":"exit","code"}` at the shell's end.
#[utoipa::path(
    get, path = "/api/vms/{id}/terminal", tag = "vms", params(("id" = String, Path), TerminalQuery),
    responses(
        (status = 101, description = "WebSocket"),
        (status = 409, description = "The CLI VM is not running", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn terminal(
    State(app): State<Arc<App>>,
    Id(id): Id<VmId>,
    Params(query): Params<TerminalQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let size = window(query.cols, query.rows)
        .ok_or_else(|| Problem::new(Code::InvalidRequest, "`cols` and `rows` are 1 to 1000"))?;
    let record = find(&app, id).await?;
    if record.role != VmRole::Cli {
        return Err(Problem::new(Code::Conflict, "only CLI VMs have a terminal"));
    }
    let upgrade = upgrade?;
    // One that sleeps is woken, and stays awake as long as somebody looks at it.
    let (vm, in_use) = app.workspaces.enter(&record.user, id).await?;
    let count = app.socket_on(id);
    let count =
        count.ok_or_else(|| Problem::new(Code::TooManyConnections, "close one of the other terminals"))?;
    let stop = app.stop.clone();
    Ok(upgrade.max_message_size(CLIENT_MESSAGE_MAX).on_upgrade(async move |socket| {
        tokio::select! {
            () = serve(vm.agent, id, size, socket, count) => {}
            () = stop.cancelled() => {}
        }
        drop(in_use);
    }))
}

async fn serve(agent: AgentClient, vm: VmId, size: (u16, u16), socket: WebSocket, _count: SocketCount) {
    let (mut to_page, mut from_page) = socket.split();
    let mut pty = match attach(&agent, size).await {
        Ok(pty) => pty,
        Err(error) => {
            tracing::warn!(vm.id = %vm, %error, "terminal could not be opened");
            return close(
                &mut to_page,
                &mut from_page,
                close_code::ERROR,
                "the terminal could not be opened",
            )
            .await;
        }
    };
    loop {
        // `recv` is cancel-safe on both sides; a send holds everything up, which is the back-pressure wanted here.
        tokio::select! {
            frame = timeout(PING_EVERY, pty.recv()) => {
                let (message, last) = match frame {
                    Ok(Some(PtyFrame::Data(bytes))) => (Message::Binary(bytes.into()), false),
                    Ok(Some(PtyFrame::Exit(code))) => {
                        let text = serde_json::to_string(&ToPage::Exit { code }).expect("a number is JSON");
                        (Message::Text(text.into()), true)
                    }
                    Ok(Some(PtyFrame::Resize { .. })) => continue,
                    Ok(None) => break,
                    Err(_) => (Message::Ping(Vec::new().into()), false),
                };
                if !sent(&mut to_page, message, SEND_LIMIT).await {
                    return;
                }
                if last {
                    return close(&mut to_page, &mut from_page, close_code::NORMAL, "the shell has ended").await;
                }
            }
            message = from_page.next() => {
                let frame = match message {
                    Some(Ok(Message::Binary(bytes))) => PtyFrame::Data(bytes.into()),
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(FromPage::Resize { cols, rows }) => match window(cols, rows) {
                            Some((cols, rows)) => PtyFrame::Resize { cols, rows },
                            None => continue,
                        },
                        Err(_) => return close(&mut to_page, &mut from_page, close_code::PROTOCOL, "unknown message").await,
                    },
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if pty.send(frame).await.is_err() {
                    break;
                }
            }
        }
    }
    close(&mut to_page, &mut from_page, close_code::AWAY, "the terminal was taken over or its VM is gone")
        .await;
}

/// The shell that is open already, or a new one.
async fn attach(agent: &AgentClient, (cols, rows): (u16, u16)) -> Result<PtyStream, AgentError> {
    let wrong = |op| AgentError::Protocol { op };
    let open = match agent.request(Request::Hello { version: PROTOCOL_VERSION }).await? {
        Reply::Hello { ptys, .. } => ptys,
        _ => return Err(wrong("hello")),
    };
    if let Some(id) = open.first() {
        let mut pty = agent.attach_pty(*id).await?;
        pty.send(PtyFrame::Resize { cols, rows }).await?;
        return Ok(pty);
    }
    let request = Request::OpenPty { argv: Vec::new(), env: Default::default(), cols, rows };
    match agent.request(request).await? {
        Reply::Pty { id } => agent.attach_pty(id).await,
        _ => Err(wrong("open_pty")),
    }
}

fn window(cols: u16, rows: u16) -> Option<(u16, u16)> {
    let good = |side: u16| (1..=SIDE_MAX).contains(&side);
    (good(cols) && good(rows)).then_some((cols, rows))
}
