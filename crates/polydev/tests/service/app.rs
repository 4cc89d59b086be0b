//! Builds a controller for a test.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use polydev::{
    api::{self, access::Access},
    app::{App, Parts},
    clock::Clock,
    config::Config,
    desktop::{turn::Turn, webrtc::Endpoint},
    egress::{self, Egress},
    machines::{Machines, Unavailable},
    store::Store,
    vault::{KeySource, MasterKeys, Vault},
};
use polydev_core::{
    ids::{SessionId, VmId},
    provider::ProviderSet,
    session::Limits,
    wire::{
        AgentEvent, DesktopState, FilePut, LoginEnd, Request as Ask, ServiceState, UrlYields,
        files::FileBytes,
    },
};
use polydev_host::{AgentClient, Capacity, Host, HostConfig, driver::fake::FakeDriver};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::host_apart::HostApart;

/// Nothing that a test waits for takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Of one controller.
const THREADS: usize = 2;

/// The provider that tests sign in to.
const PROVIDER: &str = r#"
schema = 1
id = "probe"
name = "Probe"
aliases = ["probe_alias"]
[install]
bundled = true
[login]
argv = ["probe", "login"]
stdio = "pipe"
idle_timeout_s = 600
[[url]]
source = "browser-shim"
yields = "loopback"
host = "id.example.test"
path = "/authorize"
require_query = ["state"]
[[url]]
source = "output"
yields = "paste-code"
regex = 'https://paste\.example\.test/authorize\?\S+'
[callback]
ports = [1455]
path = "/callback"
[paste]
send = "{pasted}\n"
pasted_regex = '^FAKE-[a-z0-9]+$'
[success]
exit_code = 0
[[success.file]]
path = ".probe/auth.json"
format = "json"
require = ["/token"]
[[credential]]
path = ".probe/auth.json"
mode = "0600"
[verify]
kind = "command"
argv = ["probe", "status:", "signed in"]
exit_code = 0
output_regex = "signed in"
network = false
[refresh]
rotates = false
single_owner = false
[logout]
revokes = false
[egress]
hosts = ["id.example.test"]
"#;

pub(crate) const SIGN_IN_URL: &str = "https://id.example.test/authorize?state=FAKEstate0123456789&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fcallback";
pub(crate) const TOKEN: &str = "FAKE-refresh-token-0123456789abcdef";

