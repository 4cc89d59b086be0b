use std::time::Duration;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::{
    config::RelayTo,
    desktop::turn::limits::{IDLE_MAX, LIFETIME_DEFAULT_S},
};

const ENDPOINT: &str = "127.0.0.1:4001";
const REALM: &str = "polydev";
const UNIX_S: u64 = 1_700_000_000;

/// A server whose relayed addresses are only numbers, and the time.
struct World {
    server: Server<()>,
    secret: Arc<Secret>,
    counters: Arc<Counters>,
    now: Now,
    next_port: u16,
}

/// A client as a test plays it.
#[derive(Clone)]
struct Page {
    client: Client,
    username: String,
    key: Zeroizing<[u8; 16]>,
    nonce: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Bounds)) -> Self {
        let mut bounds = Bounds {
            realm: REALM.to_owned(),
            allocations_max: 8,
            allocations_per_user_max: 3,
            rate: Rate { bytes_per_s: 1 << 20, datagrams_per_s: 1000 },
        };
        change(&mut bounds);
        let secret = Arc::new(Secret::new("FAKE-shared-secret"));
        let peers = Arc::new(Peers::new(RelayTo::Endpoint, Vec::new()));
        peers.set_endpoint(Arc::new(|| vec![ENDPOINT.parse().unwrap()]));
        let counters = Arc::new(Counters::default());
        let server = Server::new(bounds, None, Arc::clone(&secret), peers, Arc::clone(&counters));
        let now = Now { at: Instant::now(), unix_s: UNIX_S };
        Self { server, secret, counters, now, next_port: 50_000 }
    }

    /// Somebody with a credential that is good for ten minutes.
    fn page(&self, caller: &str, port: u16) -> Page {
        let credential = self.secret.credential(caller, self.now.unix_s + 600);
        let client =
            Client { transport: Transport::Udp, address: SocketAddr::new([192, 0, 2, 1].into(), port) };
        let key = self.secret.key(&credential.username, REALM);
        let nonce = self.secret.nonce(client.address, self.now.unix_s).into_bytes();
        Page { client, username: credential.username, key, nonce }
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { at: self.now.at + time, unix_s: self.now.unix_s + time.as_secs() };
    }

    fn take(&mut self, client: Client, bytes: &[u8]) -> Outcome<()> {
        self.next_port += 1;
        let relayed = SocketAddr::new([127, 0, 0, 1].into(), self.next_port);
        self.server.hear_client(client, bytes, self.now, |_| Ok((relayed, ())))
    }

    /// Sends a signed request; gives the error code, 0 when it was granted.
    fn ask(&mut self, page: &Page, method: u16, attributes: &[(u16, &[u8])]) -> u16 {
        self.ask_again(page, method, attributes, [9; 12])
    }

    fn ask_again(
        &mut self,
        page: &Page,
        method: u16,
        attributes: &[(u16, &[u8])],
        transaction: [u8; 12],
    ) -> u16 {
        let mut request = Builder::new(Class::Request, method, transaction);
        for (kind, value) in attributes {
            request = request.with(*kind, value);
        }
        self.finish(page, request)
    }

    fn ask_about(&mut self, page: &Page, method: u16, number: Option<u16>, peer: &str) -> u16 {
        let mut request = Builder::new(Class::Request, method, [9; 12])
            .with_address(attribute::XOR_PEER_ADDRESS, peer.parse().unwrap());
        if let Some(number) = number {
            let [high, low] = number.to_be_bytes();
            request = request.with(attribute::CHANNEL_NUMBER, &[high, low, 0, 0]);
        }
        self.finish(page, request)
    }

    fn finish(&mut self, page: &Page, request: Builder) -> u16 {
        let request = request
            .with(attribute::USERNAME, page.username.as_bytes())
            .with(attribute::REALM, REALM.as_bytes())
            .with(attribute::NONCE, &page.nonce)
            .finish(Some(&*page.key), true);
        match self.take(page.client, &request) {
            Outcome::Answer(answer) | Outcome::Opened { answer, .. } => code(&answer),
            other => panic!("no answer but {other:?}"),
        }
    }

    fn allocate(&mut self, page: &Page) -> u16 {
        let transaction = page.client.address.port().to_be_bytes().repeat(6).try_into().unwrap();
        self.ask_again(
            page,
            method::ALLOCATE,
            &[(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0])],
            transaction,
        )
    }
}

