//! The JSON-RPC part of a login: lines out, answers in, junk in between tolerated.

use std::collections::VecDeque;

use polydev_core::{scrub::scrub, wire::JsonRpcStep};
use serde_json::Value;

/// Longest error message passed on.
const MESSAGE_MAX: usize = 200;

/// Where the exchange stands.
pub(super) struct Rpc {
    steps: VecDeque<JsonRpcStep>,
    waiting_for: Option<u64>,
    decisive: Option<u64>,
}

/// What a line means for the login.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing, or not meant for us.
    Nothing,
    /// Send these lines.
    Send(Vec<String>),
    /// The decisive request has its result.
    SignedIn,
    /// A request was answered with an error.
    Failed(String),
}

impl Rpc {
    pub(super) fn new(steps: &[JsonRpcStep], decisive: Option<u64>) -> Self {
        Self { steps: steps.iter().cloned().collect(), waiting_for: None, decisive }
    }

    /// The lines that may be sent now.
    pub(super) fn advance(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while self.waiting_for.is_none()
            && let Some(step) = self.steps.pop_front()
        {
            lines.push(step.send + "\n");
            self.waiting_for = step.wait_id;
        }
        lines
    }

    pub(super) fn take_line(&mut self, line: &str) -> Answer {
        let Ok(Value::Object(message)) = serde_json::from_str::<Value>(line) else { return Answer::Nothing };
        // With a method it is a request or a notification of the program's.
        let Some(id) = message.get("id").and_then(Value::as_u64).filter(|_| !message.contains_key("method"))
        else {
            return Answer::Nothing;
        };
        if self.waiting_for != Some(id) && self.decisive != Some(id) {
            return Answer::Nothing;
        }
        if let Some(error) = message.get("error").filter(|error| !error.is_null()) {
            let text = error.get("message").and_then(Value::as_str).unwrap_or("no message");
            let text: String = scrub(text).chars().take(MESSAGE_MAX).collect();
            return Answer::Failed(format!("the program answered with an error: {text}"));
        }
        if !message.contains_key("result") {
            return Answer::Nothing;
        }
        if self.decisive == Some(id) {
            return Answer::SignedIn;
        }
        self.waiting_for = None;
        Answer::Send(self.advance())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(send: &str, wait_id: Option<u64>) -> JsonRpcStep {
        JsonRpcStep { send: send.into(), wait_id }
    }

    #[test]
    fn steps_go_out_in_order_each_after_the_answer_it_waits_for() {
        let mut rpc = Rpc::new(&[step("a", Some(0)), step("b", None), step("c", Some(1))], Some(1));
        assert_eq!(rpc.advance(), ["a\n"]);
        for junk in [
            "",
            "Enter the code:",
            "{",
            "[1]",
            r#"{"id":1.5}"#,
            r#"{"id":0}"#,
            r#"{"id":0,"method":"ask","result":1}"#,
            r#"{"id":7,"result":{}}"#,
        ] {
            assert_eq!(rpc.take_line(junk), Answer::Nothing, "{junk}");
        }
        assert_eq!(rpc.take_line(r#"{"id":0,"result":{}}"#), Answer::Send(vec!["b\n".into(), "c\n".into()]));
        assert_eq!(rpc.take_line(r#"{"id":1,"result":{}}"#), Answer::SignedIn);
    }

    #[test]
    fn an_error_is_told_without_its_secrets() {
        let mut rpc = Rpc::new(&[step("a", Some(1))], Some(1));
        rpc.advance();
        let line = r#"{"id":1,"error":{"code":-32000,"message":"denied for https://a.test/?code=FAKE"}}"#;
        let Answer::Failed(reason) = rpc.take_line(line) else { panic!() };
        assert!(reason.contains("denied") && !reason.contains("FAKE"), "{reason}");
    }
}
