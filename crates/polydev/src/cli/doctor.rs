//! What works on this machine and what does not.

use std::path::Path;

use polydev_host::Host;

use crate::{config::Config, serve};

const NO_DRIVER: &str =
    "none that `vms.driver` allows works here: mend what is marked `no` above, or choose another";

/// Prints a line per check; fails when polydev could not run VMs here.
pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let mut faults = 0;
    let mut line = |good: bool, what: &str, found: String| {
        println!("{}\t{what}\t{}", if good { "ok" } else { "fault" }, one_line(&found));
        faults += usize::from(!good);
    };
    let root = rustix::process::geteuid().is_root();
    line(root, "user", if root { "root".into() } else { "not root: the drivers need it".into() });
    for (what, path) in [("agent", &config.paths.agent_path), ("desktop", &config.paths.desktop_path)] {
        let there = path.is_file();
        line(there, what, format!("{}{}", if there { "" } else { "no " }, path.display()));
    }
    match free_mib(&config.paths.data_dir) {
        Some(mib) => line(
            mib > 1024,
            "space",
            format!("{mib} MiB free for polydev's own files in {}", config.paths.data_dir.display()),
        ),
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
    for probe in &probes {
        let word = if probe.usable { "ok" } else { "no" };
        println!("{word}\tdriver {}\t{}", probe.driver, one_line(&probe.found));
    }
    for need in runtime.block_on(polydev_host::needs(&machine)) {
        println!("{}\t{}\t{}", if need.met { "ok" } else { "no" }, need.what, one_line(&need.found));
        if !need.met {
            println!("\t\tfor {}: {}", need.by, need.advice);
        }
    }
    match polydev_host::chosen(machine.driver, &probes) {
        Some(probe) => line(true, "driver", format!("new VMs are run by {}", probe.driver)),
        None => line(false, "driver", NO_DRIVER.to_owned()),
    }
    anyhow::ensure!(faults == 0, "{faults} check(s) found a fault");
    Ok(())
}

/// What a program said is shown in the line of its check.
fn one_line(found: &str) -> String {
    found.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Free space of the file system that holds `path` or its nearest parent that exists.
fn free_mib(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some((stat.f_bavail * stat.f_frsize) >> 20)
}
