//! `xtask chaos`: kills the manager of VMs between any two steps and looks at what is left.
//!
//! The manager is `polydev host`, built with failpoints and driven over its socket by the product's own client. It dies
//! by SIGKILL, at each failpoint in turn and at random times, while several callers create, hibernate, resume and destroy
//! VMs by a plan that a seed repeats. The next manager is told which VMs are wanted; afterwards these must run on as the
//! same processes, and nothing else may be left.

mod caller;
mod machine;
mod manager;
mod network;
mod options;
mod orphans;
mod rehearsal;
mod report;
mod suite;
mod track;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::options::Options;
use self::{report::Report, suite::Suite};

/// Runs the suite, prints its table and writes its JSON. Anything lost, left or used twice is an error, and so is a
/// failpoint that nothing was killed at when there were kills enough for each, or when it was asked for.
pub(crate) fn chaos(arguments: &[String]) -> Result<()> {
    let options = Options::read(arguments)?;
    let report = Suite::new(&options)?.run()?;
    println!("{}", report.table());
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&report.json()).context("write the report")?;
        fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    verdict(&report)
}

fn verdict(report: &Report) -> Result<()> {
    let faults = report.faults();
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} faults:\n  {}", faults.len(), faults.join("\n  "));
}

/// Entry of a VM's process under the driver `fake`.
pub(crate) fn guest(arguments: &[String]) -> Result<()> {
    let (dir, files) = match arguments {
        [dir] => (dir, None),
        [dir, files] => (dir, Some(Path::new(files))),
        _ => bail!("usage: chaos-guest DIR [FILES]"),
    };
    polydev_host::driver::chaos::guest(Path::new(dir), files).context("serve the fake agent")
}
