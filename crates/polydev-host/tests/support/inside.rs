//! What is done inside a VM: as the person, and as somebody who became root.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use polydev_core::wire::{Reply, Request};
use polydev_host::Vm;

use super::{
    machine::{Kind, Machine},
    program::static_program,
    search::{Search, processes},
    sniffer::MARK,
    test_hosts::{ADDRESSES, TCP_PORTS, UDP_PORTS},
};

const RUN_LIMIT_MS: u64 = 240_000;
const AS_ROOT: &str = "/usr/local/bin/as-root";
const INTRUDER: &str = "/usr/local/share/intruder.pl";
/// Where strings are put for the search to find: a file of the writable layer, other memory file systems, a
/// program's environment, a program's memory.
const PLACES: [&str; 5] = ["usr", "tmp", "shm", "environment", "memory"];

/// Prints the addresses that answered. `PROBES` stands for addresses, TCP ports and UDP ports.
pub(crate) const NODE_PROBE: &str = r#"const net = require("net"), dgram = require("dgram");
const [addresses, tcp, udp] = PROBES;
const jobs = [];
for (const host of addresses) for (const port of tcp) jobs.push(new Promise(done => {
  const socket = net.connect({ host, port });
  const end = what => { socket.destroy(); done(what && `${host} ${port}`); };
  socket.setTimeout(4000, () => end());
  socket.on("error", () => end());
  socket.on("connect", () => socket.write("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n"));
  socket.on("data", () => end(true));
  socket.on("close", () => done());
}));
for (const host of addresses) for (const port of udp) jobs.push(new Promise(done => {
  const socket = dgram.createSocket(host.includes(":") ? "udp6" : "udp4");
  socket.on("error", () => done());
  socket.on("message", () => done(`${host} udp ${port}`));
  socket.send("x", port, host, () => setTimeout(() => { try { socket.close(); } catch {} done(); }, 1000));
}));
Promise.all(jobs).then(all => { console.log(JSON.stringify(all.filter(Boolean))); process.exit(0); });"#;

/// Puts what an intruder needs into the VMs of a machine that has none yet: a program that makes root of anybody (in
/// a microVM; containers ignore its bit, and root comes from outside) and what root then tries.
pub(crate) fn bring(machine: &mut Machine) {
    let overlay = machine.config.data_dir.with_file_name("overlay");
    let at = |path: &str| overlay.join(path.trim_start_matches('/'));
    for path in [AS_ROOT, INTRUDER] {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
    }
    let source = "#include <unistd.h>\nint main(int c, char **v) { return setgid(0) || setuid(0) || execvp(v[1], v + 1); }\n";
    static_program(source, &at(AS_ROOT));
    fs::set_permissions(at(AS_ROOT), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(at(INTRUDER), include_str!("intruder.pl")).unwrap();
    machine.config.overlay_dir = Some(overlay);
}

/// Runs a shell command in a VM; its exit code and what it printed.
pub(crate) async fn shell(vm: &Vm, script: &str) -> (i32, String) {
    ran(vm, &["bash", "-c", script]).await
}

async fn ran(vm: &Vm, argv: &[&str]) -> (i32, String) {
    let argv: Vec<String> = argv.iter().map(|it| (*it).to_owned()).collect();
    let request = Request::Run { argv: argv.clone(), env: Default::default(), timeout_ms: RUN_LIMIT_MS };
    match vm.agent.request(request).await.unwrap() {
        Reply::Ran { exit_code, stdout, stderr, .. } => {
            if !stderr.is_empty() {
                println!("{}: {stderr}", argv[0]);
            }
            (exit_code, stdout)
        }
        other => panic!("{argv:?}: {other:?}"),
    }
}

/// Runs a program as root of the VM. In a container that is root with all rights: more than anything in there has.
pub(crate) async fn as_root(machine: &Machine, vm: &Vm, argv: &[&str]) -> (i32, String) {
    if !matches!(machine.kind, Kind::Container) {
        return ran(vm, &[&[AS_ROOT], argv].concat()).await;
    }
    let mut command = Command::new("nsenter");
    command.args(["--target", &init(vm).to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
    let output =
        command.args(argv).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
}

/// Everything an intruder tries; the kinds of frames that left the VM. What must not answer did not.
pub(crate) async fn intrude(machine: &Machine, vm: &Vm) -> Vec<String> {
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let (addresses, tcp, udp) = (ADDRESSES.join(","), list(&TCP_PORTS), list(&UDP_PORTS));
    let (code, printed) =
        as_root(machine, vm, &["perl", INTRUDER, "eth0", MARK, &addresses, &tcp, &udp]).await;
    assert_eq!((code, printed.lines().last()), (0, Some("done")), "{printed}");
    let answers: Vec<_> = printed.lines().filter(|line| line.starts_with("answer")).collect();
    assert!(answers.is_empty(), "{answers:?}");
    printed.lines().filter_map(|line| line.strip_prefix("sent ")).map(str::to_owned).collect()
}

/// Puts strings where a search has to find them, each known there by that string alone, and returns them.
pub(crate) async fn planted(machine: &Machine, vm: &Vm) -> Vec<String> {
    let text = |place: &str| format!("FAKE-planted-in-{place}-0815");
    // Backwards, so that whoever passes them on holds nothing that is looked for.
    let backwards = |place: &str| text(place).chars().rev().collect::<String>();
    let reverse = "perl -e 'print scalar reverse shift'";
    let file = |place: &str, path: &str| format!("{reverse} {} > {path}\n", backwards(place));
    let background = "</dev/null >/dev/null 2>&1 &\n";
    let script = [
        file("usr", "/usr/share/planted"),
        file("tmp", "/tmp/planted"),
        file("shm", "/dev/shm/planted"),
        format!("PLANTED=$({reverse} {}) setsid sleep 600 {background}", backwards("environment")),
        format!("setsid perl -e '$kept = reverse shift; sleep 600' {} {background}", backwards("memory")),
        // Until both are what they are to be.
        "until pgrep -x sleep && pgrep -f kept; do sleep 0.1; done >/dev/null\n".to_owned(),
    ]
    .concat();
    let (code, printed) = as_root(machine, vm, &["bash", "-c", &script]).await;
    assert_eq!(code, 0, "{printed}");
    PLACES.iter().map(|place| text(place)).collect()
}

/// Searches all that a guest can have written or been given.
pub(crate) fn written(machine: &Machine, vm: &Vm, search: &mut Search) {
    let dir = machine.config.run_dir.join("vm").join(vm.id.to_string());
    if matches!(machine.kind, Kind::Container) {
        let init = init(vm);
        let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = space(init);
        processes(|pid| space(pid) == own).into_iter().for_each(|pid| search.memory(pid));
        search.files_of(init, &dir.join("scratch/upper"));
    } else {
        // All of the guest is in there: what it writes stays in its memory.
        of_vm(vm, |pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"))
        })
        .into_iter()
        .for_each(|pid| search.memory(pid));
    }
    assert!(search.processes > 0, "no process of VM {}", vm.id);
}

/// A container's first process, by its number outside.
fn init(vm: &Vm) -> u32 {
    let first = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    };
    let found = of_vm(vm, first);
    assert_eq!(found.len(), 1, "first processes of VM {}", vm.id);
    found[0]
}

fn of_vm(vm: &Vm, fits: impl Fn(u32) -> bool) -> Vec<u32> {
    let variable = format!("POLYDEV_VM={}", vm.id);
    processes(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes()) && fits(pid)
    })
}
