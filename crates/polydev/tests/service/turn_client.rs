//! A TURN client made of another implementation's messages, and servers to try it on.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use polydev::{
    clock::Clock,
    config::Config,
    desktop::turn::{IceServer, Turn, TurnError},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, pem::PemObject},
    },
};
use turn_types::{
    AddressFamily,
    attribute::{
        ChannelNumber, Data, RequestedAddressFamily, RequestedTransport, XorPeerAddress, XorRelayedAddress,
    },
    channel::ChannelData,
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, SEND},
    stun::{
        attribute::{ErrorCode, Nonce, Realm, Username},
        message::{
            IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials, MessageWrite,
            MessageWriteExt, MessageWriteVec, Method,
        },
    },
};

/// Nothing that a test waits for takes longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// The shared secret of these servers.
pub(crate) const SECRET: &str = "FAKE-shared-secret-of-the-tests";

/// How a client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Udp,
    Tcp,
    Tls,
}

/// A server and what it was made of.
pub(crate) struct World {
    pub(crate) turn: Turn,
    pub(crate) dir: TempDir,
}

impl World {
    /// Serves on loopback, with TLS, and relays to `endpoint`.
    pub(crate) fn open(endpoint: SocketAddr, flags: &[(&'static str, &str)]) -> Self {
        let world = Self::try_open(flags).unwrap();
        world.turn.relay_to_endpoint(Arc::new(move || vec![endpoint]));
        world
    }

    pub(crate) fn try_open(flags: &[(&'static str, &str)]) -> Result<Self, TurnError> {
        let dir = TempDir::new().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, private).unwrap();
            path.display().to_string()
        };
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let own = [
            ("turn_listen", "127.0.0.1:0".to_owned()),
            ("turn_secret_file", file("secret", SECRET)),
            ("turn_certificate_file", file("certificate.pem", &made.cert.pem())),
            ("turn_key_file", file("key.pem", &made.signing_key.serialize_pem())),
        ];
        let given = flags.iter().map(|(name, text)| (*name, (*text).to_owned()));
        let config = Config::load(None, [], own.into_iter().chain(given)).unwrap();
        Turn::open(&config.turn, dir.path(), Clock::System).map(|turn| Self { turn, dir })
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// The address for clients that come so.
    pub(crate) fn address(&self, by: By) -> SocketAddr {
        match by {
            By::Udp | By::Tcp => self.turn.listen().unwrap(),
            By::Tls => self.turn.tls_listen().unwrap(),
        }
    }

    /// A client with a credential made for `caller`.
    pub(crate) async fn client(&self, by: By, caller: &str) -> TurnClient {
        let server = &self.turn.ice_servers(caller)[0];
        let (name, password) = (server.username.clone().unwrap(), server.credential.clone().unwrap());
        self.client_with(by, &name, &password).await
    }

    pub(crate) async fn client_with(&self, by: By, username: &str, password: &str) -> TurnClient {
        let address = self.address(by);
        let wire = match by {
            By::Udp => datagrams(address).await,
            By::Tcp => stream(TcpStream::connect(address).await.unwrap()),
            By::Tls => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(self.certificate()).unwrap()).unwrap();
                let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let plain = TcpStream::connect(address).await.unwrap();
                let connector = TlsConnector::from(Arc::new(config));
                stream(connector.connect(address.ip().into(), plain).await.unwrap())
            }
        };
        TurnClient::new(wire, username, password)
    }
}

async fn datagrams(server: SocketAddr) -> (Reader, Writer) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let socket = Arc::new(socket);
    (Reader::Datagrams(Arc::clone(&socket)), Writer::Datagrams(socket))
}

