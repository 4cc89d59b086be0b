//! What a page offers, judged before the WebRTC library sees it.
//!
//! An offer holds the password of the page's ICE: it is never logged, and errors do not quote it.

use sha2::{Digest, Sha256};
use str0m::{
    Candidate, Rtc,
    change::SdpOffer,
    format::{Codec, PayloadParams},
};

use super::guarded::{Panicked, guarded};

/// Longest offer; those of browsers have 2 to 8 kB.
pub const SDP_MAX: usize = 32 << 10;
/// Sections of an offer: the picture, the data channels, and some that are refused or left over from a former offer.
const SECTIONS_MAX: usize = 8;
/// Lines of an offer.
const LINES_MAX: usize = 1000;
/// `profile-level-id` of the baseline profiles begins like this (H.264 annex A: profile_idc 66).
const BASELINE: u32 = 0x42;

/// Why an offer is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferFault {
    /// It is longer than any browser's.
    #[error("the offer has {0} bytes; at most {SDP_MAX} are taken")]
    TooLong(usize),
    /// It is no SDP, or misses something that every offer has.
    #[error("the offer cannot be used: {0}")]
    Unusable(&'static str),
    /// The page does not take the picture in any way it is sent.
    #[error("the page offers no H.264 baseline with packetization-mode=1; watch over the WebSocket instead")]
    NoH264,
}

/// An offer that looks like one.
#[derive(Clone, PartialEq, Eq)]
pub struct Offer {
    /// Without candidates: the page's are not needed, since the endpoint only ever answers (ICE lite) and learns where
    /// to from the page's verified requests. So no offer can make it send anything to a third address.
    sdp: String,
    fingerprint: String,
    digest: [u8; 32],
}

impl Offer {
    /// Judges the text of an offer.
    pub fn parse(text: &str) -> Result<Self, OfferFault> {
        if text.len() > SDP_MAX {
            return Err(OfferFault::TooLong(text.len()));
        }
        if text.lines().count() > LINES_MAX {
            return Err(OfferFault::Unusable("it has too many lines"));
        }
        let lines = || text.lines().map(str::trim_end);
        if lines().next() != Some("v=0") {
            return Err(OfferFault::Unusable("it is no SDP"));
        }
        let sections = |kind: &str| lines().filter(|line| line.starts_with(kind)).count();
        if sections("m=") > SECTIONS_MAX {
            return Err(OfferFault::Unusable("it has too many sections"));
        }
        if sections("m=video ") != 1 {
            return Err(OfferFault::Unusable("it must have one section for video"));
        }
        if sections("m=application ") > 1 {
            return Err(OfferFault::Unusable("it has more than one section for data channels"));
        }
        let values =
            |name: &str| -> Vec<&str> { lines().filter_map(|line| line.strip_prefix(name)).collect() };
        for (name, missing) in [
            ("a=ice-ufrag:", "it has no a=ice-ufrag"),
            ("a=ice-pwd:", "it has no a=ice-pwd"),
            ("a=fingerprint:", "it has no a=fingerprint"),
        ] {
            if values(name).is_empty() {
                return Err(OfferFault::Unusable(missing));
            }
        }
        let fingerprint = values("a=fingerprint:")[0].to_ascii_lowercase();
        let kept = lines().filter(|line| !line.starts_with("a=candidate:") && !line.is_empty());
        let sdp = kept.map(|line| format!("{line}\r\n")).collect();
        Ok(Self { sdp, fingerprint, digest: Sha256::digest(text.as_bytes()).into() })
    }

    /// Which offer it is, for finding one that comes twice.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether it comes from the same page's connection, which may then go on with its encryption.
    pub(super) fn continues(&self, former: &Self) -> bool {
        self.fingerprint == former.fingerprint
    }

    /// The offer as it is kept, without candidates.
    pub fn sdp(&self) -> &str {
        &self.sdp
    }

    /// Has a session accept it. After an error the session is of no further use, unless it is
    /// [`AcceptError::Fault`] of a session that had accepted one before.
    pub(super) fn accept(&self, rtc: &mut Rtc) -> Result<String, AcceptError> {
        let offer = guarded(|| SdpOffer::from_sdp_string(&self.sdp))?
            .map_err(|_| OfferFault::Unusable("it is no SDP that can be understood"))?;
        let answer = guarded(|| rtc.sdp_api().accept_offer(offer))?
            .map_err(|_| OfferFault::Unusable("it does not fit what is sent here"))?;
        Ok(answer.to_sdp_string())
    }
}

/// Why a session did not accept an offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AcceptError {
    /// The offer is at fault.
    #[error(transparent)]
    Fault(#[from] OfferFault),
    /// The library is.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Whether a picture can be sent like this.
pub(super) fn is_wanted(params: &PayloadParams) -> bool {
    let spec = params.spec();
    spec.codec == Codec::H264
        && spec.format.packetization_mode == Some(1)
        && spec.format.profile_level_id.is_none_or(|id| id >> 16 == BASELINE)
}

/// What is done with a candidate that a page tells after its offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CandidateUse {
    /// It is well; nothing has to be done with it, see [`Offer`].
    Noted,
    /// The name of a host that only the page's own network knows (mDNS).
    LocalName,
    /// It is no candidate.
    Malformed,
    /// Nothing can be sent to this address by anybody.
    ForeignAddress,
}

