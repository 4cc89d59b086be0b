//! The host as a process of its own: where its socket is, who may drive it, where it keeps things.

use std::path::{Path, PathBuf};

use super::Settings;

/// Whose controller may drive the host process unless another user is named.
const USER: &str = "polydev";
/// Where a host process of its own keeps things: not where its controller could move them away.
const DATA_DIR: &str = "/var/lib/polydev-host";

/// The host process.
#[derive(Debug, Clone)]
pub struct HostProcessConfig {
    /// Its socket; without one the controller runs the host inside itself and needs root.
    pub socket: Option<PathBuf>,
    /// Name or number of the user whose programs may drive VMs, besides root's.
    pub user: String,
    /// Persistent state of the host: CLI VMs' disks, VM records, archived logs, snapshots.
    pub data_dir: PathBuf,
}

impl HostProcessConfig {
    pub(super) fn read(settings: &mut Settings, data_dir: &Path) -> Self {
        let socket: Option<PathBuf> = settings.optional("host_socket");
        if socket.as_ref().is_some_and(|path| !path.is_absolute()) {
            settings.reject("host_socket", "must be an absolute path");
        }
        let own = match &socket {
            Some(_) => PathBuf::from(DATA_DIR),
            None => data_dir.join("host"),
        };
        Self {
            socket,
            user: settings.get("host_user", USER.to_owned()),
            data_dir: settings.get("host_data_dir", own),
        }
    }
}
