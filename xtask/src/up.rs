//! `make up`: from a fresh clone to one URL.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    compile::{self, Profile},
    repo, setup,
    stack::{Stack, StackConfig},
};

const PORT: u16 = 4000;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Installs, builds and starts everything; returns after Ctrl-C, or when the controller ended.
pub(crate) fn up() -> Result<()> {
    setup::packages()?;
    setup::node()?;
    setup::npm_modules("demo")?;
    compile::web()?;
    let guest = compile::guest()?;
    let polydev = compile::controller(Profile::Release)?;
    compile::image_with(&polydev, &guest)?;

    let state_dir = repo::state_dir();
    private_dir(&state_dir)?;
    let config = StackConfig {
        polydev,
        guest,
        state_dir: state_dir.clone(),
        run_dir: PathBuf::from("/run/polydev-up"),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
        driver: std::env::var("POLYDEV_DRIVER").ok(),
        pool: true,
        quiet: std::env::var_os("XTASK_VERBOSE").is_none(),
    };
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listen for Ctrl-C")?;
    let mut stack = Stack::start(&config)?;
    eprintln!(
        "
polydev is up. Demo sign-in for every tool: user name demo, password demo-password.
State: {}   Log: {}   Stop: Ctrl-C

Open this link, once:",
        state_dir.display(),
        if config.quiet { state_dir.join("controller.log").display().to_string() } else { "here".into() },
    );
    println!("{}", stack.link);
    while signals.pending().next().is_none() {
        stack.check()?;
        thread::sleep(LOOK_AGAIN);
    }
    eprintln!("\nstopping");
    if let Err(error) = stack.destroy_vms() {
        eprintln!("VMs may be left; the next start takes them over or removes them: {error:#}");
    }
    drop(stack);
    // Only what is empty: anything else belongs to a VM that the next start has to find.
    for dir in [config.run_dir.join("vm"), config.run_dir.join("runc"), config.run_dir] {
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}

/// Keys and tokens lie in it.
fn private_dir(dir: &PathBuf) -> Result<()> {
    let text = || format!("create {}", dir.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(text)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).with_context(text)
}
