//! ICE servers elsewhere, from a JSON file in the form browsers use: a list of
//! `{"urls": [...], "username": ..., "credential": ...}`, or with `"secret"` in place of the latter two, for servers
//! that take time-limited credentials made with a shared secret.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{IceServer, TurnError, credentials::Secret};

const OTHERS: u32 = 0o077;
const SERVERS_MAX: usize = 16;
const URL_MAX: usize = 512;
const SCHEMES: [&str; 4] = ["stun:", "stuns:", "turn:", "turns:"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    urls: Urls,
    username: Option<String>,
    credential: Option<Zeroizing<String>>,
    secret: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Urls {
    One(String),
    Many(Vec<String>),
}

/// ICE servers elsewhere.
#[derive(Debug, Default)]
pub(super) struct External(Vec<Server>);

#[derive(Debug)]
struct Server {
    urls: Vec<String>,
    proof: Proof,
}

/// What a client shows to a server.
enum Proof {
    Nothing,
    Static { username: String, credential: Zeroizing<String> },
    Shared(Secret),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Static { .. } => "Static(..)",
            Self::Shared(_) => "Shared(..)",
        })
    }
}

impl External {
    /// Reads the file. All its faults are reported together.
    pub(super) fn read(path: &Path) -> Result<Self, TurnError> {
        let faults = |faults: Vec<String>| TurnError::IceServers { path: path.display().to_string(), faults };
        let io_fault = |error: std::io::Error| faults(vec![format!("cannot be read: {error}")]);
        let mode = fs::metadata(path).map_err(io_fault)?.mode();
        let text = Zeroizing::new(fs::read_to_string(path).map_err(io_fault)?);
        // The parser's words may hold what it read, so only the place is told.
        let entries: Vec<Entry> = serde_json::from_str(&text).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            faults(vec![format!("is no list of ICE servers: see {place}")])
        })?;
        let mut found = Vec::new();
        if entries.len() > SERVERS_MAX {
            found.push(format!("holds {} servers, at most {SERVERS_MAX} may be", entries.len()));
        }
        let holds_secrets = entries.iter().any(|entry| entry.credential.is_some() || entry.secret.is_some());
        if holds_secrets && mode & OTHERS != 0 {
            found.push(format!("holds secrets and others can read it (mode {:o})", mode & 0o777));
        }
        let mut servers = Vec::new();
        for (at, entry) in entries.into_iter().enumerate() {
            match check(entry) {
                Ok(server) => servers.push(server),
                Err(what) => found.extend(what.into_iter().map(|what| format!("server {}: {what}", at + 1))),
            }
        }
        if found.is_empty() { Ok(Self(servers)) } else { Err(faults(found)) }
    }

    /// The servers with what a caller needs for them.
    pub(super) fn list(&self, caller: &str, until_s: u64) -> impl Iterator<Item = IceServer> {
        self.0.iter().map(move |server| {
            let (username, credential) = match &server.proof {
                Proof::Nothing => (None, None),
                Proof::Static { username, credential } => {
                    (Some(username.clone()), Some(credential.to_string()))
                }
                Proof::Shared(secret) => {
                    let made = secret.credential(caller, until_s);
                    (Some(made.username), Some(made.password.to_string()))
                }
            };
            IceServer { urls: server.urls.clone(), username, credential }
        })
    }
}

fn check(entry: Entry) -> Result<Server, Vec<String>> {
    let mut faults = Vec::new();
    let urls = match entry.urls {
        Urls::One(url) => vec![url],
        Urls::Many(urls) => urls,
    };
    if urls.is_empty() {
        faults.push("has no urls".to_owned());
    }
    for url in &urls {
        let rest = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme));
        let clean = |rest: &str| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic());
        if !rest.is_some_and(clean) || url.len() > URL_MAX {
            faults.push("a url is not `stun:`, `stuns:`, `turn:` or `turns:` with a host".to_owned());
        }
    }
    let needs_proof = urls.iter().any(|url| url.starts_with("turn"));
    let proof = match (entry.username, entry.credential, entry.secret) {
        (Some(username), Some(credential), None) => Proof::Static { username, credential },
        (None, None, Some(secret)) => Proof::Shared(Secret::new(&secret)),
        (None, None, None) if !needs_proof => Proof::Nothing,
        _ => {
            faults.push("needs username and credential, or secret".to_owned());
            Proof::Nothing
        }
    };
    if faults.is_empty() { Ok(Server { urls, proof }) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn read(text: &str, mode: u32) -> Result<External, TurnError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ice.json");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        External::read(&path)
    }

    #[test]
    fn static_and_shared_credentials_and_none_are_told_apart() {
        let text = r#"[
            {"urls": "stun:stun.example.test:3478"},
            {"urls": ["turn:a.example.test"], "username": "u", "credential": "FAKE-static"},
            {"urls": ["turns:b.example.test:443?transport=tcp"], "secret": "FAKE-shared-secret"}
        ]"#;
        let list: Vec<IceServer> = read(text, 0o600).unwrap().list("page", 1_700_000_000).collect();
        assert_eq!((list[0].username.as_deref(), list[0].credential.as_deref()), (None, None));
        assert_eq!(
            (list[1].username.as_deref(), list[1].credential.as_deref()),
            (Some("u"), Some("FAKE-static"))
        );
        assert_eq!(list[2].username.as_deref(), Some("1700000000:page"));
        assert_eq!(list[2].credential.as_deref().map(str::len), Some(28), "an HMAC-SHA1 as base64");
    }

    #[test]
    fn all_faults_are_reported_at_once_and_no_secret_with_them() {
        let text = r#"[
            {"urls": ["https://x.example.test"], "secret": "FAKE-one"},
            {"urls": ["turn:"], "username": "u"},
            {"urls": []}
        ]"#;
        let error = read(text, 0o644).unwrap_err().to_string();
        for part in
            ["mode 644", "server 1: a url", "server 2: a url", "server 2: needs", "server 3: has no urls"]
        {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
        assert!(!error.contains("FAKE"), "{error}");
        let error = read(r#"[{"urls": "stun:a", "secret": {"FAKE": 1}}]"#, 0o600).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("FAKE"), "{error}");
    }
}
