//! A page's part of WebRTC, played by the same library in its other role: a full ICE agent over real sockets.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use str0m::{
    Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcConfig,
    change::{SdpAnswer, SdpPendingOffer},
    channel::{ChannelConfig, ChannelId, Reliability},
    media::{Direction, KeyframeRequestKind, MediaKind, Mid},
    net::{Protocol, Receive, TcpType},
    rtp::Extension,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::turn_client::Tunnel;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a page has got so far.
#[derive(Default)]
pub(crate) struct Got {
    pub(crate) connected: bool,
    pub(crate) closed: bool,
    /// Pictures, as the text that the fake desktop puts into them.
    pub(crate) pictures: Vec<Picture>,
    /// Packets of pictures, and of what fills the pauses between them.
    pub(crate) media_packets: usize,
    pub(crate) words: Vec<Value>,
    pub(crate) binary: Vec<Vec<u8>>,
    /// Channels by label.
    pub(crate) open: HashMap<String, ChannelId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) key: bool,
    pub(crate) number: u32,
    /// Least and most playout delay that it asks for.
    pub(crate) no_delay: bool,
}

pub(crate) struct Page {
    pub(crate) rtc: Rtc,
    pub(crate) got: Got,
    way: Way,
    local: SocketAddr,
    video: Option<Mid>,
    pending: Option<SdpPendingOffer>,
}

enum Way {
    Udp(UdpSocket),
    Tcp { stream: Option<TcpStream>, unread: Vec<u8>, endpoint: SocketAddr },
    Relay(Tunnel),
}

impl Page {
    /// A page that connects over UDP.
    pub(crate) async fn udp() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let local = socket.local_addr().unwrap();
        Self::new(Way::Udp(socket), local, Candidate::host(local, "udp").unwrap())
    }

    /// A page whose network lets no UDP through.
    pub(crate) async fn tcp(endpoint: SocketAddr) -> Self {
        let stream = TcpStream::connect(endpoint).await.unwrap();
        let local = stream.local_addr().unwrap();
        let candidate = Candidate::builder().tcp().host(local).tcptype(TcpType::Active).build().unwrap();
        Self::new(Way::Tcp { stream: Some(stream), unread: Vec::new(), endpoint }, local, candidate)
    }

    /// A page that has no way but a relayed address.
    pub(crate) fn relayed(tunnel: Tunnel, relayed: SocketAddr) -> Self {
        Self::new(Way::Relay(tunnel), relayed, Candidate::relayed(relayed, relayed, "udp").unwrap())
    }

    fn new(way: Way, local: SocketAddr, candidate: Candidate) -> Self {
        let config = RtcConfig::new().clear_codecs().enable_h264(true);
        let mut rtc = config.set_extension(9, Extension::PlayoutDelay).build(Instant::now());
        rtc.add_local_candidate(candidate);
        Self { rtc, got: Got::default(), way, local, video: None, pending: None }
    }

    /// The offer of a page: one picture to receive, and its two channels.
    pub(crate) fn offer(&mut self) -> Value {
        let mut change = self.rtc.sdp_api();
        self.video = Some(change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None));
        change.add_channel("input".to_owned());
        change.add_channel_with_config(ChannelConfig {
            label: "moves".to_owned(),
            ordered: false,
            reliability: Reliability::MaxRetransmits { retransmits: 0 },
            ..ChannelConfig::default()
        });
        let (offer, pending) = change.apply().unwrap();
        self.pending = Some(pending);
        json!({ "sdp": offer.to_sdp_string() })
    }

    /// The offer of an ICE restart.
    pub(crate) fn restart(&mut self) -> String {
        let mut change = self.rtc.sdp_api();
        change.ice_restart(true);
        let (offer, pending) = change.apply().unwrap();
        self.pending = Some(pending);
        offer.to_sdp_string()
    }

    pub(crate) fn answered(&mut self, answer: &Value) {
        let answer = SdpAnswer::from_sdp_string(answer["answer"]["sdp"].as_str().unwrap()).unwrap();
        self.rtc.sdp_api().accept_answer(self.pending.take().unwrap(), answer).unwrap();
    }

    /// Goes on until `wanted` is fulfilled; fails after the deadline.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl FnMut(&Got) -> bool) {
        assert!(self.goes_on(DEADLINE, wanted).await, "waited in vain until {what}");
    }

    /// Goes on until `wanted` is fulfilled or time is up.
    pub(crate) async fn goes_on(&mut self, limit: Duration, mut wanted: impl FnMut(&Got) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 4096];
        loop {
            let at = self.drain().await;
            if wanted(&self.got) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            let received = tokio::time::timeout_at(at.min(end).into(), self.way.receive(&mut buffer)).await;
            let now = Instant::now();
            let (packet, proto, source) = match received {
                Ok(Some(packet)) => packet,
                Ok(None) | Err(_) => {
                    let _ = self.rtc.handle_input(Input::Timeout(now));
                    continue;
                }
            };
            self.got.media_packets += usize::from(matches!(packet[..], [128..=191, 0..=191 | 224..=255, ..]));
            if let Ok(received) = Receive::new(proto, source, self.local, &packet) {
                let _ = self.rtc.handle_input(Input::Receive(now, received));
            }
        }
    }

    /// Sends on a channel.
    pub(crate) async fn send(&mut self, label: &str, binary: bool, bytes: &[u8]) {
        let id = self.got.open[label];
        assert!(self.rtc.channel(id).unwrap().write(binary, bytes).unwrap());
        self.drain().await;
    }

    /// Says that the picture is lost.
    pub(crate) async fn lose_the_picture(&mut self) {
        let mut writer = self.rtc.writer(self.video.unwrap()).unwrap();
        writer.request_keyframe(None, KeyframeRequestKind::Pli).unwrap();
        self.drain().await;
    }

    async fn drain(&mut self) -> Instant {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) => return at,
                Ok(Output::Transmit(transmit)) => {
                    self.way.send(transmit.destination, &transmit.contents).await;
                }
                Ok(Output::Event(event)) => self.note(event),
                // As when the other side closes before all of it was set up.
                Err(_) => {
                    self.got.closed = true;
                    return Instant::now() + Duration::from_secs(1);
                }
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Connected => self.got.connected = true,
            Event::IceConnectionStateChange(IceConnectionState::Disconnected) | Event::Closed => {
                self.got.closed = true;
            }
            Event::ChannelOpen(id, label) => {
                self.got.open.insert(label, id);
            }
            Event::ChannelData(data) if data.binary => self.got.binary.push(data.data),
            Event::ChannelData(data) => self.got.words.push(serde_json::from_slice(&data.data).unwrap()),
            Event::MediaData(media) => {
                let text = String::from_utf8_lossy(&media.data).into_owned();
                let number =
                    text.rsplit("picture ").next().and_then(|rest| rest.split(' ').next()?.parse().ok());
                let zero =
                    |delay: Option<str0m::media::MediaTime>| delay.is_some_and(|delay| delay.numer() == 0);
                let (least, most) = (media.ext_vals.play_delay_min, media.ext_vals.play_delay_max);
                self.got.pictures.push(Picture {
                    key: media.is_keyframe(),
                    number: number.unwrap_or_else(|| panic!("no number in {text:?}")),
                    no_delay: zero(least) && zero(most),
                });
            }
            _ => {}
        }
    }
}

