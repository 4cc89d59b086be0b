//! What a probe of KVM found, kept until the machine or the program is another one: trying a KVM that does not run
//! guests takes seconds, and the answer does not change between two starts of the manager.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};

use crate::{process, record::write_durably};

/// What the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    /// Device, inode and time of change of the program.
    program: Option<(u64, u64, i64)>,
    /// Device number of `/dev/kvm`.
    kvm: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    key: Key,
    usable: bool,
    found: String,
}

impl Key {
    fn now(program: &Path, kvm: &Path) -> Self {
        let program = fs::metadata(program).ok().map(|it| (it.dev(), it.ino(), it.ctime()));
        let kvm = fs::metadata(kvm).ok().map(|it| it.rdev());
        Self { boot_id: process::boot_id().to_owned(), program, kvm }
    }
}

/// Asks `probe`, or gives what it answered before. `afresh` always asks.
pub(super) async fn or_ask(
    file: &Path,
    program: &Path,
    afresh: bool,
    probe: impl Future<Output = Result<String, String>>,
) -> Result<String, String> {
    let key = Key::now(program, Path::new("/dev/kvm"));
    if !afresh {
        let known = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
        if let Some(known) = known.filter(|known| known.key == key) {
            return if known.usable { Ok(known.found) } else { Err(known.found) };
        }
    }
    let answer = probe.await;
    let usable = answer.is_ok();
    let found = match &answer {
        Ok(found) | Err(found) => found.clone(),
    };
    let written = serde_json::to_vec(&Remembered { key, usable, found })
        .map_err(std::io::Error::other)
        .and_then(|bytes| write_durably(file, &bytes));
    if let Err(error) = written {
        tracing::debug!(file = %file.display(), %error, "what a probe found is not kept");
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn an_answer_is_kept_until_the_program_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, program) = (dir.path().join("probe.json"), dir.path().join("program"));
        fs::write(&program, "1").unwrap();
        let asked = Cell::new(0);
        let ask = async |afresh: bool, answer: Result<&str, &str>| {
            let answer = answer.map(str::to_owned).map_err(str::to_owned);
            let probe = async {
                asked.set(asked.get() + 1);
                answer
            };
            or_ask(&file, &program, afresh, probe).await
        };
        assert_eq!(ask(false, Err("no")).await, Err("no".to_owned()));
        assert_eq!(ask(false, Ok("yes")).await, Err("no".to_owned()), "it is remembered");
        assert_eq!(asked.get(), 1);
        assert_eq!(ask(true, Ok("yes")).await, Ok("yes".to_owned()), "doctor asks afresh");
        assert_eq!(ask(false, Err("no")).await, Ok("yes".to_owned()), "and what it found is kept");
        // Another file under the name, as an upgrade puts it there.
        fs::write(dir.path().join("new"), "2").unwrap();
        fs::rename(dir.path().join("new"), &program).unwrap();
        assert_eq!(ask(false, Err("new")).await, Err("new".to_owned()));
        fs::write(&file, "damaged").unwrap();
        assert_eq!(ask(false, Ok("again")).await, Ok("again".to_owned()));
        assert_eq!(asked.get(), 4);
    }
}
