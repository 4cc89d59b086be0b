//! What works on this machine and what does not.

use std::path::Path;

use polydev_host::Host;

use crate::{config::Config, serve};

/// Prints a line per check; fails when polydev could not run VMs here.
pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let mut faults = 0;
    let mut line = |good: bool, what: &str, found: String| {
        println!("{}\t{what}\t{found}", if good { "ok" } else { "fault" });
        faults += usize::from(!good);
    };
    let root = rustix::process::geteuid().is_root();
    line(root, "user", if root { "root".into() } else { "not root: the drivers need it".into() });
    for (what, path) in [("agent", &config.paths.agent_path), ("desktop", &config.paths.desktop_path)] {
        line(path.is_file(), what, path.display().to_string());
    }
    match free_mib(&config.paths.data_dir) {
        Some(mib) => {
            line(mib > 1024, "space", format!("{mib} MiB free for {}", config.paths.data_dir.display()))
        }
        None => line(false, "space", format!("{} cannot be looked at", config.paths.data_dir.display())),
    }
    match serve::load_providers(config) {
        Ok(providers) => {
            line(true, "providers", providers.iter().map(|p| p.id().as_str()).collect::<Vec<_>>().join(" "))
        }
        Err(error) => line(false, "providers", error.to_string()),
    }
    let (machine, image) =
        (serve::host_config(config), polydev_host::image::open_current(&config.paths.image_dir));
    match image {
        Ok(image) => line(true, "image", image.id().to_owned()),
        Err(error) => line(false, "image", error.to_string()),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let probes = runtime.block_on(Host::probe(&machine));
    let any = probes.iter().any(|probe| probe.usable);
    for probe in &probes {
        println!("{}\tdriver {}\t{}", if probe.usable { "ok" } else { "no" }, probe.driver, probe.found);
    }
    for need in runtime.block_on(polydev_host::needs(&machine)) {
        println!("{}\t{}\t{}", if need.met { "ok" } else { "no" }, need.what, need.found);
        if !need.met {
            println!("\t\tfor {}: {}", need.by, need.advice);
        }
    }
    line(any, "drivers", if any { "at least one works".into() } else { "none works".into() });
    anyhow::ensure!(faults == 0, "{faults} check(s) found a fault");
    Ok(())
}

/// Free space of the file system that holds `path` or its nearest parent that exists.
fn free_mib(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some((stat.f_bavail * stat.f_frsize) >> 20)
}
