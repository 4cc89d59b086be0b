//! `bench start`: whole sign-ins against a controller of its own. The demo answers for the person at once, so every
//! figure is polydev's, the CLI's and the browser's time, nobody's typing.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Options, Report, Row};
use crate::{
    compile::{self, Profile},
    setup,
    stack::{Stack, StackConfig},
};

const SIGN_IN_LIMIT: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a driver may take to make what lets VMs start fast; emulated machines take minutes.
const PREPARE_LIMIT: Duration = Duration::from_secs(900);

/// `(name, from step, to step)`; `None` = the request.
const FIGURES: [(&str, Option<&str>, &str); 9] = [
    ("request -> VM ready", None, "vm_ready"),
    ("request -> CLI started", None, "cli_started"),
    ("request -> URL captured", None, "url_captured"),
    ("request -> first desktop picture", None, "desktop_ready"),
    ("request -> callback", None, "callback_seen"),
    ("callback -> credential seen", Some("callback_seen"), "credential_seen"),
    ("request -> credential sealed", None, "sealed"),
    ("sealed -> browser VM gone", Some("sealed"), "closed"),
    ("sealed -> in the CLI VM", Some("sealed"), "transferred"),
];

pub(super) fn start(options: &Options) -> Result<Report> {
    setup::packages()?;
    setup::node()?;
    setup::npm_modules("demo")?;
    compile::web()?;
    let guest = compile::guest()?;
    let polydev = compile::controller(Profile::Release)?;
    compile::image_with(&polydev, &guest)?;
    let state = tempfile::Builder::new().prefix("polydev-bench-").tempdir().context("create a directory")?;
    let run_dir = PathBuf::from(format!("/run/polydev-bench-{}", std::process::id()));
    let stack = Stack::start(&StackConfig {
        polydev,
        guest,
        state_dir: state.path().to_owned(),
        run_dir: run_dir.clone(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        driver: options.driver.clone(),
        pool: true,
        quiet: true,
    })?;
    stack.let_the_demo_sign_in()?;
    let health = when_prepared(&stack)?;
    let driver = health["driver"].as_str().unwrap_or("?").to_owned();

    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let pool = keeps_pool() && health["fastStart"] == "ready";
    for round in 0..=options.n {
        if pool {
            until_warm(&stack)?;
        }
        let steps = sign_in(&stack, &options.provider, round)?;
        eprintln!("sign-in {round} of {}: {steps:?}", options.n);
        // The first one fills caches: it is shown, not counted.
        if round == 0 {
            continue;
        }
        for (name, from, to) in FIGURES {
            let from = from.map_or(Some(0.0), |from| steps.get(from).copied());
            if let (Some(from), Some(to)) = (from, steps.get(to)) {
                samples.entry(name).or_default().push(to - from);
            }
        }
    }
    let rows = FIGURES.iter().filter_map(|(name, ..)| {
        Row::of(
            *name,
            "ms",
            samples.get(name).map_or(&[], Vec::as_slice),
            goal(name, &options.provider, &driver),
        )
    });
    let warm = if pool { ", warm pool" } else { "" };
    let report = Report::new(format!("start {} {driver}{warm}", options.provider), rows.collect());
    stack.destroy_vms()?;
    drop(stack);
    // Nothing but the lock of the controller is left in it.
    std::fs::remove_dir_all(&run_dir).with_context(|| format!("remove {}", run_dir.display()))?;
    Ok(report)
}

/// The controller's health once VMs start as fast as they ever will.
fn when_prepared(stack: &Stack) -> Result<Value> {
    let started = Instant::now();
    loop {
        let health = stack.api.call("GET", "/health", None)?;
        if health["fastStart"] != "preparing" {
            return Ok(health);
        }
        if started.elapsed() > PREPARE_LIMIT {
            bail!("VM templates are not ready after {} s", PREPARE_LIMIT.as_secs());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Whether the controller, which is given this environment, keeps browser VMs ready.
fn keeps_pool() -> bool {
    std::env::var("POLYDEV_WARM_BROWSER_VMS_HIGH").map_or(true, |high| high != "0")
}

/// Waits for a VM in the pool: people do not sign in as fast as one is made.
fn until_warm(stack: &Stack) -> Result<()> {
    let started = Instant::now();
    let some = |line: &str| line.strip_prefix("polydev_vms_warm ").is_some_and(|count| count != "0");
    while !stack.api.text("/metrics")?.lines().any(some) {
        if started.elapsed() > SIGN_IN_LIMIT {
            bail!("no VM is warm after {} s", SIGN_IN_LIMIT.as_secs());
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// What was promised, where something was.
fn goal(name: &str, provider: &str, driver: &str) -> Option<f64> {
    match (name, provider, driver) {
        ("request -> URL captured", "codex", "container") => Some(3_000.0),
        ("request -> first desktop picture", _, driver) if driver.starts_with("qemu") => Some(4_000.0),
        _ => None,
    }
}

/// One whole sign-in; its steps and their times in milliseconds.
fn sign_in(stack: &Stack, provider: &str, round: usize) -> Result<BTreeMap<String, f64>> {
    let started = Instant::now();
    let body = json!({ "userId": format!("bench-{round}"), "provider": provider });
    let answer = stack.api.call("POST", "/api/auth/start", Some(&body))?;
    let id = answer["sessionId"].as_str().context("the answer has a session id")?.to_owned();
    loop {
        let session = stack.api.call("GET", &format!("/api/auth/session/{id}"), None)?;
        let state = session["state"].as_str().unwrap_or("");
        let steps = steps(&session);
        match state {
            "succeeded" if steps.contains_key("closed") => {
                remove_cli_vm(stack, &session)?;
                return Ok(steps);
            }
            "failed" | "expired" | "cancelled" => bail!("sign-in {round} {state}: {}", session["error"]),
            _ if started.elapsed() > SIGN_IN_LIMIT => {
                bail!("sign-in {round} is {state} after {} s; steps {steps:?}", SIGN_IN_LIMIT.as_secs())
            }
            _ => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Each sign-in is a new person's; their CLI VMs would pile up.
fn remove_cli_vm(stack: &Stack, session: &Value) -> Result<()> {
    match session["cliVmId"].as_str() {
        Some(id) => stack.api.call("DELETE", &format!("/api/vms/{id}"), None).map(drop),
        None => Ok(()),
    }
}

fn steps(session: &Value) -> BTreeMap<String, f64> {
    let steps = session["steps"].as_array().into_iter().flatten();
    steps.filter_map(|step| Some((step["step"].as_str()?.to_owned(), step["atMs"].as_f64()?))).collect()
}
