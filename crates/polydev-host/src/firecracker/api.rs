//! The calls, each with its own limit. Firecracker answers one at a time; a second caller waits here.

use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    sync::Mutex,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    http::{self, Answer},
    model::{
        Action, Balloon, BalloonStats, BalloonTarget, BootSource, Drive, DriveLimits, Entropy, InstanceInfo,
        LoadSnapshot, Logger, MachineConfig, Metrics, NetworkInterface, NetworkLimits, Serial, TakeSnapshot,
        VmState, Vsock,
    },
};

/// Calls that only note something.
const QUICK: Duration = Duration::from_secs(5);
/// Whether anybody is there.
const PRESENT: Duration = Duration::from_secs(3);
/// Boot: Firecracker itself gives its vCPUs 30 s.
const START: Duration = Duration::from_secs(35);
/// Loading maps memory, it does not read it.
const LOAD: Duration = Duration::from_secs(30);
/// Writing all memory of a VM to a slow disk.
const SNAPSHOT: Duration = Duration::from_secs(180);
/// Pause between looks for the socket of a process that has just been started.
const POLL: Duration = Duration::from_millis(1);

/// Why a call did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens on the socket.
    #[error("{call}: firecracker is not there")]
    Connect {
        /// Method and path.
        call: String,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time. What it did is not known: the VM must be taken for broken.
    #[error("{call}: no answer within {limit_ms} ms")]
    TimedOut {
        /// Method and path.
        call: String,
        /// How long it was waited for.
        limit_ms: u128,
    },
    /// The connection broke before the answer was there, as when the process ends.
    #[error("{call}: answer is cut off")]
    Broken {
        /// Method and path.
        call: String,
        /// What the system said.
        source: io::Error,
    },
    /// Firecracker refused.
    #[error("{call}: {message}")]
    Fault {
        /// Method and path.
        call: String,
        /// HTTP status.
        status: u16,
        /// Firecracker's words.
        message: String,
    },
    /// The answer is not what the API description says.
    #[error("{call}: answer is not understood")]
    Answer {
        /// Method and path.
        call: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether Firecracker found the disk full.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, Self::Fault { message, .. } if message.contains("os error 28") || message.contains("No space left"))
    }
}

/// One VM's API.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    turn: Mutex<()>,
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

#[derive(Deserialize)]
struct Version {
    firecracker_version: String,
}

