//! What is sealed: the credential files of one sign-in.

use polydev_core::wire::FileRead;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::VaultError;

/// Files of one sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The files.
    pub files: Vec<FileRead>,
}

impl Bundle {
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room for everything at once: a buffer that grows leaves copies behind.
        let room: usize =
            self.files.iter().map(|file| file.path.len() * 6 + file.data.0.len() * 2 + 64).sum();
        let mut out = Zeroizing::new(Vec::with_capacity(room + 64));
        serde_json::to_writer(&mut *out, self).expect("texts and bytes are JSON");
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, VaultError> {
        serde_json::from_slice(bytes).map_err(|_| VaultError::Content)
    }
}
