use uuid::Uuid;

use super::*;
use crate::{
    config::Config,
    store::{
        egress::UserPolicy,
        sessions::SessionRecord,
        tests::temporary,
        vms::{VmRecord, VmState},
    },
    vault::MasterKeys,
};

const TOOL: &str = include_str!("../../../../providers/demo.toml");

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    gate: Gate,
}

impl World {
    async fn new(routes: &str, policy: EgressPolicy, strict: &str) -> Self {
        let (dir, store) = temporary().await;
        let flags = [("egress_strict", strict.to_owned()), ("egress_hosts", ".sso.example.test".to_owned())];
        let gate = Gate {
            settings: Config::load(None, [], flags).unwrap().egress,
            policy,
            routes: Routes::parse(routes).unwrap(),
            clock: Clock::System,
            store: store.clone(),
            vault: Arc::new(Vault::new(MasterKeys::from_bytes([7; 32], &[]))),
            providers: Arc::new(ProviderSet::load(&[("demo.toml", TOOL)]).unwrap()),
            vms: Mutex::default(),
        };
        Self { _dir: dir, store, gate }
    }

    /// A VM of a user; a browser VM is for a sign-in to the demo tool.
    async fn vm(&self, user: &str, role: VmRole) -> VmId {
        let (id, session) =
            (VmId::from_uuid(Uuid::new_v4()), polydev_core::ids::SessionId::from_uuid(Uuid::new_v4()));
        let user: UserId = user.parse().unwrap();
        self.store.ensure_user(&user, 1).await.unwrap();
        let record = SessionRecord {
            id: session,
            user: user.clone(),
            provider: "demo".parse().unwrap(),
            state: "starting".to_owned(),
            ended: false,
            snapshot: String::new(),
            idempotency_key: None,
            created_unix_ms: 1,
            ended_unix_ms: None,
        };
        self.store.put_session(&record).await.unwrap();
        let record = VmRecord {
            id,
            role,
            user,
            session: (role == VmRole::Browser).then_some(session),
            slot: None,
            state: VmState::Creating,
            created_unix_ms: 1,
            destroyed_unix_ms: None,
        };
        self.store.add_vm(&record).await.unwrap();
        id
    }

    async fn decide(&self, user: &str, policy: UserPolicy) {
        let user: UserId = user.parse().unwrap();
        let version = self.store.egress(&user).await.unwrap().map_or(1, |stored| stored.version + 1);
        let upstream = (policy == UserPolicy::Upstream).then(|| {
            let name = SecretName::upstream(&user, version);
            self.gate.vault.seal_secret(&name, b"http://127.0.0.1:1").unwrap()
        });
        let record =
            EgressRecord { user, policy, version, upstream, proxy_token_hash: [0; 32], updated_unix_ms: 1 };
        assert!(self.store.put_egress(&record).await.unwrap());
    }