fn stream(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> (Reader, Writer) {
    let (reader, writer) = tokio::io::split(stream);
    (Reader::Stream(Box::new(reader)), Writer::Stream(Box::new(writer)))
}

enum Reader {
    Datagrams(Arc<UdpSocket>),
    Stream(Box<dyn AsyncRead + Send + Unpin>),
}

enum Writer {
    Datagrams(Arc<UdpSocket>),
    Stream(Box<dyn AsyncWrite + Send + Unpin>),
}

/// A client. What it writes and reads is made and judged by the `turn-types` crate.
pub(crate) struct TurnClient {
    reader: Reader,
    writer: Writer,
    username: String,
    password: String,
    realm: Option<(String, String)>,
}

/// What a client exchanges with one peer from now on.
pub(crate) struct Tunnel {
    writer: Writer,
    number: Option<u16>,
    peer: SocketAddr,
    received: mpsc::UnboundedReceiver<Vec<u8>>,
    /// Reads; ends with the tunnel.
    _reading: JoinSet<()>,
}

impl Tunnel {
    pub(crate) async fn send(&mut self, data: &[u8]) {
        match self.number {
            Some(number) => self.writer.send_over(number, data).await,
            None => self.writer.send(self.peer, data).await,
        }
    }

    /// What the peer sent next, and the peer. May be given up at any time without a loss.
    pub(crate) async fn receive(&mut self) -> Option<(Vec<u8>, SocketAddr)> {
        Some((self.received.recv().await?, self.peer))
    }
}

impl TurnClient {
    fn new((reader, writer): (Reader, Writer), username: &str, password: &str) -> Self {
        Self { reader, writer, username: username.to_owned(), password: password.to_owned(), realm: None }
    }

    /// A client of the server at that address, with the credential that was given for it.
    pub(crate) async fn over_udp(address: SocketAddr, given: &IceServer) -> Self {
        let (username, password) = (given.username.as_deref(), given.credential.as_deref());
        Self::new(datagrams(address).await, username.unwrap(), password.unwrap())
    }

    /// As before, for who has no UDP.
    pub(crate) async fn over_tcp(address: SocketAddr, given: &IceServer) -> Self {
        let (username, password) = (given.username.as_deref(), given.credential.as_deref());
        let connection = TcpStream::connect(address).await.unwrap();
        Self::new(stream(connection), username.unwrap(), password.unwrap())
    }

    /// From now on all is for and from one peer, over the channel of that number or by indications.
    pub(crate) fn into_tunnel(self, peer: SocketAddr, number: Option<u16>) -> Tunnel {
        let (sender, received) = mpsc::unbounded_channel();
        let (mut reader, mut reading) = (self.reader, JoinSet::new());
        let from = number.map_or(Ok(peer), Err);
        reading.spawn(async move {
            while let Some(frame) = reader.read().await {
                let (sent_by, data) = data_in(&frame);
                assert_eq!(sent_by, from);
                // Nobody waits for it any more.
                let _ = sender.send(data);
            }
        });
        Tunnel { writer: self.writer, number, peer, received, _reading: reading }
    }

    /// Asks for an allocation, first without a credential as clients do; the relayed address or the error's code.
    pub(crate) async fn allocate(&mut self) -> Result<SocketAddr, u16> {
        let ask = |request: &mut MessageWriteVec| {
            request.add_attribute(&RequestedTransport::new(RequestedTransport::UDP)).unwrap();
            request.add_attribute(&RequestedAddressFamily::new(AddressFamily::IPV4)).unwrap();
        };
        if self.realm.is_none() {
            let answer = self.request(ALLOCATE, ask).await;
            let answer = Message::from_bytes(&answer).unwrap();
            assert_eq!(refusal(&answer), Some(401));
            let realm = answer.attribute::<Realm>().unwrap().realm().to_owned();
            self.realm = Some((realm, answer.attribute::<Nonce>().unwrap().nonce().to_owned()));
        }
        let answer = self.request(ALLOCATE, ask).await;
        let answer = Message::from_bytes(&answer).unwrap();
        match refusal(&answer) {
            Some(code) => Err(code),
            None => {
                answer.validate_integrity(&self.credentials()).expect("a granted answer is signed");
                let relayed = answer.attribute::<XorRelayedAddress>().unwrap();
                Ok(relayed.addr(answer.transaction_id()))
            }
        }
    }

    pub(crate) async fn permit(&mut self, peer: SocketAddr) -> Result<(), u16> {
        let answer = self
            .request(CREATE_PERMISSION, |request| {
                let address = XorPeerAddress::new(peer, request.transaction_id());
                request.add_attribute(&address).unwrap();
            })
            .await;
        refusal(&Message::from_bytes(&answer).unwrap()).map_or(Ok(()), Err)
    }

    pub(crate) async fn bind(&mut self, number: u16, peer: SocketAddr) -> Result<(), u16> {
        let answer = self
            .request(CHANNEL_BIND, |request| {
                request.add_attribute(&ChannelNumber::new(number)).unwrap();
                let address = XorPeerAddress::new(peer, request.transaction_id());
                request.add_attribute(&address).unwrap();
            })
            .await;
        refusal(&Message::from_bytes(&answer).unwrap()).map_or(Ok(()), Err)
    }

    /// Sends by an indication.
    pub(crate) async fn send(&mut self, peer: SocketAddr, data: &[u8]) {
        self.writer.send(peer, data).await;
    }

    /// Sends over a channel.
    pub(crate) async fn send_over(&mut self, number: u16, data: &[u8]) {
        self.writer.send_over(number, data).await;
    }

    /// The next data: from which peer (by indication) or over which channel.
    pub(crate) async fn receive(&mut self) -> (Result<SocketAddr, u16>, Vec<u8>) {
        data_in(&self.read().await)
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.writer.write(bytes).await;
    }

    /// Whether the server has ended the connection.
    pub(crate) async fn is_cut_off(&mut self) -> bool {
        let Reader::Stream(stream) = &mut self.reader else { return false };
        let read = timeout(DEADLINE, stream.read(&mut [0; 64])).await.expect("nothing happened in time");
        matches!(read, Ok(0) | Err(_))
    }

    async fn request(&mut self, method: Method, fill: impl Fn(&mut MessageWriteVec)) -> Vec<u8> {
        let mut request = Message::builder_request(method, MessageWriteVec::new());
        fill(&mut request);
        if let Some((realm, nonce)) = &self.realm {
            request.add_attribute(&Username::new(&self.username).unwrap()).unwrap();
            request.add_attribute(&Realm::new(realm).unwrap()).unwrap();
            request.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
            request.add_message_integrity(&self.credentials(), IntegrityAlgorithm::Sha1).unwrap();
        }
        request.add_fingerprint().unwrap();
        let transaction = request.transaction_id();
        self.write(&request.finish()).await;
        let answer = self.read().await;
        assert_eq!(Message::from_bytes(&answer).unwrap().transaction_id(), transaction);
        answer
    }

    fn credentials(&self) -> MessageIntegrityCredentials {
        let (realm, _) = self.realm.clone().unwrap();
        LongTermKeyCredentials::new(self.username.clone(), self.password.clone(), realm).into()
    }

    async fn read(&mut self) -> Vec<u8> {
        let read = timeout(DEADLINE, self.reader.read()).await.expect("the server did not answer in time");
        read.expect("the connection has ended")
    }
}

impl Reader {
    /// The next message or frame; `None` after the last one.
    async fn read(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Datagrams(socket) => {
                let mut buffer = vec![0; 65_536];
                let length = socket.recv(&mut buffer).await.ok()?;
                buffer.truncate(length);
                Some(buffer)
            }
            Self::Stream(stream) => {
                let mut frame = vec![0; 4];
                stream.read_exact(&mut frame).await.ok()?;
                let length = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
                let rest = if frame[0] >> 6 == 1 { length.next_multiple_of(4) } else { 16 + length };
                frame.resize(4 + rest, 0);
                stream.read_exact(&mut frame[4..]).await.ok()?;
                Some(frame)
            }
        }
    }
}

