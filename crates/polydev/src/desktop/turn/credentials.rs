//! Time-limited credentials: the user name is the time until which it is good and who asked for it, the password an
//! HMAC of that name (draft-uberti-behave-turn-rest). Nothing is stored, and whoever has the secret can check them.
//! Nonces are made the same way, so that a flood of requests from made-up addresses costs no memory.

use std::{fs, io, net::SocketAddr, os::unix::fs::MetadataExt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::vault::{create_secret, hex};

use super::TurnError;

/// How long a nonce is good.
pub(super) const NONCE_LIFETIME_S: u64 = 600;
/// Longest user name that is looked at.
const USERNAME_MAX: usize = 128;
const SECRET_MIN: usize = 16;
const SECRET_LEN: usize = 32;
const OTHERS: u32 = 0o077;
const NONCE_MAC_LEN: usize = 16;

/// What credentials and nonces are made with.
pub(super) struct Secret(Zeroizing<String>);

/// A user name and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: Zeroizing<String>,
}

/// What a user name says about itself. It is believed only with the right signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim<'a> {
    pub(super) until_s: u64,
    pub(super) caller: &'a str,
}

/// What a nonce is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NonceState {
    Good,
    /// Ours once, or of another address, or never ours: the client takes the new one and asks again.
    Stale,
}

impl Secret {
    /// Reads the file; an own one is made when there is none yet.
    pub(super) fn open(path: &Path, own: bool) -> Result<Self, TurnError> {
        let fault = |source| TurnError::Secret { path: path.display().to_string(), source };
        if own && !path.exists() {
            let mut bytes = Zeroizing::new([0; SECRET_LEN]);
            getrandom::fill(&mut *bytes).map_err(|error| fault(io::Error::other(error.to_string())))?;
            let line = Zeroizing::new(hex(&*bytes) + "\n");
            create_secret(path, line.as_bytes()).map_err(fault)?;
        }
        let mode = fs::metadata(path).map_err(fault)?.mode();
        if mode & OTHERS != 0 {
            return Err(fault(io::Error::other(format!("others can read it (mode {:o})", mode & 0o777))));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(fault)?);
        if text.trim().len() < SECRET_MIN {
            return Err(fault(io::Error::other(format!("must hold {SECRET_MIN} characters or more"))));
        }
        Ok(Self::new(text.trim()))
    }

    pub(super) fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// A credential that is good until then.
    pub(super) fn credential(&self, caller: &str, until_s: u64) -> Credential {
        let username = format!("{until_s}:{caller}");
        Credential { password: self.password(&username), username }
    }

    /// The key of the long-term credential mechanism (RFC 8489 section 9.2.2): MD5 is what it prescribes.
    pub(super) fn key(&self, username: &str, realm: &str) -> Zeroizing<[u8; 16]> {
        let mut md5 = Md5::new();
        for part in [username, ":", realm, ":", self.password(username).as_str()] {
            md5.update(part.as_bytes());
        }
        Zeroizing::new(md5.finalize().into())
    }

    /// A nonce for a client.
    pub(super) fn nonce(&self, client: SocketAddr, now_s: u64) -> String {
        let until_s = now_s + NONCE_LIFETIME_S;
        let mac = self.nonce_mac(client, until_s).finalize().into_bytes();
        format!("{until_s:010x}{}", hex(&mac[..NONCE_MAC_LEN]))
    }

    /// Judges a nonce that a client sent.
    pub(super) fn judge_nonce(&self, nonce: &[u8], client: SocketAddr, now_s: u64) -> NonceState {
        let judged = || {
            let text = std::str::from_utf8(nonce).ok()?;
            let (until, mac) = text.split_at_checked(10)?;
            let until_s = u64::from_str_radix(until, 16).ok()?;
            let right = self.nonce_mac(client, until_s).finalize().into_bytes();
            let same = subtle::ConstantTimeEq::ct_eq(hex(&right[..NONCE_MAC_LEN]).as_bytes(), mac.as_bytes());
            (bool::from(same) && now_s < until_s).then_some(NonceState::Good)
        };
        judged().unwrap_or(NonceState::Stale)
    }

    fn password(&self, username: &str) -> Zeroizing<String> {
        let mut mac = Hmac::<Sha1>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(username.as_bytes());
        Zeroizing::new(STANDARD.encode(mac.finalize().into_bytes()))
    }

    fn nonce_mac(&self, client: SocketAddr, until_s: u64) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(b"polydev turn nonce\0");
        mac.update(&until_s.to_be_bytes());
        mac.update(client.to_string().as_bytes());
        mac
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<'a> Claim<'a> {
    /// Reads a user name.
    pub(super) fn read(username: &'a str) -> Option<Self> {
        let (until, caller) = username.split_once(':')?;
        let fits = username.len() <= USERNAME_MAX && !caller.is_empty();
        fits.then_some(Self { until_s: until.parse().ok()?, caller })
    }
}

/// A short name for somebody that does not give away what it was made of.
pub(super) fn pseudonym(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..6])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "192.0.2.7:40000";

    #[test]
    fn a_credential_is_what_other_servers_make_of_the_same_secret() {
        // `printf %s 1700000000:page | openssl dgst -sha1 -hmac FAKE-shared-secret -binary | base64`
        let made = Secret::new("FAKE-shared-secret").credential("page", 1_700_000_000);
        assert_eq!(made.username, "1700000000:page");
        assert_eq!(made.password.as_str(), "Vf1pnQ3Drk/HHCfOYK06WlPi0ko=");
        assert_eq!(Claim::read(&made.username), Some(Claim { until_s: 1_700_000_000, caller: "page" }));
    }

    #[test]
    fn user_names_in_another_form_are_no_claims() {
        for bad in ["", "page", "soon:page", "1700000000", "1700000000:", "-1:page"] {
            assert_eq!(Claim::read(bad), None, "{bad}");
        }
        assert_eq!(Claim::read(&format!("1:{}", "x".repeat(USERNAME_MAX))), None);
    }

    #[test]
    fn a_nonce_is_good_for_its_client_and_its_time() {
        let (secret, client) = (Secret::new("FAKE-shared-secret"), CLIENT.parse().unwrap());
        let nonce = secret.nonce(client, 1000);
        let judge =
            |nonce: &str, client: &str, at| secret.judge_nonce(nonce.as_bytes(), client.parse().unwrap(), at);
        assert_eq!(judge(&nonce, CLIENT, 1000 + NONCE_LIFETIME_S - 1), NonceState::Good);
        assert_eq!(judge(&nonce, CLIENT, 1000 + NONCE_LIFETIME_S), NonceState::Stale);
        assert_eq!(judge(&nonce, "192.0.2.7:40001", 1000), NonceState::Stale);
        for forged in ["", "x", &nonce.replace(&nonce[..10], "00ffffffff"), &nonce[..20], "äääääääääää"]
        {
            assert_eq!(judge(forged, CLIENT, 1000), NonceState::Stale, "{forged}");
        }
    }

    #[test]
    fn an_own_secret_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turn-secret");
        assert!(matches!(Secret::open(&path, false), Err(TurnError::Secret { .. })));
        let first = Secret::open(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(first.0, Secret::open(&path, true).unwrap().0);
        fs::write(&path, "short").unwrap();
        assert!(Secret::open(&path, true).unwrap_err().to_string().contains("characters"));
    }
}
