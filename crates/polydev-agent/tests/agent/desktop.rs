//! The desktop on a real golden image: X server, window manager, Chromium, page opening; and a real vendor's program.

use std::collections::BTreeMap;

use polydev_core::{
    desktop::{FromDesktop, ToDesktop, framed},
    wire::{
        AgentEvent, DesktopState, ErrorCode, LoginEnd, LoginSpec, LoginStdio, Request, ServiceState,
        StreamHeader, SuccessRule, UrlRule, UrlSource, UrlYields,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    client::Client,
    guest::{Guest, LIMIT},
};

fn login(argv: &[&str], rule: UrlRule) -> LoginSpec {
    let env = [
        ("PATH", "/run/polydev/shim:/usr/local/bin:/usr/bin:/bin"),
        ("BROWSER", "/run/polydev/shim/xdg-open"),
        ("HOME", "/home/dev"),
    ];
    LoginSpec {
        argv: argv.iter().map(|s| (*s).to_owned()).collect(),
        stdio: LoginStdio::Null,
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        seed_files: vec![],
        expect: vec![],
        jsonrpc: vec![],
        url_rules: vec![rule],
        device_code_regex: None,
        callback: None,
        success: SuccessRule { exit_code: Some(0), ..Default::default() },
        idle_timeout_ms: 120_000,
    }
}

fn rule(scheme: &str, host: &str, path: &str) -> UrlRule {
    UrlRule {
        source: UrlSource::BrowserShim,
        yields: UrlYields::Loopback,
        host: Some(host.into()),
        path: Some(path.into()),
        scheme: Some(scheme.into()),
        port: None,
        require_query: vec![],
        regex: None,
    }
}

async fn painted(host: &mut Client) -> DesktopState {
    host.event(|event| match event {
        AgentEvent::Desktop { state } if state.painted => Some(*state),
        _ => None,
    })
    .await
}

async fn page(host: &mut Client) -> Result<(), String> {
    host.event(|event| match event {
        AgentEvent::PageOpen => Some(Ok(())),
        AgentEvent::PageFailed { reason } => Some(Err(reason.clone())),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn the_browser_paints_opens_the_sign_in_page_and_comes_back_after_a_crash() {
    let Some(guest) = Guest::start_on_image() else { return };
    let mut host = guest.connect().await;
    host.identify(true).await;
    host.ask(Request::StartDesktop { width: 1280, height: 800 }).await.unwrap();
    let up = painted(&mut host).await;
    assert_eq!((up.x_server, up.browser), (ServiceState::Up, ServiceState::Up));

    let mut vnc = host.stream(StreamHeader::Vnc).await;
    let mut version = [0; 12];
    vnc.read_exact(&mut version).await.unwrap();
    assert!(version.starts_with(b"RFB 003."), "{version:?}");
    vnc.write_all(&version).await.unwrap();

    let open = |url: &str| Request::OpenPage { url: url.into() };
    assert_eq!(host.ask(open("http://id.test/start")).await.unwrap_err().code, ErrorCode::UrlRefused);
    host.ask(Request::StartLogin(login(&["sleep", "1000"], rule("http", "id.test", "/start"))))
        .await
        .unwrap();
    host.ask(open("http://id.test/start?state=FAKE")).await.unwrap();
    assert_eq!(page(&mut host).await, Ok(()));

    // The sandbox is on, the flags are clean, another account cannot look in.
    let (_, processes) = host.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").await;
    assert!(processes.contains("--type=renderer"), "{processes}");
    for forbidden in ["--no-sandbox", "remote-debugging", "enable-automation"] {
        assert!(!processes.contains(forbidden), "{forbidden} in {processes}");
    }
    assert_ne!(host.sh("ls /run/polydev/desktop").await.0, 0);

    // Only root can end the browser's processes; here that is the test.
    guest.kill("chromium.*about:blank");
    let died = host
        .event(|e| match e {
            AgentEvent::ServiceDied { name, exit_code } => Some((name.clone(), *exit_code)),
            _ => None,
        })
        .await;
    assert_eq!(died, ("browser".into(), 137));
    painted(&mut host).await;
    assert_eq!(page(&mut host).await, Ok(()), "the page is opened again");
}

/// The next message of the live desktop; `None` at its end.
async fn message(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<FromDesktop> {
    let body = async {
        let len = stream.read_u32().await.ok()?;
        let mut body = vec![0; usize::try_from(len).expect("32 bits")];
        stream.read_exact(&mut body).await.ok()?;
        Some(body)
    };
    let body = tokio::time::timeout(LIMIT, body).await.expect("it says something or ends")?;
    Some(FromDesktop::decode(&body).expect("it keeps to the protocol"))
}

/// Watches until there is a picture, for as long as the program takes to come up.
async fn live(host: &Client) -> impl AsyncReadExt + Unpin + use<> {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let mut stream = host.stream(StreamHeader::Desktop).await;
        // While nobody listens it ends at once.
        let _ = stream.write_all(&framed(&ToDesktop::Watch(true).encode())).await;
        let _ = stream.flush().await;
        while let Some(message) = message(&mut stream).await {
            if let FromDesktop::Frame(frame) = message {
                assert!(frame.key && frame.width == 1280 && frame.height == 800, "{frame:?}");
                return stream;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "no live desktop");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_live_desktop_comes_back_when_its_program_or_the_display_dies() {
    let Some(guest) = Guest::start_on_image() else { return };
    let mut host = guest.connect().await;
    host.identify(true).await;
    host.ask(Request::StartDesktop { width: 1280, height: 800 }).await.unwrap();
    painted(&mut host).await;
    let mut stream = live(&host).await;
    for victim in ["polydev-desktop.stream", "Xtigervnc"] {
        guest.kill(victim);
        while message(&mut stream).await.is_some() {}
        let began = std::time::Instant::now();
        stream = live(&host).await;
        println!("{victim}: a picture again after {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn the_real_codex_hands_over_its_sign_in_page() {
    let Some(guest) = Guest::start_on_image() else { return };
    let mut host = guest.connect().await;
    host.identify(true).await;
    let mut spec = login(&["codex", "login"], rule("https", "auth.openai.com", "/oauth/authorize"));
    spec.url_rules[0].require_query =
        ["client_id", "redirect_uri", "code_challenge", "state"].map(str::to_owned).to_vec();
    host.ask(Request::StartLogin(spec)).await.unwrap();
    let url = host
        .event(|e| match e {
            AgentEvent::UrlCaptured { url, yields: UrlYields::Loopback } => Some(url.clone()),
            _ => None,
        })
        .await;
    assert!(url.contains("redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fauth%2Fcallback"), "{url}");
    host.ask(Request::CancelLogin).await.unwrap();
    let end = host
        .event(|e| match e {
            AgentEvent::LoginEnded { end, output_tail } => Some((end.clone(), output_tail.clone())),
            _ => None,
        })
        .await;
    assert_eq!(end.0, LoginEnd::Cancelled);
    assert!(!end.1.contains("state="), "{}", end.1);
}

#[tokio::test]
async fn the_image_sets_variables_and_the_request_goes_before_them() {
    let Some(guest) = Guest::start() else { return };
    let mut host = guest.connect().await;
    let root = guest.root();
    std::fs::create_dir_all(root.join("etc/polydev")).unwrap();
    std::fs::write(root.join("etc/polydev/environment"), "FROM_IMAGE=yes\nHOME=/elsewhere\n# note\n")
        .unwrap();
    let argv = ["sh", "-c", "echo $FROM_IMAGE $HOME"].map(str::to_owned).to_vec();
    let ran = host.ask(Request::Run { argv, env: BTreeMap::new(), timeout_ms: 5000 }).await.unwrap();
    assert!(format!("{ran:?}").contains("yes /home/dev"), "{ran:?}");
}
