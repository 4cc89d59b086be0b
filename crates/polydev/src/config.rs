//! Configuration: one TOML file, then `POLYDEV_*` environment variables, then flags; the later one wins.
//!
//! Every fault is collected and reported at once, with where it came from, so that a person corrects the file in
//! one go. Secrets are never values here, only paths of files that hold them.

mod desktop;
mod egress;
mod file;
mod host;
mod limits;
mod paths;
mod server;
mod source;
mod turn;
mod vms;

use std::{ffi::OsString, path::PathBuf};

pub use desktop::DesktopConfig;
pub use egress::{EgressConfig, PortRange, Strict};
pub use host::HostProcessConfig;
pub use limits::LimitsConfig;
pub use paths::PathsConfig;
pub use server::ServerConfig;
pub use source::Settings;
pub use turn::{RelayTo, TurnConfig, TurnListen, TurnTls};
pub use vms::{EgressPolicy, VmSize, VmsConfig};

/// Everything the controller needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub server: ServerConfig,
    /// Where things are kept.
    pub paths: PathsConfig,
    /// The host as a process of its own.
    pub host: HostProcessConfig,
    /// How VMs are made.
    pub vms: VmsConfig,
    /// What VMs reach, and users' proxy ports.
    pub egress: EgressConfig,
    /// How desktops are shown.
    pub desktop: DesktopConfig,
    /// STUN and TURN.
    pub turn: TurnConfig,
    /// How much a caller may do.
    pub limits: LimitsConfig,
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it was given: a file, a variable or a flag.
    pub origin: String,
    /// What is wrong, in words.
    pub what: String,
}

/// All that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", describe(.0))]
pub struct ConfigError(pub Vec<Fault>);

fn describe(faults: &[Fault]) -> String {
    let mut text = format!("the configuration has {} fault(s)", faults.len());
    for fault in faults {
        text.push_str(&format!("\n  {}: {}", fault.origin, fault.what));
    }
    text
}

impl Config {
    /// Reads `file` (when given it must exist), the environment, then `flags` (setting name and text).
    pub fn load(
        file: Option<PathBuf>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Settings::default();
        if let Some(path) = file {
            settings.add_file(&path);
        }
        settings.add_environment(env);
        settings.add_flags(flags);
        let server = ServerConfig::read(&mut settings);
        let paths = PathsConfig::read(&mut settings);
        let config = Config {
            host: HostProcessConfig::read(&mut settings, &paths.data_dir),
            paths,
            desktop: DesktopConfig::read(&mut settings, server.listen),
            turn: TurnConfig::read(&mut settings, &server),
            server,
            vms: VmsConfig::read(&mut settings),
            egress: EgressConfig::read(&mut settings),
            limits: LimitsConfig::read(&mut settings),
        };
        let faults = settings.finish();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError(faults)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("polydev.toml");
        std::fs::write(&path, file).unwrap();
        Config::load(
            Some(path),
            env.iter().map(|(k, v)| (k.into(), v.into())),
            flags.iter().map(|(k, v)| (*k, (*v).to_owned())),
        )
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = load("", &[], &[]).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:4000");
        assert_eq!((config.vms.browser.vcpus, config.vms.browser.memory_mib), (2, 4096));
        assert_eq!((config.vms.cli.vcpus, config.vms.cli.memory_mib), (2, 2048));
        assert_eq!(config.limits.requests_max, 1000);
        assert_eq!(config.limits.window.as_secs(), 900);
        assert_eq!(config.vms.egress, EgressPolicy::Deny);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "[server]\nlisten = \"127.0.0.1:4001\"\n[vms]\nslots = 3\n";
        let config = load(file, &[("POLYDEV_LISTEN", "127.0.0.1:4002")], &[]).unwrap();
        assert_eq!(config.server.listen.port(), 4002);
        assert_eq!(config.vms.slots, 3);
        let config =
            load(file, &[("POLYDEV_LISTEN", "127.0.0.1:4002")], &[("listen", "127.0.0.1:4003")]).unwrap();
        assert_eq!(config.server.listen.port(), 4003);
    }

