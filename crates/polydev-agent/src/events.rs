//! What the agent has to tell the host, kept until a host is there to hear it.
//!
//! Events that describe how things are (the desktop, the login under way) stay after delivery and are told again to
//! the next connection, so that a controller that was restarted sees where a sign-in stands. The others are told once.

use std::{cell::RefCell, collections::VecDeque};

use polydev_core::wire::AgentEvent;
use tokio::sync::Notify;

/// Most events kept; the oldest go first.
const KEPT: usize = 256;

#[derive(Default)]
pub(crate) struct Events {
    state: RefCell<State>,
    added: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    entries: VecDeque<(u64, AgentEvent)>,
}

/// Where a connection has got to.
#[derive(Default)]
pub(crate) struct Cursor(u64);

impl Events {
    pub(crate) fn emit(&self, event: AgentEvent) {
        let mut state = self.state.borrow_mut();
        state.entries.retain(|(_, old)| !supersedes(&event, old));
        if state.entries.len() >= KEPT {
            state.entries.pop_front();
        }
        let number = state.next;
        state.next += 1;
        state.entries.push_back((number, event));
        drop(state);
        self.added.notify_waiters();
    }

    /// The next event that this connection has not had. Cancel-safe: it stays until [`Events::delivered`].
    pub(crate) async fn next(&self, cursor: &Cursor) -> (u64, AgentEvent) {
        loop {
            let added = self.added.notified();
            let found = self.state.borrow().entries.iter().find(|(number, _)| *number >= cursor.0).cloned();
            if let Some(found) = found {
                return found;
            }
            added.await;
        }
    }

    pub(crate) fn delivered(&self, cursor: &mut Cursor, number: u64) {
        cursor.0 = number + 1;
        self.state.borrow_mut().entries.retain(|(n, event)| *n != number || stays(event));
    }

    /// A new login begins: what was told about the last one is history.
    pub(crate) fn forget_login(&self) {
        self.state.borrow_mut().entries.retain(|(_, event)| !is_about_login(event));
    }
}

fn is_about_login(event: &AgentEvent) -> bool {
    match event {
        AgentEvent::UrlCaptured { .. }
        | AgentEvent::DeviceCode { .. }
        | AgentEvent::UrlRefused { .. }
        | AgentEvent::PageOpen
        | AgentEvent::PageFailed { .. }
        | AgentEvent::CallbackSeen
        | AgentEvent::CredentialSeen
        | AgentEvent::LoginEnded { .. } => true,
        AgentEvent::Desktop { .. } | AgentEvent::ServiceDied { .. } | AgentEvent::EgressRefused { .. } => {
            false
        }
    }
}

fn stays(event: &AgentEvent) -> bool {
    match event {
        AgentEvent::Desktop { .. }
        | AgentEvent::UrlCaptured { .. }
        | AgentEvent::DeviceCode { .. }
        | AgentEvent::PageOpen
        | AgentEvent::CallbackSeen
        | AgentEvent::CredentialSeen
        | AgentEvent::LoginEnded { .. } => true,
        AgentEvent::UrlRefused { .. }
        | AgentEvent::PageFailed { .. }
        | AgentEvent::ServiceDied { .. }
        | AgentEvent::EgressRefused { .. } => false,
    }
}

fn supersedes(new: &AgentEvent, old: &AgentEvent) -> bool {
    match (new, old) {
        (AgentEvent::UrlCaptured { yields: new, .. }, AgentEvent::UrlCaptured { yields: old, .. }) => {
            new == old
        }
        (new, old) => stays(new) && std::mem::discriminant(new) == std::mem::discriminant(old),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polydev_core::wire::DesktopState;

    fn deliver(events: &Events, cursor: &mut Cursor) -> Vec<AgentEvent> {
        let mut seen = Vec::new();
        loop {
            let entry = events.state.borrow().entries.iter().find(|(n, _)| *n >= cursor.0).cloned();
            let Some((number, event)) = entry else { return seen };
            events.delivered(cursor, number);
            seen.push(event);
        }
    }

    #[test]
    fn a_second_connection_hears_again_how_things_are_and_not_what_merely_happened() {
        let events = Events::default();
        events.emit(AgentEvent::Desktop { state: DesktopState::default() });
        events.emit(AgentEvent::ServiceDied { name: "openbox".into(), exit_code: 1 });
        events.emit(AgentEvent::Desktop { state: DesktopState { painted: true, ..Default::default() } });
        events.emit(AgentEvent::CallbackSeen);
        assert_eq!(deliver(&events, &mut Cursor::default()).len(), 3);
        let again = deliver(&events, &mut Cursor::default());
        assert!(
            matches!(&again[..], [AgentEvent::Desktop { state }, AgentEvent::CallbackSeen] if state.painted),
            "{again:?}"
        );
        events.forget_login();
        assert_eq!(deliver(&events, &mut Cursor::default()).len(), 1);
    }

    #[test]
    fn events_without_a_host_are_bounded() {
        let events = Events::default();
        for n in 0..1000 {
            events.emit(AgentEvent::ServiceDied { name: n.to_string(), exit_code: 0 });
        }
        let seen = deliver(&events, &mut Cursor::default());
        assert_eq!(seen.len(), KEPT);
        assert!(matches!(seen.last(), Some(AgentEvent::ServiceDied { name, .. }) if name == "999"));
    }
}
