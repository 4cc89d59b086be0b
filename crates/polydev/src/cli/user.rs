//! Users of a running controller.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config::Config;

use super::{client::Client, talk::table};

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Lists everybody for whom something is kept.
    List,
    /// Prints how a user's traffic leaves, or decides it.
    Egress(EgressArgs),
    /// Removes a user: CLI VM, disk, credentials, egress policy, proxy port.
    Remove {
        /// Who.
        user: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct EgressArgs {
    /// Whose.
    user: String,
    /// How it is to leave from now on.
    #[arg(long, value_name = "POLICY")]
    set: Option<Set>,
    /// File with the upstream proxy's address, `http://user:password@host:port` or `socks5://...`; `-` reads standard
    /// input. Never an argument: those are seen by everybody on the machine.
    #[arg(long, value_name = "FILE", requires = "set")]
    upstream_file: Option<PathBuf>,
    /// Makes a new token for the proxy port and prints it.
    #[arg(long, requires = "set")]
    new_proxy_token: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Set {
    /// As everybody's does.
    Default,
    /// Not at all.
    Deny,
    /// To public addresses, through this machine's own connection.
    Direct,
    /// Through an upstream proxy.
    Upstream,
}

pub(super) fn run(config: &Config, command: UserCommand) -> anyhow::Result<()> {
    let client = Client::new(config)?;
    match command {
        UserCommand::List => {
            let columns = ["id", "egress", "proxyPort", "credentials", "vms", "createdAt"];
            table(&client.get("/api/users")?["users"], &columns);
        }
        UserCommand::Egress(args) => println!("{:#}", egress(&client, args)?),
        UserCommand::Remove { user } => {
            let answer = client.delete(&format!("/api/users/{user}"))?;
            let existed = answer["existed"].as_bool().unwrap_or_default();
            eprintln!("{}", if existed { "removed" } else { "there was nothing to remove" });
        }
    }
    Ok(())
}

fn egress(client: &Client, args: EgressArgs) -> anyhow::Result<Value> {
    let path = format!("/api/users/{}/egress", args.user);
    let policy = match args.set {
        None => return Ok(client.get(&path)?),
        Some(Set::Default) => return Ok(client.delete(&path)?),
        Some(Set::Deny) => "deny",
        Some(Set::Direct) => "direct",
        Some(Set::Upstream) => "upstream",
    };
    let mut body = json!({ "policy": policy, "newProxyToken": args.new_proxy_token });
    if let Some(file) = &args.upstream_file {
        body["upstream"] = Value::String(read_secret(file)?.trim().to_owned());
    }
    let answer = client.put(&path, &body)?;
    if answer["proxyToken"].is_string() {
        eprintln!("the proxy token is not shown again");
    }
    Ok(answer)
}

fn read_secret(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if file == Path::new("-") {
        io::stdin().read_to_string(&mut text)?;
    } else {
        let read = fs::File::open(file).and_then(|mut open| open.read_to_string(&mut text));
        read.map_err(|error| anyhow::anyhow!("read {}: {error}", file.display()))?;
    }
    Ok(text)
}
