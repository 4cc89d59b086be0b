//! Benchmarks: one interface, one report. A benchmark is a function that returns a [`Report`].

mod desktop;
mod host;
mod report;
mod start;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
pub(crate) use report::{Report, Row};

/// Runs a benchmark, prints its table and writes its JSON.
pub(crate) fn bench(name: &str, arguments: &[String]) -> Result<()> {
    let (report, json, enforce) = match name {
        "start" => {
            let options = Options::read(arguments)?;
            (start::start(&options)?, options.json, options.enforce)
        }
        "desktop" => {
            let options = desktop::Options::read(arguments)?;
            (desktop::desktop(&options)?, options.json, options.enforce)
        }
        "host" => {
            let options = host::Options::read(arguments)?;
            (host::host(&options)?, options.json, options.enforce)
        }
        other => bail!("no such benchmark: {other}; there are: start, desktop, host"),
    };
    println!("{}", report.table());
    if let Some(file) = &json {
        let json = serde_json::to_string_pretty(&report).context("write the report")?;
        std::fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    let missed = report.missed();
    if enforce && !missed.is_empty() {
        bail!("goals missed: {}", missed.join(", "));
    }
    Ok(())
}

/// What `bench start` can be asked.
#[derive(Debug)]
pub(crate) struct Options {
    json: Option<PathBuf>,
    /// How often.
    pub(crate) n: usize,
    /// The tool.
    pub(crate) provider: String,
    /// `auto`, `container` or `qemu`.
    pub(crate) driver: Option<String>,
    /// A missed goal is an error.
    enforce: bool,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self { json: None, n: 10, provider: "codex".into(), driver: None, enforce: false };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--json" => options.json = Some(value()?.into()),
                "--n" => options.n = value()?.parse().context("--n is a number")?,
                "--provider" => options.provider = value()?.clone(),
                "--driver" => options.driver = Some(value()?.clone()),
                "--enforce" => options.enforce = true,
                other => {
                    bail!("unknown option {other}; there are --json, --n, --provider, --driver and --enforce")
                }
            }
        }
        Ok(options)
    }
}
