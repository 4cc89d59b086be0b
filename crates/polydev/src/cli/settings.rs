//! Flags that set what the configuration file and the environment can set too.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError};

/// Settings; each one wins over its `POLYDEV_*` variable and over the file.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Configuration file (TOML).
    #[arg(long, global = true, env = "POLYDEV_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Loopback address and port to listen on, or to talk to.
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Persistent state.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// Volatile state of running VMs.
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<String>,
    /// Golden images.
    #[arg(long, global = true, value_name = "DIR")]
    image_dir: Option<String>,
    /// Socket of the host process; without one VMs are run by this process, which needs root.
    #[arg(long, global = true, value_name = "FILE")]
    host_socket: Option<String>,
    /// `auto`, `firecracker`, `qemu` or `container`.
    #[arg(long, global = true, value_name = "DRIVER")]
    driver: Option<String>,
    /// Most VMs at one time, 1 to 253.
    #[arg(long, global = true, value_name = "N")]
    slots: Option<String>,
    /// The static polydev-agent.
    #[arg(long, global = true, value_name = "FILE")]
    agent_path: Option<String>,
    /// The static polydev-desktop.
    #[arg(long, global = true, value_name = "FILE")]
    desktop_path: Option<String>,
    /// Provider definitions in place of the built-in ones.
    #[arg(long, global = true, value_name = "DIR")]
    providers_dir: Option<String>,
    /// Extra layer on top of the image: demo and tests only.
    #[arg(long, global = true, value_name = "DIR")]
    overlay_dir: Option<String>,
    /// Hosts that are played by services on this machine: demo and tests only.
    #[arg(long, global = true, value_name = "FILE")]
    egress_routes: Option<String>,
    /// What VMs may reach besides: `deny` or `direct`.
    #[arg(long, global = true, value_name = "POLICY")]
    egress: Option<String>,
    /// Most sign-ins that wait for a slot.
    #[arg(long, global = true, value_name = "N")]
    queue_max: Option<String>,
    /// The vault's master key.
    #[arg(long, global = true, value_name = "FILE")]
    master_key_file: Option<String>,
    /// A passphrase for the vault's master key.
    #[arg(long, global = true, value_name = "FILE")]
    passphrase_file: Option<String>,
}

impl Flags {
    /// With this socket, if one is given.
    pub(super) fn with_host_socket(mut self, socket: Option<PathBuf>) -> Self {
        if let Some(socket) = socket {
            self.host_socket = Some(socket.to_string_lossy().into_owned());
        }
        self
    }

    /// File, environment and flags, checked together.
    pub(super) fn config(self) -> Result<Config, ConfigError> {
        let given = [
            ("listen", self.listen),
            ("data_dir", self.data_dir),
            ("run_dir", self.run_dir),
            ("image_dir", self.image_dir),
            ("host_socket", self.host_socket),
            ("driver", self.driver),
            ("slots", self.slots),
            ("agent_path", self.agent_path),
            ("desktop_path", self.desktop_path),
            ("providers_dir", self.providers_dir),
            ("overlay_dir", self.overlay_dir),
            ("egress_routes", self.egress_routes),
            ("egress", self.egress),
            ("queue_max", self.queue_max),
            ("master_key_file", self.master_key_file),
            ("passphrase_file", self.passphrase_file),
        ];
        let flags = given.into_iter().filter_map(|(setting, text)| Some((setting, text?)));
        Config::load(self.config, std::env::vars_os(), flags)
    }
}
