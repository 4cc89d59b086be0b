//! `polydev serve`: opens everything, listens, and ends in order on SIGTERM and SIGINT.

use std::{
    fs::DirBuilder,
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::serve::ListenerExt;
use polydev_core::{
    provider::{Faults, ProviderSet},
    session::Limits,
};
use polydev_host::{
    Host, HostConfig, HostError, WarmPlan,
    remote::{Hold, RemoteHost, RemoteOptions, Role},
};
use rust_embed::RustEmbed;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

use crate::{
    api::{self, access::Access},
    app::{App, Former, Parts, RecoverError},
    clock::Clock,
    config::Config,
    desktop::{
        turn::{Turn, TurnError},
        webrtc::{Endpoint, EndpointError},
    },
    egress::{self, Egress, RouteError},
    machines::{Machines, Unavailable},
    store::{Store, StoreError},
    vault::{KeySource, MasterKeys, Vault, VaultError},
};

/// Provider definitions that are built in.
#[derive(RustEmbed)]
#[folder = "../../providers"]
struct BuiltIn;

/// What the kernel keeps of a connection besides what is on its way: about one keyframe.
const UNSENT_MAX_BYTES: u32 = 128 << 10;
/// How long the host process may take to be there.
const HOST_LIMIT: Duration = Duration::from_secs(60);
/// Browser VMs that wait for somebody where nobody said how many: a person who signs in does not wait for the start of
/// one, and what it takes is given back as soon as anything else needs it.
const WARM: (usize, usize) = (1, 1);
/// How long open connections may take to end once everything else has.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Why the controller did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The address is not on this machine's loopback.
    #[error("{0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// The address cannot be listened on.
    #[error("listen on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory of ours.
    #[error("{what} {path}: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another controller uses the data directory.
    #[error("another polydev uses {0}")]
    Busy(String),
    /// Provider definitions.
    #[error(transparent)]
    Providers(#[from] Faults),
    /// Egress routes.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where desktops are watched.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// STUN and TURN.
    #[error(transparent)]
    Turn(#[from] TurnError),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The former run's state.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The runtime.
    #[error("run: {0}")]
    Io(#[from] io::Error),
}

impl ServeError {
    /// What a person can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotLoopback(_) => "polydev listens on 127.0.0.1 or [::1] only",
            Self::Listen { .. } => "is another polydev running? give another --listen",
            Self::Endpoint(EndpointError::Listen { .. }) => {
                "give another address with POLYDEV_DESKTOP_LISTEN"
            }
            Self::Turn(_) => "correct the settings in [turn], or turn it off with POLYDEV_TURN_LISTEN=off",
            Self::Busy(_) => "give another --data-dir",
            Self::Vault(_) => "see the vault's chapter of the operator's guide before you remove a key file",
            Self::Providers(_) => "correct the files in --providers-dir",
            Self::Routes(_) => "correct the file given with --egress-routes",
            Self::Host(HostError::Unavailable { .. }) => {
                "is `polydev host` running, with the same host.socket, and for this user?"
            }
            Self::Path { .. }
            | Self::Endpoint(_)
            | Self::Store(_)
            | Self::Host(_)
            | Self::Recover(_)
            | Self::Io(_) => "`polydev doctor` says what works on this machine",
        })
    }
}

/// Runs the controller until it is told to end.
pub(crate) fn run(config: Config) -> Result<(), ServeError> {
    start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

/// The vault's key file.
pub(crate) fn key_file(config: &Config) -> PathBuf {
    config.paths.master_key_file.clone().unwrap_or_else(|| config.paths.data_dir.join("master.key"))
}

/// The file with the API token.
pub(crate) fn token_file(config: &Config) -> PathBuf {
    config.paths.data_dir.join("api-token")
}

/// What the host needs to know of the configuration.
pub(crate) fn host_config(config: &Config) -> HostConfig {
    HostConfig {
        driver: config.vms.driver,
        data_dir: config.host.data_dir.clone(),
        run_dir: config.paths.run_dir.clone(),
        image_dir: config.paths.image_dir.clone(),
        agent_path: config.paths.agent_path.clone(),
        desktop_path: config.paths.desktop_path.clone(),
        overlay_dir: config.vms.overlay_dir.clone(),
        slots: config.vms.slots,
        log_bytes_max: config.vms.log_bytes_max,
        log_vms_max: config.vms.log_vms_max,
        keep_failed: config.vms.keep_failed,
        capacity: Some(config.vms.capacity),
        network: config.vms.network,
        egress_limits: config.vms.egress_limits,
        resources: config.vms.resources,
        firecracker: config.vms.firecracker.clone(),
    }
}

/// Built-in definitions, or those of the directory that was given. Demo providers exist in demo mode only.
pub(crate) fn load_providers(config: &Config) -> Result<ProviderSet, ServeError> {
    let mut files = Vec::new();
    match &config.paths.providers_dir {
        None => {
            for name in BuiltIn::iter().filter(|name| name.ends_with(".toml") && !name.contains('/')) {
                let file = BuiltIn::get(&name).expect("a listed file is embedded");
                files.push((name.into_owned(), String::from_utf8_lossy(&file.data).into_owned()));
            }
        }
        Some(dir) => {
            let fault = |source| ServeError::Path {
                what: "read providers in",
                path: dir.display().to_string(),
                source,
            };
            for entry in std::fs::read_dir(dir).map_err(fault)? {
                let path = entry.map_err(fault)?.path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    files.push((name, std::fs::read_to_string(&path).map_err(fault)?));
                }
            }
        }
    }
    files.sort();
    let providers = ProviderSet::load(&files)?;
    Ok(if config.vms.overlay_dir.is_some() { providers } else { providers.without_demo() })
}

