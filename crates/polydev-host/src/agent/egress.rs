//! Streams that the guest opens: each is one TCP connection that the handler makes or refuses.

use std::{sync::Arc, time::Duration};

use polydev_core::{
    ids::VmId,
    wire::{EgressReply, StreamHeader, frame},
};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::{link::LinkOptions, session};
use crate::egress::{Account, EgressHandler};

/// How long the guest may take to say where it wants to go.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// How long the handler may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Longest host name (RFC 1035).
const HOST_MAX: usize = 253;

/// One VM's way out.
#[derive(Clone)]
pub(super) struct Gate {
    vm: VmId,
    handler: Arc<dyn EgressHandler>,
    account: Arc<Account>,
    slow_factor: u32,
}

impl Gate {
    pub(super) fn new(options: &LinkOptions) -> Self {
        Self {
            vm: options.vm,
            handler: Arc::clone(&options.egress),
            account: Arc::clone(&options.account),
            slow_factor: options.slow_factor,
        }
    }

    /// Serves one stream of the guest to its end.
    pub(super) async fn serve(self, stream: yamux::Stream) {
        let mut stream = stream.compat();
        // A stream that the table has no room for is dropped, which closes it.
        let Some(place) = self.account.place() else { return };
        let header = timeout(HEADER_LIMIT * self.slow_factor, session::receive(&mut stream)).await;
        let Ok(Ok(StreamHeader::Egress { host, port })) = header else {
            tracing::debug!(vm.id = %self.vm, "guest opened a stream that is no egress");
            return;
        };
        let opening = self.account.opening().await;
        let connected = if host.is_empty() || host.len() > HOST_MAX || port == 0 {
            Err("malformed destination".to_owned())
        } else {
            match timeout(CONNECT_LIMIT, self.handler.connect(self.vm, &host, port)).await {
                Ok(connected) => connected.map_err(|refused| refused.to_string()),
                Err(_) => Err("connecting took too long".to_owned()),
            }
        };
        drop(opening);
        match &connected {
            Ok(_) => self.account.connected(&host),
            Err(_) => self.account.refused(&host),
        }
        let (reply, far) = match connected {
            Ok(far) => (EgressReply::Connected, Some(far)),
            Err(reason) => (EgressReply::Refused { reason }, None),
        };
        let Ok(reply) = frame::encode(&reply) else { return };
        if stream.write_all(&reply).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        match far {
            Some(far) => {
                if let Err(error) = self.account.carry(&host, &mut stream, far, place).await {
                    tracing::trace!(vm.id = %self.vm, %error, "egress connection ended");
                }
            }
            // Closed properly, so that the agent reads the whole answer.
            None => drop(stream.shutdown().await),
        }
    }
}