impl Api {
    /// The API behind a socket. Nothing is sent.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, turn: Mutex::default() }
    }

    /// Waits until a process that has just been started answers, as long as `alive` says that it may.
    pub async fn ready(&self, limit: Duration, alive: impl Fn() -> bool) -> Result<InstanceInfo, ApiError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.info().await {
                Err(ApiError::Connect { .. }) if Instant::now() < deadline && alive() => {
                    sleep_until(Instant::now() + POLL).await;
                }
                answer => return answer,
            }
        }
    }

    /// `GET /`
    pub async fn info(&self) -> Result<InstanceInfo, ApiError> {
        self.get("/", PRESENT).await
    }

    /// `GET /version`
    pub async fn version(&self) -> Result<String, ApiError> {
        self.get::<Version>("/version", PRESENT).await.map(|version| version.firecracker_version)
    }

    /// `PUT /logger`
    pub async fn logger(&self, logger: &Logger) -> Result<(), ApiError> {
        self.put("/logger", logger, QUICK).await
    }

    /// `PUT /metrics`
    pub async fn metrics(&self, metrics: &Metrics) -> Result<(), ApiError> {
        self.put("/metrics", metrics, QUICK).await
    }

    /// `PUT /serial`
    pub async fn serial(&self, serial: &Serial) -> Result<(), ApiError> {
        self.put("/serial", serial, QUICK).await
    }

    /// `PUT /machine-config`
    pub async fn machine(&self, machine: &MachineConfig) -> Result<(), ApiError> {
        self.put("/machine-config", machine, QUICK).await
    }

    /// `GET /machine-config`
    pub async fn machine_now(&self) -> Result<MachineConfig, ApiError> {
        self.get("/machine-config", QUICK).await
    }

    /// `PUT /boot-source`
    pub async fn boot_source(&self, source: &BootSource) -> Result<(), ApiError> {
        self.put("/boot-source", source, QUICK).await
    }

    /// `PUT /drives/{id}`
    pub async fn drive(&self, drive: &Drive) -> Result<(), ApiError> {
        self.put(&format!("/drives/{}", drive.drive_id), drive, QUICK).await
    }

    /// `PATCH /drives/{id}`
    pub async fn limit_drive(&self, limits: &DriveLimits) -> Result<(), ApiError> {
        self.patch(&format!("/drives/{}", limits.drive_id), limits, QUICK).await
    }

    /// `PUT /network-interfaces/{id}`
    pub async fn network(&self, interface: &NetworkInterface) -> Result<(), ApiError> {
        self.put(&format!("/network-interfaces/{}", interface.iface_id), interface, QUICK).await
    }

    /// `PATCH /network-interfaces/{id}`
    pub async fn limit_network(&self, limits: &NetworkLimits) -> Result<(), ApiError> {
        self.patch(&format!("/network-interfaces/{}", limits.iface_id), limits, QUICK).await
    }

    /// `PUT /vsock`
    pub async fn vsock(&self, vsock: &Vsock) -> Result<(), ApiError> {
        self.put("/vsock", vsock, QUICK).await
    }

    /// `PUT /entropy`
    pub async fn entropy(&self, entropy: &Entropy) -> Result<(), ApiError> {
        self.put("/entropy", entropy, QUICK).await
    }

    /// `PUT /balloon`
    pub async fn balloon(&self, balloon: &Balloon) -> Result<(), ApiError> {
        self.put("/balloon", balloon, QUICK).await
    }

    /// `PATCH /balloon`
    pub async fn inflate(&self, target: BalloonTarget) -> Result<(), ApiError> {
        self.patch("/balloon", &target, QUICK).await
    }

    /// `GET /balloon/statistics`
    pub async fn balloon_stats(&self) -> Result<BalloonStats, ApiError> {
        self.get("/balloon/statistics", QUICK).await
    }

    /// `PUT /actions`
    pub async fn action(&self, action: Action) -> Result<(), ApiError> {
        self.put("/actions", &action, START).await
    }

    /// `PATCH /vm`
    pub async fn set_state(&self, state: VmState) -> Result<(), ApiError> {
        self.patch("/vm", &state, QUICK).await
    }

    /// `PUT /snapshot/create`
    pub async fn take_snapshot(&self, snapshot: &TakeSnapshot) -> Result<(), ApiError> {
        self.put("/snapshot/create", snapshot, SNAPSHOT).await
    }

    /// `PUT /snapshot/load`. After most refusals the process ends.
    pub async fn load_snapshot(&self, snapshot: &LoadSnapshot) -> Result<(), ApiError> {
        self.put("/snapshot/load", snapshot, LOAD).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, ApiError> {
        let answer = self.call("GET", path, None, limit).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|source| ApiError::Answer { call: format!("GET {path}"), source })
    }

    async fn put(&self, path: &str, body: &impl Serialize, limit: Duration) -> Result<(), ApiError> {
        self.send("PUT", path, body, limit).await
    }

    async fn patch(&self, path: &str, body: &impl Serialize, limit: Duration) -> Result<(), ApiError> {
        self.send("PATCH", path, body, limit).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ApiError> {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        self.call(method, path, Some(&body), limit).await.map(drop)
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Answer, ApiError> {
        let call = format!("{method} {path}");
        // A call that waits for its turn waits for no longer than the ones before it may take.
        let _turn = self.turn.lock().await;
        let deadline = Instant::now() + limit;
        let exchange = async {
            let stream = connect(&self.socket)
                .await
                .map_err(|source| ApiError::Connect { call: call.clone(), source })?;
            http::exchange(stream, method, path, body)
                .await
                .map_err(|source| ApiError::Broken { call: call.clone(), source })
        };
        let answer = timeout_at(deadline, exchange)
            .await
            .map_err(|_| ApiError::TimedOut { call: call.clone(), limit_ms: limit.as_millis() })??;
        match answer.status {
            200..=299 => Ok(answer),
            status => {
                let fault = serde_json::from_slice::<Fault>(&answer.body);
                let message = fault.map_or_else(
                    |_| String::from_utf8_lossy(&answer.body).into_owned(),
                    |fault| fault.fault_message,
                );
                Err(ApiError::Fault { call, status, message })
            }
        }
    }
}

/// Connects to a socket that a VMM made. The name may have become anything since: it is not followed.
///
/// By way of the descriptor the address is short, wherever the socket lies.
pub(crate) async fn connect(socket: &Path) -> io::Result<UnixStream> {
    use rustix::fs::{Mode, OFlags, open};
    let found = open(socket, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_far_down_is_reached_and_a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a-name-of-thirty-characters-long/".repeat(4));
        std::fs::create_dir_all(&deep).unwrap();
        let near = dir.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&near).unwrap();
        std::fs::rename(&near, deep.join("s")).unwrap();
        connect(&deep.join("s")).await.unwrap();
        std::os::unix::fs::symlink(deep.join("s"), &near).unwrap();
        connect(&near).await.unwrap_err();
    }
}
