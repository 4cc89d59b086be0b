//! The command line: data on stdout, everything else on stderr, an error ends with a hint.

mod client;
mod doctor;
mod host;
mod image;
mod settings;
mod talk;
mod user;

use clap::{Args, Parser, Subcommand};

use crate::{
    api,
    config::{Config, ConfigError},
    serve,
    vault::MasterKeys,
};

use client::ClientError;
use settings::Flags;

/// Signs vendor CLIs in inside disposable VMs.
#[derive(Debug, Parser)]
#[command(name = "polydev", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the controller.
    Serve,
    /// Runs VMs for a controller that is another process, maybe another user's. Needs root.
    Host(host::HostArgs),
    /// Prints a fresh one-time link to the page of a running controller.
    Open,
    /// Says what works on this machine and what does not.
    Doctor,
    /// Prints the OpenAPI document.
    Openapi,
    /// Golden images.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// VMs of a running controller.
    #[command(subcommand)]
    Vm(talk::VmCommand),
    /// Stored credentials of a running controller.
    #[command(subcommand)]
    Cred(talk::CredCommand),
    /// Sign-ins of a running controller.
    #[command(subcommand)]
    Auth(talk::AuthCommand),
    /// Users of a running controller.
    #[command(subcommand)]
    User(user::UserCommand),
    /// The vault's master key.
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Puts a fresh master key in front of the old ones; the next start seals everything anew with it.
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
struct RotateArgs {}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Openapi => print!("{}", api::openapi_json()),
            Command::Serve => serve::run(self.flags.config()?)?,
            Command::Host(args) => host::run(self.flags, args)?,
            Command::Doctor => doctor::run(&self.flags.config()?)?,
            Command::Open => talk::open(&self.flags.config()?)?,
            Command::Image(command) => image::run(&self.flags.config()?, command)?,
            Command::Vm(command) => talk::vm(&self.flags.config()?, command)?,
            Command::Cred(command) => talk::cred(&self.flags.config()?, command)?,
            Command::Auth(command) => talk::auth(&self.flags.config()?, command)?,
            Command::User(command) => user::run(&self.flags.config()?, command)?,
            Command::Key(KeyCommand::Rotate(RotateArgs {})) => rotate(&self.flags.config()?)?,
        }
        Ok(())
    }
}

fn rotate(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        config.paths.passphrase_file.is_none(),
        "the master key is derived from a passphrase; only key files can be rotated"
    );
    let path = serve::key_file(config);
    MasterKeys::add_fresh(&path)?;
    eprintln!("{} has a fresh key; restart polydev to seal everything with it", path.display());
    Ok(())
}

/// What a person can do about an error.
pub fn hint(error: &anyhow::Error) -> Option<&'static str> {
    if error.downcast_ref::<ConfigError>().is_some() {
        return Some("flags win over POLYDEV_* variables, and those over the file given with --config");
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NoToken { .. }) => {
            Some("run as the user of `polydev serve`, with the same --data-dir")
        }
        Some(ClientError::Unreachable { .. }) => Some("start it with `polydev serve`, or give --listen"),
        Some(ClientError::Answer { code, .. }) if code == "image_missing" => {
            Some("build it with `polydev image build`")
        }
        Some(ClientError::Answer { .. }) => Some("`polydev doctor` says what works on this machine"),
        None => match (error.downcast_ref::<serve::ServeError>(), error.downcast_ref::<host::HostFault>()) {
            (Some(error), _) => error.hint(),
            (None, Some(error)) => Some(error.hint()),
            (None, None) => Some("`polydev --help` lists commands and flags"),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
