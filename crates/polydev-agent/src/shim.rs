//! The browser shim: what a vendor's program starts instead of a browser, and the socket where its URLs arrive.
//!
//! The shim must return at once: some programs wait for its exit status. It says nothing and never fails.

use std::{ffi::OsString, io, io::Write, os::unix::fs::PermissionsExt, path::Path, rc::Rc, time::Duration};

use polydev_core::guest::{AGENT_PATH, CLI_USER, SHIM_DIR, SHIM_SOCKET};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::{agent::Agent, login};

/// Names that programs look for.
pub(crate) const NAMES: [&str; 4] = ["xdg-open", "x-www-browser", "sensible-browser", "www-browser"];
/// Longest URL taken.
const URL_MAX: u64 = 16 << 10;
/// How long a caller may take to write its URL.
const CALLER_LIMIT: Duration = Duration::from_secs(5);

/// The shim itself: hands the first web address among the arguments to the agent.
pub(crate) fn pass_on(args: impl Iterator<Item = OsString>) {
    let mut texts = args.filter_map(|arg| arg.into_string().ok());
    let url = texts.find(|text| text.starts_with("https://") || text.starts_with("http://"));
    if let Some(url) = url
        && let Ok(mut socket) = std::os::unix::net::UnixStream::connect(SHIM_SOCKET)
    {
        // The agent reports what becomes of it; the caller could do nothing about a failure.
        let _ = socket.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = socket.write_all(url.as_bytes());
    }
}

/// Makes the links under which the agent is found as a browser.
pub(crate) fn install() -> io::Result<()> {
    std::fs::create_dir_all(SHIM_DIR)?;
    for name in NAMES {
        let link = Path::new(SHIM_DIR).join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(AGENT_PATH, link)?;
        }
    }
    Ok(())
}

/// Takes URLs for ever.
pub(crate) async fn listen(agent: Rc<Agent>) {
    let bound = (|| {
        match std::fs::remove_file(SHIM_SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(SHIM_SOCKET)?;
        std::fs::set_permissions(SHIM_SOCKET, std::fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    })();
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) => return agent.log.note("shim", error),
    };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                tokio::task::spawn_local(take(agent.clone(), socket));
            }
            Err(error) => {
                agent.log.note("shim", error);
                tokio::time::sleep(CALLER_LIMIT).await;
            }
        }
    }
}

async fn take(agent: Rc<Agent>, socket: UnixStream) {
    // Only the account that runs logins has addresses to open; the browser's has no say in this.
    if !socket.peer_cred().is_ok_and(|peer| peer.uid() == CLI_USER.uid) {
        return agent.log.note("shim", "called by another account");
    }
    let mut url = Vec::new();
    let read = timeout(CALLER_LIMIT, socket.take(URL_MAX + 1).read_to_end(&mut url)).await;
    match (read, String::from_utf8(url)) {
        (Ok(Ok(1..)), Ok(url)) => login::shim_called(&agent, url).await,
        _ => agent.log.note("shim", "called without a readable address"),
    }
}
