//! Files put into and read from a guest. Small on purpose: credentials and settings, not data.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Largest file that may be put or read.
pub const MAX_FILE: usize = 256 << 10;
/// Most files in one request.
pub const MAX_FILES: usize = 16;

/// Bytes of a file; zeroized when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct FileBytes(pub Zeroizing<Vec<u8>>);

impl FileBytes {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileBytes({} bytes)", self.0.len())
    }
}

impl Serialize for FileBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for FileBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        STANDARD.decode(text.as_bytes()).map(Self::new).map_err(serde::de::Error::custom)
    }
}

/// A file to write. Parent directories are made with mode 0700; the file is replaced by rename.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePut {
    /// Path relative to the CLI user's home; no `..`, no absolute path, no symlink followed out of the home.
    pub path: String,
    /// Permission bits, for example `0o600`.
    pub mode: u32,
    /// Content.
    pub data: FileBytes,
    /// When not empty: `data` is JSON, and only these JSON pointers are copied into the JSON file that is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merge_json: Vec<String>,
}

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileGet {
    /// Path relative to the CLI user's home.
    pub path: String,
    /// Absence is then no error.
    #[serde(default)]
    pub optional: bool,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRead {
    /// Path relative to the CLI user's home.
    pub path: String,
    /// Permission bits it had.
    pub mode: u32,
    /// Content.
    pub data: FileBytes,
}
