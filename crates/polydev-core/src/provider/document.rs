//! Credential files: are they complete, and which part of them is the credential.

use serde_json::Value;
use zeroize::Zeroizing;

use crate::wire::{FileFormat, RequiredFile};

/// A credential file that does not prove a sign-in. Never holds content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentFault {
    /// It is not there.
    #[error("{path} is missing")]
    Missing {
        /// Path relative to the home.
        path: String,
    },
    /// It is cut off or not what it should be.
    #[error("{path} is not well-formed")]
    Malformed {
        /// Path relative to the home.
        path: String,
    },
    /// A required key is absent, null or empty, or a required text is absent.
    #[error("{path} lacks {key}")]
    Lacks {
        /// Path relative to the home.
        path: String,
        /// JSON pointer or text.
        key: String,
    },
}

/// Whether a file fulfils its rule.
pub(super) fn check(rule: &RequiredFile, data: &[u8]) -> Result<(), DocumentFault> {
    let lacks = |key: &String| Err(DocumentFault::Lacks { path: rule.path.clone(), key: key.clone() });
    match rule.format {
        FileFormat::Json => {
            let document = parse(&rule.path, data)?;
            let filled = |key: &&String| document.pointer(key).is_some_and(is_filled);
            rule.require.iter().find(|key| !filled(key)).map_or(Ok(()), lacks)
        }
        FileFormat::Text => {
            let text = std::str::from_utf8(data)
                .map_err(|_| DocumentFault::Malformed { path: rule.path.clone() })?;
            rule.require.iter().find(|key| !text.contains(key.as_str())).map_or(Ok(()), lacks)
        }
    }
}

/// A document with nothing but those pointers; `None` if it has none of them.
pub(super) fn pick(
    path: &str,
    data: &[u8],
    pointers: &[String],
) -> Result<Option<Zeroizing<Vec<u8>>>, DocumentFault> {
    let document = parse(path, data)?;
    let mut picked = Value::Object(serde_json::Map::new());
    for pointer in pointers {
        if let Some(value) = document.pointer(pointer) {
            insert(&mut picked, pointer, value.clone());
        }
    }
    let empty = picked.as_object().is_some_and(serde_json::Map::is_empty);
    Ok((!empty).then(|| Zeroizing::new(picked.to_string().into_bytes())))
}

fn parse(path: &str, data: &[u8]) -> Result<Value, DocumentFault> {
    let malformed = || DocumentFault::Malformed { path: path.to_owned() };
    let mut text = std::str::from_utf8(data).map_err(|_| malformed())?.trim_start();
    while text.starts_with("//") {
        text = text.split_once('\n').ok_or_else(malformed)?.1.trim_start();
    }
    serde_json::from_str(text).map_err(|_| malformed())
}

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Sets a value at a pointer, making objects on the way. Pointers of definitions go through objects only.
fn insert(target: &mut Value, pointer: &str, value: Value) {
    let mut at = target;
    let keys: Vec<String> =
        pointer.split('/').skip(1).map(|key| key.replace("~1", "/").replace("~0", "~")).collect();
    for key in keys {
        if !at.is_object() {
            *at = Value::Object(serde_json::Map::new());
        }
        at = at.as_object_mut().expect("made an object above").entry(key).or_insert(Value::Null);
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(require: &[&str]) -> RequiredFile {
        let require = require.iter().map(|&key| key.to_owned()).collect();
        RequiredFile { path: "f".into(), format: FileFormat::Json, require }
    }

    #[test]
    fn blanked_tokens_and_truncated_files_prove_nothing() {
        let rule = rule(&["/a/token"]);
        assert_eq!(check(&rule, br#"{"a":{"token":"FAKE"}}"#), Ok(()));
        assert_eq!(check(&rule, b"// comment\n// more\n{\"a\":{\"token\":\"FAKE\"}}"), Ok(()));
        let lacks = Err(DocumentFault::Lacks { path: "f".into(), key: "/a/token".into() });
        for blank in [r#"{"a":{"token":""}}"#, r#"{"a":{"token":null}}"#, r#"{"a":{}}"#, "[]"] {
            assert_eq!(check(&rule, blank.as_bytes()), lacks, "{blank}");
        }
        for broken in [&br#"{"a":{"token":"FA"#[..], b"", b"//", b"\xff\xfe"] {
            assert_eq!(check(&rule, broken), Err(DocumentFault::Malformed { path: "f".into() }));
        }
    }

    #[test]
    fn only_the_named_keys_are_picked() {
        let data =
            br#"{"oauthAccount":{"email":"a@example.org"},"projects":{"x":1},"s":{"auth":{"t":1,"u":2}}}"#;
        let picked = pick("f", data, &["/oauthAccount".into(), "/s/auth/t".into(), "/absent/key".into()]);
        let picked = picked.expect("well-formed").expect("two of the keys are there");
        let value: Value = serde_json::from_slice(&picked).expect("a JSON document");
        assert_eq!(
            value,
            serde_json::json!({"oauthAccount": {"email": "a@example.org"}, "s": {"auth": {"t": 1}}})
        );
        assert_eq!(pick("f", b"{}", &["/oauthAccount".into()]), Ok(None));
    }
}
