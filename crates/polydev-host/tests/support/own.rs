//! What a VM has for itself alone, and the cases that compare it between VMs.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use polydev_core::{
    ids::VmId,
    wire::{AgentEvent, LoginSpec, LoginStdio, Reply, Request, SuccessRule, UrlRule, UrlSource, UrlYields},
};
use polydev_host::{CreateVm, Host, LogKind, Vm, VmKind, WarmPlan};
use tokio::time::timeout;

use super::{
    client_hello::{ClientHello, Ears, Listening},
    machine::{Kind, Machine, browser, identity, new_id},
};

const DESKTOP: (u16, u16) = (1280, 800);
pub(crate) const PAGE_HOST: &str = "clone.test";
const PAGE: &str = "https://clone.test/sign-in?state=FAKE";
const RUN_LIMIT: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Prints what Node and the libraries in it draw, one `name value` a line.
const NODE: &str = r"
const net = require('net'), tls = require('tls'), crypto = require('crypto'), dgram = require('dgram'), dns = require('dns');
const hello = () => new Promise((done) => {
  const server = net.createServer((peer) => {
    peer.on('error', () => {});
    peer.once('data', (data) => { peer.destroy(); server.close(); done(data.toString('hex')); });
  }).listen(0, '127.0.0.1', () => {
    tls.connect({ host: '127.0.0.1', port: server.address().port, servername: 'clone.test' }).on('error', () => {});
  });
});
const queries = () => new Promise((done) => {
  const ids = [];
  const socket = dgram.createSocket('udp4', (packet) => {
    ids.push(packet.subarray(0, 2).toString('hex'));
    if (ids.length === 8) { socket.close(); done(ids.join('')); }
  });
  socket.bind(0, '127.0.0.1', () => {
    for (let n = 0; n < 8; n++) {
      const resolver = new dns.Resolver({ timeout: 60000, tries: 1 });
      resolver.setServers(['127.0.0.1:' + socket.address().port]);
      resolver.resolve4('n' + n + '.test', () => {});
    }
  });
});
(async () => {
  console.log('node-uuid', crypto.randomUUID());
  console.log('openssl-bytes', crypto.randomBytes(64).toString('hex'));
  console.log('openssl-key', crypto.generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }).x);
  console.log('math-random', [0, 0, 0, 0].map(() => Math.random()).join());
  console.log('node-hello', await hello());
  console.log('node-hello', await hello());
  console.log('dns-ids', await queries());
  process.exit(0);
})();
";