fn code(answer: &[u8]) -> u16 {
    let answer = Message::parse(answer).unwrap();
    assert!(answer.fingerprinted, "asked with a fingerprint");
    match (answer.class, answer.get(attribute::ERROR_CODE)) {
        (Class::Success, None) => 0,
        (Class::Error, Some([_, _, hundreds, rest, ..])) => u16::from(*hundreds) * 100 + u16::from(*rest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_without_a_credential_is_told_realm_and_nonce() {
    let mut world = World::new();
    let page = world.page("page", 1);
    let bare = Builder::new(Class::Request, method::ALLOCATE, [1; 12]).finish(None, true);
    let Outcome::Answer(answer) = world.take(page.client, &bare) else { panic!("no answer") };
    assert_eq!(code(&answer), 401);
    let answer = Message::parse(&answer).unwrap();
    assert_eq!(answer.get(attribute::REALM), Some(REALM.as_bytes()));
    let mut page = page;
    page.nonce = answer.get(attribute::NONCE).unwrap().to_vec();
    assert_eq!(world.allocate(&page), 0, "with that nonce it is granted");
}

#[test]
fn forged_expired_and_foreign_credentials_are_refused() {
    let mut world = World::new();
    let good = world.page("page", 1);
    let mut forged = good.clone();
    forged.key = Secret::new("FAKE-other-secret").key(&good.username, REALM);
    assert_eq!(world.allocate(&forged), 401);
    let mut renamed = good.clone();
    renamed.username = good.username.replace("page", "root");
    assert_eq!(world.allocate(&renamed), 401);
    let mut longer = good.clone();
    longer.username = good.username.replacen('1', "9", 1);
    assert_eq!(world.allocate(&longer), 401);
    let mut nonsense = good.clone();
    nonsense.username = "nobody".to_owned();
    assert_eq!(world.allocate(&nonsense), 401);
    world.pass(Duration::from_secs(599));
    assert_eq!(world.allocate(&good), 0);
    let mut late = world.page("page", 2);
    late.username.clone_from(&good.username);
    late.key = good.key.clone();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.allocate(&late), 401);
    assert_eq!(world.counters.look().credentials_refused, 5);
}

#[test]
fn an_allocation_goes_on_after_its_credential_with_a_fresh_nonce() {
    let mut world = World::new();
    let mut page = world.page("page", 1);
    assert_eq!(world.allocate(&page), 0);
    for _ in 0..10 {
        world.pass(Duration::from_secs(300));
        page.nonce = world.secret.nonce(page.client.address, world.now.unix_s).into_bytes();
        assert_eq!(world.ask(&page, method::REFRESH, &[]), 0);
    }
    world.pass(IDLE_MAX);
    page.nonce = world.secret.nonce(page.client.address, world.now.unix_s).into_bytes();
    assert_eq!(world.ask(&page, method::REFRESH, &[]), 401, "it ended in disuse, and the credential is old");
}

#[test]
fn a_stale_nonce_is_replaced() {
    let mut world = World::new();
    let mut page = world.page("page", 1);
    page.nonce = b"0000000000ffffffff".to_vec();
    assert_eq!(world.allocate(&page), 438);
    let other = world.page("page", 2);
    page.nonce = other.nonce;
    assert_eq!(world.allocate(&page), 438, "the nonce of another address");
}

#[test]
fn the_same_request_again_is_answered_again_and_another_is_a_mismatch() {
    let mut world = World::new();
    let page = world.page("page", 1);
    assert_eq!((world.allocate(&page), world.allocate(&page)), (0, 0));
    let again = world.ask(&page, method::ALLOCATE, &[(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0])]);
    assert_eq!((again, world.counters.look().allocations), (437, 1));
    let other = Page { username: world.page("other", 1).username, ..world.page("other", 1) };
    assert_eq!(world.ask(&other, method::REFRESH, &[]), 441, "another user on the same 5-tuple");
}

#[test]
fn what_cannot_be_had_is_refused_by_its_own_code() {
    let mut world = World::new();
    let page = world.page("page", 1);
    let udp: (u16, &[u8]) = (attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    for (attributes, expected) in [
        (&[][..], 400),
        (&[(attribute::REQUESTED_TRANSPORT, &[6, 0, 0, 0][..])][..], 442),
        (&[udp, (attribute::EVEN_PORT, &[0x80])][..], 508),
        (&[udp, (attribute::RESERVATION_TOKEN, &[0; 8])][..], 508),
        (&[udp, (attribute::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])][..], 440),
        (&[udp, (0x001a, &[])][..], 420),
        (&[udp, (attribute::LIFETIME, &[1])][..], 400),
    ] {
        assert_eq!(world.ask(&page, method::ALLOCATE, attributes), expected, "{attributes:?}");
    }
    for method in [method::REFRESH, method::CREATE_PERMISSION, method::CHANNEL_BIND] {
        assert_eq!(world.ask(&page, method, &[]), 437);
    }
    assert_eq!(world.ask(&page, 0x00a, &[]), 400, "TCP relaying does not exist here");
    assert_eq!(world.counters.look().allocations, 0);
}

#[test]
fn allocations_are_bounded_in_all_and_by_caller_whatever_their_credentials() {
    let mut world = World::new();
    let mut granted = 0;
    for port in 1..=5 {
        // Each time another credential of the same caller's.
        world.pass(Duration::from_secs(1));
        let page = world.page("page", port);
        granted += u16::from(world.allocate(&page) == 0);
    }
    assert_eq!(granted, 3);
    for (at, caller) in ["b", "b", "b", "c", "c", "c"].iter().enumerate() {
        world.pass(Duration::from_secs(1));
        let page = world.page(caller, 100 + u16::try_from(at).unwrap());
        let expected = if at < 5 { 0 } else { 508 };
        assert_eq!(world.allocate(&page), expected, "{at}");
    }
    assert_eq!((world.counters.look().allocations, world.counters.look().allocations_refused), (8, 3));
    world.pass(IDLE_MAX);
    let at = world.now.at;
    world.server.sweep(at);
    assert_eq!(world.counters.look().allocations, 0);
}

#[test]
fn one_address_begins_only_so_many_allocations_at_a_time() {
    let mut world = World::with(|bounds| {
        bounds.allocations_max = 1000;
        bounds.allocations_per_user_max = 1000;
    });
    let granted = (1..=100).filter(|port| world.allocate(&world.page("page", *port)) == 0).count();
    assert_eq!(granted, 20);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.allocate(&world.page("page", 200)), 0);
}

