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

/// All tries together; emulated machines are an order of magnitude slower than others.
const LIMIT: Duration = Duration::from_secs(180);
/// How long each try is given before the next; the last one is repeated.
const TRIES: [Duration; 4] =
    [Duration::from_secs(15), Duration::from_secs(20), Duration::from_secs(30), Duration::from_secs(40)];
/// How often the host's traffic is looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long the call that hands an address over may run.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(60);
/// How long a refused connection is taken for one that may still succeed.
const REFUSAL_LIMIT: Duration = Duration::from_secs(20);

/// The page that the browser is to show.
#[derive(Default)]
pub(crate) struct PageSlot {
    wanted: RefCell<Option<String>>,
    opening: RefCell<Option<AbortHandle>>,
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
    let deadline = Instant::now() + LIMIT;
    let parsed = HttpUrl::parse(url).map_err(|error| error.to_string())?;
    let before = agent.catcher.traffic(&parsed.host);
    let mut tries = TRIES.into_iter().chain(std::iter::repeat(TRIES[TRIES.len() - 1]));
    let began = Instant::now();
    loop {
        let painted = async {
            while !agent.desktop.state().painted {
                agent.desktop.changed().await;
            }
        };
        timeout_at(deadline, painted).await.map_err(|_| "the browser did not come up".to_owned())?;
        tokio::task::spawn_local(hand_over(agent.clone(), url.to_owned()));
        let try_end = (Instant::now() + tries.next().unwrap_or(LIMIT)).min(deadline);
        while Instant::now() < try_end {
            let now = agent.catcher.traffic(&parsed.host);
            let answered = parsed.is_loopback() || now.bytes_back > before.bytes_back;
            let title = agent.desktop.title();
            if answered && is_certificate_error(&title) {
                return Err("the browser does not trust the page's certificate".to_owned());
            }
            if answered && is_page(&title) {
                return Ok(());
            }
            if !answered && now.refused > before.refused && began.elapsed() > REFUSAL_LIMIT {
                return Err("connections to the sign-in page are refused".to_owned());
            }
            if !agent.desktop.state().painted {
                break;
            }
            let _ = timeout(LOOK_PAUSE, agent.desktop.changed()).await;
        }
        if Instant::now() >= deadline {
            return Err("the page did not come up in time".to_owned());
        }
        agent.log.note("page", "not there yet, opened again");
    }
}

/// Starts the browser's program with the address: the one that runs already takes it over.
async fn hand_over(agent: Rc<Agent>, url: String) {
    let argv = browser::chromium(Some(&url));
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
