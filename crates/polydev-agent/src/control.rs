//! The control stream: requests in, replies and events out.

use std::{collections::BTreeMap, io, pin::pin, rc::Rc, time::Duration};

use polydev_core::{
    guest::CLI_USER,
    wire::{AgentFrame, ErrorCode, PROTOCOL_VERSION, Refusal, Reply, Request, RequestFrame, frame},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::timeout,
};

use crate::{
    agent::Agent,
    desktop,
    events::Cursor,
    files, freezer, identity, login,
    mux::{Stream, read_frame, write_frame},
    page,
    process::{Launch, Streams, signal_group},
};

/// Most requests under way at one time.
const IN_FLIGHT: usize = 32;
/// Most bytes of each output stream that [`Request::Run`] returns.
const RUN_OUTPUT: usize = 64 << 10;
/// How long output may still come after the program ended.
const LAST_OUTPUT: Duration = Duration::from_millis(300);
/// Longest that [`Request::Run`] may be asked to wait.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// Short for a refusal.
pub(crate) fn refuse(code: ErrorCode, message: impl std::fmt::Display) -> Refusal {
    Refusal { code, message: message.to_string() }
}

/// A refusal by the operating system.
pub(crate) fn refuse_os(what: &str, error: &io::Error) -> Refusal {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Os,
    };
    refuse(code, format_args!("{what}: {error}"))
}

/// Serves one control stream to its end.
pub(crate) async fn serve(agent: Rc<Agent>, stream: Stream) {
    let (mut reader, writer) = tokio::io::split(stream);
    let (replies, outgoing) = mpsc::channel(IN_FLIGHT);
    // Dropped by abort when this function returns, so that a dead stream does not wait for the next event.
    let write = tokio::task::spawn_local(write_out(agent.clone(), writer, outgoing));
    let end = read_in(&agent, &mut reader, &replies).await;
    if let Err(error) = end {
        agent.log.note("control", error);
    }
    write.abort();
}

async fn read_in(
    agent: &Rc<Agent>,
    reader: &mut ReadHalf<Stream>,
    replies: &mpsc::Sender<Out>,
) -> io::Result<()> {
    let mut greeted = false;
    while let Some(RequestFrame { id, request }) = read_frame(reader).await? {
        let Ok(permit) = replies.clone().reserve_owned().await else { return Ok(()) };
        match (&request, greeted) {
            (Request::Hello { version }, _) if *version == PROTOCOL_VERSION => {
                greeted = true;
                permit.send(Out { id, result: Ok(agent.hello()), then: Then::Greeted });
                continue;
            }
            (Request::Hello { version }, _) => {
                let why = format!("agent speaks version {PROTOCOL_VERSION}, host {version}");
                permit.send(Out {
                    id,
                    result: Err(refuse(ErrorCode::VersionMismatch, why)),
                    then: Then::Nothing,
                });
                continue;
            }
            (_, false) => {
                let refusal = refuse(ErrorCode::Conflict, "hello must come first");
                permit.send(Out { id, result: Err(refusal), then: Then::Nothing });
                continue;
            }
            _ => {}
        }
        let agent = agent.clone();
        tokio::task::spawn_local(async move {
            let mut then = match &request {
                Request::PowerOff => Then::PowerOff,
                Request::Quiesce => Then::Quiesce,
                _ => Then::Nothing,
            };
            let result = answer(&agent, request).await;
            if result.is_err() {
                then = Then::Nothing;
            }
            // Fails only when the stream is gone.
            permit.send(Out { id, result, then });
        });
    }
    Ok(())
}

/// A reply on its way out.
struct Out {
    id: u64,
    result: Result<Reply, Refusal>,
    then: Then,
}

/// What follows once the reply is written.
enum Then {
    Nothing,
    Greeted,
    Quiesce,
    PowerOff,
}

async fn write_out(agent: Rc<Agent>, mut writer: WriteHalf<Stream>, mut outgoing: mpsc::Receiver<Out>) {
    let mut cursor = None::<Cursor>;
    loop {
        let next_event = async {
            match &cursor {
                Some(cursor) => agent.events.next(cursor).await,
                None => std::future::pending().await,
            }
        };
        let written = tokio::select! {
            biased;
            out = outgoing.recv() => {
                let Some(Out { id, result, then }) = out else { return };
                let written = write_reply(&mut writer, id, result).await;
                match then {
                    Then::Nothing => {}
                    Then::Greeted => cursor = Some(Cursor::default()),
                    Then::Quiesce | Then::PowerOff => {
                        // The reply has to leave before the connection goes.
                        let _ = writer.shutdown().await;
                        agent.close_session_soon(matches!(then, Then::PowerOff));
                        return;
                    }
                }
                written
            }
            (number, event) = next_event => {
                let written = write_frame(&mut writer, &AgentFrame::Event { event }).await;
                if written.is_ok() && let Some(cursor) = &mut cursor {
                    agent.events.delivered(cursor, number);
                }
                written
            }
        };
        if written.is_err() {
            return;
        }
    }
}

