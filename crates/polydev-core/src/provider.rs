//! Providers: CLI tools as data. A new one is a file and a fixture, no code.
//!
//! [`ProviderSet::load`] reads the definitions and reports every fault of every file at once. A [`Provider`] then
//! says what the agent runs, which files are the credential, how they are put into the CLI VM and how it is checked
//! that the CLI accepts them there. Nothing here touches a file.

mod check;
mod definition;
mod document;
mod launch;
mod verify;

use std::collections::BTreeMap;

use crate::{
    ids::ProviderId,
    session::Lane,
    wire::{FileGet, FilePut, FileRead, UrlYields, files::FileBytes},
};
pub use check::{host_fits, is_host_pattern};
pub use definition::{CredentialFile, Definition};
pub use document::DocumentFault;
pub use launch::Placeholders;
pub use verify::{Check, Rejected};

/// What is wrong with a provider file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {field}: {problem}")]
pub struct Fault {
    /// File name.
    pub file: String,
    /// Field as in TOML, with list positions from 0: `url[1].regex`; `-` for the file as a whole.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Everything that is wrong with all provider files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("provider definitions are faulty:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
pub struct Faults(pub Vec<Fault>);

/// One CLI tool that can be signed in.
#[derive(Debug, Clone, PartialEq)]
pub struct Provider {
    definition: Definition,
}

/// All providers, by id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProviderSet {
    providers: BTreeMap<ProviderId, Provider>,
    aliases: BTreeMap<String, ProviderId>,
}

impl ProviderSet {
    /// Reads definitions given as `(file name, text)`. A file is named after its provider: `codex.toml`.
    pub fn load<N: AsRef<str>, T: AsRef<str>>(files: &[(N, T)]) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let mut set = Self::default();
        for (file, text) in files {
            let file = file.as_ref();
            let mut fault = |field: &str, problem: String| {
                faults.push(Fault { file: file.to_owned(), field: field.to_owned(), problem });
            };
            if let Ok(table) = toml::from_str(text.as_ref()) {
                check::unknown_fields(&table, &mut fault);
            }
            let definition: Definition = match toml::from_str(text.as_ref()) {
                Ok(definition) => definition,
                Err(error) => {
                    fault("-", error.to_string().trim_end().to_owned());
                    continue;
                }
            };
            check::check(&definition, file, &mut fault);
            for alias in &definition.aliases {
                if let Some(other) = set.aliases.insert(alias.clone(), definition.id.clone()) {
                    fault("aliases", format!("{alias} is an alias of {other} already"));
                }
            }
            let id = definition.id.clone();
            if set.providers.insert(id.clone(), Provider { definition }).is_some() {
                fault("id", format!("there is another provider {id}"));
            }
        }
        for (alias, id) in &set.aliases {
            if set.providers.keys().any(|other| other.as_str() == alias) {
                let file = format!("{id}.toml");
                faults.push(Fault {
                    file,
                    field: "aliases".into(),
                    problem: format!("{alias} is a provider's id"),
                });
            }
        }
        if faults.is_empty() { Ok(set) } else { Err(Faults(faults)) }
    }

    /// The provider of that id or alias.
    pub fn get(&self, name: &str) -> Option<&Provider> {
        let id = self.aliases.get(name).map_or(name, ProviderId::as_str);
        self.providers.iter().find(|(known, _)| known.as_str() == id).map(|(_, provider)| provider)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.providers.values()
    }

    /// Leaves those out that exist for demonstrations only.
    pub fn without_demo(mut self) -> Self {
        self.providers.retain(|_, provider| !provider.definition.demo);
        let Self { providers, aliases } = &mut self;
        aliases.retain(|_, id| providers.contains_key(id));
        self
    }
}

