//! Everything the agent holds, and its start and end.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use polydev_core::{
    guest::CLI_USER,
    wire::{PROTOCOL_VERSION, Reply},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    task::{AbortHandle, LocalSet},
};

use crate::{
    Surroundings, catcher::Catcher, channel, desktop::Desktop, events::Events, freezer, identity, log::Log,
    login::LoginSlot, machine, mux::Opener, network, process::base_env, reaper::Reaper, shim,
    terminal::Terminals,
};

/// How long the last reply may take to leave before the connection is cut.
const LAST_WORDS: Duration = Duration::from_millis(150);

/// The agent's state; owned by one thread.
pub(crate) struct Agent {
    pub(crate) surroundings: Surroundings,
    pub(crate) log: Log,
    pub(crate) reaper: Reaper,
    pub(crate) events: Events,
    pub(crate) terminals: Terminals,
    pub(crate) catcher: Catcher,
    pub(crate) login: LoginSlot,
    pub(crate) desktop: Desktop,
    /// From the host's identity.
    pub(crate) identity_env: RefCell<BTreeMap<String, String>>,
    /// How many identities were taken.
    pub(crate) identities: Cell<u64>,
    /// While a host is connected.
    pub(crate) opener: RefCell<Option<Opener>>,
    pub(crate) host_came: Notify,
    session: RefCell<Option<AbortHandle>>,
    power_off: Notify,
}

/// Runs until the machine is to be switched off.
pub(crate) fn run(surroundings: Surroundings) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("polydev-agent: runtime: {error}");
            return machine::power_off_now();
        }
    };
    LocalSet::new().block_on(&runtime, async {
        let agent = Rc::new(Agent {
            surroundings,
            log: Log::new(),
            reaper: Reaper::default(),
            events: Events::default(),
            terminals: Terminals::default(),
            catcher: Catcher::default(),
            login: LoginSlot::default(),
            desktop: Desktop::default(),
            identity_env: RefCell::default(),
            identities: Cell::default(),
            opener: RefCell::default(),
            host_came: Notify::new(),
            session: RefCell::default(),
            power_off: Notify::new(),
        });
        start(&agent);
        tokio::select! {
            () = agent.power_off.notified() => {}
            () = told_to_stop() => {}
        }
        agent.log.note("agent", "power off");
        machine::power_off(surroundings).await
    })
}

fn start(agent: &Rc<Agent>) {
    agent.log.note("agent", format_args!("version {} up", env!("CARGO_PKG_VERSION")));
    let reaper = agent.reaper.clone();
    let log = agent.log.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = reaper.run().await {
            log.note("reaper", error);
        }
    });
    let freezer = match agent.surroundings {
        Surroundings::Vm => freezer::prepare(),
        Surroundings::Container => Ok(()),
    };
    let device = if agent.surroundings == Surroundings::Vm && network::is_there(Surroundings::Vm) {
        network::set_up()
    } else {
        Ok(())
    };
    for (what, result) in [
        ("freezer", freezer),
        ("loopback", machine::loopback_up()),
        ("network device", device),
        ("places", identity::prepare_places()),
        ("shim", shim::install()),
    ] {
        if let Err(error) = result {
            agent.log.note("agent", format_args!("{what}: {error}"));
        }
    }
    tokio::task::spawn_local(shim::listen(agent.clone()));
    tokio::task::spawn_local(channel::serve(agent.clone()));
}

/// SIGTERM from a container runtime, SIGINT from ctrl-alt-del.
async fn told_to_stop() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

impl Agent {
    pub(crate) fn hello(&self) -> Reply {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Reply::Hello {
            version: PROTOCOL_VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id.trim().to_owned(),
            uptime_ms: self.log.uptime_ms(),
            login_running: self.login.is_running(),
            desktop: self.desktop.state(),
            ptys: self.terminals.running(),
        }
    }

    /// Environment of what a person uses.
    pub(crate) fn person_env(&self) -> BTreeMap<String, String> {
        let mut env = base_env(&CLI_USER);
        env.extend(self.identity_env.borrow().clone());
        env
    }

    /// Ends the present host session, if any, in favour of another one.
    pub(crate) fn replace_session(&self, new: Option<AbortHandle>) {
        let old = self.session.replace(new);
        if let Some(old) = old {
            old.abort();
        }
    }

    /// Cuts the present connection once the last reply had time to leave; then maybe powers off.
    pub(crate) fn close_session_soon(self: &Rc<Self>, power_off: bool) {
        let agent = self.clone();
        let closing = self.session.borrow().clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LAST_WORDS).await;
            // A snapshot may lie between this and the line above: then the session of now is another host's.
            let present = agent.session.borrow().as_ref().map(AbortHandle::id);
            if present == closing.as_ref().map(AbortHandle::id) {
                agent.opener.borrow_mut().take();
                agent.replace_session(None);
            }
            if power_off {
                agent.power_off.notify_one();
            }
        });
    }
}