impl Got {
    pub(crate) fn said(&self, kind: &str) -> Option<&Value> {
        self.words.iter().rev().find(|word| word["type"] == kind)
    }
}

impl Way {
    async fn receive(&mut self, buffer: &mut [u8]) -> Option<(Vec<u8>, Protocol, SocketAddr)> {
        match self {
            Self::Udp(socket) => {
                let (count, source) = socket.recv_from(buffer).await.ok()?;
                Some((buffer[..count].to_vec(), Protocol::Udp, source))
            }
            Self::Relay(tunnel) => {
                let (packet, source) = tunnel.receive().await?;
                Some((packet, Protocol::Udp, source))
            }
            Self::Tcp { stream, unread, endpoint } => loop {
                if let Some((head, rest)) = unread.split_first_chunk::<2>() {
                    let len = usize::from(u16::from_be_bytes(*head));
                    if rest.len() >= len {
                        let packet = rest[..len].to_vec();
                        unread.drain(..2 + len);
                        return Some((packet, Protocol::Tcp, *endpoint));
                    }
                }
                let Some(open) = stream else { return std::future::pending().await };
                match open.read(buffer).await {
                    Ok(count) if count > 0 => unread.extend(&buffer[..count]),
                    Ok(_) | Err(_) => *stream = None,
                }
            },
        }
    }

    async fn send(&mut self, destination: SocketAddr, packet: &[u8]) {
        match self {
            // As on any network, what cannot be sent is lost.
            Self::Udp(socket) => {
                let _ = socket.send_to(packet, destination).await;
            }
            Self::Tcp { stream: Some(stream), .. } => {
                let len = u16::try_from(packet.len()).unwrap();
                let _ = stream.write_all(&[&len.to_be_bytes(), packet].concat()).await;
            }
            Self::Tcp { stream: None, .. } => {}
            Self::Relay(tunnel) => tunnel.send(packet).await,
        }
    }
}
