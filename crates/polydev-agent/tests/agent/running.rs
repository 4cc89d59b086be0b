//! Identity, programs, files, connection and end.

use std::time::{Duration, Instant};

use polydev_core::wire::{ErrorCode, FileGet, FilePut, Reply, Request, files::FileBytes};

use crate::guest::Guest;

#[tokio::test]
async fn programs_run_as_the_cli_user_with_the_identity_given() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.identify(false).await;
    let (code, text) =
        host.sh("id -u; id -G; pwd; hostname; echo $FROM_IDENTITY; cat /etc/machine-id; exit 3").await;
    assert_eq!(code, 3);
    assert_eq!(text, "1000\n1000\n/home/dev\npolydev-test\nyes\n0123456789abcdef0123456789abcdef\n");
    let missing =
        Request::Run { argv: vec!["no-such-program".into()], env: Default::default(), timeout_ms: 1000 };
    assert_eq!(host.ask(missing).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_killed_with_its_children() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let argv = ["sh", "-c", "sleep 1000 & sleep 1000"].map(str::to_owned).to_vec();
    let refusal =
        host.ask(Request::Run { argv, env: Default::default(), timeout_ms: 300 }).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::TimedOut);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !host.sh("grep -lsx sleep /proc/[0-9]*/comm; true").await.1.is_empty() {
        assert!(Instant::now() < deadline, "its children live on");
    }
    let (_, zombies) = host.sh("grep -l '^State:.Z' /proc/[0-9]*/status; true").await;
    assert_eq!(zombies, "");
}

#[tokio::test]
async fn orphans_are_reaped_and_their_status_is_nobody_elses() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    for expected in [0, 7, 42] {
        let (code, _) =
            host.sh(&format!("for i in 1 2 3 4; do (setsid true &) ; done; exit {expected}")).await;
        assert_eq!(code, expected);
    }
}

#[tokio::test]
async fn files_are_written_for_the_cli_user_and_read_back() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let put = FilePut {
        path: ".tool/auth.json".into(),
        mode: 0o600,
        data: FileBytes::new(b"{\"token\":\"FAKE\"}".to_vec()),
        merge_json: vec![],
    };
    host.ask(Request::PutFiles { files: vec![put] }).await.unwrap();
    let (_, listing) = host.sh("stat -c '%a %u %g' .tool .tool/auth.json; cat .tool/auth.json").await;
    assert_eq!(listing, "700 1000 1000\n600 1000 1000\n{\"token\":\"FAKE\"}");
    let get = |path: &str, optional| FileGet { path: path.into(), optional };
    let files = vec![get(".tool/auth.json", false), get(".absent", true)];
    let Reply::Files { files } = host.ask(Request::GetFiles { files }).await.unwrap() else { panic!() };
    assert_eq!(files.len(), 1);
    assert_eq!((files[0].mode, files[0].data.0.as_slice()), (0o600, b"{\"token\":\"FAKE\"}".as_slice()));
    host.sh("ln -s /etc/shadow shadow").await;
    let read = host.ask(Request::GetFiles { files: vec![get("shadow", true)] }).await;
    assert_eq!(read.unwrap_err().code, ErrorCode::Os);
}

#[tokio::test]
async fn a_full_disk_is_told_as_such_and_leaves_the_old_file() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    // The home of this guest is a tmpfs of its own; files of the user fill it.
    let (code, text) = host.sh("echo old > file; dd if=/dev/zero of=filler bs=1M 2>&1; true").await;
    assert_eq!(code, 0, "{text}");
    let put = FilePut {
        path: "file".into(),
        mode: 0o600,
        data: FileBytes::new(vec![b'x'; 200_000]),
        merge_json: vec![],
    };
    let refusal = host.ask(Request::PutFiles { files: vec![put] }).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::NoSpace, "{refusal}");
    let (_, text) = host.sh("cat file; ls -A").await;
    assert_eq!(text, "old\nfile\nfiller\n");
}

#[tokio::test]
async fn the_newest_connection_wins_and_nothing_runs_before_hello() {
    let Some(guest) = Guest::start() else { return };
    let mut first = guest.connect().await;
    first.identify(false).await;
    let mut second = guest.connect().await;
    let (_, text) = second.sh("echo $FROM_IDENTITY").await;
    assert_eq!(text, "yes\n", "identity outlives the connection");
}

#[tokio::test]
async fn power_off_is_answered_and_ends_everything() {
    let Some(mut guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.sh("setsid sleep 1000 >/dev/null 2>&1 &").await;
    host.ask(Request::PowerOff).await.unwrap();
    guest.ended().await;
}

#[tokio::test]
async fn after_quiesce_a_new_host_is_accepted() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    host.ask(Request::Quiesce).await.unwrap();
    let mut host = guest.connect().await;
    assert_eq!(host.sh("true").await.0, 0);
}