#[test]
fn permissions_and_channels_lead_to_the_endpoint_alone() {
    let mut world = World::new();
    let page = world.page("page", 1);
    assert_eq!(world.allocate(&page), 0);
    for forbidden in ["127.0.0.1:22", "10.0.0.1:4001", "169.254.169.254:80", "1.1.1.1:53", "127.0.0.2:4001"] {
        assert_eq!(world.ask_about(&page, method::CREATE_PERMISSION, None, forbidden), 403, "{forbidden}");
        assert_eq!(world.ask_about(&page, method::CHANNEL_BIND, Some(0x4000), forbidden), 403, "{forbidden}");
    }
    assert_eq!(world.ask_about(&page, method::CREATE_PERMISSION, None, "[::1]:4001"), 443);
    assert_eq!(world.ask_about(&page, method::CREATE_PERMISSION, None, "[::ffff:127.0.0.1]:4001"), 0);
    assert_eq!(world.ask_about(&page, method::CREATE_PERMISSION, None, ENDPOINT), 0);
    assert_eq!(world.ask_about(&page, method::CHANNEL_BIND, Some(0x4000), ENDPOINT), 0);
    assert_eq!(world.ask_about(&page, method::CHANNEL_BIND, Some(0x3000), ENDPOINT), 400);
    assert_eq!(world.counters.look().peers_refused, 10);
}

#[test]
fn data_goes_both_ways_with_a_permission_and_not_without() {
    let mut world = World::new();
    let page = world.page("page", 1);
    assert_eq!(world.allocate(&page), 0);
    let relayed = world.server.allocations[&page.client].relayed;
    let peer: SocketAddr = ENDPOINT.parse().unwrap();
    let send = |peer: SocketAddr| {
        Builder::new(Class::Indication, method::SEND, [3; 12])
            .with_address(attribute::XOR_PEER_ADDRESS, peer)
            .with(attribute::DATA, b"ping")
            .finish(None, false)
    };
    assert!(matches!(world.take(page.client, &send(peer)), Outcome::Silence));
    assert!(world.server.hear_peer(page.client, relayed, peer, b"pong", world.now.at).is_none());
    assert_eq!(world.ask_about(&page, method::CREATE_PERMISSION, None, ENDPOINT), 0);

    let message = send(peer);
    let Outcome::Relay { peer: to, data, .. } = world.take(page.client, &message) else { panic!("dropped") };
    assert_eq!((to, &message[data]), (peer, &b"ping"[..]));
    let sibling = "127.0.0.1:22".parse().unwrap();
    assert!(matches!(world.take(page.client, &send(sibling)), Outcome::Silence), "same address, other port");
    assert!(world.server.hear_peer(page.client, relayed, sibling, b"x", world.now.at).is_none());

    let indication = world.server.hear_peer(page.client, relayed, peer, b"pong", world.now.at).unwrap();
    let indication = Message::parse(&indication).unwrap();
    assert_eq!(indication.address(attribute::XOR_PEER_ADDRESS), Some(peer));
    assert_eq!(indication.get(attribute::DATA), Some(&b"pong"[..]));

    assert_eq!(world.ask_about(&page, method::CHANNEL_BIND, Some(0x4001), ENDPOINT), 0);
    let frame = write_channel(0x4001, b"ping", false);
    assert!(matches!(world.take(page.client, &frame), Outcome::Relay { .. }));
    let frame = world.server.hear_peer(page.client, relayed, peer, b"pong!", world.now.at).unwrap();
    assert_eq!(read_channel(&frame), Some((0x4001, &b"pong!"[..])));

    assert_eq!(world.ask(&page, method::REFRESH, &[(attribute::LIFETIME, &[0; 4])]), 0);
    assert!(matches!(world.take(page.client, &message), Outcome::Silence), "the allocation was given back");
    let stats = world.counters.look();
    assert_eq!((stats.bytes_to_peers, stats.bytes_to_clients), (8, 9));
}