/// A controller that is to be.
pub(crate) struct Builder {
    slots: u8,
    flags: Vec<(&'static str, String)>,
    limits: Limits,
    dir: Option<TempDir>,
    driver: FakeDriver,
    image_missing: bool,
    host_apart: bool,
    capacity: Option<Capacity>,
}

/// What the process of a controller made.
struct Started {
    host: Option<HostApart>,
    app: Arc<App>,
    router: Router,
    driver: FakeDriver,
    token: String,
    slots: u8,
    dir: TempDir,
}

/// A running controller.
pub(crate) struct TestApp {
    pub(crate) app: Arc<App>,
    /// Where it is a process of its own.
    pub(crate) host: Option<HostApart>,
    pub(crate) driver: FakeDriver,
    pub(crate) token: String,
    process: Process,
    router: Router,
    slots: u8,
    dir: TempDir,
}

/// What a controller does, it does on threads of its own, which can be ended at once as those of a killed process are.
/// VMs run on the test's.
struct Process(Option<Runtime>);

impl Process {
    fn start() -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        Self(Some(runtime.worker_threads(THREADS).enable_all().build().unwrap()))
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.0.as_ref().expect("it has not been killed");
        match runtime.spawn(work).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn kill(mut self) {
        let runtime = self.0.take().expect("it is killed once");
        tokio::task::spawn_blocking(|| runtime.shutdown_timeout(DEADLINE)).await.unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn code(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

impl TestApp {
    pub(crate) fn builder() -> Builder {
        Builder {
            slots: 4,
            flags: Vec::new(),
            limits: Limits::default(),
            dir: None,
            driver: FakeDriver::on_this_runtime(),
            image_missing: false,
            host_apart: false,
            capacity: None,
        }
    }

    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// A request with the API token.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request =
            self.request(method, path).header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    /// A request that has nothing but the right host.
    pub(crate) fn request(&self, method: &str, path: &str) -> axum::http::request::Builder {
        Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:4000")
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.process.run(self.router.clone().oneshot(request)).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// Asks for a sign-in of `user`; the answer must be good.
    pub(crate) async fn begin(&self, user: &str) -> SessionId {
        let answer =
            self.call("POST", "/api/auth/start", Some(json!({ "userId": user, "provider": "probe" }))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()["sessionId"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn session(&self, id: SessionId) -> Value {
        self.call("GET", &format!("/api/auth/session/{id}"), None).await.json()
    }

    /// Waits until the session fulfils `wanted`.
    pub(crate) async fn session_until(
        &self,
        id: SessionId,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        until(what, async || {
            last = self.session(id).await;
            wanted(&last).then(|| last.clone())
        })
        .await
    }

    /// Waits until the session has closed, and gives it.
    pub(crate) async fn closed(&self, id: SessionId) -> Value {
        self.session_until(id, "the session is closed", |session| session["closed"] == true).await
    }

    /// Waits until the agent was asked something, and gives the VM.
    pub(crate) async fn asked(&self, id: SessionId, wanted: impl Fn(&Ask) -> bool) -> (VmId, AgentClient) {
        until("the agent was asked", async || {
            let watch = self.app.sessions.watch(id)?;
            let vm = watch.borrow().vm.clone()?;
            let agent = self.driver.agent(vm.id)?;
            agent.requests().iter().any(&wanted).then_some((vm.id, vm.agent))
        })
        .await
    }

    /// Plays the VM's part up to the person's turn.
    pub(crate) async fn to_the_person(&self, id: SessionId) -> (VmId, AgentClient) {
        let (vm, agent) = self.asked(id, |ask| matches!(ask, Ask::StartLogin(_))).await;
        self.asked(id, |ask| matches!(ask, Ask::StartDesktop { .. })).await;
        let up = ServiceState::Up;
        let state = DesktopState { x_server: up, window_manager: up, browser: up, painted: true };
        self.driver.emit(vm, AgentEvent::Desktop { state });
        self.driver
            .emit(vm, AgentEvent::UrlCaptured { url: SIGN_IN_URL.to_owned(), yields: UrlYields::Loopback });
        self.asked(id, |ask| matches!(ask, Ask::OpenPage { .. })).await;
        self.driver.emit(vm, AgentEvent::PageOpen);
        self.session_until(id, "it is the person's turn", |session| session["state"] == "awaiting_user")
            .await;
        (vm, agent)
    }

    /// The same where the sign-in may have gone on by itself meanwhile.
    pub(crate) async fn to_the_person_or_later(&self, id: SessionId) {
        let (vm, _) = self.asked(id, |ask| matches!(ask, Ask::StartLogin(_))).await;
        let state = DesktopState { painted: true, ..DesktopState::default() };
        self.driver.emit(vm, AgentEvent::Desktop { state });
        self.driver
            .emit(vm, AgentEvent::UrlCaptured { url: SIGN_IN_URL.to_owned(), yields: UrlYields::Loopback });
    }

    /// Plays a good end of the login with this credential file.
    pub(crate) async fn finish_login(&self, vm: VmId, agent: &AgentClient, file: &str) {
        let data = FileBytes::new(file.as_bytes().to_vec());
        let put = FilePut { path: ".probe/auth.json".to_owned(), mode: 0o600, data, merge_json: Vec::new() };
        agent.request(Ask::PutFiles { files: vec![put] }).await.unwrap();
        self.driver.emit(vm, AgentEvent::CallbackSeen);
        self.driver.emit(vm, AgentEvent::CredentialSeen);
        let end = LoginEnd::SignedIn;
        self.driver.emit(vm, AgentEvent::LoginEnded { end, output_tail: "done".to_owned() });
    }

    /// VMs that the fake machine has.
    pub(crate) async fn vms(&self) -> Vec<Value> {
        self.call("GET", "/api/vms", None).await.json()["vms"].as_array().unwrap().clone()
    }

    /// A one-time link's token, redeemed: the page's cookie.
    pub(crate) async fn cookie(&self) -> String {
        let link =
            self.call("POST", "/api/links", Some(json!({}))).await.json()["url"].as_str().unwrap().to_owned();
        let token = link.split_once('#').unwrap().1;
        let request = self.request("POST", "/api/open").header(header::CONTENT_TYPE, "application/json");
        let answer =
            self.send(request.body(Body::from(json!({ "token": token }).to_string())).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    /// A file or directory of the host's.
    pub(crate) fn host_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("host").join(name)
    }

    /// Path of the database.
    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("polydev.db")
    }

    /// As after SIGKILL: nothing is told, everything of the controller stops and is dropped; machine and files stay.
    pub(crate) async fn crash(self) -> Builder {
        let Self { app, router, process, driver, dir, slots, token: _, host } = self;
        process.kill().await;
        drop((app, router, host));
        Builder {
            slots,
            flags: Vec::new(),
            limits: Limits::default(),
            dir: Some(dir),
            driver,
            image_missing: false,
            host_apart: false,
            capacity: None,
        }
    }

    pub(crate) fn router(&self) -> Router {
        self.router.clone()
    }
}

impl Builder {
    pub(crate) fn slots(mut self, slots: u8) -> Self {
        self.slots = slots;
        self
    }

    pub(crate) fn setting(mut self, name: &'static str, value: &str) -> Self {
        self.flags.push((name, value.to_owned()));
        self
    }

    /// A real host that finds no golden image.
    pub(crate) fn without_image(mut self) -> Self {
        self.image_missing = true;
        self
    }

    /// A host that is a process of its own.
    pub(crate) fn with_host_apart(mut self) -> Self {
        self.host_apart = true;
        self
    }

    /// A machine whose memory is taken.
    pub(crate) fn without_room(mut self) -> Self {
        let reserve_mib = u64::MAX >> 20;
        self.capacity = Some(Capacity { reserve_mib, browser_mib: 1, cli_mib: 1, vcpus_per_core: 1000 });
        self
    }

    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    pub(crate) async fn start(self) -> TestApp {
        let process = Process::start();
        let Started { app, router, driver, token, slots, dir, host } = process.run(self.start_here()).await;
        TestApp { app, driver, token, process, router, slots, dir, host }
    }

    async fn start_here(self) -> Started {
        let Self { slots, flags, limits, dir, driver, image_missing, host_apart, capacity } = self;
        let dir = dir.unwrap_or_else(|| TempDir::new().unwrap());
        let place = |name: &str| dir.path().join(name);
        let any_port = "127.0.0.1:0".to_owned();
        let own =
            [("slots", slots.to_string()), ("desktop_listen", any_port.clone()), ("turn_listen", any_port)];
        let config = Config::load(None, [], own.into_iter().chain(flags)).unwrap();
        let endpoint = Endpoint::open(&config.desktop).unwrap();
        let turn = Turn::open(&config.turn, dir.path(), Clock::System).unwrap();
        let store = Store::open(&place("polydev.db")).await.unwrap();
        let keys = MasterKeys::load(&KeySource::Own(place("master.key"))).unwrap();
        let vault = Arc::new(Vault::new(keys));
        let providers = Arc::new(ProviderSet::load(&[("probe.toml", PROVIDER)]).unwrap());
        let egress = egress::Parts {
            settings: config.egress.clone(),
            policy: config.vms.egress,
            routes: config.vms.egress_routes.clone(),
            clock: Clock::System,
            store: store.clone(),
            vault: Arc::clone(&vault),
            providers: Arc::clone(&providers),
        };
        let egress = Arc::new(Egress::open(egress).unwrap());
        let host = HostConfig {
            driver: Default::default(),
            data_dir: place("host"),
            run_dir: place("run"),
            image_dir: place("images"),
            agent_path: place("agent"),
            desktop_path: place("desktop"),
            overlay_dir: None,
            slots,
            log_bytes_max: 1 << 20,
            log_vms_max: 20,
            keep_failed: config.vms.keep_failed,
            network: config.vms.network,
            egress_limits: config.vms.egress_limits,
            capacity,
            resources: config.vms.resources,
            firecracker: config.vms.firecracker.clone(),
        };
        let apart = host_apart.then(|| HostApart::start(host.clone(), driver.clone()));
        let machines: Arc<dyn Machines> = if let Some(apart) = &apart {
            Arc::new(apart.connect(Arc::clone(&egress) as _).await)
        } else if image_missing {
            let error = Host::open(host, Arc::clone(&egress) as _).await.err().expect("there is no image");
            Arc::new(Unavailable::because(error, usize::from(slots)).unwrap())
        } else {
            Arc::new(Host::with_driver(host, Arc::clone(&egress) as _, Arc::new(driver.clone())).unwrap())
        };
        let listen = "127.0.0.1:4000".parse().unwrap();
        let token_file = place("api-token");
        let access =
            Access::open(&token_file, listen, config.server.link_ttl, config.server.cookie_ttl).unwrap();
        let app = App::new(Parts {
            config,
            listen,
            clock: Clock::System,
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
        app.recover().await.unwrap();
        let token = std::fs::read_to_string(token_file).unwrap().trim().to_owned();
        Started { router: api::router(Arc::clone(&app)), app, driver, token, slots, dir, host: apart }
    }
}

/// Looks again and again until there is an answer; fails after the deadline.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}
