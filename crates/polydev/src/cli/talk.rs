//! Commands that ask a running controller.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::config::Config;

use super::client::{Client, ClientError};

#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// Lists VMs that are not gone.
    List,
    /// Removes a VM; a CLI VM's disk stays.
    Destroy {
        /// Its id.
        id: String,
    },
    /// Prints the end of a VM's log, alive or archived.
    Logs {
        /// Its id.
        id: String,
        /// `console`, `driver` or `agent`.
        #[arg(default_value = "agent")]
        kind: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CredCommand {
    /// Lists stored credentials; never their content.
    List {
        /// Of one user only.
        #[arg(long)]
        user: Option<String>,
    },
    /// Removes a credential from the vault.
    Delete {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AuthCommand {
    /// Starts a sign-in, or finds the one under way.
    Start {
        /// For whom.
        #[arg(long)]
        user: String,
        /// Id or alias of the tool.
        provider: String,
    },
    /// Prints how a sign-in stands.
    Show {
        /// Its id.
        id: String,
    },
    /// Calls a sign-in off.
    Cancel {
        /// Its id.
        id: String,
    },
}

pub(super) fn open(config: &Config) -> Result<(), ClientError> {
    let link = Client::new(config)?.post("/api/links", &json!({}))?;
    println!("{}", link["url"].as_str().unwrap_or_default());
    eprintln!("works once, until {}", link["expiresAt"].as_str().unwrap_or_default());
    Ok(())
}

pub(super) fn vm(config: &Config, command: VmCommand) -> Result<(), ClientError> {
    let client = Client::new(config)?;
    match command {
        VmCommand::List => {
            table(&client.get("/api/vms")?["vms"], &["id", "kind", "state", "userId", "createdAt"])
        }
        VmCommand::Destroy { id } => {
            client.delete(&format!("/api/vms/{id}"))?;
            eprintln!("VM {id} is being removed");
        }
        VmCommand::Logs { id, kind } => print!("{}", client.get_text(&format!("/api/vms/{id}/logs/{kind}"))?),
    }
    Ok(())
}

pub(super) fn cred(config: &Config, command: CredCommand) -> Result<(), ClientError> {
    let client = Client::new(config)?;
    match command {
        CredCommand::List { user } => {
            let query = user.map(|user| format!("?userId={user}")).unwrap_or_default();
            let list = client.get(&format!("/api/credentials{query}"))?;
            table(&list["credentials"], &["id", "userId", "provider", "version", "updatedAt"]);
        }
        CredCommand::Delete { id } => {
            client.delete(&format!("/api/credentials/{id}"))?;
            eprintln!("credential {id} is deleted");
        }
    }
    Ok(())
}

pub(super) fn auth(config: &Config, command: AuthCommand) -> Result<(), ClientError> {
    let client = Client::new(config)?;
    let answer = match command {
        AuthCommand::Start { user, provider } => {
            let body = json!({ "userId": user, "provider": provider });
            client.post("/api/auth/start", &body)?
        }
        AuthCommand::Show { id } => client.get(&format!("/api/auth/session/{id}"))?,
        AuthCommand::Cancel { id } => client.post(&format!("/api/auth/session/{id}/cancel"), &json!({}))?,
    };
    println!("{answer:#}");
    Ok(())
}

pub(super) fn table(rows: &Value, columns: &[&str]) {
    println!("{}", columns.join("\t"));
    for row in rows.as_array().into_iter().flatten() {
        let cell = |column: &&str| match &row[*column] {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        println!("{}", columns.iter().map(cell).collect::<Vec<_>>().join("\t"));
    }
}
