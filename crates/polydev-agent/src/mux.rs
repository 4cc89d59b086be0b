//! One host session: yamux over the greeted connection, each stream handed to what its header names.

use std::{future::poll_fn, io, rc::Rc, task::Poll, time::Duration};

use polydev_core::{
    guest::{DESKTOP_SOCKET, VNC_SOCKET},
    wire::{
        StreamHeader,
        frame::{self, FrameError},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use crate::{agent::Agent, control, desktop, terminal};

/// Most streams at one time.
const STREAMS_MAX: usize = 384;
/// How long a stream may take to say what it is for.
const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// A stream with tokio's traits.
pub(crate) type Stream = Compat<yamux::Stream>;

/// Opens streams towards the host.
#[derive(Clone)]
pub(crate) struct Opener {
    wanted: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
}

impl Opener {
    pub(crate) async fn open(&self) -> io::Result<Stream> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let (sender, receiver) = oneshot::channel();
        self.wanted.send(sender).await.map_err(|_| gone())?;
        Ok(receiver.await.map_err(|_| gone())?.compat())
    }
}

/// Serves one host until it goes or is replaced.
pub(crate) async fn serve<T: AsyncRead + AsyncWrite + Unpin>(agent: Rc<Agent>, io: T) {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS_MAX);
    config.set_max_connection_receive_window(Some(STREAMS_MAX * (256 << 10) + (32 << 20)));
    let mut connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Server);
    let (sender, mut wanted) = mpsc::channel(16);
    *agent.opener.borrow_mut() = Some(Opener { wanted: sender });
    agent.host_came.notify_waiters();
    agent.log.note("channel", "host connected");
    let mut opening: Option<oneshot::Sender<yamux::Stream>> = None;
    let end = loop {
        let inbound = poll_fn(|cx| {
            loop {
                if opening.is_none()
                    && let Poll::Ready(Some(next)) = wanted.poll_recv(cx)
                {
                    opening = Some(next);
                }
                if opening.is_none() {
                    break;
                }
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        // Whoever wanted it may have given up; the stream is then closed by its drop.
                        let _ = opening.take().map(|waiting| waiting.send(stream));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => Poll::Ready(Ok(Some(stream))),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
                Poll::Ready(None) => Poll::Ready(Ok(None)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match inbound {
            Ok(Some(stream)) => {
                tokio::task::spawn_local(dispatch(agent.clone(), stream.compat()));
            }
            Ok(None) => break "closed".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    agent.log.note("channel", format_args!("host gone: {end}"));
    agent.opener.borrow_mut().take();
}

async fn dispatch(agent: Rc<Agent>, mut stream: Stream) {
    let header = match timeout(HEADER_LIMIT, read_frame::<StreamHeader>(&mut stream)).await {
        Ok(Ok(Some(header))) => header,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            agent.log.note("channel", format_args!("stream header: {error}"));
            return;
        }
    };
    match header {
        StreamHeader::Control => control::serve(agent, stream).await,
        StreamHeader::Vnc => desktop::join(&agent, VNC_SOCKET, stream).await,
        StreamHeader::Desktop => desktop::join(&agent, DESKTOP_SOCKET, stream).await,
        StreamHeader::Pty { id } => terminal::attach(&agent, id, stream).await,
        StreamHeader::Egress { .. } => agent.log.note("channel", "the host has no egress to ask for"),
    }
}

/// The next frame; `None` at the end of the stream.
pub(crate) async fn read_frame<T: DeserializeOwned>(
    io: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut prefix = [0; frame::PREFIX];
    match io.read_exact(&mut prefix).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut body = zeroize::Zeroizing::new(vec![0; frame::body_len(prefix).map_err(io::Error::other)?]);
    io.read_exact(&mut body).await?;
    frame::decode(&body).map(Some).map_err(io::Error::other)
}

/// Writes a frame and flushes it.
pub(crate) async fn write_frame(
    io: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let bytes = zeroize::Zeroizing::new(frame::encode(message).map_err(|error| match error {
        FrameError::TooLarge(_) => io::Error::new(io::ErrorKind::InvalidInput, error),
        FrameError::Json(_) => io::Error::other(error),
    })?);
    io.write_all(&bytes).await?;
    io.flush().await
}
