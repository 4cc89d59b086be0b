//! What of a TLS client's first message (RFC 8446, section 4.1.2) is drawn at random; a way out that only listens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use polydev_core::ids::VmId;
use polydev_host::{EgressHandler, EgressRefused};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Extension `key_share`.
const KEY_SHARE: u16 = 51;
/// Shorter ones are placeholders without a secret (RFC 8701).
const KEY_MIN: usize = 32;

/// The random parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientHello {
    pub(crate) random: String,
    pub(crate) session_id: String,
    pub(crate) key_shares: Vec<String>,
}

impl ClientHello {
    /// From the body of a handshake record.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let kind = rest.take(1)?;
        let body = rest.counted(3)?;
        let mut rest = Reader(body);
        let _version = rest.take(2)?;
        let random = hex(rest.take(32)?);
        let session_id = hex(rest.counted(1)?);
        let _cipher_suites = rest.counted(2)?;
        let _compression = rest.counted(1)?;
        let mut extensions = Reader(rest.counted(2)?);
        let mut key_shares = Vec::new();
        while !extensions.0.is_empty() {
            let number = extensions.number(2)?;
            let mut body = Reader(extensions.counted(2)?);
            if number == usize::from(KEY_SHARE) {
                let mut shares = Reader(body.counted(2)?);
                while !shares.0.is_empty() {
                    let _group = shares.take(2)?;
                    let key = shares.counted(2)?;
                    if key.len() >= KEY_MIN {
                        key_shares.push(hex(key));
                    }
                }
            }
        }
        (kind == [1]).then_some(Self { random, session_id, key_shares })
    }

    /// Reads one from a connection; `None` if something else comes.
    async fn read(peer: &mut (impl AsyncRead + Unpin)) -> Option<Self> {
        let mut head = [0; 5];
        peer.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        peer.read_exact(&mut body).await.ok()?;
        if head[0] == 22 { Self::parse(&body) } else { None }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    fn counted(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let count = self.number(bytes)?;
        self.take(count)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lets everything out, as far as this: keeps the first message and hangs up.
#[derive(Default)]
pub(crate) struct Listening {
    heard: Mutex<HashMap<VmId, Vec<ClientHello>>>,
    changed: watch::Sender<()>,
}

impl Listening {
    /// Returns once a VM has said something.
    pub(crate) async fn first(&self, vm: VmId) {
        let mut changed = self.changed.subscribe();
        while self.heard(vm).is_empty() {
            changed.changed().await.unwrap();
        }
    }

    /// All that a VM has said so far.
    pub(crate) fn heard(&self, vm: VmId) -> Vec<ClientHello> {
        self.heard.lock().unwrap().get(&vm).cloned().unwrap_or_default()
    }
}

/// The host's own handle on it.
pub(crate) struct Ears(pub(crate) Arc<Listening>);

#[async_trait]
impl EgressHandler for Ears {
    async fn connect(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        if (host, port) != (super::own::PAGE_HOST, 443) {
            return Err(EgressRefused::Policy(host.to_owned()));
        }
        let unreachable = |error: std::io::Error| EgressRefused::Unreachable(error.to_string());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(unreachable)?;
        let near =
            TcpStream::connect(listener.local_addr().map_err(unreachable)?).await.map_err(unreachable)?;
        let listening = Arc::clone(&self.0);
        tokio::spawn(async move {
            let Ok((mut far, _)) = listener.accept().await else { return };
            if let Some(hello) = ClientHello::read(&mut far).await {
                listening.heard.lock().unwrap().entry(vm).or_default().push(hello);
                listening.changed.send_replace(());
            }
        });
        Ok(near)
    }
}
