//! `make test`: everything, in an order in which cheap things fail first.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result};

use crate::{
    compile::{self, Guest, Profile},
    leaks::{MARK, Machine, mark},
    python, repo,
    run::{cargo, run, seconds, step},
    setup, tidy,
};

/// Drivers of the chaos suite and how often each one's manager is killed.
const CHAOS: [(&str, &str); 2] = [("fake", "35"), ("container", "20")];
const CARGO_DENY: &str = "0.20.2";
const CARGO_NEXTEST: &str = "0.9.143";

/// Everything that continuous integration runs.
pub(crate) fn test() -> Result<()> {
    let started = Instant::now();
    setup::packages()?;
    setup::test_packages()?;
    setup::node()?;
    let mut nextest = setup::cargo_tool("cargo-nextest", CARGO_NEXTEST)?;
    let before = Machine::look();

    format()?;
    web()?;
    demo()?;
    let guest = compile::guest()?;
    lints()?;
    licences()?;
    tidy::tidy()?;
    let polydev = compile::controller(Profile::Dev)?;
    compile::image_with(&polydev, &guest)?;
    step("Rust tests", || {
        nextest.args(["nextest", "run", "--workspace", "--profile", "ci"]);
        run(nextest
            .env("POLYDEV_GUEST_DIR", compile::guest_dir())
            .env("POLYDEV_IMAGE_DIR", repo::image_dir())
            .env(MARK, mark()))
    })?;
    step("Rust documentation tests", || run(cargo().args(["test", "--workspace", "--doc", "--quiet"])))?;
    chaos(&guest)?;
    // The suite took away the one it built.
    let polydev = compile::controller(Profile::Dev)?;
    e2e(&polydev, &guest, &[])?;
    step("nothing is left behind", || Machine::must_be_clean_since(&before))?;
    eprintln!("\nall tests passed in {}", seconds(started.elapsed()));
    Ok(())
}

/// Formatting, lints, documentation, licences: what needs no running of anything.
pub(crate) fn check() -> Result<()> {
    setup::packages()?;
    setup::node()?;
    format()?;
    // The binary carries the page: without it, it does not compile.
    compile::web()?;
    lints()?;
    licences()
}

/// The end-to-end tests with freshly built programs; arguments go to the runner.
pub(crate) fn e2e_alone(arguments: &[String]) -> Result<()> {
    setup::packages()?;
    setup::test_packages()?;
    setup::node()?;
    setup::npm_modules("demo")?;
    compile::web()?;
    let guest = compile::guest()?;
    let polydev = compile::controller(Profile::Dev)?;
    compile::image_with(&polydev, &guest)?;
    e2e(&polydev, &guest, arguments)
}

fn format() -> Result<()> {
    step("formatting", || run(cargo().args(["fmt", "--all", "--check"])))
}

fn web() -> Result<()> {
    setup::npm_modules("web")?;
    step("web page: types", || setup::npm_run("web", "check"))?;
    step("web page: tests", || setup::npm_run("web", "test"))?;
    compile::web()
}

fn demo() -> Result<()> {
    setup::npm_modules("demo")?;
    step("demo identity provider: tests", || setup::npm_run("demo", "test"))
}

fn lints() -> Result<()> {
    step("lints", || {
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    step("documentation", || {
        let mut doc = cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked", "--quiet"]);
        run(doc.env("RUSTDOCFLAGS", "--deny warnings"))
    })
}

fn licences() -> Result<()> {
    let mut deny = setup::cargo_tool("cargo-deny", CARGO_DENY)?;
    step("licences", || {
        run(deny.args(["deny", "--workspace", "--all-features", "check", "licenses", "bans", "sources"]))
    })
}

/// A short run of the chaos suite for each driver that starts VMs in no time.
fn chaos(guest: &Guest) -> Result<()> {
    let guest_dir = guest.agent.parent().context("the agent lies in a directory")?;
    for (driver, kills) in CHAOS {
        step(&format!("the manager is killed {kills} times, driver {driver}"), || {
            let mut suite = cargo();
            suite.args(["run", "--quiet", "--package", "xtask", "--features", "chaos", "--", "chaos"]);
            suite.args(["--driver", driver, "--kills", kills]);
            run(suite.env("XTASK_GUEST_DIR", guest_dir).env(MARK, mark()))
        })?;
    }
    step("tests of the chaos suite", || {
        run(cargo().args(["test", "--package", "xtask", "--features", "chaos", "--quiet", "chaos::"]))
    })?;
    step("rules of the chaos suite", || {
        run(cargo().args([
            "clippy",
            "--package",
            "xtask",
            "--all-targets",
            "--features",
            "chaos",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]))
    })
}

fn e2e(polydev: &Path, guest: &Guest, arguments: &[String]) -> Result<()> {
    setup::npm_modules("e2e")?;
    let python = python::interpreter()?;
    step("end-to-end tests", || {
        let mut npm = setup::with_node("npm");
        npm.args(["run", "--silent", "test", "--"]).args(arguments).current_dir(repo::root().join("e2e"));
        npm.env("POLYDEV_E2E_BINARY", polydev);
        npm.env("POLYDEV_E2E_AGENT", &guest.agent);
        npm.env("POLYDEV_E2E_DESKTOP", &guest.desktop);
        npm.env("POLYDEV_E2E_IMAGES", repo::image_dir());
        npm.env("POLYDEV_E2E_PYTHON", &python);
        run(npm.env(MARK, mark()))
    })
}