/// Prints what the system gives, one `name value` a line.
const SYSTEM: &str = r#"
echo machine-id $(cat /etc/machine-id)
echo hostname $(cat /proc/sys/kernel/hostname)
echo boot-id $(cat /proc/sys/kernel/random/boot_id)
echo kernel-uuid $(cat /proc/sys/kernel/random/uuid)
echo urandom $(head -c 64 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
perl -e '$b = "\0" x 64; syscall(318, $b, 64, 0) == 64 or die; print "getrandom ", unpack("H*", $b), "\n"'
rm -f /tmp/key /tmp/key.pub; ssh-keygen -q -t ed25519 -N '' -C '' -f /tmp/key; echo ssh-key $(cut -d' ' -f2 /tmp/key.pub)
for key in /etc/ssh/ssh_host_* /etc/dropbear/*_host_key; do test -e "$key" && echo host-key "$key"; done
for p in /proc/[0-9]*; do
  line=$(tr '\0' ' ' < $p/cmdline 2>/dev/null)
  case "$line" in
    *network.mojom.NetworkService*) echo network-start $(sed 's/.*) //' $p/stat | cut -d' ' -f20) ;;
    *--type=*) ;;
    */chromium/chromium*--user-data-dir=*) echo browser ${p#/proc/} $(sed 's/.*) //' $p/stat | cut -d' ' -f20) ;;
  esac
done
true
"#;

/// In which the kernel counts when a process started (proc(5)).
const TICKS_A_SECOND: f64 = 100.0;

type Values = BTreeMap<String, BTreeSet<String>>;

/// What two VMs have and what none may share.
pub(crate) struct Own {
    values: Values,
}

impl Own {
    /// Looks at everything a VM has but its browser.
    async fn of(vm: &Vm) -> Self {
        let text = output(vm, &["sh", "-c", SYSTEM]).await + &output(vm, &["node", "-e", NODE]).await;
        let mut values = Values::default();
        for line in text.lines() {
            let (name, value) = line.split_once(' ').expect("name and value");
            values.entry(name.to_owned()).or_default().insert(value.to_owned());
        }
        let mut own = Self { values };
        for hello in own.values.remove("node-hello").expect("Node connected") {
            let record: Vec<u8> = (0..hello.len()).step_by(2).map(|at| byte(&hello, at)).collect();
            own.add("node", &ClientHello::parse(&record[5..]).expect("Node says hello"));
        }
        own
    }

    fn add(&mut self, who: &str, hello: &ClientHello) {
        let mut add = |what: &str, value: &str| {
            assert!(value.len() >= 32, "{who} draws {what}: {value:?}");
            let new = self.values.entry(format!("{who}-{what}")).or_default().insert(value.to_owned());
            assert!(new, "{who} draws {what} anew for each connection");
        };
        add("random", &hello.random);
        add("session-id", &hello.session_id);
        assert!(!hello.key_shares.is_empty());
        hello.key_shares.iter().for_each(|share| add("key-share", share));
    }

    fn take(&mut self, name: &str) -> BTreeSet<String> {
        self.values.remove(name).unwrap_or_default()
    }

    /// What both have, as names.
    fn shared(&self, other: &Self) -> Vec<&str> {
        assert_eq!(
            self.values.keys().collect::<Vec<_>>(),
            other.values.keys().collect::<Vec<_>>(),
            "both were asked the same"
        );
        let shared = |(name, values): (&String, &BTreeSet<String>)| !values.is_disjoint(&other.values[name]);
        self.values.iter().filter(|it| shared(*it)).map(|(name, _)| name.as_str()).collect()
    }
}

pub(crate) async fn clones_of_one_template_share_nothing_that_must_be_one_vms_own() {
    let Some(machine) = Machine::new(Kind::Qemu, 4) else { return };
    let listening = Arc::<Listening>::default();
    let host = machine.host_with(Arc::new(Ears(Arc::clone(&listening)))).await;
    if !host.status().driver.contains("emulated") {
        println!("SKIPPED: KVM works here, snapshots are for emulation");
        return;
    }
    host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        let vm = host.create(browser(new_id())).await.unwrap();
        println!("restored, identity taken: {} ms", began.elapsed().as_millis());
        assert!(
            host.read_log(vm.id, LogKind::Driver, 1000).await.unwrap().contains("restored from template")
        );
        all.push(vm);
    }
    let mut seen = Vec::new();
    for vm in &all {
        let began = Instant::now();
        browser_connects(&host, vm, &listening, machine.patience()).await;
        println!("login started, browser connected: {} ms", began.elapsed().as_millis());
        let mut own = Own::of(vm).await;
        // It tries again and again: each time is one more to compare.
        listening.heard(vm.id).iter().for_each(|hello| own.add("chromium", hello));
        seen.push((own, AgentLog::of(&host, vm).await));
    }
    let [(mut one, one_log), (mut other, other_log)] = <[_; 2]>::try_from(seen).ok().unwrap();

    // The control: what comes from the template and was not renewed is found to be the same.
    assert_eq!(one_log.first_boot, other_log.first_boot, "clones begin with the template's boot id");
    let browsers = (one.take("browser"), other.take("browser"));
    assert!(!browsers.0.is_empty());
    assert_eq!(browsers.0, browsers.1, "the browser itself is the template's, started once");

    assert_eq!(
        one.take("host-key").union(&other.take("host-key")).count(),
        0,
        "a template holds no SSH host key"
    );
    for (own, log) in [(&mut one, &one_log), (&mut other, &other_log)] {
        let started: f64 = own.take("network-start").first().unwrap().parse().unwrap();
        assert!(started / TICKS_A_SECOND > log.identified_s, "the network service is not the template's");
    }
    println!("compared: {:?}", one.values.keys().collect::<Vec<_>>());
    assert_eq!(one.shared(&other), Vec::<&str>::new());
    assert_eq!(one.values["boot-id"], BTreeSet::from([one_log.boot]), "programs see the new boot id");

    for vm in all {
        host.destroy(vm.id).await.unwrap();
    }
    drop(host);
    machine.assert_nothing_left();
}

pub(crate) async fn two_containers_share_nothing_that_must_be_one_vms_own() {
    let Some(machine) = Machine::new(Kind::Container, 4) else { return };
    let listening = Arc::<Listening>::default();
    let host = machine.host_with(Arc::new(Ears(Arc::clone(&listening)))).await;
    // Both waited in the pool, under names of their own, before anybody asked for them.
    let warm = WarmPlan { low: 2, high: 2, vcpus: 2, memory_mib: 2048, desktop_px: DESKTOP };
    host.set_warm(warm);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let id = timeout(machine.patience(), drawn(&host)).await.expect("a VM becomes warm");
        let create = CreateVm { identity: identity(new_id()), ..browser(id) };
        let (hostname, machine_id) = (create.identity.hostname.clone(), create.identity.machine_id.clone());
        let vm = host.create(create).await.unwrap();
        browser_connects(&host, &vm, &listening, machine.patience()).await;
        let mut own = Own::of(&vm).await;
        // It tries again and again: each time is one more to compare.
        listening.heard(vm.id).iter().for_each(|hello| own.add("chromium", hello));
        assert_eq!(own.values["hostname"], BTreeSet::from([hostname]));
        assert_eq!(own.values["machine-id"], BTreeSet::from([machine_id]));
        seen.push((own, vm));
    }
    let [(mut one, first), (mut other, second)] = <[_; 2]>::try_from(seen).ok().unwrap();
    for own in [&mut one, &mut other] {
        assert_eq!(own.take("host-key").len(), 0, "the image holds no SSH host key");
        own.take("browser");
        own.take("network-start");
    }
    // One kernel, one boot: the control of this comparison, and the reason why containers are for development.
    assert_eq!(one.take("boot-id"), other.take("boot-id"));
    assert_eq!(one.shared(&other), Vec::<&str>::new());
    host.set_warm(WarmPlan { low: 0, high: 0, ..warm });
    drop((first, second));
    host.reclaim(&HashSet::new()).await.unwrap();
    let empty = async {
        while !host.list().await.unwrap().is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    timeout(machine.patience(), empty).await.expect("the pool is given up");
    drop(host);
    machine.assert_nothing_left();
}

