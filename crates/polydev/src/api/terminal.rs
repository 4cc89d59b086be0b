//! A terminal in a CLI VM over a WebSocket. The shell lives in the VM: a page that comes back finds it again.
//!
//! A VM that stands still because its host's disk is nearly full answers nothing. The page is told that, and when the VM
//! goes on; neither the connection nor the shell ends meanwhile.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

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
use polydev_core::{
    ids::VmId,
    wire::{PROTOCOL_VERSION, Reply, Request, pty::PtyFrame},
};
use polydev_host::{AgentClient, AgentError, PtyStream};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use utoipa::IntoParams;

use crate::{
    app::{App, SocketCount},
    store::vms::{VmRole, VmState},
};

use super::{
    body::{Id, Params},
    page::{SEND_LIMIT, close, sent},
    problem::{Code, Problem},
    vms::{PAUSED, find},
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
    State { state: &'static str },
}

/// A terminal: binary messages are its data both ways; the page sends text `{"type":"resize","cols","rows"}`, the
/// service sends text `{"type":"exit","code"}` at the shell's end. While the VM stands still until its host's disk has
/// room, the service says so at once (`{"type":"state","state":"paused"}`), and says `running` when it goes on.
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
    let (stop, stillness) = (app.stop.clone(), Stillness::of(&app, id));
    Ok(upgrade.max_message_size(CLIENT_MESSAGE_MAX).on_upgrade(async move |socket| {
        tokio::select! {
            () = serve(vm.agent, stillness, size, socket, count) => {}
            () = stop.cancelled() => {}
        }
        drop(in_use);
    }))
}

/// Whether a VM stands still.
struct Stillness {
    vm: VmId,
    paused: watch::Receiver<BTreeSet<VmId>>,
    /// What was told last.
    told: bool,
}

impl Stillness {
    fn of(app: &App, vm: VmId) -> Self {
        Self { vm, paused: app.machines.paused(), told: false }
    }

    /// What to tell when it is not as was told last. Cancel-safe.
    async fn turned(&mut self) -> Message {
        let (vm, told) = (self.vm, self.told);
        if self.paused.wait_for(|paused| paused.contains(&vm) != told).await.is_err() {
            // Without a host nothing turns any more.
            return std::future::pending().await;
        }
        self.told = !told;
        words(&ToPage::State { state: if self.told { PAUSED } else { VmState::Running.word() } })
    }
}

fn words(words: &ToPage) -> Message {
    Message::Text(serde_json::to_string(words).expect("a number and words are JSON").into())
}

async fn serve(
    agent: AgentClient,
    mut stillness: Stillness,
    size: (u16, u16),
    socket: WebSocket,
    _count: SocketCount,
) {
    let (mut to_page, mut from_page) = socket.split();
    let opened = open(&agent, &mut stillness, size, &mut to_page, &mut from_page).await;
    let mut pty = match opened {
        Some(Ok(pty)) => pty,
        None => return,
        Some(Err(error)) => {
            tracing::warn!(vm.id = %stillness.vm, %error, "terminal could not be opened");
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
                        (words(&ToPage::Exit { code }), true)
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
            message = stillness.turned() => {
                if !sent(&mut to_page, message, SEND_LIMIT).await {
                    return;
                }
            }
            message = from_page.next() => {
                let frame = match message {
                    Some(Ok(Message::Binary(bytes))) => PtyFrame::Data(bytes.into()),
                    Some(Ok(Message::Text(text))) => match resized(&text) {
                        Ok(Some((cols, rows))) => PtyFrame::Resize { cols, rows },
                        Ok(None) => continue,
                        Err(_) => return close(&mut to_page, &mut from_page, close_code::PROTOCOL, "unknown message").await,
                    },
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                // A VM that stands still may take no more; the page is to know why.
                let mut sending = pin!(pty.send(frame));
                let taken = loop {
                    tokio::select! {
                        taken = &mut sending => break taken,
                        message = stillness.turned() => {
                            if !sent(&mut to_page, message, SEND_LIMIT).await {
                                return;
                            }
                        }
                    }
                };
                if taken.is_err() {
                    break;
                }
            }
        }
    }
    close(&mut to_page, &mut from_page, close_code::AWAY, "the terminal was taken over or its VM is gone")
        .await;
}

/// Attaches to the shell once the VM does not stand still; `None` when the page has left meanwhile. What was typed
/// before there is a shell is nobody's.
async fn open(
    agent: &AgentClient,
    stillness: &mut Stillness,
    mut size: (u16, u16),
    to_page: &mut SplitSink<WebSocket, Message>,
    from_page: &mut SplitStream<WebSocket>,
) -> Option<Result<PtyStream, AgentError>> {
    loop {
        let is_still = stillness.told;
        let message = tokio::select! {
            biased;
            message = stillness.turned() => message,
            // Given up when the VM comes to stand still, and begun again: a shell that was opened is found then.
            opened = attach(agent, size), if !is_still => return Some(opened),
            heard = timeout(PING_EVERY, from_page.next()), if is_still => match heard {
                Ok(Some(Ok(Message::Text(text)))) => {
                    size = resized(&text).ok().flatten().unwrap_or(size);
                    continue;
                }
                Ok(Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_)))) => continue,
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return None,
                Err(_) => Message::Ping(Vec::new().into()),
            },
        };
        if !sent(to_page, message, SEND_LIMIT).await {
            return None;
        }
    }
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

/// The size that a page's words tell, if it is one that a window can have.
fn resized(text: &str) -> Result<Option<(u16, u16)>, serde_json::Error> {
    serde_json::from_str(text).map(|FromPage::Resize { cols, rows }| window(cols, rows))
}

fn window(cols: u16, rows: u16) -> Option<(u16, u16)> {
    let good = |side: u16| (1..=SIDE_MAX).contains(&side);
    (good(cols) && good(rows)).then_some((cols, rows))
}
