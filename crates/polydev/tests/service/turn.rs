//! STUN and TURN on real sockets.

use std::{
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use polydev::desktop::turn::TurnError;
use serde_json::Value;
use tokio::{
    net::{TcpStream, UdpSocket},
    task::JoinHandle,
};

use crate::{
    app::{TestApp, until},
    turn_client::{By, World},
};

/// A peer that sends back what it gets, until it is dropped.
struct Echo {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        Self { address, task }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn data_goes_to_the_endpoint_and_back_over_udp_tcp_and_tls() {
    let echo = Echo::start().await;
    let world = World::open(echo.address, &[]);
    for by in [By::Udp, By::Tcp, By::Tls] {
        let mut client = world.client(by, "page").await;
        let relayed = client.allocate().await.unwrap();
        assert!(relayed.ip().is_loopback() && relayed != echo.address);
        client.permit(echo.address).await.unwrap();
        client.send(echo.address, b"by indication").await;
        assert_eq!(client.receive().await, (Ok(echo.address), b"by indication".to_vec()), "{by:?}");
        client.bind(0x4001, echo.address).await.unwrap();
        for length in [0, 1, 2, 3, 4, 1199, 1200, 4096] {
            let data = vec![u8::try_from(length % 251).unwrap(); length];
            client.send_over(0x4001, &data).await;
            assert_eq!(client.receive().await, (Err(0x4001), data), "{by:?}");
        }
    }
    let stats = world.turn.stats();
    assert_eq!((stats.allocations_made, stats.datagrams_dropped, stats.malformed), (3, 0, 0));
    assert_eq!(stats.bytes_to_peers, stats.bytes_to_clients);
    world.turn.shut_down().await;
}

#[tokio::test]
async fn wrong_and_expired_credentials_are_refused() {
    let echo = Echo::start().await;
    let world = World::open(echo.address, &[]);
    let server = &world.turn.ice_servers("page")[0];
    let (name, password) = (server.username.clone().unwrap(), server.credential.clone().unwrap());
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (until_s, caller) = name.split_once(':').unwrap();
    assert!((now_s + 590..=now_s + 600).contains(&until_s.parse().unwrap()));
    let expired = format!("{}:{caller}", now_s - 1);
    for (username, password) in [
        (name.as_str(), "FAKE-guess"),
        (&format!("{until_s}:admin"), &password),
        (&expired, &password),
        ("admin", &password),
    ] {
        let mut client = world.client_with(By::Udp, username, password).await;
        assert_eq!(client.allocate().await, Err(401), "{username}");
    }
    assert_eq!(world.turn.stats().credentials_refused, 4);
    assert!(world.client_with(By::Udp, &name, &password).await.allocate().await.is_ok());
    world.turn.shut_down().await;
}

#[tokio::test]
async fn nothing_is_relayed_to_other_addresses_of_this_machine_or_its_networks() {
    let echo = Echo::start().await;
    let other = Echo::start().await;
    for relay_to in ["endpoint", "public"] {
        let world = World::open(echo.address, &[("turn_relay_to", relay_to)]);
        let mut client = world.client(By::Udp, "page").await;
        client.allocate().await.unwrap();
        let forbidden = [
            other.address.to_string(),
            "127.0.0.1:22".to_owned(),
            "0.0.0.0:80".to_owned(),
            "10.0.0.1:80".to_owned(),
            "100.64.0.1:80".to_owned(),
            "169.254.169.254:80".to_owned(),
            "172.16.0.1:80".to_owned(),
            "192.168.0.1:80".to_owned(),
            "224.0.0.1:80".to_owned(),
            "255.255.255.255:80".to_owned(),
            "[::ffff:127.0.0.1]:22".to_owned(),
            "[::ffff:10.0.0.1]:80".to_owned(),
        ];
        for peer in forbidden {
            let peer = peer.parse().unwrap();
            assert_eq!(client.permit(peer).await, Err(403), "{peer} {relay_to}");
            assert_eq!(client.bind(0x4001, peer).await, Err(403), "{peer} {relay_to}");
        }
        for other_family in ["[::1]:22", "[64:ff9b::7f00:1]:80", "[2002:7f00:1::]:80", "[fe80::1]:80"] {
            assert_eq!(client.permit(other_family.parse().unwrap()).await, Err(443), "{other_family}");
        }
        // With the permission for the endpoint, its address has other ports still.
        client.permit(echo.address).await.unwrap();
        client.send(other.address, b"past the permission").await;
        client.send(echo.address, b"to the endpoint").await;
        assert_eq!(client.receive().await, (Ok(echo.address), b"to the endpoint".to_vec()));
        let dropped = world.turn.stats().datagrams_dropped;
        assert_eq!(dropped, 1, "{relay_to}");
        world.turn.shut_down().await;
    }
}

#[tokio::test]
async fn allocations_and_connections_are_bounded_and_end_with_their_connection() {
    let echo = Echo::start().await;
    let limits = [("turn_allocations_per_user_max", "2"), ("turn_connections_max", "3")];
    let world = World::open(echo.address, &limits);
    let mut clients = Vec::new();
    for expected in [true, true, false] {
        let mut client = world.client(By::Tcp, "page").await;
        let allocated = client.allocate().await;
        assert_eq!(allocated.is_ok(), expected, "{allocated:?}");
        assert!(expected || allocated == Err(486));
        clients.push(client);
    }
    assert!(world.client(By::Tcp, "page").await.is_cut_off().await, "one connection too many");
    assert!(world.client(By::Udp, "other").await.allocate().await.is_ok(), "another caller");
    assert_eq!((world.turn.stats().allocations, world.turn.stats().connections), (3, 3));
    clients.clear();
    let now = until("connections and their allocations are gone", async || {
        let stats = world.turn.stats();
        (stats.allocations == 1 && stats.connections == 0).then_some(stats)
    });
    assert_eq!(now.await.allocations_refused, 1);
    world.turn.shut_down().await;
}

#[tokio::test]
async fn garbage_is_not_answered_and_ends_a_stream() {
    let echo = Echo::start().await;
    let world = World::open(echo.address, &[]);
    let mut stranger = world.client(By::Udp, "page").await;
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 1], &[0xff; 2000], &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]]
    {
        stranger.write(garbage).await;
    }
    assert!(stranger.allocate().await.is_ok(), "the first answer is that to the first good request");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0x40, 0, 0xff, 0xff]] {
        let mut client = world.client(By::Tcp, "page").await;
        client.write(garbage).await;
        assert!(client.is_cut_off().await, "{garbage:?}");
    }
    assert_eq!(world.turn.stats().malformed, 7);
    world.turn.shut_down().await;
}

