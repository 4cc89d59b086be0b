//! Where things are kept.

use std::path::PathBuf;

use super::Settings;

/// Places on the machine.
#[derive(Debug, Clone)]
pub struct PathsConfig {
    /// Persistent state: database, master key, API token, CLI VMs' disks, archived logs.
    pub data_dir: PathBuf,
    /// Volatile state of running VMs.
    pub run_dir: PathBuf,
    /// Golden images.
    pub image_dir: PathBuf,
    /// Static `polydev-agent`.
    pub agent_path: PathBuf,
    /// Static `polydev-desktop`.
    pub desktop_path: PathBuf,
    /// Provider definitions in place of the built-in ones.
    pub providers_dir: Option<PathBuf>,
    /// The master key, 32 bytes as hex or base64; made on first start unless given.
    pub master_key_file: Option<PathBuf>,
    /// A passphrase from which the master key is derived.
    pub passphrase_file: Option<PathBuf>,
}

impl PathsConfig {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let beside = |name: &str| {
            let dir = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
            let own = dir.map(|dir| dir.join(name)).filter(|path| path.is_file());
            own.unwrap_or_else(|| PathBuf::from("/usr/lib/polydev").join(name))
        };
        let paths = Self {
            data_dir: settings.get("data_dir", PathBuf::from("/var/lib/polydev")),
            run_dir: settings.get("run_dir", PathBuf::from("/run/polydev-host")),
            image_dir: settings.get("image_dir", PathBuf::from("/var/cache/polydev/images")),
            agent_path: settings.get("agent_path", beside("polydev-agent")),
            desktop_path: settings.get("desktop_path", beside("polydev-desktop")),
            providers_dir: settings.optional("providers_dir"),
            master_key_file: settings.optional("master_key_file"),
            passphrase_file: settings.optional("passphrase_file"),
        };
        if paths.master_key_file.is_some() && paths.passphrase_file.is_some() {
            settings
                .reject("passphrase_file", "give either a master key file or a passphrase file, not both");
        }
        paths
    }
}
