//! A TURN client made of another implementation's messages, and servers to try it on.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use polydev::{
    clock::Clock,
    config::Config,
    desktop::turn::{Turn, TurnError},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
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
            By::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.connect(address).await.unwrap();
                Wire::Datagrams(socket)
            }
            By::Tcp => Wire::Stream(Box::new(TcpStream::connect(address).await.unwrap())),
            By::Tls => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(self.certificate()).unwrap()).unwrap();
                let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let stream = TcpStream::connect(address).await.unwrap();
                let connector = TlsConnector::from(Arc::new(config));
                let stream = connector.connect(address.ip().into(), stream).await.unwrap();
                Wire::Stream(Box::new(stream))
            }
        };
        let (username, password) = (username.to_owned(), password.to_owned());
        TurnClient { wire, username, password, realm: None }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

enum Wire {
    Datagrams(UdpSocket),
    Stream(Box<dyn Stream>),
}

/// A client. What it writes and reads is made and judged by the `turn-types` crate.
pub(crate) struct TurnClient {
    wire: Wire,
    username: String,
    password: String,
    realm: Option<(String, String)>,
}

impl TurnClient {
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
        let mut message = Message::builder_indication(SEND, MessageWriteVec::new());
        let address = XorPeerAddress::new(peer, message.transaction_id());
        message.add_attribute(&address).unwrap();
        message.add_attribute(&Data::new(data)).unwrap();
        self.write(&message.finish()).await;
    }

    /// Sends over a channel.
    pub(crate) async fn send_over(&mut self, number: u16, data: &[u8]) {
        let mut frame = vec![0; 4 + data.len()];
        ChannelData::new(number, data).write_into_unchecked(&mut frame);
        if matches!(self.wire, Wire::Stream(_)) {
            frame.resize(frame.len().next_multiple_of(4), 0);
        }
        self.write(&frame).await;
    }

    /// The next data: from which peer (by indication) or over which channel.
    pub(crate) async fn receive(&mut self) -> (Result<SocketAddr, u16>, Vec<u8>) {
        let frame = self.read().await;
        if frame[0] >> 6 == 1 {
            let channel = ChannelData::parse(&frame).unwrap();
            return (Err(channel.id()), channel.data().to_vec());
        }
        let message = Message::from_bytes(&frame).unwrap();
        let peer = message.attribute::<XorPeerAddress>().unwrap().addr(message.transaction_id());
        (Ok(peer), message.attribute::<Data>().unwrap().data().to_vec())
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        match &mut self.wire {
            Wire::Datagrams(socket) => {
                socket.send(bytes).await.unwrap();
            }
            Wire::Stream(stream) => {
                stream.write_all(bytes).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    }

    /// Whether the server has ended the connection.
    pub(crate) async fn is_cut_off(&mut self) -> bool {
        let Wire::Stream(stream) = &mut self.wire else { return false };
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
        let reading = async {
            match &mut self.wire {
                Wire::Datagrams(socket) => {
                    let mut buffer = vec![0; 65_536];
                    let length = socket.recv(&mut buffer).await.unwrap();
                    buffer.truncate(length);
                    buffer
                }
                Wire::Stream(stream) => {
                    let mut frame = vec![0; 4];
                    stream.read_exact(&mut frame).await.unwrap();
                    let length = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
                    let rest = if frame[0] >> 6 == 1 { length.next_multiple_of(4) } else { 16 + length };
                    frame.resize(4 + rest, 0);
                    stream.read_exact(&mut frame[4..]).await.unwrap();
                    frame
                }
            }
        };
        timeout(DEADLINE, reading).await.expect("the server did not answer in time")
    }
}

fn refusal(answer: &Message<'_>) -> Option<u16> {
    answer.attribute::<ErrorCode>().ok().map(|error| error.code())
}