impl Provider {
    /// Canonical id.
    pub fn id(&self) -> &ProviderId {
        &self.definition.id
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// Other ids that mean this provider.
    pub fn aliases(&self) -> &[String] {
        &self.definition.aliases
    }

    /// Version of the CLI that the definition was made for.
    pub fn version(&self) -> Option<&str> {
        self.definition.install.version.as_deref()
    }

    /// The whole definition.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Ways to the sign-in page, the one to take unless asked otherwise first.
    pub fn lanes(&self) -> Vec<Lane> {
        let yields =
            |wanted: &[UrlYields]| self.definition.url.iter().any(|rule| wanted.contains(&rule.yields));
        let mut lanes = Vec::new();
        if yields(&[UrlYields::Loopback, UrlYields::PasteCode]) {
            lanes.extend([Lane::StreamedBrowser, Lane::CallbackRelay]);
        }
        if self.definition.device.is_some() {
            lanes.push(Lane::DeviceCode);
        }
        lanes
    }

    /// The lane to take unless asked otherwise.
    pub fn default_lane(&self) -> Lane {
        self.lanes().first().copied().unwrap_or_default()
    }

    /// Names that the CLI and its sign-in page need to reach, as far as they are known.
    pub fn egress_hosts(&self) -> &[String] {
        &self.definition.egress.hosts
    }

    /// Whether a lower-case host name and a port are among those that the CLI and its sign-in page need.
    pub fn needs_host(&self, host: &str, port: u16) -> bool {
        let egress = &self.definition.egress;
        egress.ports.contains(&port) && egress.hosts.iter().any(|pattern| host_fits(pattern, host))
    }

    /// The CLI stores a new refresh token at every refresh: a copy would be signed out.
    pub fn single_owner(&self) -> bool {
        self.definition.refresh.single_owner
    }

    /// What is typed into the login for a pasted code; `None` if this CLI takes none or the text is no such code.
    pub fn paste_line(&self, pasted: &str) -> Option<String> {
        let paste = self.definition.paste.as_ref()?;
        let pasted = pasted.trim();
        let regex = regex_lite::Regex::new(&paste.pasted_regex).ok()?;
        (regex.is_match(pasted) && !pasted.contains(['\n', '\r']))
            .then(|| paste.send.replace("{pasted}", pasted))
    }

    /// The files that are the credential, to be read from the browser VM after the login ended.
    pub fn credential_files(&self) -> Vec<FileGet> {
        let get = |file: &CredentialFile| FileGet { path: file.path.clone(), optional: file.optional };
        self.definition.credential.iter().map(get).collect()
    }

    /// Takes what the browser VM handed over: every file that must be there is, is complete, and nothing else is
    /// kept; of files of which only some JSON keys belong to the credential, only those.
    pub fn collect(&self, read: Vec<FileRead>) -> Result<Vec<FileRead>, DocumentFault> {
        for required in &self.definition.success.file {
            let file = read.iter().find(|file| file.path == required.path);
            let file = file.ok_or_else(|| DocumentFault::Missing { path: required.path.clone() })?;
            document::check(required, &file.data.0)?;
        }
        let mut kept = Vec::new();
        for wanted in &self.definition.credential {
            match read.iter().find(|file| file.path == wanted.path) {
                Some(file) if wanted.merge_json.is_empty() => kept.push(file.clone()),
                Some(file) => match document::pick(&wanted.path, &file.data.0, &wanted.merge_json) {
                    Ok(Some(data)) => kept.push(FileRead { data: FileBytes(data), ..file.clone() }),
                    Ok(None) => {}
                    Err(_) if wanted.optional => {}
                    Err(fault) => return Err(fault),
                },
                None if wanted.optional => {}
                None => return Err(DocumentFault::Missing { path: wanted.path.clone() }),
            }
        }
        Ok(kept)
    }

    /// The files as they are put into the CLI VM. Files that the definition no longer names are left out.
    pub fn cli_files(&self, collected: Vec<FileRead>) -> Vec<FilePut> {
        let put = |file: FileRead| {
            let wanted = self.definition.credential.iter().find(|wanted| wanted.path == file.path)?;
            let mode = wanted.restore_mode.unwrap_or(wanted.mode).0;
            Some(FilePut { path: file.path, mode, data: file.data, merge_json: wanted.merge_json.clone() })
        };
        collected.into_iter().filter_map(put).collect()
    }
}
