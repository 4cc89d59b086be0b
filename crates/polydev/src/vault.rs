//! Seals credentials: what is stored can be read only with the master key and only as the record it was made for.
//!
//! Envelope encryption. Each record has its own random 256-bit data key; the data key is wrapped by the master key;
//! both layers are AES-256-GCM (NIST SP 800-38D) and bind user, provider, record id and version as additional data.
//! Stored form, version 1:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `PDV1` |
//! | 8 | id of the master key |
//! | 12 + 48 | nonce, wrapped data key and its tag |
//! | 12 + n + 16 | nonce, ciphertext, tag |
//!
//! Plaintext never goes to a disk; buffers that held it are zeroized.

mod bundle;
mod cipher;
mod master;
mod rotate;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use polydev_core::ids::{CredentialId, ProviderId, UserId};
use zeroize::Zeroizing;

pub use bundle::Bundle;
pub use master::{KeySource, MasterKeys};
pub(crate) use master::{create_secret, hex};
pub use rotate::reseal_all;

use cipher::{Key, NONCE_LEN, TAG_LEN};
use master::{KEY_ID_LEN, KeyId};

const MAGIC: [u8; 4] = *b"PDV1";
const WRAPPED_LEN: usize = cipher::KEY_LEN + TAG_LEN;
const HEADER_LEN: usize = MAGIC.len() + KEY_ID_LEN;
const LEN_MIN: usize = HEADER_LEN + NONCE_LEN + WRAPPED_LEN + NONCE_LEN + TAG_LEN;

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// No bytes from the system's random source.
    #[error("draw random bytes: {0}")]
    Random(getrandom::Error),
    /// The stored form has a version or a length that this polydev does not know.
    #[error("sealed record is not in a known form")]
    Form,
    /// None of the loaded master keys sealed this record.
    #[error("sealed record needs master key {0}, which is not loaded")]
    KeyMissing(String),
    /// It was changed, or it belongs to another user, provider, record or version.
    #[error("sealed record does not pass its integrity check")]
    Integrity,
    /// What was sealed is no bundle of files.
    #[error("sealed record does not hold a bundle of files")]
    Content,
    /// The master key or the passphrase cannot be had.
    #[error("master key in {path}: {what}")]
    Key {
        /// Which file.
        path: String,
        /// Why.
        what: String,
    },
}

/// Which record a sealed form belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordName {
    /// Whose.
    pub user: UserId,
    /// Of which tool.
    pub provider: ProviderId,
    /// Which record.
    pub id: CredentialId,
    /// Which version of it.
    pub version: u32,
}

/// Which secret of a user, other than a credential, a sealed form belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    /// What it is for.
    pub purpose: &'static str,
    /// Whose.
    pub user: UserId,
    /// Which version of it.
    pub version: u32,
}

/// What a sealed form is bound to.
trait Name {
    /// Unambiguous bytes: every text carries its length.
    fn additional_data(&self, header: &[u8]) -> Vec<u8>;
}

impl Name for SecretName {
    fn additional_data(&self, header: &[u8]) -> Vec<u8> {
        // No text is that long, so that this is never the name of a credential.
        let mut out = [header, &u32::MAX.to_be_bytes()].concat();
        for text in [self.purpose, self.user.as_str()] {
            put_text(&mut out, text);
        }
        out.extend_from_slice(&self.version.to_be_bytes());
        out
    }
}

impl Name for RecordName {
    fn additional_data(&self, header: &[u8]) -> Vec<u8> {
        let mut out = header.to_vec();
        for text in [self.user.as_str(), self.provider.as_str()] {
            put_text(&mut out, text);
        }
        out.extend_from_slice(self.id.as_uuid().as_bytes());
        out.extend_from_slice(&self.version.to_be_bytes());
        out
    }
}

/// 256 random bits as a text, for what only its holder is to know.
pub(crate) fn random_token() -> Result<Zeroizing<String>, VaultError> {
    let key = Key::random()?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(key.bytes())))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).expect("ids are short").to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Seals and opens records.
#[derive(Debug)]
pub struct Vault {
    keys: MasterKeys,
}

impl Vault {
    /// A vault with these master keys; the first one seals.
    pub fn new(keys: MasterKeys) -> Self {
        Self { keys }
    }

    /// Seals a bundle for exactly this record.
    pub fn seal(&self, name: &RecordName, bundle: &Bundle) -> Result<Vec<u8>, VaultError> {
        self.seal_bytes(name, &bundle.encode())
    }

    /// Opens what [`Self::seal`] made for the same record.
    pub fn open(&self, name: &RecordName, sealed: &[u8]) -> Result<Bundle, VaultError> {
        Bundle::decode(&self.open_bytes(name, sealed)?)
    }

    /// Seals a secret for exactly this name.
    pub fn seal_secret(&self, name: &SecretName, secret: &[u8]) -> Result<Vec<u8>, VaultError> {
        self.seal_bytes(name, secret)
    }

    /// Opens what [`Self::seal_secret`] made for the same name.
    pub fn open_secret(&self, name: &SecretName, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.open_bytes(name, sealed)
    }

    /// The same record under the newest master key; `None` when it is already.
    pub fn rewrap(&self, name: &RecordName, sealed: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        self.rewrap_bytes(name, sealed)
    }

    /// The same secret under the newest master key; `None` when it is already.
    pub fn rewrap_secret(&self, name: &SecretName, sealed: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        self.rewrap_bytes(name, sealed)
    }

    fn rewrap_bytes(&self, name: &impl Name, sealed: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        let parts = Parts::of(sealed)?;
        if parts.key_id == self.keys.current().id() {
            return Ok(None);
        }
        // The content's additional data names the master key, so that the content is encrypted anew as well.
        let plaintext = self.open_bytes(name, sealed)?;
        self.seal_bytes(name, &plaintext).map(Some)
    }

    fn seal_bytes(&self, name: &impl Name, plaintext: &[u8]) -> Result<Vec<u8>, VaultError> {
        let master = self.keys.current();
        let mut out = Vec::with_capacity(LEN_MIN + plaintext.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&master.id().0);
        let additional = name.additional_data(&out);
        let data_key = Key::random()?;
        out.extend(master.key().encrypt(data_key.bytes(), &additional)?);
        out.extend(data_key.encrypt(plaintext, &additional)?);
        Ok(out)
    }

    fn open_bytes(&self, name: &impl Name, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let parts = Parts::of(sealed)?;
        let master =
            self.keys.find(parts.key_id).ok_or_else(|| VaultError::KeyMissing(parts.key_id.to_string()))?;
        let additional = name.additional_data(&sealed[..HEADER_LEN]);
        let data_key = master.key().decrypt(parts.wrapped, &additional)?;
        Key::from_slice(&data_key).ok_or(VaultError::Form)?.decrypt(parts.content, &additional)
    }
}

struct Parts<'a> {
    key_id: KeyId,
    wrapped: &'a [u8],
    content: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(sealed: &'a [u8]) -> Result<Self, VaultError> {
        if sealed.len() < LEN_MIN || !sealed.starts_with(&MAGIC) {
            return Err(VaultError::Form);
        }
        let (header, rest) = sealed.split_at(HEADER_LEN);
        let (wrapped, content) = rest.split_at(NONCE_LEN + WRAPPED_LEN);
        let key_id = KeyId(header[MAGIC.len()..].try_into().expect("the header ends with the key id"));
        Ok(Self { key_id, wrapped, content })
    }
}

#[cfg(test)]
mod tests;
