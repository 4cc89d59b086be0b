//! What an agent reports, judged: guest bytes are input, so an address counts only if the provider's rules take it.

use polydev_core::{
    session::Event,
    wire::{AgentEvent, DesktopState, UrlYields},
};

use super::driver::Driver;

impl Driver {
    /// What the report means for the sign-in.
    pub(super) fn hear(&mut self, event: AgentEvent) -> Option<Event> {
        match event {
            AgentEvent::Desktop { state: DesktopState { painted: true, .. } } => {
                (!self.told_desktop()).then_some(Event::DesktopReady)
            }
            AgentEvent::Desktop { state: DesktopState { painted: false, .. } } => None,
            AgentEvent::UrlCaptured { url, yields } => {
                if !self.accepts(&url, yields) {
                    tracing::warn!(session.id = %self.id(), "agent reported an address that no rule accepts");
                    return None;
                }
                self.captured(url, yields);
                // A device page is of use with its code only; both come together, right after.
                (yields != UrlYields::Device).then_some(Event::UrlCaptured(yields))
            }
            AgentEvent::DeviceCode { url, code } => {
                if !self.accepts(&url, UrlYields::Device) {
                    tracing::warn!(session.id = %self.id(), "agent reported a device page that no rule accepts");
                    return None;
                }
                self.device(url, code);
                Some(Event::DeviceCode)
            }
            AgentEvent::UrlRefused { origin } => {
                tracing::warn!(session.id = %self.id(), origin, "the tool asked for a page that no rule accepts");
                None
            }
            AgentEvent::PageOpen => Some(Event::PageOpen),
            AgentEvent::PageFailed { reason } => Some(Event::PageFailed { detail: reason }),
            AgentEvent::CallbackSeen => Some(Event::CallbackSeen),
            AgentEvent::CredentialSeen => Some(Event::CredentialSeen),
            AgentEvent::LoginEnded { end, output_tail } => {
                let output = polydev_core::scrub::scrub(&output_tail);
                tracing::info!(session.id = %self.id(), ?end, output, "the tool's login ended");
                Some(Event::LoginEnded(end))
            }
            AgentEvent::ServiceDied { name, exit_code } => {
                tracing::warn!(session.id = %self.id(), name, exit_code, "a program of the browser VM ended unasked");
                None
            }
            AgentEvent::EgressRefused { host } => {
                tracing::info!(session.id = %self.id(), host, "a program of the browser VM could not reach a host");
                None
            }
        }
    }
}
