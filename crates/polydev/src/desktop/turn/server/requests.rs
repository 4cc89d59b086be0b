//! Requests that need a credential.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::desktop::turn::{
    allocation::{Allocation, BindError},
    credentials::{Claim, NonceState},
    limits::{LIFETIME_DEFAULT_S, LIFETIME_MAX_S},
    stats::count,
    stun::{Builder, Message, attribute, method},
};

use super::{Client, Now, Outcome, Port, Server, canonical};

/// Number of UDP in REQUESTED-TRANSPORT (RFC 8656 section 18.8).
const UDP: u8 = 17;
/// In EVEN-PORT: keep the next port too (RFC 8656 section 18.7).
const RESERVE: u8 = 0x80;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// Who has asked, proven.
struct Asker {
    username: String,
    key: Zeroizing<[u8; 16]>,
}

/// Error answers (RFC 8489 section 14.8, RFC 8656 section 19).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    BadRequest,
    Unauthorized,
    Forbidden,
    UnknownAttributes(Vec<u16>),
    AllocationMismatch,
    StaleNonce,
    FamilyNotSupported,
    WrongCredentials,
    UnsupportedTransport,
    PeerFamilyMismatch,
    QuotaReached,
    InsufficientCapacity,
}

impl Refusal {
    fn code(&self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "Bad Request"),
            Self::Unauthorized => (401, "Unauthorized"),
            Self::Forbidden => (403, "Forbidden"),
            Self::UnknownAttributes(_) => (420, "Unknown Attribute"),
            Self::AllocationMismatch => (437, "Allocation Mismatch"),
            Self::StaleNonce => (438, "Stale Nonce"),
            Self::FamilyNotSupported => (440, "Address Family not Supported"),
            Self::WrongCredentials => (441, "Wrong Credentials"),
            Self::UnsupportedTransport => (442, "Unsupported Transport Protocol"),
            Self::PeerFamilyMismatch => (443, "Peer Address Family Mismatch"),
            Self::QuotaReached => (486, "Allocation Quota Reached"),
            Self::InsufficientCapacity => (508, "Insufficient Capacity"),
        }
    }
}

impl From<BindError> for Refusal {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Conflict => Self::BadRequest,
            BindError::Full => Self::InsufficientCapacity,
        }
    }
}

/// A good answer, and the relayed address that begins with it.
type Granted<R> = (Builder, Option<(SocketAddr, R)>);

impl<R: Clone> Server<R> {
    pub(super) fn request(
        &mut self,
        client: Client,
        request: &Message<'_>,
        now: Now,
        open: impl FnOnce(Port) -> io::Result<(SocketAddr, R)>,
    ) -> Outcome<R> {
        if self.allocations.get(&client).is_some_and(|allocation| allocation.is_over(now.at)) {
            self.remove(client);
        }
        let asker = match self.authenticate(client, request, now) {
            Ok(asker) => asker,
            Err(refusal) => return self.challenge(client, request, &refusal, now),
        };
        let granted = check_attributes(request).and_then(|()| match request.method {
            method::ALLOCATE => self.allocate(client, request, &asker, now, open),
            method::REFRESH => self.refresh(client, request, now).map(|answer| (answer, None)),
            method::CREATE_PERMISSION => self.permit(client, request, now).map(|answer| (answer, None)),
            method::CHANNEL_BIND => self.bind(client, request, now).map(|answer| (answer, None)),
            _ => Err(Refusal::BadRequest),
        });
        match granted {
            Ok((answer, opened)) => {
                let answer = answer.finish(Some(&*asker.key), request.fingerprinted);
                match opened {
                    Some((relayed, relay)) => Outcome::Opened { answer, relayed, relay },
                    None => Outcome::Answer(answer),
                }
            }
            Err(refusal) => {
                let answer = refusal_of(request, &refusal);
                Outcome::Answer(answer.finish(Some(&*asker.key), request.fingerprinted))
            }
        }
    }

    /// RFC 8489 section 9.2.4, with the rules of credentials that end.
    fn authenticate(&self, client: Client, request: &Message<'_>, now: Now) -> Result<Asker, Refusal> {
        if !request.is_signed() {
            return Err(Refusal::Unauthorized);
        }
        let text = |kind| request.get(kind).ok_or(Refusal::BadRequest);
        let (username, realm, nonce) =
            (text(attribute::USERNAME)?, text(attribute::REALM)?, text(attribute::NONCE)?);
        if self.secret.judge_nonce(nonce, client.address, now.unix_s) == NonceState::Stale {
            return Err(Refusal::StaleNonce);
        }
        let refused = || {
            count(&self.counters.credentials_refused);
            Refusal::Unauthorized
        };
        let username = std::str::from_utf8(username).map_err(|_| refused())?;
        let claim = Claim::read(username).ok_or_else(refused)?;
        let key = match self.allocations.get(&client) {
            Some(allocation) if allocation.username == username => allocation.key.clone(),
            _ => self.secret.key(username, &self.bounds.realm),
        };
        if realm != self.bounds.realm.as_bytes() || !request.is_signed_with(&*key) {
            return Err(refused());
        }
        match self.allocations.get(&client) {
            // An allocation goes on after the credential it was made with: clients do not ask for another one.
            Some(allocation) if allocation.username == username => {}
            Some(_) => {
                count(&self.counters.credentials_refused);
                return Err(Refusal::WrongCredentials);
            }
            None if claim.until_s <= now.unix_s => return Err(refused()),
            None => {}
        }
        Ok(Asker { username: username.to_owned(), key })
    }

