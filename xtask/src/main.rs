//! `cargo xtask`: builds, checks, runs and measures polydev. `make up` and `make test` are thin wrappers around it.

mod bench;
#[cfg(feature = "chaos")]
mod chaos;
mod compile;
mod http;
mod leaks;
mod python;
mod random;
mod relay;
mod repo;
mod run;
mod setup;
mod stack;
mod test;
mod tidy;
mod up;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  up                       install what is missing, build, start demo and controller, print one URL
  test                     everything that continuous integration runs
  e2e [ARGS]               end-to-end tests only; ARGS go to the runner
  check                    formatting, lints, documentation, licences
  tidy                     rules of the repository: arrows, sizes, fixtures, generated files
  generate                 writes the generated files anew
  web                      builds the web page
  guest                    builds the two static guest programs
  image                    builds the golden image if it is not there
  bench NAME [--json FILE] measures; NAME is one of: start, desktop, host
  chaos --driver D [--kills N] [--seed S] [--network N] [--cold] [--all-failpoints] [--json FILE]
                           kills the manager of VMs again and again; D is one of: fake, container, qemu, firecracker
  relay --to ADDRESS ...   a bad network for UDP: delays, drops, limits
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else {
        print!("{USAGE}");
        return Ok(());
    };
    match (command.as_str(), rest) {
        ("up", []) => up::up(),
        ("test", []) => test::test(),
        ("e2e", arguments) => test::e2e_alone(arguments),
        ("check", []) => test::check(),
        ("tidy", []) => tidy::tidy(),
        ("generate", []) => tidy::generate(),
        ("web", []) => setup::node().and_then(|()| compile::web()),
        ("guest", []) => compile::guest().map(drop),
        ("image", []) => compile::image(compile::Profile::Release).map(drop),
        ("bench", [name, rest @ ..]) => bench::bench(name, rest),
        #[cfg(feature = "chaos")]
        ("chaos", arguments) => chaos::chaos(arguments),
        #[cfg(feature = "chaos")]
        ("chaos-guest", arguments) => chaos::guest(arguments),
        #[cfg(not(feature = "chaos"))]
        ("chaos", arguments) => compile::with_chaos(arguments),
        ("relay", arguments) => relay::relay(arguments),
        ("help" | "--help" | "-h", _) => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("no such command: {}\n\n{USAGE}", arguments.join(" ")),
    }
}
