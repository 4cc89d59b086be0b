//! A CLI VM's memory and devices on disk while it sleeps.
//!
//! They are saved as one stream, not as a memory file that the running VM shares with the disk: such a VM would be
//! killed by a full disk, and its secrets would be on the disk while it runs.
//!
//! ```text
//! running ─▶ stop ─▶ stream written ─▶ described (fsync) ─▶ QEMU ends: held
//! held ─▶ QEMU with the same arguments ─▶ stream read ─▶ description removed (fsync) ─▶ cont: running
//! ```
//!
//! As long as there is a description the VM has not run since: its disk and its memory belong together. It is removed
//! before the guest's next instruction, wherever a manager may die.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{CHANNEL, QMP, QemuDriver, qmp::Qmp, template::QEMU_FILE};
use crate::{
    driver::{Driver, kill_all, main_process},
    error::HostError,
    failpoint,
    host::LogKind,
    process,
    record::{VmRecord, write_durably},
    snapshot,
};

/// The stream.
const STATE: &str = "state";
const ABOUT: &str = "hibernated.json";
const SCHEMA: u32 = 1;
/// How long the stream may take, at native speed.
const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// How long QEMU may take to end.
const QUIT_LIMIT: Duration = Duration::from_secs(20);
/// Bytes per second; nobody else waits for this disk while the VM stands still.
const BANDWIDTH: u64 = 1 << 40;
/// What makes a QEMU wait for a stream.
const INCOMING: [&str; 2] = ["-incoming", "defer"];
/// Bytes hashed at once.
const CHUNK: usize = 1 << 20;

/// What a saved VM is.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    schema: u32,
    sha256: String,
    bytes: u64,
    /// Its machine: the stream fits no other.
    arguments: Vec<String>,
    /// Length and time of QEMU's program: another build may lay devices out differently.
    qemu: (u64, i64),
}

impl QemuDriver {
    /// Whether memory and devices of a VM are there and belong to its disk.
    pub(super) fn is_saved(&self, id: VmId) -> bool {
        self.places.held(id).join(ABOUT).exists()
    }

