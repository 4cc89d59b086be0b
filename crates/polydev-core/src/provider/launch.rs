//! From a definition to what the agent runs.

use std::collections::BTreeMap;

use crate::{
    guest,
    session::Lane,
    wire::{LoginSpec, SuccessRule},
};

use super::Provider;

/// Names that may stand in braces in a definition's values.
pub(super) const NAMES: [&str; 4] = ["home", "shim", "shim_dir", "path"];

/// Places in the guest that a definition can refer to, and what the guest as a whole brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholders {
    /// `{home}`: home of the CLI user.
    pub home: String,
    /// `{shim}`: the browser shim.
    pub shim: String,
    /// `{shim_dir}`: the directory that holds the shim under all its names.
    pub shim_dir: String,
    /// `{path}`: `PATH` without the shim.
    pub path: String,
    /// X display.
    pub display: String,
    /// File in the guest with the test network's certificate authority; `None` outside demo and test.
    pub test_ca: Option<String>,
}

impl Default for Placeholders {
    fn default() -> Self {
        Self {
            home: guest::CLI_USER.home.into(),
            shim: guest::SHIM_PATH.into(),
            shim_dir: guest::SHIM_DIR.into(),
            path: guest::PATH.into(),
            display: guest::DISPLAY.into(),
            test_ca: None,
        }
    }
}

impl Placeholders {
    fn fill(&self, text: &str) -> String {
        let values = [&self.home, &self.shim, &self.shim_dir, &self.path];
        NAMES
            .iter()
            .zip(values)
            .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
    }

    fn fill_all(&self, texts: &[String]) -> Vec<String> {
        texts.iter().map(|text| self.fill(text)).collect()
    }

    /// What every program of the CLI user needs. `CI`, `DEBIAN_FRONTEND` and `NO_BROWSER` are absent on purpose:
    /// CLIs that see them do not hand their address to a browser.
    fn base_env(&self) -> BTreeMap<String, String> {
        let user = guest::CLI_USER.name;
        let pairs = [
            ("HOME", self.home.as_str()),
            ("USER", user),
            ("LOGNAME", user),
            ("SHELL", "/bin/bash"),
            ("LANG", "C.UTF-8"),
            ("TERM", "xterm-256color"),
            ("PATH", self.path.as_str()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Provider {
    /// The login, ready for the agent.
    pub fn login_spec(&self, lane: Lane, places: &Placeholders) -> LoginSpec {
        let definition = self.definition();
        let mut env = places.base_env();
        env.insert("PATH".into(), format!("{}:{}", places.shim_dir, places.path));
        env.insert("BROWSER".into(), places.shim.clone());
        env.insert("DISPLAY".into(), places.display.clone());
        env.extend(definition.login.env.iter().map(|(name, value)| (name.clone(), places.fill(value))));
        env.extend(self.test_env(places));
        let device = definition.device.as_ref();
        let argv = match (lane, device.and_then(|device| device.argv.as_ref())) {
            (Lane::DeviceCode, Some(argv)) => argv,
            (Lane::StreamedBrowser | Lane::CallbackRelay, _) | (Lane::DeviceCode, None) => {
                &definition.login.argv
            }
        };
        LoginSpec {
            argv: places.fill_all(argv),
            stdio: definition.login.stdio,
            env,
            seed_files: Vec::new(),
            expect: definition.login.expect.clone(),
            jsonrpc: definition.login.jsonrpc.clone(),
            url_rules: definition.url.clone(),
            device_code_regex: device.map(|device| device.code_regex.clone()),
            callback: definition.callback.clone(),
            success: SuccessRule {
                exit_code: definition.success.exit_code,
                output_regex: definition.success.output_regex.clone(),
                jsonrpc_result_id: definition.success.jsonrpc_result_id,
                files: definition.success.file.clone(),
            },
            idle_timeout_ms: u64::from(definition.login.idle_timeout_s) * 1_000,
        }
    }

    /// What this provider adds to the environment of everything in the CLI VM.
    pub fn cli_env(&self, places: &Placeholders) -> BTreeMap<String, String> {
        let own = self.definition().cli_vm.env.iter().map(|(name, value)| (name.clone(), places.fill(value)));
        own.chain(self.test_env(places)).collect()
    }

    fn test_env(&self, places: &Placeholders) -> BTreeMap<String, String> {
        let Some(ca) = &places.test_ca else { return BTreeMap::new() };
        let test = &self.definition().test;
        let mut env: BTreeMap<_, _> =
            test.env.iter().map(|(name, value)| (name.clone(), places.fill(value))).collect();
        env.extend(test.ca_env.iter().map(|name| (name.clone(), ca.clone())));
        env
    }
}
