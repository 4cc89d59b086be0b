//! The way out: names, connections, refusals.

use polydev_core::wire::AgentEvent;

use crate::guest::Guest;

/// Speaks TCP with nothing but bash: sends a word, prints what comes back.
const TALK: &str = r#"exec bash -c 'exec 3<>/dev/tcp/'$1'/'$2' && echo -n hello >&3 && python3 -c "
import socket,os; s=socket.socket(fileno=3); s.shutdown(socket.SHUT_WR); print(s.recv(100).decode())"'"#;

fn talk(host: &str, port: u16) -> String {
    format!("set -- {host} {port}; {TALK}")
}

#[tokio::test]
async fn a_connection_by_name_reaches_the_host_with_that_name_and_ends_in_halves() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.identify(true).await;
    let (code, text) = host.sh(&talk("Some.Example.TEST", 443)).await;
    assert_eq!((code, text.as_str()), (0, "HELLO\n"));
    assert_eq!(host.egress.recv().await, Some(("some.example.test".into(), 443)));
    let (_, text) = host.sh(&talk("other.test", 80)).await;
    assert_eq!(text, "HELLO\n");
    assert_eq!(host.egress.recv().await, Some(("other.test".into(), 80)));
}

#[tokio::test]
async fn a_refused_host_is_told_once_and_the_program_sees_a_broken_connection() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.identify(true).await;
    for _ in 0..2 {
        assert_ne!(host.sh(&talk("refused.test", 443)).await.0, 0);
    }
    let refused = host
        .event(|e| matches!(e, AgentEvent::EgressRefused { host } if host == "refused.test").then_some(()))
        .await;
    assert_eq!(refused, ());
    assert!(host.passed().is_empty(), "{:?}", host.passed());
}

#[tokio::test]
async fn addresses_that_no_name_was_given_lead_nowhere() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.identify(true).await;
    assert_ne!(host.sh(&talk("127.0.0.1", 443)).await.1, "HELLO\n");
    assert_ne!(host.sh(&talk("127.64.9.9", 443)).await.1, "HELLO\n");
    assert_ne!(host.sh(&talk("1.1.1.1", 443)).await.0, 0);
    assert!(host.egress.try_recv().is_err(), "the host was never asked");
}

#[tokio::test]
async fn without_leave_no_name_resolves() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.identify(false).await;
    assert_ne!(host.sh(&talk("some.test", 443)).await.0, 0);
    assert!(host.egress.try_recv().is_err());
}
