//! The agent inside every polydev VM.
//!
//! It is PID 1: it sets the machine up, reaps, supervises, talks to the host over one byte connection and starts
//! everything a person uses as that person's account. It has no shell, no debug port and no way to be told to run
//! something as root. All of it runs on one thread; a guest's bytes are input, never an invariant.

pub mod output;
pub mod tcp_table;

mod agent;
mod boot;
mod browser;
mod callback;
mod catcher;
mod channel;
mod clone;
mod control;
mod credential_watch;
mod desktop;
mod events;
mod files;
mod freezer;
mod identity;
mod log;
mod login;
mod machine;
mod mux;
mod network;
mod page;
mod process;
mod reaper;
mod shim;
mod success;
mod terminal;
mod virtio_port;
mod vsock;

use std::{path::Path, process::ExitCode};

/// Where the agent finds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Surroundings {
    /// A machine of its own: it owns the clock, the entropy pool and the power switch.
    Vm,
    /// Namespaces of the host's kernel.
    Container,
}

/// Runs as what the program was called as.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let called_as = Path::new(&name).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if shim::NAMES.contains(&called_as) {
        shim::pass_on(args);
        return ExitCode::SUCCESS;
    }
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some("--container") => agent::run(Surroundings::Container),
        Some("--vm") => agent::run(Surroundings::Vm),
        _ if std::process::id() == 1 => {
            let failure = boot::boot();
            eprintln!("polydev-agent: boot: {failure}");
            machine::power_off_now()
        }
        _ => {
            eprintln!("polydev-agent is the PID 1 of polydev VMs; it is not started by hand");
            ExitCode::from(2)
        }
    }
}