#[tokio::test]
async fn nothing_is_left_after_the_end() {
    let echo = Echo::start().await;
    let world = World::open(echo.address, &[]);
    let mut clients = Vec::new();
    for by in [By::Udp, By::Tcp, By::Tls] {
        let mut client = world.client(by, "page").await;
        let relayed = client.allocate().await.unwrap();
        clients.push((client, relayed));
    }
    let (listen, tls_listen) = (world.address(By::Udp), world.address(By::Tls));
    world.turn.shut_down().await;
    assert_eq!((world.turn.stats().allocations, world.turn.stats().connections), (0, 0));
    for address in clients.iter().map(|(_, relayed)| *relayed).chain([listen]) {
        StdUdpSocket::bind(address).expect("the socket is closed");
    }
    for address in [listen, tls_listen] {
        TcpStream::connect(address).await.expect_err("nobody listens");
    }
}

#[tokio::test]
async fn a_page_gets_credentials_that_work() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ice.json");
    std::fs::write(&file, r#"[{"urls": ["stun:stun.example.test:3478"]}]"#).unwrap();
    let app = TestApp::builder().setting("turn_ice_servers_file", file.to_str().unwrap()).start().await;
    let cookie = app.cookie().await;
    let request = app.request("GET", "/api/webrtc/ice-servers").header("cookie", &cookie);
    let answer = app.send(request.body(Default::default()).unwrap()).await;
    let listen = app.app.turn.listen().unwrap();
    let json = answer.json();
    assert_eq!((json["success"].as_bool(), json["ttlSeconds"].as_u64()), (Some(true), Some(600)));
    assert_eq!(answer.headers["cache-control"], "no-store");
    let own = &json["iceServers"][0];
    let port = listen.port();
    let urls = [
        format!("stun:127.0.0.1:{port}"),
        format!("turn:127.0.0.1:{port}?transport=udp"),
        format!("turn:127.0.0.1:{port}?transport=tcp"),
    ];
    assert_eq!(own["urls"], Value::from(urls.to_vec()));
    let username = own["username"].as_str().unwrap();
    let nonce = cookie.split_once('=').unwrap().1.split('.').nth(1).unwrap();
    assert!(!username.contains(nonce), "the name gives the cookie away");
    assert_eq!(json["iceServers"][1], serde_json::json!({ "urls": ["stun:stun.example.test:3478"] }));
    assert_eq!(app.call("GET", "/api/webrtc/ice-servers", None).await.status, 200);
    let nobody = app.request("GET", "/api/webrtc/ice-servers").body(Default::default()).unwrap();
    assert_eq!(app.send(nobody).await.status, 401);
    app.app.shut_down().await;
    StdUdpSocket::bind(listen).expect("it ends with the controller");
}

#[tokio::test]
async fn a_taken_port_is_an_error_where_it_was_asked_for_and_avoided_where_not() {
    let taken = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(matches!(World::try_open(&[("turn_listen", &address)]), Err(TurnError::Listen { .. })));
    let bad = World::try_open(&[("turn_key_file", "/nonexistent/key.pem")]);
    assert!(matches!(bad, Err(TurnError::Tls { .. })));
}

#[tokio::test]
async fn one_secret_serves_several_clients_at_once_without_mixing_their_data() {
    let echo = Echo::start().await;
    let world = Arc::new(World::open(echo.address, &[]));
    let mut tasks = Vec::new();
    for index in 0..12_u8 {
        let (world, peer) = (Arc::clone(&world), echo.address);
        tasks.push(tokio::spawn(async move {
            let by = [By::Udp, By::Tcp, By::Tls][usize::from(index % 3)];
            let mut client = world.client(by, "page").await;
            client.allocate().await.unwrap();
            client.bind(0x4000, peer).await.unwrap();
            for round in 0..50_u8 {
                client.send_over(0x4000, &[index, round]).await;
                assert_eq!(client.receive().await, (Err(0x4000), vec![index, round]));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    world.turn.shut_down().await;
}
