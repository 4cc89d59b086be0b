//! Where master keys come from: a key file, or a passphrase file and a stored salt.
//!
//! A key file holds one key per line as 64 hex digits; the first line seals, the others only open what they sealed
//! before the key was changed. Files that others than their owner can read are refused.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    VaultError,
    cipher::{KEY_LEN, Key},
};

pub(super) const KEY_ID_LEN: usize = 8;
/// OWASP's floor for PBKDF2-HMAC-SHA256 (Password Storage Cheat Sheet, 2023).
const ITERATIONS: u32 = 600_000;
const SALT_LEN: usize = 16;
const PASSPHRASE_MIN: usize = 12;
/// Nobody but the owner.
const SECRET_MODE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// Where the master key is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A key file that is made when it is missing.
    Own(PathBuf),
    /// A key file that must be there.
    File(PathBuf),
    /// A passphrase file, and where the salt is kept.
    Passphrase {
        /// The file with the passphrase.
        file: PathBuf,
        /// Salt and iteration count; made when it is missing.
        salt: PathBuf,
    },
}

/// Names a master key without telling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyId(pub(super) [u8; KEY_ID_LEN]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

#[derive(Debug)]
pub(super) struct MasterKey {
    key: Key,
    id: KeyId,
}

impl MasterKey {
    fn new(key: Key) -> Self {
        let digest =
            Sha256::new().chain_update(b"polydev master key id\0").chain_update(key.bytes()).finalize();
        let id = KeyId(digest[..KEY_ID_LEN].try_into().expect("a digest is longer than an id"));
        Self { key, id }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn id(&self) -> KeyId {
        self.id
    }
}

/// The loaded master keys, the sealing one first.
#[derive(Debug)]
pub struct MasterKeys {
    current: MasterKey,
    previous: Vec<MasterKey>,
}

impl MasterKeys {
    /// Reads them; makes what may be made.
    pub fn load(source: &KeySource) -> Result<Self, VaultError> {
        match source {
            KeySource::Own(path) => {
                if !path.exists() {
                    let line = Zeroizing::new(hex(Key::random()?.bytes()) + "\n");
                    create_secret(path, line.as_bytes()).map_err(key_error(path, "cannot be written"))?;
                }
                Self::from_file(path)
            }
            KeySource::File(path) => Self::from_file(path),
            KeySource::Passphrase { file, salt } => Self::from_passphrase(file, salt),
        }
    }

    /// Puts a fresh key in front of the file; the next start seals everything anew with it.
    pub fn add_fresh(path: &Path) -> Result<(), VaultError> {
        let old = read_secret(path)?;
        Self::parse(path, &old)?;
        let mut text = Zeroizing::new(String::with_capacity(old.len() + 2 * KEY_LEN + 1));
        text.push_str(&Zeroizing::new(hex(Key::random()?.bytes())));
        text.push('\n');
        text.push_str(&old);
        let new = path.with_extension("new");
        let done = create_secret(&new, text.as_bytes()).and_then(|()| fs::rename(&new, path));
        done.map_err(key_error(path, "cannot be replaced"))
    }

    /// Exactly these keys, for tests and tools.
    pub fn from_bytes(current: [u8; KEY_LEN], previous: &[[u8; KEY_LEN]]) -> Self {
        let key =
            |bytes: &[u8; KEY_LEN]| MasterKey::new(Key::from_slice(bytes).expect("has the right length"));
        Self { current: key(&current), previous: previous.iter().map(key).collect() }
    }

    pub(super) fn current(&self) -> &MasterKey {
        &self.current
    }

    pub(super) fn find(&self, id: KeyId) -> Option<&MasterKey> {
        std::iter::once(&self.current).chain(&self.previous).find(|key| key.id == id)
    }

    fn from_file(path: &Path) -> Result<Self, VaultError> {
        Self::parse(path, &read_secret(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, VaultError> {
        let wrong = || VaultError::Key {
            path: path.display().to_string(),
            what: "is not 64 hex digits per line".into(),
        };
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let bytes = unhex(line).ok_or_else(wrong)?;
            keys.push(MasterKey::new(Key::from_slice(&bytes).ok_or_else(wrong)?));
        }
        let mut keys = keys.into_iter();
        Ok(Self { current: keys.next().ok_or_else(wrong)?, previous: keys.collect() })
    }

    fn from_passphrase(file: &Path, salt_path: &Path) -> Result<Self, VaultError> {
        let text = read_secret(file)?;
        let passphrase = text.trim_end_matches(['\r', '\n']);
        if passphrase.len() < PASSPHRASE_MIN {
            let what = format!("the passphrase is shorter than {PASSPHRASE_MIN} bytes");
            return Err(VaultError::Key { path: file.display().to_string(), what });
        }
        if !salt_path.exists() {
            let mut salt = [0; SALT_LEN];
            getrandom::fill(&mut salt).map_err(VaultError::Random)?;
            let line = format!("pbkdf2-hmac-sha256 {ITERATIONS} {}\n", hex(&salt));
            create_secret(salt_path, line.as_bytes()).map_err(key_error(salt_path, "cannot be written"))?;
        }
        let stored = read_secret(salt_path)?;
        let (iterations, salt) = parse_salt(&stored).ok_or_else(|| VaultError::Key {
            path: salt_path.display().to_string(),
            what: format!("is not `pbkdf2-hmac-sha256 <iterations, at least {ITERATIONS}> <salt>`"),
        })?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        pbkdf2::pbkdf2_hmac::<Sha256>(passphrase.as_bytes(), &salt, iterations, &mut *key);
        let key = Key::from_slice(&*key).expect("has the right length");
        Ok(Self { current: MasterKey::new(key), previous: Vec::new() })
    }
}

fn parse_salt(text: &str) -> Option<(u32, Vec<u8>)> {
    let mut words = text.split_whitespace();
    let (kind, iterations, salt) = (words.next()?, words.next()?.parse().ok()?, unhex(words.next()?)?);
    let good = kind == "pbkdf2-hmac-sha256" && iterations >= ITERATIONS && salt.len() >= SALT_LEN;
    good.then(|| (iterations, salt.to_vec()))
}

/// Makes a file that only its owner can read; it is whole and on disk, or it is not there.
pub(crate) fn create_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(SECRET_MODE).open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, VaultError> {
    let meta = fs::metadata(path).map_err(key_error(path, "cannot be read"))?;
    if meta.mode() & OTHERS != 0 {
        let what = format!("others can read it (mode {:o}); `chmod 600` it", meta.mode() & 0o777);
        return Err(VaultError::Key { path: path.display().to_string(), what });
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(key_error(path, "cannot be read"))
}

fn key_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> VaultError {
    move |error| VaultError::Key { path: path.display().to_string(), what: format!("{what}: {error}") }
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let nibbles: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let nibbles = Zeroizing::new(nibbles?);
    if nibbles.len() % 2 != 0 {
        return None;
    }
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).expect("two nibbles are a byte");
    Some(Zeroizing::new(nibbles.chunks(2).map(byte).collect()))
}
