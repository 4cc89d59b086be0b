//! One viewer's WebRTC session: the library's state machine, and the task that owns it.
//!
//! Each input to the library is followed by taking out everything it has to say, before anything else is put in. Nothing
//! in between waits: datagrams leave by a [`Wire`], which never does, and the hub's link never does either. Time is an
//! input here.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use polydev_core::desktop::{Frame, InputEvent, TEXT_MAX};
use str0m::{
    Event, IceConnectionState, Input, Output, Reason, Rtc, RtcConfig, RtcError,
    bwe::{Bitrate, BweKind},
    channel::{ChannelData, ChannelId},
    crypto::{CryptoProvider, dtls::DtlsCert},
    format::PayloadParams,
    media::{Direction, MediaKind, MediaTime, Mid},
    net::{Protocol, Receive, Transmit},
    rtp::{Extension, ExtensionMap},
};

use super::{
    super::{Outgoing, ViewerLink, talk::WORDS_MAX},
    clock::MediaClock,
    guarded::{Panicked, guarded},
    offer::is_wanted,
    pace::{Pace, Pacing},
    routes::{Packet, Routes, ViewerKey},
};

/// Payload types that are proposed; the page's own are used.
const PROPOSED: [(u8, u8, u32); 2] = [(108, 109, 0x42_e0_1f), (127, 121, 0x42_00_1f)];
/// Ids of header extensions that are proposed; the page's own are used.
const EXTENSIONS: [(u8, Extension); 5] = [
    (2, Extension::AbsoluteSendTime),
    (3, Extension::TransportSequenceNumber),
    (4, Extension::RtpMid),
    (9, Extension::PlayoutDelay),
    (13, Extension::VideoOrientation),
];
/// Bytes of words that may be on their way: a clipboard, and the shape of a cursor.
const WORDS_IN_FLIGHT_MAX: usize = 2 << 20;
/// With more on its way than that, the next words wait in the hub's queue, where the newest replace older ones.
const WORDS_IN_FLIGHT_WANTED: usize = 64 << 10;
/// Packets kept for resending: some keyframes.
const SENT_PACKETS: usize = 2048;
const RESEND_AGE: Duration = Duration::from_secs(3);
/// More of what is sent being resends means that the path is lost; a keyframe is better then.
const RESEND_SHARE_MAX: f32 = 0.6;
/// The picture waits in the pacer for at most this long at the estimated rate before a newer one is added.
const PACED_AHEAD: Duration = Duration::from_millis(120);
/// Data channels of a page: two, and some that are refused.
const CHANNELS_MAX: usize = 8;
/// Channel of keys, buttons and words.
const INPUT_CHANNEL: &str = "input";
/// Channel of pointer moves.
const MOVES_CHANNEL: &str = "moves";

/// What all sessions of the endpoint share.
pub(super) struct Identity {
    crypto: Arc<CryptoProvider>,
    certificate: DtlsCert,
}

impl Identity {
    /// Makes a certificate, which serves until the end of the process; pages learn its fingerprint in the answer.
    pub(super) fn new() -> Option<Self> {
        let crypto = Arc::new(str0m::crypto::from_feature_flags());
        let certificate = crypto.dtls_provider.generate_certificate()?;
        Some(Self { crypto, certificate })
    }

    /// A session that has seen no offer yet.
    pub(super) fn new_rtc(&self, pace: &Pace) -> Rtc {
        let mut extensions = ExtensionMap::empty();
        EXTENSIONS.into_iter().for_each(|(id, extension)| extensions.set(id, extension));
        let mut config = RtcConfig::new()
            .set_ice_lite(true)
            .set_crypto_provider(Arc::clone(&self.crypto))
            .set_dtls_cert(self.certificate.clone())
            .clear_codecs()
            .set_extension_map(extensions)
            .enable_bwe(Some(pace.estimate()))
            .set_send_buffer_video(SENT_PACKETS)
            .set_sctp_max_buffered_amount(WORDS_IN_FLIGHT_MAX)
            .set_sctp_max_message_size(u32::try_from(WORDS_MAX).unwrap_or(u32::MAX));
        for (pt, resend, profile) in PROPOSED {
            config.codec_config().add_h264(pt.into(), Some(resend.into()), true, profile);
        }
        config.build(Instant::now())
    }
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    /// The page closed the connection.
    #[error("the page closed it")]
    Closed,
    /// The desktop is gone, or the hub let the viewer go.
    #[error("the desktop has ended")]
    Desktop,
    /// The page could not be reached in time, or any more.
    #[error("the page is not reached")]
    Unreachable,
    /// The page did not keep to a protocol.
    #[error("the page broke a protocol")]
    Protocol,
    /// The library failed.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// The way out to pages.
pub(super) trait Wire: Send + Sync {
    /// Sends at once or not at all.
    fn send(&self, transmit: Transmit);
    /// Whether so much waits on the way to `remote` that a further picture would only make everything later.
    fn is_congested(&self, protocol: Protocol, remote: SocketAddr) -> bool;
}

/// One viewer's session.
pub(super) struct Session {
    rtc: Rtc,
    key: ViewerKey,
    link: ViewerLink,
    net: Arc<dyn Wire>,
    routes: Arc<Routes>,
    pace: Pace,
    clock: MediaClock,
    reach: Reach,
    picture: Option<Picture>,
    channels: Vec<(ChannelId, Purpose)>,
    words_room: bool,
    path: Option<(Protocol, SocketAddr)>,
}

/// Whether the page is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Not yet, since then.
    Connecting(Instant),
    /// It is.
    Connected,
    /// It was, until then.
    Lost(Instant),
}

