//! A VM's way out while the host is a process of its own: the controller decides, connects, and hands the socket over.

use std::{io, net, sync::Arc, time::Duration};

use async_trait::async_trait;
use polydev_core::ids::VmId;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{super::protocol::ToClient, lease::Holder, send};
use crate::egress::{EgressHandler, EgressRefused};

/// How long a controller may be away, and how long it may take to connect.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a VM waits for a controller that is being started anew.
const ABSENCE_LIMIT: Duration = Duration::from_secs(10);

/// Asks the controller.
#[derive(Clone)]
pub struct ControllerEgress {
    holder: watch::Receiver<Option<Arc<Holder>>>,
}

impl ControllerEgress {
    pub(super) fn new(holder: watch::Receiver<Option<Arc<Holder>>>) -> Self {
        Self { holder }
    }

    async fn ask(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        let mut seen = self.holder.clone();
        let there = seen.wait_for(Option::is_some);
        let holder = match timeout_at(Instant::now() + ABSENCE_LIMIT, there).await {
            Ok(Ok(holder)) => holder.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(holder) = holder else { return Err(unreachable("no controller is connected")) };
        let (id, answer) = holder.note_ask();
        let ask = ToClient::Ask { id, vm, host: host.to_owned(), port };
        send(&holder.outbox, &ask).await.map_err(|_| unreachable("the controller is gone"))?;
        let (result, socket) = answer.await.map_err(|_| unreachable("the controller is gone"))?;
        result?;
        let socket = socket.ok_or_else(|| unreachable("the controller sent no socket"))?;
        stream(net::TcpStream::from(socket)).map_err(|error| unreachable(&error.to_string()))
    }
}

#[async_trait]
impl EgressHandler for ControllerEgress {
    async fn connect(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        let limit = Instant::now() + ANSWER_LIMIT;
        let asked = timeout_at(limit, self.ask(vm, host, port)).await;
        asked.unwrap_or_else(|_| Err(unreachable("the controller did not answer in time")))
    }
}

fn stream(socket: net::TcpStream) -> io::Result<TcpStream> {
    // Not a TCP socket: this fails.
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}

fn unreachable(why: &str) -> EgressRefused {
    EgressRefused::Unreachable(why.to_owned())
}