#[test]
fn a_client_that_reconnects_does_not_get_what_was_for_its_former_allocation() {
    let mut world = World::new();
    let page = world.page("page", 1);
    assert_eq!(world.allocate(&page), 0);
    let old = world.server.allocations[&page.client].relayed;
    world.server.client_gone(page.client);
    assert_eq!(world.allocate(&page), 0);
    assert_eq!(world.ask_about(&page, method::CREATE_PERMISSION, None, ENDPOINT), 0);
    let peer = ENDPOINT.parse().unwrap();
    assert!(world.server.hear_peer(page.client, old, peer, b"late", world.now.at).is_none());
}

#[test]
fn a_lifetime_is_between_the_default_and_the_most() {
    let mut world = World::new();
    let page = world.page("page", 1);
    assert_eq!(world.allocate(&page), 0);
    for (asked, granted) in [(1, LIFETIME_DEFAULT_S), (1200, 1200), (u32::MAX, 3600)] {
        let request = Builder::new(Class::Request, method::REFRESH, [4; 12])
            .with(attribute::LIFETIME, &u32::to_be_bytes(asked))
            .with(attribute::USERNAME, page.username.as_bytes())
            .with(attribute::REALM, REALM.as_bytes())
            .with(attribute::NONCE, &page.nonce)
            .finish(Some(&*page.key), false);
        let Outcome::Answer(answer) = world.take(page.client, &request) else { panic!("no answer") };
        let answer = Message::parse(&answer).unwrap();
        assert!(answer.is_signed_with(&*page.key));
        assert_eq!(answer.get(attribute::LIFETIME), Some(&granted.to_be_bytes()[..]));
    }
}

proptest! {
    #[test]
    fn whatever_comes_in_nothing_panics_and_nothing_is_relayed_to_others(
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..20),
        method in 0_u16..16, class in 0_u8..4, peer in any::<[u8; 4]>(), port in any::<u16>(),
        attributes in prop::collection::vec((0_u16..0x30, prop::collection::vec(any::<u8>(), 0..24)), 0..6),
        number in any::<u16>(), signed in any::<bool>(),
    ) {
        let mut world = World::new();
        let page = world.page("page", 1);
        prop_assert_eq!(world.allocate(&page), 0);
        prop_assert_eq!(world.ask_about(&page, method::CHANNEL_BIND, Some(0x4000), ENDPOINT), 0);
        let relayed = world.server.allocations[&page.client].relayed;
        let class = [Class::Request, Class::Indication, Class::Success, Class::Error][usize::from(class)];
        let peer = SocketAddr::new(peer.into(), port);
        let mut message = Builder::new(class, method, [5; 12]).with_address(attribute::XOR_PEER_ADDRESS, peer);
        for (kind, value) in &attributes {
            message = message.with(*kind, value);
        }
        if signed {
            message = message.with(attribute::USERNAME, page.username.as_bytes())
                .with(attribute::REALM, REALM.as_bytes()).with(attribute::NONCE, &page.nonce);
        }
        let message = message.finish(signed.then_some(&page.key[..]), true);
        let channel = write_channel(number, &noise[0], true);
        for bytes in noise.iter().chain([&message, &channel]) {
            if let Outcome::Relay { peer, .. } = world.take(page.client, bytes) {
                prop_assert_eq!(peer, ENDPOINT.parse().unwrap());
            }
        }
        let came = world.server.hear_peer(page.client, relayed, peer, &noise[0], world.now.at);
        prop_assert!(came.is_none() || peer == ENDPOINT.parse().unwrap());
    }
}