    /// An answer to who has not shown a credential; only so many per address.
    fn challenge(
        &mut self,
        client: Client,
        request: &Message<'_>,
        refusal: &Refusal,
        now: Now,
    ) -> Outcome<R> {
        if !self.sources.may_be_answered(client.address.ip(), now.at) {
            return Outcome::Silence;
        }
        let mut answer = refusal_of(request, refusal);
        if matches!(refusal, Refusal::Unauthorized | Refusal::StaleNonce) {
            let nonce = self.secret.nonce(client.address, now.unix_s);
            answer = answer
                .with(attribute::REALM, self.bounds.realm.as_bytes())
                .with(attribute::NONCE, nonce.as_bytes());
        }
        Outcome::Answer(answer.finish(None, request.fingerprinted))
    }

    /// RFC 8656 section 7.2.
    fn allocate(
        &mut self,
        client: Client,
        request: &Message<'_>,
        asker: &Asker,
        now: Now,
        open: impl FnOnce(Port) -> io::Result<(SocketAddr, R)>,
    ) -> Result<Granted<R>, Refusal> {
        let lifetime_s = granted_lifetime(request)?.max(LIFETIME_DEFAULT_S);
        if let Some(allocation) = self.allocations.get(&client) {
            // The answer was lost, so the client has asked again.
            return if allocation.transaction == request.transaction {
                Ok((self.allocated(client, request, allocation.relayed, lifetime_s), None))
            } else {
                Err(Refusal::AllocationMismatch)
            };
        }
        match request.get(attribute::REQUESTED_TRANSPORT) {
            Some([UDP, ..]) => {}
            Some([_, ..]) => return Err(Refusal::UnsupportedTransport),
            Some([]) | None => return Err(Refusal::BadRequest),
        }
        let port = match request.get(attribute::EVEN_PORT) {
            None => Port::Any,
            Some([flags, ..]) if flags & RESERVE == 0 => Port::Even,
            // The port above is not kept: pairs are of the time before RTP and RTCP shared one.
            Some(_) => return Err(Refusal::InsufficientCapacity),
        };
        if request.get(attribute::RESERVATION_TOKEN).is_some() {
            return Err(Refusal::InsufficientCapacity);
        }
        let family = requested_family(request)?;
        let caller = Claim::read(&asker.username).ok_or(Refusal::BadRequest)?.caller;
        let refusal = if self.allocations.len() >= self.bounds.allocations_max {
            Some(Refusal::InsufficientCapacity)
        } else if self.count_of(caller) >= self.bounds.allocations_per_user_max
            || !self.sources.may_allocate(client.address.ip(), now.at)
        {
            Some(Refusal::QuotaReached)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            count(&self.counters.allocations_refused);
            return Err(refusal);
        }
        let (relayed, relay) = open(port).map_err(|error| {
            tracing::warn!(%error, "TURN: no relayed address can be opened");
            Refusal::InsufficientCapacity
        })?;
        if family.is_some_and(|is_v4| is_v4 != relayed.is_ipv4()) {
            return Err(Refusal::FamilyNotSupported);
        }
        let who = (asker.username.clone(), asker.key.clone());
        let out = (relayed, relay.clone());
        let mut allocation = Allocation::new(who, request.transaction, out, self.bounds.rate, now.at);
        allocation.refresh(Duration::from_secs(lifetime_s.into()), now.at);
        self.allocations.insert(client, allocation);
        count(&self.counters.allocations_made);
        self.note_count();
        Ok((self.allocated(client, request, relayed, lifetime_s), Some((relayed, relay))))
    }

    fn allocated(
        &self,
        client: Client,
        request: &Message<'_>,
        relayed: SocketAddr,
        lifetime_s: u32,
    ) -> Builder {
        let announced = SocketAddr::new(self.public.unwrap_or(relayed.ip()), relayed.port());
        Builder::success(request)
            .with_address(attribute::XOR_RELAYED_ADDRESS, announced)
            .with(attribute::LIFETIME, &lifetime_s.to_be_bytes())
            .with_address(attribute::XOR_MAPPED_ADDRESS, canonical(client.address))
    }

    /// RFC 8656 section 8.2.
    fn refresh(&mut self, client: Client, request: &Message<'_>, now: Now) -> Result<Builder, Refusal> {
        let allocation = self.allocations.get_mut(&client).ok_or(Refusal::AllocationMismatch)?;
        if requested_family(request)?.is_some_and(|is_v4| is_v4 != allocation.relayed.is_ipv4()) {
            return Err(Refusal::PeerFamilyMismatch);
        }
        let lifetime_s = match granted_lifetime(request)? {
            0 => {
                self.remove(client);
                0
            }
            asked => {
                let granted_s = asked.max(LIFETIME_DEFAULT_S);
                allocation.refresh(Duration::from_secs(granted_s.into()), now.at);
                granted_s
            }
        };
        Ok(Builder::success(request).with(attribute::LIFETIME, &lifetime_s.to_be_bytes()))
    }