async fn serve(config: Config) -> Result<(), ServeError> {
    let listen = config.server.listen;
    if !listen.ip().is_loopback() {
        return Err(ServeError::NotLoopback(listen));
    }
    make_private_dir(&config.paths.data_dir)?;
    let _lock = lock(&config.paths.data_dir)?;
    let _held = match &config.host.socket {
        Some(_) => None,
        None => match Hold::of_run_dir(&config.paths.run_dir) {
            Err(error @ HostError::Held { .. }) => return Err(error.into()),
            // What is wrong with the directory the host will say, too.
            held => held.ok(),
        },
    };
    let providers = load_providers(&config)?;
    let clock = Clock::System;
    let (providers, vault) =
        (Arc::new(providers), Arc::new(Vault::new(MasterKeys::load(&key_source(&config))?)));
    let store = Store::open(&config.paths.data_dir.join("polydev.db")).await?;
    let egress = Arc::new(Egress::open(egress::Parts {
        settings: config.egress.clone(),
        policy: config.vms.egress,
        routes: config.vms.egress_routes.clone(),
        clock,
        store: store.clone(),
        vault: Arc::clone(&vault),
        providers: Arc::clone(&providers),
    })?);
    let listener = TcpListener::bind(listen).await.map_err(|source| ServeError::Listen { listen, source })?;
    let listen = listener.local_addr()?;
    let remote = connect_host(&config, &egress).await?;
    let (machines, own): (Arc<dyn Machines>, _) = match &remote {
        Some(remote) => (Arc::new(remote.clone()), None),
        None => open_machines(&config, Arc::clone(&egress)).await?,
    };
    let token = token_file(&config);
    let access =
        Access::open(&token, listen, config.server.link_ttl, config.server.cookie_ttl).map_err(|source| {
            ServeError::Path { what: "API token", path: token.display().to_string(), source }
        })?;
    let limits = Limits { queue_ms: millis(config.limits.queue_wait), ..Limits::default() };
    let endpoint = Endpoint::open(&config.desktop)?;
    let media = endpoint.address();
    let turn = Turn::open(&config.turn, &config.paths.data_dir, clock)?;
    let app = App::new(Parts {
        config,
        listen,
        clock,
        store,
        vault,
        machines,
        egress,
        providers,
        access,
        limits,
        endpoint,
        turn,
    });
    let recovered = app.recover().await?;
    // Not before: what is being made there belongs to no session, so recovering would take it for a leftover.
    match recovered {
        None => prepare(&app),
        Some(former) => drop(tokio::spawn(recover_late(Arc::clone(&app), former))),
    }
    let (link, _) = app.access.new_link(app.clock.now_ms())?;
    tracing::info!(%listen, %media, driver = app.machines.status().driver, "polydev is listening");
    // The one thing a person needs; on stdout so that scripts can take it from there.
    println!("{link}");
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (app_at_end, stop) = (Arc::clone(&app), app.stop.clone());
    let ending = tokio::spawn(async move {
        let lost = async {
            match &remote {
                Some(remote) => remote.closed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            reason = lost => tracing::error!(reason, "the host is lost to this controller, which ends"),
        }
        app_at_end.shut_down().await;
    });
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    let stopping = app.stop.clone();
    let listener = listener.tap_io(|connection| {
        if let Err(error) = keep_little(connection) {
            tracing::warn!(%error, "a connection may be slower than it has to be");
        }
    });
    let serving = axum::serve(listener, api::router(Arc::clone(&app)))
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    tokio::select! {
        served = async { serving.await } => served?,
        () = drained => tracing::warn!("some connections were still open at the end"),
    }
    // A panic there has been printed; there is nothing left to do but end.
    let _ = ending.await;
    if let Some(host) = own
        && let Err(error) = host.end().await
    {
        tracing::warn!(%error, "networks that lay ready are left to the next controller");
    }
    tracing::info!("polydev has ended");
    Ok(())
}

/// A connection whose live pictures do not get old in the kernel: small messages go at once, and what the network cannot
/// take yet stays with us, where a newer picture can replace it.
fn keep_little(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    SockRef::from(connection).set_tcp_notsent_lowat(UNSENT_MAX_BYTES)
}

/// The host process, when it is one of its own.
async fn connect_host(config: &Config, egress: &Arc<Egress>) -> Result<Option<RemoteHost>, ServeError> {
    let Some(socket) = config.host.socket.clone() else { return Ok(None) };
    tracing::info!(socket = %socket.display(), "waiting for the host process");
    let options = RemoteOptions {
        socket,
        role: Role::Controller { take_over: false },
        egress_limits: config.vms.egress_limits,
    };
    Ok(Some(RemoteHost::connect(options, Arc::clone(egress) as _, HOST_LIMIT).await?))
}

/// With the host, if there is one in this process.
async fn open_machines(
    config: &Config,
    egress: Arc<Egress>,
) -> Result<(Arc<dyn Machines>, Option<Host>), ServeError> {
    match Host::open(host_config(config), egress).await {
        Ok(host) => {
            let status = host.status();
            if status.shared_kernel {
                tracing::warn!(
                    driver = status.driver,
                    "guests share this machine's kernel: for demos and tests only"
                );
            }
            Ok((Arc::new(host.clone()), Some(host)))
        }
        Err(error) => {
            tracing::error!(%error, "no VM can be made until this is mended; the API works all the same");
            Ok((Arc::new(Unavailable::because(error, usize::from(config.vms.slots))?), None))
        }
    }
}

/// For a host that misses something, a golden image for example.
async fn recover_late(app: Arc<App>, former: Former) {
    let recovered = tokio::select! {
        recovered = app.recover_late(former) => recovered,
        () = app.stop.cancelled() => return,
    };
    match recovered {
        Ok(()) => prepare(&app),
        Err(error) => tracing::error!(%error, "VMs of the former run cannot be taken over"),
    }
}

/// Has the driver make in the background what makes browser VMs start fast, then the host a few of them that wait for
/// somebody; without either they start cold.
fn prepare(app: &App) {
    let (machines, warm) = (Arc::clone(&app.machines), app.config.vms.warm);
    let (size, desktop_px) = (app.config.vms.browser, app.config.vms.desktop_px);
    tokio::spawn(async move {
        let prepared = machines.prepare_templates(size.vcpus, size.memory_mib, desktop_px).await;
        match &prepared {
            Ok(()) => tracing::info!("browser VMs start fast from now on"),
            Err(error) => tracing::warn!(%error, "browser VMs start cold"),
        }
        // One that starts cold under emulation keeps the machine busy for minutes, for somebody who may never come.
        let unasked = if prepared.is_ok() { WARM } else { (0, 0) };
        let (low, high) = warm.unwrap_or(unasked);
        let plan = WarmPlan { low, high, vcpus: size.vcpus, memory_mib: size.memory_mib, desktop_px };
        if let Err(error) = machines.set_warm(plan).await {
            tracing::warn!(%error, "no browser VM waits for anybody");
        }
    });
}

fn key_source(config: &Config) -> KeySource {
    match (&config.paths.passphrase_file, &config.paths.master_key_file) {
        (Some(file), _) => {
            KeySource::Passphrase { file: file.clone(), salt: config.paths.data_dir.join("master.salt") }
        }
        (None, Some(file)) => KeySource::File(file.clone()),
        (None, None) => KeySource::Own(key_file(config)),
    }
}

fn make_private_dir(path: &Path) -> Result<(), ServeError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| ServeError::Path { what: "make", path: path.display().to_string(), source })
}

/// Keeps a second controller off the data directory; the kernel takes the lock back whatever happens.
fn lock(dir: &Path) -> Result<std::fs::File, ServeError> {
    let path = dir.join("lock");
    let fault = |source| ServeError::Path { what: "lock", path: path.display().to_string(), source };
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fault)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServeError::Busy(dir.display().to_string())),
        Err(std::fs::TryLockError::Error(source)) => Err(fault(source)),
    }
}

/// `POLYDEV_LOG` filters as `RUST_LOG` does elsewhere; `POLYDEV_LOG_FORMAT=json` is for log collectors.
pub(crate) fn start_logging() {
    let filter = EnvFilter::try_from_env("POLYDEV_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if std::env::var("POLYDEV_LOG_FORMAT").is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
