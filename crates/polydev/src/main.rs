//! The binary of polydev. All it does itself is turn an error into text and an exit status.

use std::process::ExitCode;

use clap::Parser;
use polydev::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(hint) = polydev::cli::hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
