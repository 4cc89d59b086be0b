use std::os::unix::fs::PermissionsExt;

use polydev_core::wire::{FileRead, files::FileBytes};
use proptest::prelude::*;

use super::*;

const KEY: [u8; 32] = [7; 32];

fn vault() -> Vault {
    Vault::new(MasterKeys::from_bytes(KEY, &[]))
}

fn name() -> RecordName {
    RecordName {
        user: "alice".parse().unwrap(),
        provider: "codex".parse().unwrap(),
        id: "6a1fd5a5-0a8e-4b5e-9a53-1f0a7a8a3f6e".parse().unwrap(),
        version: 3,
    }
}

fn bundle(data: &[u8]) -> Bundle {
    Bundle {
        files: vec![FileRead {
            path: ".codex/auth.json".into(),
            mode: 0o600,
            data: FileBytes::new(data.to_vec()),
        }],
    }
}

#[test]
fn a_change_of_any_single_byte_is_noticed() {
    let sealed = vault().seal(&name(), &bundle(b"FAKE-token")).unwrap();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(vault().open(&name(), &changed).is_err(), "byte {at} can be changed");
    }
    for len in 0..sealed.len() {
        assert!(vault().open(&name(), &sealed[..len]).is_err(), "can be cut to {len} bytes");
    }
}

#[test]
fn a_record_opens_only_under_its_own_name() {
    let sealed = vault().seal(&name(), &bundle(b"FAKE-token")).unwrap();
    let others = [
        RecordName { user: "bob".parse().unwrap(), ..name() },
        RecordName { provider: "claude".parse().unwrap(), ..name() },
        RecordName { id: "6a1fd5a5-0a8e-4b5e-9a53-1f0a7a8a3f6f".parse().unwrap(), ..name() },
        RecordName { version: 4, ..name() },
        // The same letters, cut in another place.
        RecordName { user: "alicec".parse().unwrap(), provider: "odex".parse().unwrap(), ..name() },
    ];
    for other in others {
        assert!(matches!(vault().open(&other, &sealed), Err(VaultError::Integrity)), "{other:?}");
    }
}

#[test]
fn a_secret_opens_only_under_its_own_name_and_is_brought_under_a_new_key() {
    let name = |user: &str, version| SecretName::upstream(&user.parse().unwrap(), version);
    let sealed = vault().seal_secret(&name("alice", 3), b"FAKE-password").unwrap();
    assert_eq!(*vault().open_secret(&name("alice", 3), &sealed).unwrap(), b"FAKE-password");
    assert!(!sealed.windows(13).any(|part| part == b"FAKE-password"));
    for other in [name("bob", 3), name("alice", 4), SecretName { purpose: "other", ..name("alice", 3) }] {
        assert!(matches!(vault().open_secret(&other, &sealed), Err(VaultError::Integrity)));
    }
    let changed = Vault::new(MasterKeys::from_bytes([9; 32], &[KEY]));
    let resealed = changed.rewrap_secret(&name("alice", 3), &sealed).unwrap().unwrap();
    let new_only = Vault::new(MasterKeys::from_bytes([9; 32], &[]));
    assert_eq!(*new_only.open_secret(&name("alice", 3), &resealed).unwrap(), b"FAKE-password");
    assert!(new_only.open(&self::name(), &sealed).is_err());
}

#[test]
fn another_master_key_is_named_as_the_reason() {
    let sealed = vault().seal(&name(), &bundle(b"FAKE-token")).unwrap();
    let other = Vault::new(MasterKeys::from_bytes([8; 32], &[]));
    assert!(matches!(other.open(&name(), &sealed), Err(VaultError::KeyMissing(_))));
}

#[test]
fn the_plaintext_is_not_in_the_sealed_form_and_no_two_sealings_are_alike() {
    let token = b"FAKE-refresh-token-0123456789";
    let one = vault().seal(&name(), &bundle(token)).unwrap();
    let two = vault().seal(&name(), &bundle(token)).unwrap();
    assert_ne!(one, two);
    assert!(!one.windows(token.len()).any(|window| window == token));
    assert!(!one.windows(16).any(|window| window == b".codex/auth.json"));
}

#[test]
fn after_a_key_change_old_records_open_and_are_brought_under_the_new_key() {
    let sealed = vault().seal(&name(), &bundle(b"FAKE-token")).unwrap();
    let changed = Vault::new(MasterKeys::from_bytes([8; 32], &[KEY]));
    assert_eq!(changed.open(&name(), &sealed).unwrap(), bundle(b"FAKE-token"));
    let anew = changed.rewrap(&name(), &sealed).unwrap().expect("the key is an old one");
    assert!(changed.rewrap(&name(), &anew).unwrap().is_none());
    let only_new = Vault::new(MasterKeys::from_bytes([8; 32], &[]));
    assert_eq!(only_new.open(&name(), &anew).unwrap(), bundle(b"FAKE-token"));
}

#[test]
fn an_own_key_file_is_made_once_for_its_owner_only_and_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let first = MasterKeys::load(&KeySource::Own(path.clone())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = MasterKeys::load(&KeySource::Own(path.clone())).unwrap();
    assert_eq!(first.current().id(), again.current().id());
    MasterKeys::add_fresh(&path).unwrap();
    let changed = MasterKeys::load(&KeySource::File(path)).unwrap();
    assert_ne!(changed.current().id(), first.current().id());
    assert!(changed.find(first.current().id()).is_some());
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    MasterKeys::load(&KeySource::Own(path.clone())).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let error = MasterKeys::load(&KeySource::File(path)).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn a_passphrase_gives_the_same_key_with_its_salt_and_another_without() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("passphrase");
    master::create_secret(&file, b"FAKE correct horse battery\n").unwrap();
    let load = |salt: &str| {
        MasterKeys::load(&KeySource::Passphrase { file: file.clone(), salt: dir.path().join(salt) }).unwrap()
    };
    let first = load("salt");
    assert_eq!(first.current().id(), load("salt").current().id());
    assert_ne!(first.current().id(), load("other-salt").current().id());
    std::fs::write(dir.path().join("salt"), "pbkdf2-hmac-sha256 1000 00112233445566778899aabbccddeeff\n")
        .unwrap();
    let weak = MasterKeys::load(&KeySource::Passphrase { file, salt: dir.path().join("salt") });
    assert!(weak.is_err(), "too few iterations are accepted");
}

proptest! {
    #[test]
    fn what_was_sealed_comes_back(files in prop::collection::vec((".{1,40}", prop::collection::vec(any::<u8>(), 0..400)), 0..5), key in any::<[u8; 32]>()) {
        let vault = Vault::new(MasterKeys::from_bytes(key, &[]));
        let files = files.into_iter().map(|(path, data)| FileRead { path, mode: 0o600, data: FileBytes::new(data) }).collect();
        let bundle = Bundle { files };
        let sealed = vault.seal(&name(), &bundle).unwrap();
        prop_assert_eq!(vault.open(&name(), &sealed).unwrap(), bundle);
    }
}