/// What a program prints, however long an emulated machine takes.
async fn output(vm: &Vm, argv: &[&str]) -> String {
    let argv = argv.iter().map(|it| (*it).to_owned()).collect();
    let limit = u64::try_from(RUN_LIMIT.as_millis()).unwrap();
    match vm.agent.request(Request::Run { argv, env: [].into(), timeout_ms: limit }).await.unwrap() {
        Reply::Ran { exit_code: 0, stdout, .. } => stdout,
        other => panic!("{other:?}"),
    }
}

/// A VM out of the pool.
async fn drawn(host: &Host) -> VmId {
    loop {
        let id = host.draw(&VmKind::Browser, 2, 2048).await;
        if host.list().await.unwrap().iter().any(|vm| vm.id == id) {
            return id;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Has the browser open a page, and hears it begin to.
async fn browser_connects(host: &Host, vm: &Vm, listening: &Listening, patience: Duration) {
    let mut events = vm.agent.events();
    let (width, height) = DESKTOP;
    vm.agent.request(Request::StartDesktop { width, height }).await.unwrap();
    vm.agent.request(Request::StartLogin(login())).await.unwrap();
    let captured = async {
        while !matches!(events.recv().await.unwrap(), AgentEvent::UrlCaptured { url, .. } if url == PAGE) {}
    };
    timeout(patience, captured).await.expect("the login asks for its page");
    vm.agent.request(Request::OpenPage { url: PAGE.to_owned() }).await.unwrap();
    let heard = timeout(patience * 2, listening.first(vm.id));
    let failed = async {
        loop {
            if let AgentEvent::PageFailed { reason } = events.recv().await.unwrap() {
                let log = host.read_log(vm.id, LogKind::Agent, 4000).await.unwrap();
                panic!("the page was not opened: {reason}\n{log}");
            }
        }
    };
    tokio::select! { heard = heard => heard.expect("the browser connects"), () = failed => {} }
}

/// A login that does nothing but ask for its page.
fn login() -> LoginSpec {
    LoginSpec {
        argv: ["sh", "-c", &format!("xdg-open '{PAGE}'; exec sleep 1000")].map(str::to_owned).to_vec(),
        stdio: LoginStdio::Null,
        env: [("PATH", "/run/polydev/shim:/usr/bin:/bin"), ("HOME", "/home/dev")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        seed_files: Vec::new(),
        expect: Vec::new(),
        jsonrpc: Vec::new(),
        url_rules: vec![UrlRule {
            source: UrlSource::BrowserShim,
            yields: UrlYields::Loopback,
            host: Some(PAGE_HOST.to_owned()),
            path: Some("/sign-in".to_owned()),
            scheme: None,
            port: None,
            require_query: vec!["state".to_owned()],
            regex: None,
        }],
        device_code_regex: None,
        callback: None,
        success: SuccessRule { exit_code: Some(0), ..SuccessRule::default() },
        idle_timeout_ms: 900_000,
    }
}

/// What the agent says of how it took its first identity.
struct AgentLog {
    /// The boot id that the VM came with.
    first_boot: String,
    /// The one that it was given.
    boot: String,
    /// When, in seconds since the agent began, which is after the kernel.
    identified_s: f64,
}

impl AgentLog {
    async fn of(host: &Host, vm: &Vm) -> Self {
        let log = host.read_log(vm.id, LogKind::Agent, 100_000).await.unwrap();
        let found = log.lines().find_map(|line| {
            let (time, boots) = line.split_once(" identity: boot ")?;
            let (first_boot, boot) = boots.split_once(" goes on as ")?;
            let (first_boot, boot) = (first_boot.trim().to_owned(), boot.trim().to_owned());
            Some(Self { first_boot, boot, identified_s: time.trim().parse().ok()? })
        });
        found.unwrap_or_else(|| panic!("no new boot id:\n{log}"))
    }
}

fn byte(hex: &str, at: usize) -> u8 {
    u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits")
}
