//! Opens a page in the browser and makes sure that it is there.
//!
//! There is no debugging channel to ask: a page counts as open when its host sent bytes after the request was made and
//! the browser's window has another title than the empty page's.

use std::{cell::RefCell, rc::Rc, time::Duration};

use polydev_core::{
    guest::BROWSER_USER,
    url_rule::HttpUrl,
    wire::{AgentEvent, ErrorCode, Refusal, Reply},
};
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    agent::Agent,
    browser,
    control::refuse,
    process::{Launch, Streams, signal_group},
};

/// How long a page may take; emulated machines are an order of magnitude slower than others. Starts over once when its
/// host answers: what comes then is up to the page.
const LIMIT: Duration = Duration::from_secs(180);
/// How long each try is given before the next; the last one is repeated. A person may be typing into what the try before
/// has opened, so there is a next one only while nothing was seen of the page's host.
const TRIES: [Duration; 3] = [Duration::from_secs(20), Duration::from_secs(40), Duration::from_secs(60)];
/// How often the host's traffic is looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long the running browser may take to accept an address.
const ACCEPT_LIMIT: Duration = Duration::from_secs(60);
/// How long a second browser that only hands an address over may run.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(90);
/// How long a refused connection is taken for one that may still succeed.
const REFUSAL_LIMIT: Duration = Duration::from_secs(20);

/// The page that the browser is to show.
#[derive(Default)]
pub(crate) struct PageSlot {
    wanted: RefCell<Option<String>>,
    opening: RefCell<Option<AbortHandle>>,
}

impl PageSlot {
    /// Whether a page was asked for since the start.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.borrow().is_some()
    }
}

pub(crate) fn open(agent: &Rc<Agent>, url: String) -> Result<Reply, Refusal> {
    if !agent.login.accepts(&url) {
        return Err(refuse(ErrorCode::UrlRefused, "the address is not this login's sign-in page"));
    }
    *agent.desktop.page.wanted.borrow_mut() = Some(url.clone());
    begin(agent, url);
    Ok(Reply::Done)
}

/// A browser that was started again shows an empty page: open the wanted one in it.
pub(crate) fn browser_is_up(agent: &Rc<Agent>) {
    let opening = agent.desktop.page.opening.borrow().as_ref().is_some_and(|task| !task.is_finished());
    let wanted = agent.desktop.page.wanted.borrow().clone();
    if let Some(url) = wanted
        && !opening
        && agent.login.accepts(&url)
    {
        begin(agent, url);
    }
}

fn begin(agent: &Rc<Agent>, url: String) {
    let task = tokio::task::spawn_local({
        let agent = agent.clone();
        async move {
            let event = match show(&agent, &url).await {
                Ok(()) => AgentEvent::PageOpen,
                Err(reason) => AgentEvent::PageFailed { reason },
            };
            agent.log.note("page", format_args!("{event:?}"));
            agent.events.emit(event);
        }
    });
    if let Some(old) = agent.desktop.page.opening.replace(Some(task.abort_handle())) {
        old.abort();
    }
}

async fn show(agent: &Rc<Agent>, url: &str) -> Result<(), String> {
    let mut deadline = Instant::now() + LIMIT;
    let parsed = HttpUrl::parse(url).map_err(|error| error.to_string())?;
    let before = agent.catcher.traffic(agent, &parsed.host).await;
    let mut tries = TRIES.into_iter().chain(std::iter::repeat(TRIES[TRIES.len() - 1]));
    let began = Instant::now();
    let mut answered = false;
    loop {
        let painted = async {
            while !agent.desktop.state().painted {
                agent.desktop.changed().await;
            }
        };
        timeout_at(deadline, painted).await.map_err(|_| "the browser did not come up".to_owned())?;
        let handing_over = tokio::task::spawn_local(hand_over(agent.clone(), url.to_owned()));
        let patience = tries.next().unwrap_or(LIMIT);
        let mut handed_over_at = None;
        loop {
            let now = agent.catcher.traffic(agent, &parsed.host).await;
            if !answered && (parsed.is_loopback() || now.bytes_back > before.bytes_back) {
                answered = true;
                deadline = Instant::now() + LIMIT;
                agent.log.note("page", "its host answers");
            }
            let title = agent.desktop.title();
            if answered && is_certificate_error(&title) {
                return Err("the browser does not trust the page's certificate".to_owned());
            }
            if answered && is_page(&title) {
                return Ok(());
            }
            let refused = now.refused > before.refused;
            if !answered && refused && began.elapsed() > REFUSAL_LIMIT {
                return Err("connections to the sign-in page are refused".to_owned());
            }
            if Instant::now() >= deadline {
                return Err("the page did not come up in time".to_owned());
            }
            if !agent.desktop.state().painted {
                // Another browser will come, with nothing open.
                answered = false;
                break;
            }
            if handing_over.is_finished() {
                let since = *handed_over_at.get_or_insert_with(Instant::now);
                let contacted = answered || refused || now.connected > before.connected;
                if !contacted && since.elapsed() > patience {
                    break;
                }
            }
            let _ = timeout(LOOK_PAUSE, agent.desktop.changed()).await;
        }
        handing_over.abort();
        agent.log.note("page", "not there yet, opened again");
    }
}

/// Gives the address to the browser that runs: by its socket, or if that fails as any second start of it would.
async fn hand_over(agent: Rc<Agent>, url: String) {
    let argv = browser::chromium(Some(&url));
    match timeout(ACCEPT_LIMIT, browser::tell_running(&argv)).await {
        Ok(Ok(())) => return agent.log.note("page", "handed over"),
        Ok(Err(error)) => agent.log.note("page", format_args!("the browser's socket: {error}")),
        Err(_) => agent.log.note("page", "the browser did not accept the address in time"),
    }
    let env = browser::environment();
    let launch = Launch { argv: &argv, env: &env, account: &BROWSER_USER, streams: Streams::Null };
    match launch.start(&agent.reaper) {
        Ok(mut child) => {
            if timeout(HAND_OVER_LIMIT, &mut child.exit).await.is_err() {
                signal_group(child.pid, libc::SIGKILL);
            }
        }
        Err(error) => agent.log.note("page", format_args!("not handed over: {error}")),
    }
}

fn is_page(title: &str) -> bool {
    let empty = ["about:blank", "New Tab", "Untitled", "Chromium"];
    !title.is_empty() && !empty.iter().any(|start| title.starts_with(start))
}

fn is_certificate_error(title: &str) -> bool {
    title.starts_with("Privacy error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_pages_and_errors_are_told_from_pages() {
        for empty in ["", "about:blank - Chromium", "New Tab - Chromium", "Untitled - Chromium", "Chromium"] {
            assert!(!is_page(empty), "{empty}");
        }
        assert!(is_page("Sign in - OpenAI - Chromium"));
        assert!(is_certificate_error("Privacy error - Chromium"));
    }
}