    async fn connect(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, Refusal> {
        let outcome = self.gate.connect_vm(vm, host, port).await;
        self.gate.note(vm, &outcome);
        outcome
    }

    async fn reason(&self, vm: VmId, host: &str, port: u16) -> Reason {
        match self.connect(vm, host, port).await {
            Err(Refusal::Policy(reason)) => reason,
            other => panic!("{host}:{port}: {other:?}"),
        }
    }
}

/// A service of this machine and a route that leads `host` there.
async fn service(host: &str) -> (tokio::net::TcpListener, String) {
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = service.local_addr().unwrap();
    (service, format!("[[route]]\nhost = \"{host}\"\nport = 443\nto = \"{to}\"\n"))
}

#[tokio::test]
async fn a_route_leads_to_the_loopback_service_and_all_else_is_refused() {
    let (service, routes) = service("auth.example.test").await;
    let world = World::new(&routes, EgressPolicy::Deny, "off").await;
    let vm = world.vm("alice", VmRole::Browser).await;
    world.connect(vm, "Auth.Example.test.", 443).await.unwrap();
    let port = service.local_addr().unwrap().port();
    for (host, port) in [("auth.example.test", 80), ("example.test", 443), ("127.0.0.1", port)] {
        assert_eq!(world.reason(vm, host, port).await, Reason::Denied);
    }
    let counts = world.gate.lock()[&vm].counts;
    assert_eq!(counts, EgressCounts { allowed: 1, refused: 3, unreachable: 0 });
}

#[tokio::test]
async fn a_vm_that_is_nobodys_reaches_nothing() {
    let (_service, routes) = service("auth.example.test").await;
    let world = World::new(&routes, EgressPolicy::Direct, "off").await;
    let vm = VmId::from_uuid(Uuid::new_v4());
    assert!(matches!(world.connect(vm, "auth.example.test", 443).await, Err(Refusal::Stranger)));
}

#[tokio::test]
async fn a_users_own_policy_goes_before_everybodys_and_holds_from_the_next_connection_on() {
    let (_service, routes) = service("auth.example.test").await;
    let world = World::new(&routes, EgressPolicy::Deny, "off").await;
    let (alice, bob) = (world.vm("alice", VmRole::Cli).await, world.vm("bob", VmRole::Cli).await);
    world.connect(alice, "auth.example.test", 443).await.unwrap();
    world.decide("alice", UserPolicy::Deny).await;
    assert_eq!(world.reason(alice, "auth.example.test", 443).await, Reason::Denied);
    world.connect(bob, "auth.example.test", 443).await.unwrap();
    world.decide("alice", UserPolicy::Direct).await;
    world.connect(alice, "auth.example.test", 443).await.unwrap();
    assert_eq!(world.reason(alice, "10.0.0.1", 443).await, Reason::Inside);
    assert_eq!(world.reason(alice, "metadata.google.internal", 80).await, Reason::Inside);
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_not_replaced_by_a_route_or_a_direct_connection() {
    let (_service, routes) = service("auth.example.test").await;
    let world = World::new(&routes, EgressPolicy::Direct, "off").await;
    let vm = world.vm("alice", VmRole::Cli).await;
    world.decide("alice", UserPolicy::Upstream).await;
    let refused = world.connect(vm, "auth.example.test", 443).await.unwrap_err();
    assert!(matches!(refused, Refusal::Dial(DialError::UpstreamConnect(_))), "{refused}");
}

#[tokio::test]
async fn an_upstream_sealed_for_another_version_is_not_used() {
    let world = World::new("", EgressPolicy::Direct, "off").await;
    let vm = world.vm("alice", VmRole::Cli).await;
    world.decide("alice", UserPolicy::Upstream).await;
    let user: UserId = "alice".parse().unwrap();
    let stored = world.store.egress(&user).await.unwrap().unwrap();
    assert!(world.store.put_egress(&EgressRecord { version: 2, ..stored }).await.unwrap());
    assert!(matches!(world.connect(vm, "a.test", 443).await, Err(Refusal::Sealed(_))));
}

#[tokio::test]
async fn strict_sign_ins_reach_the_tools_hosts_and_the_operators_alone() {
    let (_service, routes) = service("*.example.test").await;
    let world = World::new(&routes, EgressPolicy::Deny, "sign_in").await;
    let (browser, cli) = (world.vm("alice", VmRole::Browser).await, world.vm("alice", VmRole::Cli).await);
    assert_eq!(world.reason(browser, "other.example.test", 443).await, Reason::NotListed);
    world.connect(browser, "a.sso.example.test", 443).await.unwrap();
    // On the list, and then the policy decides.
    assert_eq!(world.reason(browser, "id.polydev.test", 443).await, Reason::Denied);
    world.connect(cli, "other.example.test", 443).await.unwrap();
    let world = World::new(&routes, EgressPolicy::Deny, "all").await;
    let cli = world.vm("alice", VmRole::Cli).await;
    assert_eq!(world.reason(cli, "other.example.test", 443).await, Reason::NotListed);
}

#[tokio::test]
async fn a_browser_vm_reaches_the_ports_of_the_web_only() {
    let world = World::new("", EgressPolicy::Direct, "off").await;
    let vm = world.vm("alice", VmRole::Browser).await;
    assert_eq!(world.reason(vm, "mail.example.test", 25).await, Reason::Port);
}
