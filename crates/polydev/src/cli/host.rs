//! `polydev host`: runs VMs for a controller that is another process.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use polydev_host::{
    HostError,
    remote::{Allowed, Hold, Hosts, Lease, Server},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::settings::Flags;
use crate::{config::Config, serve};

/// How long work under way may take at the end. What is cut off is found again by the next host process.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// How long VMs that nobody has may take to go then.
const POOL_LIMIT: Duration = Duration::from_secs(15);

/// Arguments of `polydev host`.
#[derive(Debug, Args)]
pub(super) struct HostArgs {
    /// Socket to listen on; the configuration's `host.socket` unless given.
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
}

/// Why the host process did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostFault {
    /// Neither the configuration nor the command line names a socket.
    #[error("no socket to listen on")]
    NoSocket,
    /// The user that may drive it.
    #[error("there is no user {0} on this machine")]
    NoUser(String),
    /// A file of the system.
    #[error("read {path}: {source}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The runtime.
    #[error("run: {0}")]
    Io(#[from] io::Error),
}

impl HostFault {
    /// What a person can do about it.
    pub(super) const fn hint(&self) -> &'static str {
        match self {
            Self::NoSocket => "give --socket FILE, or `socket` in the table [host] of the configuration",
            Self::NoUser(_) => "give its name or number as `user` in the table [host] of the configuration",
            Self::Host(HostError::Held { .. }) => {
                "`systemctl restart polydev-host` puts this program in the place of one that systemd runs"
            }
            Self::Read { .. } | Self::Host(_) | Self::Io(_) => {
                "`polydev doctor` says what works on this machine"
            }
        }
    }
}

/// Runs until it is told to end; VMs that somebody has go on. SIGUSR1: no new VMs from then on, for a machine that is to
/// be taken out of service.
pub(super) fn run(flags: Flags, args: HostArgs) -> anyhow::Result<()> {
    let config = flags.with_host_socket(args.socket).config()?;
    serve::start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(HostFault::Io)?;
    Ok(runtime.block_on(host(&config))?)
}

async fn host(config: &Config) -> Result<(), HostFault> {
    let socket = config.host.socket.as_deref().ok_or(HostFault::NoSocket)?;
    let allowed = allowed(&config.host.user)?;
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    let lease = Lease::default();
    // Before VMs are touched: of two host processes the second one ends here.
    let machine = serve::host_config(config);
    let _held = Hold::of_run_dir(&machine.run_dir)?;
    let server = Server::bind(socket, allowed, lease.clone())?;
    let hosts = Hosts::open(machine, std::sync::Arc::new(lease.egress())).await?;
    let status = hosts.status();
    if status.shared_kernel {
        tracing::warn!(
            driver = status.driver,
            "guests share this machine's kernel: for demos and tests only"
        );
    }
    let stop = CancellationToken::new();
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(socket = %socket.display(), uid = allowed.uid, driver = status.driver, "polydev host is listening");
    let mut drain = signal(SignalKind::user_defined1())?;
    let serving = tokio::spawn(server.run(hosts.clone(), stop.clone()));
    let draining = async {
        drain.recv().await;
        tracing::info!("no new VMs from now on");
        match hosts.drain().await {
            Ok(()) => tracing::info!("drained: only VMs that somebody has are left"),
            Err(error) => tracing::error!(%error, "draining did not come to its end"),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        () = draining => {}
    }
    tracing::info!("the host process ends; VMs that somebody has go on");
    stop.cancel();
    if timeout(DRAIN_LIMIT, serving).await.is_err() {
        tracing::warn!("work under way was cut off; the next host process finds what it left");
    }
    // Without an image there never was one, and nothing lies ready.
    let Ok(host) = hosts.get() else { return Ok(()) };
    if let Err(error) = host.end_pool(POOL_LIMIT).await {
        tracing::warn!(%error, "VMs that were held ready may be left; the next host process takes them over");
    }
    if let Err(error) = host.end().await {
        tracing::warn!(%error, "networks that lay ready are left to the next host process");
    }
    Ok(())
}

/// The user that may drive VMs, by name or number.
fn allowed(user: &str) -> Result<Allowed, HostFault> {
    const PASSWD: &str = "/etc/passwd";
    let text = fs::read_to_string(Path::new(PASSWD));
    let text = text.map_err(|source| HostFault::Read { path: PASSWD, source })?;
    let found = find_user(&text, user);
    found.ok_or_else(|| HostFault::NoUser(user.to_owned()))
}

/// Looks a user up in a file as passwd(5) describes. A number that nobody has stands for itself, as user and as group.
fn find_user(passwd: &str, user: &str) -> Option<Allowed> {
    let entry = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        let allowed = Allowed { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
        (name == user || uid == user).then_some(allowed)
    };
    passwd.lines().find_map(entry).or_else(|| user.parse().ok().map(|id| Allowed { uid: id, gid: id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\npolydev:x:990:991::/var/lib/polydev:/bin/false\n";
        let polydev = Some(Allowed { uid: 990, gid: 991 });
        assert_eq!(find_user(passwd, "polydev"), polydev);
        assert_eq!(find_user(passwd, "990"), polydev);
        assert_eq!(find_user(passwd, "1234"), Some(Allowed { uid: 1234, gid: 1234 }));
        assert_eq!(find_user(passwd, "poly"), None);
    }
}