    /// RFC 8656 section 10.2: all of the permissions, or none.
    fn permit(&mut self, client: Client, request: &Message<'_>, now: Now) -> Result<Builder, Refusal> {
        let allocation = self.allocations.get_mut(&client).ok_or(Refusal::AllocationMismatch)?;
        let mut ips: Vec<IpAddr> = Vec::new();
        for (kind, value, _) in request.attributes() {
            if kind != attribute::XOR_PEER_ADDRESS {
                continue;
            }
            let peer = canonical(request.read_address(value).ok_or(Refusal::BadRequest)?);
            if peer.is_ipv4() != allocation.relayed.is_ipv4() {
                return Err(Refusal::PeerFamilyMismatch);
            }
            if !self.peers.may_permit(peer) {
                count(&self.counters.peers_refused);
                return Err(Refusal::Forbidden);
            }
            ips.push(peer.ip());
        }
        if ips.is_empty() {
            return Err(Refusal::BadRequest);
        }
        for ip in ips {
            allocation.permit(ip, now.at)?;
        }
        Ok(Builder::success(request))
    }

    /// RFC 8656 section 12.2.
    fn bind(&mut self, client: Client, request: &Message<'_>, now: Now) -> Result<Builder, Refusal> {
        let allocation = self.allocations.get_mut(&client).ok_or(Refusal::AllocationMismatch)?;
        let Some(&[n0, n1, _, _]) = request.get(attribute::CHANNEL_NUMBER) else {
            return Err(Refusal::BadRequest);
        };
        let peer = canonical(request.address(attribute::XOR_PEER_ADDRESS).ok_or(Refusal::BadRequest)?);
        if peer.is_ipv4() != allocation.relayed.is_ipv4() {
            return Err(Refusal::PeerFamilyMismatch);
        }
        if !self.peers.may_relay(peer) {
            count(&self.counters.peers_refused);
            return Err(Refusal::Forbidden);
        }
        allocation.bind(u16::from_be_bytes([n0, n1]), peer, now.at)?;
        Ok(Builder::success(request))
    }
}

fn refusal_of(request: &Message<'_>, refusal: &Refusal) -> Builder {
    let (code, reason) = refusal.code();
    let answer = Builder::error(request, code, reason);
    match refusal {
        Refusal::UnknownAttributes(kinds) => {
            let value: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_be_bytes()).collect();
            answer.with(attribute::UNKNOWN_ATTRIBUTES, &value)
        }
        _ => answer,
    }
}

/// Refuses what has to be understood and is not, so DONT-FRAGMENT too.
fn check_attributes(request: &Message<'_>) -> Result<(), Refusal> {
    let is_known = |kind: u16| {
        matches!(
            kind,
            attribute::USERNAME
                | attribute::REALM
                | attribute::NONCE
                | attribute::MESSAGE_INTEGRITY_SHA256
                | attribute::CHANNEL_NUMBER
                | attribute::LIFETIME
                | attribute::XOR_PEER_ADDRESS
                | attribute::REQUESTED_ADDRESS_FAMILY
                | attribute::EVEN_PORT
                | attribute::REQUESTED_TRANSPORT
                | attribute::RESERVATION_TOKEN
                | attribute::OPTIONAL_FROM..
        )
    };
    let unknown: Vec<u16> =
        request.attributes().map(|(kind, ..)| kind).filter(|kind| !is_known(*kind)).take(16).collect();
    if unknown.is_empty() { Ok(()) } else { Err(Refusal::UnknownAttributes(unknown)) }
}

/// Seconds asked for, up to the most that is granted; the default when nothing is said.
fn granted_lifetime(request: &Message<'_>) -> Result<u32, Refusal> {
    match request.get(attribute::LIFETIME) {
        None => Ok(LIFETIME_DEFAULT_S),
        Some(value) => {
            let seconds: [u8; 4] = value.try_into().map_err(|_| Refusal::BadRequest)?;
            Ok(u32::from_be_bytes(seconds).min(LIFETIME_MAX_S))
        }
    }
}

/// Whether IPv4 (`true`) or IPv6 is asked for. Silence means IPv4 in the RFC, but here "what there is", so that a
/// server on IPv6 alone is of use to browsers, which never ask.
fn requested_family(request: &Message<'_>) -> Result<Option<bool>, Refusal> {
    match request.get(attribute::REQUESTED_ADDRESS_FAMILY) {
        None => Ok(None),
        Some([FAMILY_V4, ..]) => Ok(Some(true)),
        Some([FAMILY_V6, ..]) => Ok(Some(false)),
        Some(_) => Err(Refusal::FamilyNotSupported),
    }
}