    #[test]
    fn the_origins_variables_are_accepted_by_their_own_names() {
        let config = load(
            "",
            &[
                ("CLI_VM_MEMORY_MB", "1024"),
                ("CLI_VM_VCPU", "1"),
                ("BROWSER_VM_MEMORY_MB", "2048"),
                ("BROWSER_VM_VCPU", "4"),
                ("RATE_LIMIT_MAX_REQUESTS", "7"),
                ("RATE_LIMIT_WINDOW_MS", "5000"),
                ("DEBUG_KEEP_FAILED_BROWSER_VMS", "true"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!((config.vms.cli.vcpus, config.vms.cli.memory_mib), (1, 1024));
        assert_eq!((config.vms.browser.vcpus, config.vms.browser.memory_mib), (4, 2048));
        assert_eq!(config.limits.requests_max, 7);
        assert_eq!(config.limits.window.as_millis(), 5000);
        assert!(config.vms.keep_failed);
    }

    #[test]
    fn all_faults_are_reported_at_once_with_their_origin() {
        let file = "[server]\nlisten = \"0.0.0.0:4000\"\ncolour = 1\n[vms]\nslots = 900\n";
        let error = load(file, &[("BROWSER_VM_VCPU", "many"), ("POLYDEV_NONSENSE", "1")], &[]).unwrap_err();
        let text = error.to_string();
        for part in ["loopback", "colour", "slots", "BROWSER_VM_VCPU", "POLYDEV_NONSENSE"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert_eq!(error.0.len(), 5, "{text}");
    }

    #[test]
    fn what_a_vm_may_take_of_the_connection_is_as_documented_unless_it_is_set() {
        let default = load("", &[], &[]).unwrap().vms.egress_limits;
        assert_eq!(default, polydev_host::EgressLimits::default());
        let file =
            "[vms]\negress_connections = 8\negress_connections_per_second = 2\negress_mib_per_second = 0\n";
        let set = load(file, &[], &[]).unwrap().vms.egress_limits;
        assert_eq!((set.connections, set.half_open), (8, 8));
        assert_eq!((set.connections_per_second, set.connections_burst, set.bytes_per_second), (2, 8, 0));
        load("[vms]\negress_connections = 0\n", &[], &[]).unwrap_err();
    }

    #[test]
    fn one_mark_of_the_pool_is_both_and_none_leaves_it_to_the_host() {
        let marks = |pairs: &[(&str, &str)]| load("", pairs, &[]).map(|config| config.vms.warm);
        let (low, high) = ("POLYDEV_WARM_BROWSER_VMS_LOW", "POLYDEV_WARM_BROWSER_VMS_HIGH");
        assert_eq!(marks(&[]).unwrap(), None);
        assert_eq!(marks(&[(high, "0")]).unwrap(), Some((0, 0)));
        assert_eq!(marks(&[(low, "2")]).unwrap(), Some((2, 2)));
        assert_eq!(marks(&[(low, "1"), (high, "3")]).unwrap(), Some((1, 3)));
        let error = marks(&[(low, "3"), (high, "1")]).unwrap_err();
        assert!(error.to_string().contains("warm_browser_vms_high"), "{error}");
    }

    #[test]
    fn a_host_process_of_its_own_keeps_things_where_its_controller_cannot_move_them() {
        let file = "[paths]\ndata_dir = \"/d\"\n";
        let one = load(file, &[], &[]).unwrap();
        assert_eq!((one.host.socket, one.host.data_dir), (None, "/d/host".into()));
        let two = load(&format!("{file}[host]\nsocket = \"/run/h.sock\"\n"), &[], &[]).unwrap();
        assert_eq!(two.host.data_dir, PathBuf::from("/var/lib/polydev-host"));
        let error = load("[host]\nsocket = \"h.sock\"\n", &[], &[]).unwrap_err();
        assert!(error.to_string().contains("absolute"), "{error}");
    }

    #[test]
    fn every_listener_that_is_not_loopback_is_refused() {
        for bad in ["0.0.0.0:4000", "[::]:4000", "192.168.1.2:4000", "[fe80::1]:1"] {
            let error = load("", &[], &[("listen", bad)]).unwrap_err();
            assert!(error.to_string().contains("loopback"), "{error}");
        }
        for good in ["127.0.0.1:0", "127.0.0.9:4000", "[::1]:4000"] {
            load("", &[], &[("listen", good)]).unwrap();
        }
    }
}
