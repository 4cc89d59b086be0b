//! Terminals.

use polydev_core::wire::{Reply, Request, pty::PtyFrame};

use crate::{client::Client, guest::Guest};

async fn open(host: &mut Client, argv: &[&str]) -> u32 {
    let argv = argv.iter().map(|s| (*s).to_owned()).collect();
    match host.ask(Request::OpenPty { argv, env: Default::default(), cols: 100, rows: 30 }).await {
        Ok(Reply::Pty { id }) => id,
        other => panic!("no terminal: {other:?}"),
    }
}

#[tokio::test]
async fn a_terminal_outlives_its_connection_and_repaints_for_the_next() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let id = open(&mut host, &[]).await;
    let mut terminal = host.terminal(id).await;
    terminal.send(PtyFrame::Data(b"stty size; echo first-$((40+2))\n".to_vec())).await;
    let seen = terminal.until("first-42").await;
    assert!(seen.contains("30 100"), "{seen}");
    drop(terminal);
    drop(host);

    let mut host = guest.connect().await;
    assert!(matches!(&host.hello, Reply::Hello { ptys, .. } if ptys == &[id]), "{:?}", host.hello);
    let mut terminal = host.terminal(id).await;
    terminal.until("first-42").await;
    terminal.send(PtyFrame::Resize { cols: 77, rows: 22 }).await;
    terminal.send(PtyFrame::Data(b"stty size; exit 5\n".to_vec())).await;
    terminal.until("22 77").await;
    let end = loop {
        match terminal.recv().await {
            Some(PtyFrame::Data(_)) => {}
            other => break other,
        }
    };
    assert_eq!(end, Some(PtyFrame::Exit(5)));
    host.ask(Request::ClosePty { id }).await.expect_err("an ended terminal that was told of is gone");
}

#[tokio::test]
async fn the_newest_attachment_gets_the_output() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let id = open(&mut host, &["cat"]).await;
    let mut old = host.terminal(id).await;
    old.send(PtyFrame::Data(b"one\n".to_vec())).await;
    old.until("one").await;
    let mut new = host.terminal(id).await;
    new.until("one").await;
    while let Some(frame) = old.recv().await {
        assert!(matches!(frame, PtyFrame::Data(_)), "the older one is closed, the program runs on");
    }
    new.send(PtyFrame::Data(b"two\n".to_vec())).await;
    new.until("two").await;
}

#[tokio::test]
async fn closing_a_terminal_hangs_its_program_up() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let id = open(
        &mut host,
        &["sh", "-c", "trap 'echo gone > hung-up; exit' HUP; echo ready; while :; do sleep 0.1; done"],
    )
    .await;
    let mut terminal = host.terminal(id).await;
    terminal.until("ready").await;
    host.ask(Request::ClosePty { id }).await.unwrap();
    let (code, text) = host
        .sh("for i in $(seq 100); do test -s hung-up && cat hung-up && exit; sleep 0.1; done; exit 1")
        .await;
    assert_eq!((code, text.as_str()), (0, "gone\n"));
}

#[tokio::test]
async fn much_output_reaches_a_slow_watcher_whole() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let id = open(&mut host, &["sh", "-c", "read go; seq 1 200000; echo end"]).await;
    let mut terminal = host.terminal(id).await;
    terminal.send(PtyFrame::Data(b"\n".to_vec())).await;
    let seen = terminal.until("end\r\n").await;
    let numbers: Vec<u32> = seen.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(numbers.len(), 200_000, "no line is lost");
}
