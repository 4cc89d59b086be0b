//! AES-256-GCM with a random 96-bit nonce in front of the ciphertext.

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use super::VaultError;

pub(super) const KEY_LEN: usize = 32;
pub(super) const NONCE_LEN: usize = 12;
pub(super) const TAG_LEN: usize = 16;

/// A 256-bit key; zeroized when dropped, never printed.
pub(super) struct Key(Zeroizing<[u8; KEY_LEN]>);

impl Key {
    pub(super) fn random() -> Result<Self, VaultError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *bytes).map_err(VaultError::Random)?;
        Ok(Self(bytes))
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_LEN {
            return None;
        }
        let mut own = Zeroizing::new([0; KEY_LEN]);
        own.copy_from_slice(bytes);
        Some(Self(own))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Nonce, ciphertext, tag.
    pub(super) fn encrypt(&self, plaintext: &[u8], additional: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(VaultError::Random)?;
        let sealed = self
            .cipher()
            .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad: additional })
            .expect("a few files are far below the limit of AES-GCM");
        Ok([&nonce[..], &sealed].concat())
    }

    /// Undoes [`Self::encrypt`].
    pub(super) fn decrypt(&self, sealed: &[u8], additional: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(VaultError::Form)?;
        self.cipher()
            .decrypt(&Nonce::from(*nonce), Payload { msg: ciphertext, aad: additional })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::Integrity)
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new((&*self.0).into())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}