    /// VMs of which something is saved, whole or not.
    pub(super) fn saved(&self) -> Vec<VmId> {
        let entries = fs::read_dir(self.places.data.join("held")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes what is saved of a VM; none is fine.
    pub(super) fn forget_saved(&self, id: VmId) -> Result<(), HostError> {
        let dir = self.places.held(id);
        snapshot::remove(&dir).map_err(HostError::os(format!("remove {}", dir.display())))
    }

    /// See [`Driver::hibernate`].
    pub(super) async fn save_memory(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let (id, held) = (vm.id, self.places.held(vm.id));
        let alive = self.watch(id);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull => {
                HostError::NoSpace { what: format!("the memory of VM {id}"), room: None }
            }
            _ => HostError::HibernateFailed { id, detail: error.to_string() },
        };
        let mut qmp = Qmp::connect(&dir.join(QMP), alive).await.map_err(failed)?;
        if !self.is_saved(id) {
            // More than what the guest has written to is never saved, nor is what QEMU itself takes.
            let process = main_process(&self.places, id, dir)?.ok_or(HostError::NoSuchVm(id))?;
            let _room = self.places.room(&held, process.resident_bytes(), "the memory of a VM")?;
            let saved = self.save_stream(id, dir, &held, &mut qmp).await;
            if let Err(error) = saved {
                let dropped = self.forget_saved(id);
                cancel_saving(&mut qmp).await.map_err(failed)?;
                // A guest that did not get that far runs on; QEMU then answers that there is nothing to do.
                qmp.run("cont", json!({})).await.map_err(failed)?;
                dropped?;
                return Err(failed(error));
            }
        }
        failpoint::reach("qemu/hibernate/described");
        // The answer may be cut off by the end it asks for.
        let _ = qmp.run("quit", json!({})).await;
        for process in process::of_vm(&self.places.instance, id).map_err(failed)? {
            process.ended(QUIT_LIMIT).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn save_stream(&self, id: VmId, dir: &Path, held: &Path, qmp: &mut Qmp) -> io::Result<()> {
        let process = main_process(&self.places, id, dir).map_err(io::Error::other)?;
        let mut arguments = process.ok_or(io::ErrorKind::NotFound)?.arguments()?;
        // Of one that was itself woken.
        if arguments.ends_with(&INCOMING.map(str::to_owned)) {
            arguments.truncate(arguments.len() - INCOMING.len());
        }
        cancel_saving(qmp).await?;
        snapshot::remove(held)?;
        DirBuilder::new().recursive(true).mode(0o700).create(held)?;
        // QEMU hands the name to a shell; a link of ours needs no quoting.
        let link = dir.join(STATE);
        snapshot::remove_file(&link)?;
        std::os::unix::fs::symlink(held.join(STATE), &link)?;
        qmp.run("stop", json!({})).await?;
        failpoint::reach("qemu/hibernate/stopped");
        qmp.run("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH })).await?;
        let uri = format!("exec:umask 077 && cat > {STATE}");
        qmp.run("migrate", json!({ "uri": uri })).await?;
        failpoint::reach("qemu/hibernate/streaming");
        let streamed = qmp.migrated(STREAM_LIMIT * self.info().slow_factor).await;
        failpoint::reach("qemu/hibernate/streamed");
        if streamed.is_err() && is_full(held) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        streamed?;
        let file = held.join(STATE);
        let (sha256, bytes) = tokio::task::spawn_blocking(move || {
            let file = File::open(file)?;
            let hashed = digest(&file)?;
            file.sync_all()?;
            io::Result::Ok(hashed)
        })
        .await
        .map_err(io::Error::other)??;
        let about = About { schema: SCHEMA, sha256, bytes, arguments, qemu: qemu_stamp() };
        failpoint::reach("qemu/hibernate/before-described");
        write_durably(&held.join(ABOUT), &serde_json::to_vec(&about)?)?;
        tracing::info!(vm.id = %id, bytes, "VM's memory saved");
        Ok(())
    }

    /// See [`Driver::resume`].
    pub(super) async fn restore_memory(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let id = vm.id;
        let lost = |detail: String| HostError::MemoryLost { id, detail };
        if self.has_process(id) && self.let_run(id, dir).await.map_err(|error| lost(error.to_string()))? {
            return Ok(());
        }
        let held = self.places.held(id);
        let about = read(&held).map_err(lost)?;
        let began = Instant::now();
        let expected = (about.sha256.clone(), about.bytes);
        let file = held.join(STATE);
        let checked = tokio::task::spawn_blocking(move || {
            let found = File::open(file).and_then(|file| digest(&file)).map_err(|error| error.to_string())?;
            if found == expected { Ok(()) } else { Err("its memory was written to".to_owned()) }
        });
        let loaded = self.load(vm, dir, &held, about.arguments).await;
        let checked = checked.await.map_err(|error| lost(error.to_string()))?;
        let mut qmp = match (loaded, checked) {
            (Ok(qmp), Ok(())) => qmp,
            (loaded, checked) => {
                kill_all(&self.places, id).await?;
                checked.map_err(lost)?;
                return Err(match loaded {
                    Err(full @ HostError::NoSpace { .. }) => full,
                    Err(other) => lost(other.to_string()),
                    Ok(_) => lost("it cannot be read".to_owned()),
                });
            }
        };
        failpoint::reach("qemu/resume/loaded");
        self.go_on(id, &mut qmp).await.map_err(|error| lost(error.to_string()))?;
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(vm.id = %id, bytes = about.bytes, elapsed_ms, "VM's memory restored");
        Ok(())
    }

    /// Has a QEMU that an earlier manager left half-way go on. `false` when it had not read its memory yet; it is ended
    /// then.
    async fn let_run(&self, id: VmId, dir: &Path) -> io::Result<bool> {
        let mut qmp = Qmp::connect(&dir.join(QMP), self.watch(id)).await?;
        let mut status = status(&mut qmp).await?;
        if status != "inmigrate" {
            status = cancel_saving(&mut qmp).await?;
        }
        match status.as_str() {
            "running" => Ok(true),
            "inmigrate" => {
                drop(qmp);
                kill_all(&self.places, id).await.map_err(io::Error::other)?;
                Ok(false)
            }
            _ => self.go_on(id, &mut qmp).await.map(|()| true),
        }
    }

    /// From here on what is saved does not belong to the disk any more.
    async fn go_on(&self, id: VmId, qmp: &mut Qmp) -> io::Result<()> {
        let held = self.places.held(id);
        if held.exists() {
            snapshot::remove_file(&held.join(ABOUT))?;
            File::open(&held)?.sync_all()?;
        }
        failpoint::reach("qemu/resume/forgotten");
        qmp.run("cont", json!({})).await?;
        failpoint::reach("qemu/resume/running");
        snapshot::remove(&held)
    }

    async fn load(
        &self,
        vm: &VmRecord,
        dir: &Path,
        held: &Path,
        mut arguments: Vec<String>,
    ) -> Result<Qmp, HostError> {
        let os = |what: &str| HostError::os(format!("{what} hibernated VM {}", vm.id));
        for name in [STATE, QMP, CHANNEL] {
            snapshot::remove_file(&dir.join(name)).map_err(os("prepare"))?;
        }
        std::os::unix::fs::symlink(held.join(STATE), dir.join(STATE)).map_err(os("prepare"))?;
        arguments.extend(INCOMING.map(str::to_owned));
        let arguments = arguments.into_iter().map(Into::into).collect();
        let netns = self.netns(vm);
        self.launch_with(vm.id, dir, (vm.vcpus, vm.memory_mib), arguments, netns.as_deref()).await?;
        let load = async {
            let mut qmp = Qmp::connect(&dir.join(QMP), self.watch(vm.id)).await?;
            qmp.run("migrate-incoming", json!({ "uri": format!("exec:cat {STATE}") })).await?;
            qmp.migrated(STREAM_LIMIT * self.info().slow_factor).await?;
            io::Result::Ok(qmp)
        };
        load.await.map_err(|error| {
            let words = crate::logs::tail(&dir.join(LogKind::Driver.file_name()), 500).unwrap_or_default();
            os("load")(io::Error::other(format!("{error}; {}", words.trim())))
        })
    }
}

/// The description, if it is of this QEMU and the stream has its length.
fn read(held: &Path) -> Result<About, String> {
    let words = |error: io::Error| error.to_string();
    let bytes = fs::read(held.join(ABOUT)).map_err(words)?;
    let about: About = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if about.schema != SCHEMA {
        return Err("it is of another version".to_owned());
    }
    if about.qemu != qemu_stamp() {
        return Err("it is of another QEMU".to_owned());
    }
    if fs::metadata(held.join(STATE)).map_err(words)?.len() != about.bytes {
        return Err("its memory was cut".to_owned());
    }
    Ok(about)
}

fn digest(mut file: &File) -> io::Result<(String, u64)> {
    let (mut hash, mut chunk, mut bytes) = (Sha256::new(), vec![0; CHUNK], 0);
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => {
                hash.update(&chunk[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), bytes))
}

fn qemu_stamp() -> (u64, i64) {
    fs::metadata(PathBuf::from(QEMU_FILE)).map(|file| (file.len(), file.mtime())).unwrap_or_default()
}

/// Ends a saving that has failed or that an earlier manager began, whatever state the guest is in: it would stop the
/// guest again once all is written. Answers with the guest's state.
async fn cancel_saving(qmp: &mut Qmp) -> io::Result<String> {
    let deadline = Instant::now() + QUIT_LIMIT;
    loop {
        let answer = qmp.run("query-migrate", json!({})).await?;
        let is_over = matches!(
            answer.get("status").and_then(Value::as_str),
            None | Some("none" | "completed" | "failed" | "cancelled")
        );
        let status = status(qmp).await?;
        if is_over && status != "finish-migrate" {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "QEMU does not end what it saves"));
        }
        if !is_over {
            qmp.run("migrate_cancel", json!({})).await?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn status(qmp: &mut Qmp) -> io::Result<String> {
    let answer = qmp.run("query-status", json!({})).await?;
    Ok(answer.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// Whether a write failed because there is no space: QEMU only says that its helper ended.
fn is_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|it| it.f_bavail * it.f_frsize < CHUNK as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_vm_that_was_cut_or_is_of_another_build_is_not_restored() {
        let dir = tempfile::tempdir().unwrap();
        let write = |schema, qemu| {
            fs::write(dir.path().join(STATE), "memory").unwrap();
            let (sha256, bytes) = digest(&File::open(dir.path().join(STATE)).unwrap()).unwrap();
            let about = About { schema, sha256, bytes, arguments: vec!["-m".to_owned()], qemu };
            fs::write(dir.path().join(ABOUT), serde_json::to_vec(&about).unwrap()).unwrap();
        };
        write(SCHEMA, qemu_stamp());
        assert_eq!(read(dir.path()).unwrap().bytes, 6);
        fs::write(dir.path().join(STATE), "memor").unwrap();
        assert!(read(dir.path()).unwrap_err().contains("cut"));
        write(SCHEMA, (1, 1));
        assert!(read(dir.path()).unwrap_err().contains("another QEMU"));
        write(SCHEMA + 1, qemu_stamp());
        assert!(read(dir.path()).unwrap_err().contains("another version"));
        fs::remove_file(dir.path().join(ABOUT)).unwrap();
        read(dir.path()).unwrap_err();
    }
}