/// The section of the page that takes the picture.
#[derive(Debug, Clone, Copy)]
struct Picture {
    mid: Mid,
    params: PayloadParams,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Input,
    Moves,
}

impl Session {
    /// Takes over a session that has accepted an offer.
    pub(super) fn new(
        rtc: Rtc,
        pace: Pace,
        key: ViewerKey,
        link: ViewerLink,
        net: Arc<dyn Wire>,
        routes: Arc<Routes>,
        now: Instant,
    ) -> Self {
        Self {
            rtc,
            key,
            link,
            net,
            routes,
            pace,
            clock: MediaClock::default(),
            reach: Reach::Connecting(now),
            picture: None,
            channels: Vec::new(),
            words_room: true,
            path: None,
        }
    }

    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    /// From now on the page's requests may also be addressed to this name.
    pub(super) fn called(&self, ufrag: &str) {
        self.routes.name(self.key, ufrag);
    }

    /// Mutable access for accepting a further offer; [`Session::drain`] has to follow.
    pub(super) fn rtc(&mut self) -> &mut Rtc {
        &mut self.rtc
    }

    /// A packet of the page.
    pub(super) fn receive(&mut self, packet: &Packet) -> Result<(), Ended> {
        let remote = (packet.protocol, packet.source);
        // What cannot be parsed may be from anybody who knows the page's address.
        let Ok(received) = Receive::new(packet.protocol, packet.source, packet.destination, &packet.data)
        else {
            return Ok(());
        };
        let input = Input::Receive(packet.received, received);
        if !self.routes.is_verified(self.key, remote) {
            if !guarded(|| self.rtc.accepts(&input))? {
                return Ok(());
            }
            self.routes.verified(self.key, remote);
        }
        self.link.sign_of_life();
        self.put(input)?;
        if is_feedback(&packet.data)
            && let Some(pacing) = self.pace.heard(packet.received)
        {
            self.apply(pacing)?;
        }
        Ok(())
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Ended> {
        if let Some(pacing) = self.pace.tick(now) {
            self.apply(pacing)?;
        }
        self.put(Input::Timeout(now))
    }

    /// Takes out everything the library has to say. Gives when [`Session::tick`] has to be called.
    pub(super) fn drain(&mut self, now: Instant) -> Result<Instant, Ended> {
        loop {
            match guarded(|| self.rtc.poll_output())? {
                Ok(Output::Timeout(at)) => {
                    let is_estimator = self.rtc.last_timeout_reason() == Reason::BweDelayControl;
                    return Ok(self.pace.wake(now, at, is_estimator));
                }
                Ok(Output::Transmit(transmit)) => {
                    self.path = Some((transmit.proto, transmit.destination));
                    self.net.send(transmit);
                }
                Ok(Output::Event(event)) => self.heed(event, now)?,
                Err(error) => return Err(protocol(&error)),
            }
        }
    }

    /// Whether a picture could leave at once.
    pub(super) fn takes_pictures(&mut self) -> bool {
        let Some(picture) = self.picture.filter(|_| self.reach == Reach::Connected) else { return false };
        let is_congested =
            self.path.is_some_and(|(protocol, remote)| self.net.is_congested(protocol, remote));
        if is_congested {
            return false;
        }
        let most = (self.pace.estimate() * PACED_AHEAD).as_bytes_usize();
        let mut direct = self.rtc.direct_api();
        let stream = direct.stream_tx_by_mid(picture.mid, None);
        let waiting = stream.and_then(|stream| stream.queue_info().map(|info| info.byte_size()));
        waiting.unwrap_or(0) <= most
    }

    /// Whether the page is ready for pictures.
    pub(super) fn has_picture(&self) -> bool {
        self.picture.is_some()
    }

    /// Whether words could leave.
    pub(super) fn takes_words(&self) -> bool {
        self.words_room && self.reach == Reach::Connected && self.input_channel().is_some()
    }

    /// Sends a picture.
    pub(super) fn show(&mut self, frame: &Frame, now: Instant) -> Result<(), Ended> {
        let Some(picture) = self.picture else { return Ok(()) };
        if let Some(pacing) = self.pace.sending(now, frame.data.len()) {
            self.apply(pacing)?;
            self.drain(now)?;
        }
        let time = self.clock.time(frame.captured_us, now);
        let Some(writer) = self.rtc.writer(picture.mid) else { return Ok(()) };
        let writer = writer.playout_delay(MediaTime::ZERO, MediaTime::ZERO);
        let data = frame.data.as_slice();
        match guarded(|| writer.write(picture.params.pt(), now, time, data))? {
            Ok(()) => {
                self.link.sent(frame, frame.data.len());
                Ok(())
            }
            Err(error) => Err(protocol(&error)),
        }
    }

    /// Sends words.
    pub(super) fn say(&mut self, word: &Outgoing) -> Result<(), Ended> {
        let Some(id) = self.input_channel() else { return Ok(()) };
        let (binary, bytes) = match word {
            Outgoing::Text(text) => (false, text.as_bytes()),
            Outgoing::Binary(bytes) => (true, bytes.as_ref()),
        };
        let Some(mut channel) = self.rtc.channel(id) else { return Ok(()) };
        let written = guarded(|| {
            let written = channel.write(binary, bytes);
            (written, channel.buffered_amount())
        })?;
        match written {
            (Ok(true), in_flight) => self.words_room = in_flight <= WORDS_IN_FLIGHT_WANTED,
            // Larger than what this page takes, as a clipboard may be.
            (Ok(false) | Err(_), _) => tracing::debug!(bytes = bytes.len(), "words too large for the page"),
        }
        Ok(())
    }

    /// Says good-bye to the page.
    pub(super) fn close(&mut self, now: Instant) {
        let closed = guarded(|| self.rtc.close());
        if matches!(closed, Ok(Ok(()))) {
            // What it says to that is of no interest any more.
            let _ = self.drain(now);
        }
    }

    fn put(&mut self, input: Input) -> Result<(), Ended> {
        guarded(|| self.rtc.handle_input(input))?.map_err(|error| protocol(&error))
    }

    fn apply(&mut self, pacing: Pacing) -> Result<(), Ended> {
        let picture = self.picture;
        let rtc = &mut self.rtc;
        guarded(|| {
            let is_paced = match pacing {
                Pacing::Rest => {
                    // Nothing known means nothing to fill up to and nothing to probe.
                    rtc.bwe().reset(Bitrate::ZERO);
                    rtc.bwe().set_bitrate(Bitrate::ZERO, Bitrate::ZERO);
                    false
                }
                Pacing::Estimate { from } => {
                    rtc.bwe().reset(from);
                    rtc.bwe().set_bitrate(Bitrate::ZERO, Bitrate::ZERO);
                    return;
                }
                Pacing::Smooth => true,
                Pacing::Seek(wanted) => return rtc.bwe().set_bitrate(Bitrate::ZERO, wanted),
            };
            if let Some(picture) = picture
                && let Some(stream) = rtc.direct_api().stream_tx_by_mid(picture.mid, None)
            {
                stream.set_unpaced(!is_paced);
            }
        })?;
        Ok(())
    }

    fn heed(&mut self, event: Event, now: Instant) -> Result<(), Ended> {
        match event {
            Event::Connected => self.connected(),
            Event::IceConnectionStateChange(IceConnectionState::Disconnected)
                if self.reach == Reach::Connected =>
            {
                self.reach = Reach::Lost(now);
                self.let_go();
            }
            Event::IceConnectionStateChange(
                IceConnectionState::Connected | IceConnectionState::Completed,
            ) => {
                if matches!(self.reach, Reach::Lost(_)) {
                    self.reach = Reach::Connected;
                    self.link.keyframe_wanted();
                }
            }
            Event::MediaAdded(added) if added.kind == MediaKind::Video && self.picture.is_none() => {
                self.added(added.mid, added.direction)?;
            }
            Event::KeyframeRequest(_) => self.link.keyframe_wanted(),
            // Pages without transport-wide feedback send their own estimate (REMB).
            Event::EgressBitrateEstimate(BweKind::Twcc { estimate, .. } | BweKind::Remb { estimate, .. }) => {
                if let Some(estimate) = self.pace.estimated(now, estimate) {
                    self.link.estimate(kbps(estimate));
                }
            }
            Event::ChannelOpen(id, label) => self.opened(id, &label),
            Event::ChannelData(data) => self.said(&data),
            Event::ChannelClose(id) => {
                let closed = self.channels.iter().position(|(known, _)| *known == id);
                if closed.is_some_and(|at| self.channels.remove(at).1 == Purpose::Input) {
                    self.let_go();
                }
            }
            Event::ChannelBufferedAmountLow(_) => self.words_room = true,
            Event::Closed => return Err(Ended::Closed),
            _ => {}
        }
        Ok(())
    }

    fn connected(&mut self) {
        self.reach = Reach::Connected;
        self.link.arrived();
        self.link.estimate(kbps(self.pace.estimate()));
    }

    /// Encryption is ready, and with it a section of the page.
    fn added(&mut self, mid: Mid, direction: Direction) -> Result<(), Ended> {
        // An answer without a picture is not given; the library would have to have changed its mind.
        let picture = self.picture_section(mid, direction).ok_or(Ended::Protocol)?;
        self.picture = Some(picture);
        if let Some(stream) = self.rtc.direct_api().stream_tx_by_mid(mid, None) {
            stream.set_rtx_cache(SENT_PACKETS, RESEND_AGE, Some(RESEND_SHARE_MAX));
            stream.set_unpaced(true);
        }
        Ok(())
    }

    /// How pictures are sent in this section, if they can be.
    fn picture_section(&mut self, mid: Mid, direction: Direction) -> Option<Picture> {
        if !direction.is_sending() {
            return None;
        }
        let params = self.rtc.writer(mid)?.payload_params().find(|params| is_wanted(params)).copied()?;
        Some(Picture { mid, params })
    }

    fn opened(&mut self, id: ChannelId, label: &str) {
        let purpose = match label {
            INPUT_CHANNEL => Purpose::Input,
            MOVES_CHANNEL => Purpose::Moves,
            _ => return self.rtc.direct_api().close_data_channel(id),
        };
        if self.channels.len() >= CHANNELS_MAX || self.channels.iter().any(|(_, known)| *known == purpose) {
            return self.rtc.direct_api().close_data_channel(id);
        }
        if purpose == Purpose::Input
            && let Some(mut channel) = self.rtc.channel(id)
        {
            channel.set_buffered_amount_low_threshold(WORDS_IN_FLIGHT_WANTED);
        }
        self.channels.push((id, purpose));
    }

    fn said(&mut self, data: &ChannelData) {
        let purpose = self.channels.iter().find(|(id, _)| *id == data.id).map(|(_, purpose)| *purpose);
        match (purpose, data.binary) {
            (Some(Purpose::Input), true) => self.link.input(&data.data),
            (Some(Purpose::Input), false) => match std::str::from_utf8(&data.data) {
                Ok(text) => self.link.words(text),
                Err(_) => self.link.words(""),
            },
            // Lost or late moves do no harm; anything else must not come by this channel.
            (Some(Purpose::Moves), true)
                if data.data.len() <= TEXT_MAX
                    && matches!(InputEvent::decode(&data.data), Ok(InputEvent::Move { .. })) =>
            {
                self.link.input(&data.data);
            }
            (Some(Purpose::Moves), _) | (None, _) => {}
        }
    }

    fn input_channel(&self) -> Option<ChannelId> {
        self.channels.iter().find(|(_, purpose)| *purpose == Purpose::Input).map(|(id, _)| *id)
    }

    /// No key stays pressed while the page cannot say that it was released.
    fn let_go(&self) {
        self.link.input(&InputEvent::ReleaseAll.encode());
    }
}

/// Whether a packet tells what arrived and how (RTCP, told from the rest as in RFC 5761, section 4).
fn is_feedback(packet: &[u8]) -> bool {
    matches!(packet, [128..=191, 192..=223, ..])
}

fn protocol(error: &RtcError) -> Ended {
    tracing::debug!(%error, "desktop session failed");
    Ended::Protocol
}

fn kbps(bitrate: Bitrate) -> u32 {
    u32::try_from(bitrate.as_u64() / 1000).unwrap_or(u32::MAX)
}

/// A session for tests that need one without an endpoint.
#[cfg(test)]
pub(super) fn new_rtc_for_tests() -> Rtc {
    use std::sync::OnceLock;
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| Identity::new().expect("a certificate can be made")).new_rtc(&Pace::new(20_000))
}
