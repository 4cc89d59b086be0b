//! `bench host`: the host alone, without controller, page and person. The figures are taken by an example program of
//! `polydev-host`, one process per part, so that one part's memory and mess are not another's.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Report, Row};
use crate::{
    compile::{self, Profile},
    repo,
    run::{cargo, command, prepare, read, step},
};

/// Parts of the measurement, those that need no VM first.
const PARTS: [&str; 6] = ["slot", "disk", "manager", "firecracker", "container", "qemu"];

/// What `bench host` can be asked.
#[derive(Debug)]
pub(crate) struct Options {
    pub(super) json: Option<PathBuf>,
    /// Fewer rounds.
    quick: bool,
    /// A missed goal is an error.
    pub(super) enforce: bool,
    /// Parts to measure.
    parts: Vec<&'static str>,
}

impl Options {
    pub(super) fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self { json: None, quick: false, enforce: false, parts: PARTS.to_vec() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--json" => options.json = Some(value()?.into()),
                "--quick" => options.quick = true,
                "--enforce" => options.enforce = true,
                "--only" => {
                    let wanted: Vec<&str> = value()?.split(',').collect();
                    if let Some(unknown) = wanted.iter().find(|name| !PARTS.contains(name)) {
                        bail!("no part {unknown}; there are: {}", PARTS.join(", "));
                    }
                    options.parts.retain(|part| wanted.contains(part));
                }
                other => {
                    bail!("unknown option {other}; there are --json, --quick, --enforce and --only PART,...")
                }
            }
        }
        Ok(options)
    }
}

pub(super) fn host(options: &Options) -> Result<Report> {
    let guest = compile::guest()?;
    if !repo::image_dir().join("current").exists() {
        compile::image(Profile::Release)?;
    }
    let worker = step("build the measuring program", || {
        let mut build = cargo();
        build.args(["build", "--release", "-p", "polydev-host", "--example", "host_bench"]);
        prepare(build.args(["--features", "fake"]))?;
        Ok(repo::target_dir().join("release/examples/host_bench"))
    })?;
    let mut rows = Vec::new();
    for part in &options.parts {
        let mut measure = command(&worker);
        measure.arg(part).arg(options.quick.to_string());
        measure.env("POLYDEV_IMAGE_DIR", repo::image_dir());
        measure.env("POLYDEV_GUEST_DIR", guest.agent.parent().context("the agent lies in a directory")?);
        let said = step(&format!("measure {part}"), || read(&mut measure))?;
        for line in said.lines() {
            rows.extend(row(line).with_context(|| format!("read {line:?}"))?);
        }
    }
    Ok(Report::new(if options.quick { "host quick" } else { "host" }, rows))
}

/// A line of the measuring program; `None` without samples.
fn row(line: &str) -> Result<Option<Row>> {
    let figure: Value = serde_json::from_str(line).context("it is JSON")?;
    let name = figure["name"].as_str().context("it has a name")?;
    let unit = match figure["unit"].as_str() {
        Some("ms") => "ms",
        Some("MB") => "MB",
        other => bail!("no unit {other:?}"),
    };
    let samples = figure["samples"].as_array().context("it has samples")?;
    let samples: Option<Vec<f64>> = samples.iter().map(Value::as_f64).collect();
    let goal = figure["goal"].as_f64();
    Ok(Row::of(name, unit, &samples.context("samples are numbers")?, goal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_measuring_program_is_a_row() {
        let line = r#"{"name":"x","unit":"ms","samples":[3.0,1.0,2.0],"goal":2.5}"#;
        let read = row(line).expect("it is right").expect("it has samples");
        assert_eq!((read.p50, read.max), (2.0, 3.0));
        assert!(row(r#"{"name":"x","unit":"ms","samples":[]}"#).expect("it is right").is_none());
        for bad in ["", "{}", r#"{"name":"x","unit":"s","samples":[1.0]}"#] {
            assert!(row(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_can_be_chosen_by_name() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let options = Options::read(&words("--quick --only qemu,disk --json f")).expect("they are right");
        assert_eq!(options.parts, ["disk", "qemu"]);
        assert!(options.quick && !options.enforce);
        assert!(Options::read(&words("--only none")).is_err());
    }
}
