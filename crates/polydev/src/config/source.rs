//! Collects raw settings from file, environment and flags, and the faults found on the way.

use std::{collections::BTreeMap, ffi::OsString, fmt::Display, path::Path, str::FromStr};

use super::{Fault, file};

/// Variables of the system that polydev replaces, and the setting each one is.
const ORIGIN_VARIABLES: [(&str, &str); 7] = [
    ("CLI_VM_MEMORY_MB", "cli_vm_memory_mib"),
    ("CLI_VM_VCPU", "cli_vm_vcpus"),
    ("BROWSER_VM_MEMORY_MB", "browser_vm_memory_mib"),
    ("BROWSER_VM_VCPU", "browser_vm_vcpus"),
    ("RATE_LIMIT_MAX_REQUESTS", "rate_limit_requests"),
    ("RATE_LIMIT_WINDOW_MS", "rate_limit_window_ms"),
    ("DEBUG_KEEP_FAILED_BROWSER_VMS", "keep_failed_browser_vms"),
];

/// Prefix of polydev's own variables.
const PREFIX: &str = "POLYDEV_";

/// `POLYDEV_*` variables that are no settings: those of the logger, and those of the tools that start the controller.
const NOT_SETTINGS: [&str; 10] = [
    "POLYDEV_CONFIG",
    "POLYDEV_LOG",
    "POLYDEV_LOG_FORMAT",
    "POLYDEV_CACHE_DIR",
    "POLYDEV_GUEST_DIR",
    "POLYDEV_INSTANCE",
    "POLYDEV_STATE_DIR",
    "POLYDEV_TEST_RUN",
    "POLYDEV_VERBOSE",
    "POLYDEV_VM",
];
/// The end-to-end tests' variables begin like this.
const E2E_PREFIX: &str = "POLYDEV_E2E";

/// Raw texts by setting name, the latest source winning.
#[derive(Debug, Default)]
pub struct Settings {
    given: BTreeMap<&'static str, Given>,
    faults: Vec<Fault>,
}

#[derive(Debug, Clone)]
struct Given {
    origin: String,
    text: String,
}

impl Settings {
    /// Adds what a TOML file says.
    pub fn add_file(&mut self, path: &Path) {
        let origin = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => file::read(&text, &origin, self),
            Err(error) => self.fault(origin, format!("cannot be read: {error}")),
        }
    }

    /// Adds `POLYDEV_*` and the origin's variables.
    pub fn add_environment(&mut self, env: impl IntoIterator<Item = (OsString, OsString)>) {
        for (name, value) in env {
            let Some(name) = name.to_str() else { continue };
            let own = name
                .strip_prefix(PREFIX)
                .filter(|_| !NOT_SETTINGS.contains(&name) && !name.starts_with(E2E_PREFIX));
            let origin_setting = ORIGIN_VARIABLES.iter().find(|(variable, _)| *variable == name);
            let setting = match (own, origin_setting) {
                (Some(own), _) => match file::setting_named(&own.to_ascii_lowercase()) {
                    Some(setting) => setting,
                    None => {
                        self.fault(name.to_owned(), "is no setting of polydev".to_owned());
                        continue;
                    }
                },
                (None, Some((_, setting))) => setting,
                (None, None) => continue,
            };
            match value.into_string() {
                Ok(text) => self.give(setting, format!("variable {name}"), text),
                Err(_) => self.fault(name.to_owned(), "is not valid UTF-8".to_owned()),
            }
        }
    }

    /// Adds flags of the command line.
    pub fn add_flags(&mut self, flags: impl IntoIterator<Item = (&'static str, String)>) {
        for (setting, text) in flags {
            self.give(setting, format!("flag --{}", setting.replace('_', "-")), text);
        }
    }

    /// The setting's value, checked; the default when it is absent or faulty (the fault is then recorded).
    pub fn get<T>(&mut self, setting: &'static str, default: T) -> T
    where
        T: FromStr<Err: Display>,
    {
        self.optional(setting).unwrap_or(default)
    }

    /// The setting's value when it was given and is good.
    pub fn optional<T>(&mut self, setting: &'static str) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        debug_assert!(file::setting_named(setting).is_some(), "{setting} is not in the table of settings");
        let given = self.given.get(setting)?.clone();
        match given.text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(given.origin, format!("{setting}: {error}"));
                None
            }
        }
    }

    /// Records that `setting` has a value that does not fit.
    pub fn reject(&mut self, setting: &'static str, what: impl Into<String>) {
        let origin =
            self.given.get(setting).map_or_else(|| "default".to_owned(), |given| given.origin.clone());
        self.fault(origin, format!("{setting}: {}", what.into()));
    }

    pub(super) fn give(&mut self, setting: &'static str, origin: String, text: String) {
        self.given.insert(setting, Given { origin, text });
    }

    pub(super) fn fault(&mut self, origin: String, what: String) {
        self.faults.push(Fault { origin, what });
    }

    pub(super) fn finish(self) -> Vec<Fault> {
        self.faults
    }
}