impl Writer {
    async fn send(&mut self, peer: SocketAddr, data: &[u8]) {
        let mut message = Message::builder_indication(SEND, MessageWriteVec::new());
        let address = XorPeerAddress::new(peer, message.transaction_id());
        message.add_attribute(&address).unwrap();
        message.add_attribute(&Data::new(data)).unwrap();
        self.write(&message.finish()).await;
    }

    async fn send_over(&mut self, number: u16, data: &[u8]) {
        let mut frame = vec![0; 4 + data.len()];
        ChannelData::new(number, data).write_into_unchecked(&mut frame);
        if matches!(self, Self::Stream(_)) {
            frame.resize(frame.len().next_multiple_of(4), 0);
        }
        self.write(&frame).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Datagrams(socket) => {
                socket.send(bytes).await.unwrap();
            }
            Self::Stream(stream) => {
                stream.write_all(bytes).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    }
}

/// What a peer sent: by an indication, or over a channel.
fn data_in(frame: &[u8]) -> (Result<SocketAddr, u16>, Vec<u8>) {
    if frame[0] >> 6 == 1 {
        let channel = ChannelData::parse(frame).unwrap();
        return (Err(channel.id()), channel.data().to_vec());
    }
    let message = Message::from_bytes(frame).unwrap();
    let peer = message.attribute::<XorPeerAddress>().unwrap().addr(message.transaction_id());
    (Ok(peer), message.attribute::<Data>().unwrap().data().to_vec())
}

fn refusal(answer: &Message<'_>) -> Option<u16> {
    answer.attribute::<ErrorCode>().ok().map(|error| error.code())
}