/// Judges a candidate line, with or without `a=`. An empty one says that no more come.
pub fn judge_candidate(line: &str) -> CandidateUse {
    /// Longest line; those of browsers have some 150 bytes.
    const LINE_MAX: usize = 512;
    let line = line.trim().trim_start_matches("a=");
    if line.is_empty() || line == "end-of-candidates" {
        return CandidateUse::Noted;
    }
    let address = line.split_ascii_whitespace().nth(4).unwrap_or_default();
    if line.len() > LINE_MAX || !line.starts_with("candidate:") {
        return CandidateUse::Malformed;
    }
    if address.ends_with(".local") {
        return CandidateUse::LocalName;
    }
    let Ok(ip) = address.parse::<std::net::IpAddr>() else { return CandidateUse::Malformed };
    if ip.is_unspecified() || ip.is_multicast() {
        return CandidateUse::ForeignAddress;
    }
    match guarded(|| Candidate::from_sdp_string(line)) {
        Ok(Ok(_)) => CandidateUse::Noted,
        Ok(Err(_)) | Err(Panicked) => CandidateUse::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFER: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n\
        m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:FAKE\r\na=ice-pwd:FAKEpassword0123456789012\r\n\
        a=fingerprint:sha-256 AA:BB\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\na=mid:0\r\n";

    #[test]
    fn candidates_of_the_page_are_left_out() {
        let offer = Offer::parse(OFFER).unwrap();
        assert!(!offer.sdp().contains("candidate"));
        assert!(offer.sdp().contains("a=mid:0\r\n"));
    }

    #[test]
    fn what_is_no_offer_is_refused_with_the_reason() {
        let without =
            |part: &str| OFFER.lines().filter(|line| !line.contains(part)).collect::<Vec<_>>().join("\n");
        for (text, said) in [
            (String::new(), "no SDP"),
            ("hello".to_owned(), "no SDP"),
            (without("m=video"), "one section for video"),
            (format!("{OFFER}m=video 9 UDP/TLS/RTP/SAVPF 96\r\n"), "one section for video"),
            (
                format!("{OFFER}{}", "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n".repeat(2)),
                "more than one",
            ),
            (format!("{OFFER}{}", "m=audio 9 RTP/AVP 0\r\n".repeat(9)), "too many sections"),
            (format!("{OFFER}{}", "a=x\r\n".repeat(2000)), "too many lines"),
            (without("ice-ufrag"), "a=ice-ufrag"),
            (without("ice-pwd"), "a=ice-pwd"),
            (without("fingerprint"), "a=fingerprint"),
            (format!("{OFFER}a=x:{}\r\n", "y".repeat(SDP_MAX)), "bytes"),
        ] {
            let Err(fault) = Offer::parse(&text) else { panic!("accepted: {said}") };
            assert!(fault.to_string().contains(said), "{fault}");
            assert!(!fault.to_string().contains("FAKEpassword"));
        }
    }

    #[test]
    fn candidates_are_judged_by_their_address() {
        for (line, judged) in [
            ("candidate:1 1 udp 2113929471 203.0.113.100 10100 typ host", CandidateUse::Noted),
            ("a=candidate:1 1 tcp 1518280447 192.0.2.7 9 typ host tcptype active", CandidateUse::Noted),
            ("", CandidateUse::Noted),
            (
                "candidate:1 1 udp 1 8a2b3c4d-0000-4000-8000-000000000000.local 5 typ host",
                CandidateUse::LocalName,
            ),
            ("candidate:1 1 udp 1 0.0.0.0 5 typ host", CandidateUse::ForeignAddress),
            ("candidate:1 1 udp 1 224.0.0.1 5 typ host", CandidateUse::ForeignAddress),
            ("candidate:1 1 udp 1 example.test 5 typ host", CandidateUse::Malformed),
            ("candidate:1 1 udp 1 192.0.2.1 99999 typ host", CandidateUse::Malformed),
            ("candidate:1", CandidateUse::Malformed),
            ("m=video", CandidateUse::Malformed),
        ] {
            assert_eq!(judge_candidate(line), judged, "{line}");
        }
        assert_eq!(judge_candidate(&"candidate:".repeat(100)), CandidateUse::Malformed);
    }

    proptest! {
        #[test]
        fn no_text_makes_judging_or_accepting_panic(mut lines in prop::collection::vec("[ -~]{0,60}", 0..20), cut in 0..400_usize) {
            lines.insert(0, OFFER[..cut.min(OFFER.len())].to_owned());
            lines.push("a=candidate:1 1 udp 1 192.0.2.1 9 typ host".to_owned());
            let text = lines.join("\r\n");
            lines.iter().for_each(|line| {
                judge_candidate(line);
            });
            if let Ok(offer) = Offer::parse(&text) {
                let mut rtc = crate::desktop::webrtc::session::new_rtc_for_tests();
                prop_assert!(!matches!(offer.accept(&mut rtc), Err(AcceptError::Panicked(_))));
            }
        }
    }
}