async fn write_reply(
    writer: &mut WriteHalf<Stream>,
    id: u64,
    result: Result<Reply, Refusal>,
) -> io::Result<()> {
    match write_frame(writer, &AgentFrame::Reply { id, result }).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let why = format!("the answer is larger than a frame of {} bytes", frame::MAX_BODY);
            write_frame(writer, &AgentFrame::Reply { id, result: Err(refuse(ErrorCode::BadRequest, why)) })
                .await
        }
        other => other,
    }
}

async fn answer(agent: &Rc<Agent>, request: Request) -> Result<Reply, Refusal> {
    if freezer::frozen() && !works_while_frozen(&request) {
        return Err(refuse(ErrorCode::Conflict, "the machine waits for its identity"));
    }
    match request {
        Request::Hello { .. } => Err(refuse(ErrorCode::Conflict, "hello was said already")),
        Request::Identify(identity) => identity::take(agent, identity).await,
        Request::StartDesktop { width, height } => desktop::start(agent, width, height),
        Request::OpenPage { url } => page::open(agent, url),
        Request::StartLogin(spec) => login::start(agent, spec),
        Request::LoginInput { text } => login::input(agent, text).await,
        Request::ReplayCallback { url } => login::replay(agent, &url).await,
        Request::CancelLogin => login::cancel(agent).await,
        Request::PutFiles { files } => files::put(&files).map(|()| Reply::Done),
        Request::GetFiles { files } => files::get(&files).map(|files| Reply::Files { files }),
        Request::Run { argv, env, timeout_ms } => run(agent, &argv, env, timeout_ms).await,
        Request::OpenPty { argv, env, cols, rows } => agent.terminals.open(agent, argv, env, cols, rows),
        Request::ClosePty { id } => agent.terminals.close(id),
        Request::ReadLog { max_bytes } => {
            // JSON escaping at most doubles printable text.
            let max = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(frame::MAX_BODY / 3);
            Ok(Reply::Log { text: agent.log.tail(max) })
        }
        Request::Quiesce => identity::lay_down(agent).await,
        Request::PowerOff => Ok(Reply::Done),
    }
}

/// Between a snapshot and the next identity nothing of a person runs, or could.
const fn works_while_frozen(request: &Request) -> bool {
    matches!(
        request,
        Request::Hello { .. }
            | Request::Identify(_)
            | Request::ReadLog { .. }
            | Request::Quiesce
            | Request::PowerOff
    )
}

async fn run(
    agent: &Rc<Agent>,
    argv: &[String],
    env: BTreeMap<String, String>,
    timeout_ms: u64,
) -> Result<Reply, Refusal> {
    let mut environment = agent.person_env();
    environment.extend(env);
    let launch = Launch { argv, env: &environment, account: &CLI_USER, streams: Streams::Output };
    let mut child = launch.start(&agent.reaper).map_err(|error| refuse_os("start the program", &error))?;
    let limit = Duration::from_millis(timeout_ms).min(RUN_LIMIT);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let outcome = {
        let pipes = (child.stdout.take(), child.stderr.take());
        let mut read = pin!(async {
            tokio::join!(read_capped(pipes.0, &mut stdout), read_capped(pipes.1, &mut stderr))
        });
        timeout(limit, async {
            tokio::select! {
                _ = &mut read => child.exit.await,
                exit = &mut child.exit => {
                    // Something it left running may hold the pipes open for ever.
                    let _ = timeout(LAST_OUTPUT, read).await;
                    exit
                }
            }
        })
        .await
    };
    signal_group(child.pid, libc::SIGKILL);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    match outcome {
        Ok(exit) => {
            Ok(Reply::Ran { exit_code: exit.unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) })
        }
        Err(_) => Err(refuse(ErrorCode::TimedOut, format_args!("killed after {} ms", limit.as_millis()))),
    }
}

/// Reads to the end, keeps the first bytes.
async fn read_capped(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    if let Some(mut pipe) = pipe {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
            let room = RUN_OUTPUT - kept.len();
            kept.extend_from_slice(&chunk[..count.min(room)]);
        }
    }
}
