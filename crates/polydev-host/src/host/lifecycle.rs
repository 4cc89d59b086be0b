//! Runs one VM up or down, step by step, as [`next_step`] says from what is seen.

use std::{
    fs,
    io::{self, Read, Write as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use polydev_core::{
    ids::VmId,
    vm::{Link, Process, Seen, Step, Want, next_step},
    wire::{Identity, Reply, Request},
};
use tokio::time::timeout;

use super::{CreateVm, Inner, LogKind, Vm, VmKind, agent_logs, hibernate::without_entropy, pool};
use crate::{
    agent::{AgentClient, AgentError, LinkOptions},
    driver::{self, Driver},
    error::HostError,
    failpoint, logs, mounts, process,
    record::{self, Phase, VmRecord, VmState},
    usage::{Start, Watch},
};

/// Bytes of randomness handed to each VM.
const ENTROPY_BYTES: usize = 64;
/// Most bytes of a failed VM's logs that go into the error.
const LAST_WORDS: usize = 6000;
/// How long reading a VM's own log may hold up its end.
const AGENT_LOG_LIMIT: Duration = Duration::from_secs(2);
/// How long a CLI VM may take to write everything out before it is killed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(3);
/// The copy of the record in the run directory, for the case that the data directory is lost.
pub(super) const RECORD_COPY: &str = "record.json";
/// Marks logs as archived.
const LOGS_KEPT: &str = "logs-kept";

impl Inner {
    pub(super) async fn create(&self, create: CreateVm) -> Result<Vm, HostError> {
        let began = Instant::now();
        let id = create.id;
        let mut watch = self.phases.watch(&create.kind, Start::New);
        self.must_take_vms()?;
        if let Some(vm) = self.claim(&create).await? {
            return Ok(vm);
        }
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        if agent.is_some() || self.records.read(id).is_some() || self.places.vm(id).exists() {
            return Err(HostError::AlreadyExists(id));
        }
        let begun = match self.make_room(id, &create.kind, create.vcpus).await {
            Ok(admitted) => self.new_record(&create, VmState::Active).map(|record| (record, admitted)),
            Err(error) => Err(error),
        };
        let (mut record, _admitted) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                self.slots().give_back(id);
                self.drop_cell(id);
                return Err(error);
            }
        };
        match self.bring_up(&mut record, create.identity, Want::Running, None, &mut watch).await {
            Ok(client) => {
                *agent = Some(client.clone());
                tracing::info!(
                    vm.id = %id, slot = record.slot.index(), driver = record.driver,
                    elapsed_ms = elapsed_ms(began), "VM ready"
                );
                Ok(Vm { id, kind: record.kind, slot: record.slot, agent: client })
            }
            Err(error) => {
                if let Err(cleanup) = self.bring_down(id, Some(record), None).await {
                    tracing::error!(vm.id = %id, error = %cleanup, "VM that did not come up cannot be removed");
                }
                Err(error)
            }
        }
    }

    pub(super) async fn adopt(&self, id: VmId) -> Result<Vm, HostError> {
        self.record_of(id).ok_or(HostError::NoSuchVm(id))?;
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        let record = self.record_of(id).ok_or(HostError::NoSuchVm(id))?;
        let client = match agent.as_ref().filter(|client| !client.is_closed()) {
            Some(client) => client.clone(),
            None if asleep_or_between(&record) => {
                let (client, _) = self.wake(&record).await?;
                agent.insert(client).clone()
            }
            None => {
                // One that is to be connected to has to answer; it is paused again if it goes on growing.
                self.unpause(id).await?;
                if !self.is_settled(&record)? {
                    // Its group stays until it is removed, and with it the reason of its end.
                    return Err(if self.places.groups.ran_out_of_memory(id) {
                        HostError::OutOfMemory { id, memory_mib: record.memory_mib }
                    } else {
                        HostError::NoSuchVm(id)
                    });
                }
                let driver = self.driver_of(&record);
                let limit = driver.info().start_limit;
                let client = self.connect(&**driver, id, limit).await.map_err(|error| match error {
                    AgentError::TimedOut { limit_ms, .. } => HostError::AgentSilent { id, limit_ms },
                    AgentError::Closed => HostError::NoSuchVm(id),
                    source => HostError::Identity { id, source },
                })?;
                self.open_gateway(&record).await?;
                self.watch_end(&record);
                agent.insert(client).clone()
            }
        };
        Ok(Vm { id, kind: record.kind, slot: record.slot, agent: client })
    }

    /// Whether a VM runs and may be taken over: not one whose agent has not taken its identity, or whose process is
    /// another one.
    pub(super) fn is_settled(&self, record: &VmRecord) -> Result<bool, HostError> {
        let settled = record.phase == Phase::Running && record.process_is_the_one();
        let process = || self.driver_of(record).process(record.id, &self.places.vm(record.id));
        Ok(settled && process()? == Process::Alive)
    }

    pub(super) async fn destroy(&self, id: VmId, failed: bool) -> Result<(), HostError> {
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        let record = self.record_of(id);
        if failed && self.config.keep_failed && record.as_ref().is_some_and(|it| it.kind == VmKind::Browser) {
            self.keep_failed(id);
        }
        self.bring_down(id, record, agent.take()).await
    }

    pub(super) async fn read_log(
        &self,
        id: VmId,
        kind: LogKind,
        max_bytes: usize,
    ) -> Result<String, HostError> {
        let dir = self.places.vm(id);
        if kind == LogKind::Agent && dir.exists() {
            // A connection made for this alone would push out one that another process may hold.
            let client = self.cell(id).try_lock().ok().and_then(|agent| agent.clone());
            if let Some(client) = client {
                let max = u32::try_from(max_bytes).unwrap_or(u32::MAX).min(agent_logs::BYTES_MAX);
                if let Ok(Reply::Log { text }) = client.request(Request::ReadLog { max_bytes: max }).await {
                    return Ok(text);
                }
            }
        }
        let archived = self.archive_dir().join(id.to_string());
        let from = [dir, archived].into_iter().find(|dir| dir.exists()).ok_or(HostError::NoSuchVm(id))?;
        logs::tail(&from.join(kind.file_name()), max_bytes)
            .map_err(HostError::os(format!("read log of VM {id}")))
    }

    /// The record, from the data directory or, if that lost it, from the run directory.
    pub(super) fn record_of(&self, id: VmId) -> Option<VmRecord> {
        let copy =
            || record::read_file(&self.places.vm(id).join(RECORD_COPY)).filter(|record| record.id == id);
        self.records.read(id).or_else(copy)
    }

    pub(super) fn new_record(&self, create: &CreateVm, state: VmState) -> Result<VmRecord, HostError> {
        let slot = {
            let mut slots = self.slots();
            slots.take(create.id).map_err(|_| HostError::NoSlot { total: slots.total() })?
        };
        let record = VmRecord {
            schema: VmRecord::SCHEMA,
            id: create.id,
            kind: create.kind.clone(),
            slot,
            driver: self.driver().info().name.to_owned(),
            image: self.image.clone(),
            vcpus: create.vcpus,
            memory_mib: create.memory_mib,
            hostname: create.identity.hostname.clone(),
            phase: Phase::Creating,
            state,
            boot_id: Some(process::boot_id().to_owned()),
            process: None,
            identity: Some(without_entropy(&create.identity)),
            network: self.network,
        };
        failpoint::reach("create/before-record");
        if let VmKind::Cli { user } = &create.kind {
            // Looked up and written under one lock: two VMs must never write one disk.
            let _slots = self.slots();
            if let Some(other) = self.records.all()?.iter().find(|other| self.uses_disk(other, user)) {
                return Err(HostError::DiskInUse { by: other.id });
            }
            self.records.write(&record)?;
        }
        Ok(record)
    }

    /// Has a VM that is wanted running or warm come up from whatever is there of it. `desktop_px` is for a warm one.
    pub(super) async fn bring_up(
        &self,
        record: &mut VmRecord,
        identity: Identity,
        want: Want,
        desktop_px: Option<(u16, u16)>,
        watch: &mut Watch<'_>,
    ) -> Result<AgentClient, HostError> {
        let id = record.id;
        let driver = Arc::clone(self.driver_of(record));
        let dir = self.places.vm(id);
        let mut client: Option<AgentClient> = None;
        let mut link = Link::Down;
        loop {
            let seen = self.look(&*driver, id, &dir, link)?;
            match watch.step(next_step(want, &seen)) {
                Some(Step::Record) => self.records.write(record)?,
                Some(Step::Start) => {
                    failpoint::reach("create/recorded");
                    self.make_dir(record, &dir)?;
                    self.take_network(record).await?;
                    failpoint::reach("create/before-start");
                    driver.start(record, &dir).await.map_err(|error| self.with_last_words(error, &dir))?;
                    failpoint::reach("create/started");
                    self.note_phase(record, Phase::Starting)?;
                    failpoint::reach("create/start-recorded");
                }
                Some(Step::Connect) => match self.connect(&*driver, id, driver.info().start_limit).await {
                    Ok(connected) => {
                        self.open_gateway(record).await?;
                        client = Some(connected);
                        link = Link::Up;
                    }
                    // What is seen next tells whether the VM is gone or only the connection.
                    Err(AgentError::Closed) => {}
                    Err(AgentError::TimedOut { limit_ms, .. }) => {
                        return Err(HostError::AgentSilent { id, limit_ms });
                    }
                    Err(source) => return Err(HostError::Identity { id, source }),
                },
                Some(Step::Identify) => {
                    let client = client.as_ref().ok_or(HostError::NoSuchVm(id))?;
                    match client.request(Request::Identify(fresh(identity.clone())?)).await {
                        Ok(_) => {
                            failpoint::reach("create/identified");
                            if want == Want::Running {
                                self.note_phase(record, Phase::Running)?;
                                failpoint::reach("create/complete");
                            }
                            link = Link::Identified;
                        }
                        // Once more from what is seen then.
                        Err(AgentError::Closed) => link = Link::Down,
                        Err(source) => return Err(HostError::Identity { id, source }),
                    }
                }
                Some(Step::Paint) => {
                    let client = client.as_ref().ok_or(HostError::NoSuchVm(id))?;
                    let limit = pool::PAINT_LIMIT * driver.info().slow_factor;
                    match client.paint(desktop_px.unwrap_or(pool::DESKTOP_PX), limit).await {
                        Ok(()) => {
                            failpoint::reach("warm/painted");
                            self.note_phase(record, Phase::Running)?;
                            link = Link::Painted;
                        }
                        Err(AgentError::Closed) => link = Link::Down,
                        Err(source) => return Err(HostError::Identity { id, source }),
                    }
                }
                Some(Step::Wake) => driver.resume(record, &dir).await?,
                Some(Step::GiveUp) if self.places.groups.ran_out_of_memory(id) => {
                    return Err(HostError::OutOfMemory { id, memory_mib: record.memory_mib });
                }
                Some(Step::GiveUp) => {
                    let error = HostError::StartFailed { id, step: "boot", detail: String::new() };
                    return Err(self.with_last_words(error, &dir));
                }
                Some(
                    step @ (Step::Quiesce
                    | Step::Hold
                    | Step::Stop
                    | Step::KeepLogs
                    | Step::Release
                    | Step::Forget),
                ) => unreachable!("{step:?} is no step towards a running VM"),
                None => return client.ok_or(HostError::NoSuchVm(id)),
            }
        }
    }

    /// Makes the run directory, with a copy of the record in it.
    pub(super) fn make_dir(&self, record: &VmRecord, dir: &Path) -> Result<(), HostError> {
        fs::create_dir_all(dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        let copy = serde_json::to_vec(record).expect("a record is always JSON");
        record::write_durably(&dir.join(RECORD_COPY), &copy)
            .map_err(HostError::os(format!("write to {}", dir.display())))
    }

    /// Writes down what is being done with a VM and which process it now is.
    pub(super) fn note_phase(&self, record: &mut VmRecord, phase: Phase) -> Result<(), HostError> {
        record.phase = phase;
        let found = driver::main_process(&self.places, record.id, &self.places.vm(record.id))?;
        // Before the agent has answered, the process may still execute what launched it.
        record.process = found.map(|process| process.identity(phase == Phase::Running));
        self.records.write(record)?;
        if let Some(process) = found.filter(|_| phase == Phase::Running && record.state == VmState::Active) {
            self.ends.watch(record.id, process);
        }
        Ok(())
    }

    /// Removes a VM whatever state it is in. Works without a record, from traces alone.
    pub(super) async fn bring_down(
        &self,
        id: VmId,
        record: Option<VmRecord>,
        client: Option<AgentClient>,
    ) -> Result<(), HostError> {
        let began = Instant::now();
        let dir = self.places.vm(id);
        // Without a record any driver may have made it; each finds nothing of another's.
        let drivers = match &record {
            Some(record) => vec![Arc::clone(self.driver_of(record))],
            None => self.drivers.clone(),
        };
        self.pool.forget(id);
        failpoint::reach("destroy/before-record");
        if let Some(record) = self.records.read(id).filter(|record| record.phase != Phase::Destroying) {
            match self.records.write(&VmRecord { phase: Phase::Destroying, ..record }) {
                // It would stay for want of the very room it takes. Should this process end now, it is asked for again.
                Err(error @ HostError::NoSpace { .. }) => {
                    tracing::warn!(vm.id = %id, %error, "VM goes unnoted")
                }
                noted => noted?,
            }
        }
        failpoint::reach("destroy/recorded");
        let mut steps = 0;
        for driver in &drivers {
            loop {
                let seen = self.look(&**driver, id, &dir, Link::Down)?;
                let Some(step) = next_step(Want::Gone, &seen) else { break };
                steps += 1;
                match step {
                    Step::Stop => {
                        // One that sleeps cannot answer.
                        if seen.process == Process::Alive {
                            self.last_requests(id, record.as_ref(), client.as_ref(), &dir).await;
                        }
                        failpoint::reach("destroy/before-stop");
                        driver.stop(id, &dir).await?;
                        failpoint::reach("destroy/stopped");
                    }
                    Step::KeepLogs => {
                        self.keep_logs(id, &dir)?;
                        failpoint::reach("destroy/logs-kept");
                    }
                    Step::Release => {
                        self.release(&**driver, id, &dir).await?;
                    }
                    Step::Forget => {
                        if let Some(record) = &record {
                            self.give_network_back(record).await?;
                        }
                        self.records.remove(id)?;
                        failpoint::reach("destroy/forgotten");
                    }
                    Step::Record
                    | Step::Start
                    | Step::Connect
                    | Step::Identify
                    | Step::Paint
                    | Step::Quiesce
                    | Step::Hold
                    | Step::Wake
                    | Step::GiveUp => unreachable!("{step:?} is no step towards a VM that is gone"),
                }
            }
        }
        self.slots().give_back(id);
        self.asleep().remove(&id);
        self.paused_no_more(id);
        self.accounts.forget(id);
        self.drop_cell(id);
        if steps > 0 {
            tracing::info!(vm.id = %id, elapsed_ms = elapsed_ms(began), "VM gone");
        }
        Ok(())
    }

    pub(super) async fn release(&self, driver: &dyn Driver, id: VmId, dir: &Path) -> Result<(), HostError> {
        driver.release(id, dir).await?;
        failpoint::reach("destroy/released");
        remove_dir(dir)?;
        failpoint::reach("destroy/directory-removed");
        Ok(())
    }

    pub(super) fn look(
        &self,
        driver: &dyn Driver,
        id: VmId,
        dir: &Path,
        link: Link,
    ) -> Result<Seen, HostError> {
        let exists = dir.exists();
        Ok(Seen {
            recorded: self.records.read(id).is_some(),
            process: driver.process(id, dir)?,
            resources: exists || driver.traces()?.contains(&id),
            unkept_logs: exists && !dir.join(LOGS_KEPT).exists(),
            link,
        })
    }

    pub(super) async fn connect(
        &self,
        driver: &dyn Driver,
        id: VmId,
        limit: Duration,
    ) -> Result<AgentClient, AgentError> {
        let connector = driver.connector(id, &self.places.vm(id));
        let slow_factor = driver.info().slow_factor;
        let (egress, account) = (Arc::clone(&self.egress), self.accounts.of(id));
        let options = LinkOptions { vm: id, egress, account, slow_factor };
        AgentClient::connect(connector, options, limit).await
    }

    /// What a living VM is asked before its end. It may be broken: nothing here can fail.
    async fn last_requests(
        &self,
        id: VmId,
        record: Option<&VmRecord>,
        client: Option<&AgentClient>,
        dir: &Path,
    ) {
        let Some(record) = record.filter(|record| record.state != VmState::Paused) else { return };
        let driver = self.driver_of(record);
        let slow_factor = driver.info().slow_factor;
        let connected = match client {
            Some(client) => client.clone(),
            None => match self.connect(&**driver, id, AGENT_LOG_LIMIT).await {
                Ok(client) => client,
                Err(_) => return,
            },
        };
        let log = connected.request(Request::ReadLog { max_bytes: agent_logs::BYTES_MAX });
        if let Ok(Ok(Reply::Log { text })) = timeout(AGENT_LOG_LIMIT * slow_factor, log).await
            && let Err(error) = agent_logs::replace(&dir.join(LogKind::Agent.file_name()), &text)
        {
            tracing::warn!(vm.id = %id, %error, "agent log cannot be kept");
        }
        if matches!(record.kind, VmKind::Cli { .. }) {
            // Its disk is to be clean; a browser VM has nothing to lose.
            let off = async {
                let _ = connected.request(Request::PowerOff).await;
                connected.closed().await;
            };
            if timeout(POWER_OFF_LIMIT * slow_factor, off).await.is_err() {
                tracing::warn!(vm.id = %id, "CLI VM did not power off in time");
            }
        }
    }

    pub(super) fn keep_logs(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        let archive = self.archive_dir();
        if self.places.groups.ran_out_of_memory(id) {
            tracing::warn!(vm.id = %id, "the kernel ended processes of this VM for want of memory");
            let log = dir.join(LogKind::Driver.file_name());
            let noted = logs::open_append(&log).and_then(|mut log| {
                writeln!(log, "the kernel ended processes of this VM for want of memory")
            });
            if let Err(error) = noted {
                tracing::warn!(vm.id = %id, %error, "the log of a VM cannot be written");
            }
        }
        let kept = logs::archive(dir, &archive, id, self.config.log_bytes_max);
        let pruned = logs::prune(&archive, self.config.log_vms_max);
        // A full disk must not make a VM immortal: its logs are lost, which the log says.
        if let Err(error) = kept {
            tracing::error!(vm.id = %id, %error, "logs cannot be archived");
        }
        if let Err(error) = pruned {
            tracing::warn!(%error, "old logs cannot be removed");
        }
        let marker = dir.join(LOGS_KEPT);
        let marked = fs::write(&marker, b"").or_else(|error| {
            // The console's log has been archived, or is lost.
            fs::rename(dir.join(LogKind::Console.file_name()), &marker).map_err(|_| error)
        });
        marked.map_err(HostError::os(format!("write to {}", dir.display())))
    }

    /// Adds the end of console and driver log to a failed start.
    fn with_last_words(&self, error: HostError, dir: &Path) -> HostError {
        let HostError::StartFailed { id, step, mut detail } = error else { return error };
        for kind in [LogKind::Driver, LogKind::Console] {
            let words = logs::tail(&dir.join(kind.file_name()), LAST_WORDS).unwrap_or_default();
            let words = words.trim();
            if !words.is_empty() && !detail.contains(words) {
                let gap = if detail.is_empty() { "" } else { "; " };
                detail = format!("{detail}{gap}{}: {words}", kind.file_name());
            }
        }
        if detail.is_empty() {
            "it wrote nothing".clone_into(&mut detail);
        }
        HostError::StartFailed { id, step, detail }
    }
}

/// Whether a VM does not run, or was being put to sleep or woken when an earlier process ended.
pub(super) fn asleep_or_between(record: &VmRecord) -> bool {
    record.state == VmState::Hibernated || matches!(record.phase, Phase::Hibernating | Phase::Resuming)
}

/// The identity with the clock and entropy of this moment.
pub(super) fn fresh(identity: Identity) -> Result<Identity, HostError> {
    let mut entropy = [0; ENTROPY_BYTES];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut entropy))
        .map_err(HostError::os("read /dev/urandom"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_time_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Ok(Identity { unix_time_ms, entropy: STANDARD.encode(entropy), ..identity })
}

/// Removes a run directory in which nothing is mounted any more.
fn remove_dir(dir: &Path) -> Result<(), HostError> {
    let mounted = mounts::under(dir).map_err(HostError::os("read the mount table"))?;
    if let Some(point) = mounted.first() {
        let busy = io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is mounted", point.display()));
        return Err(HostError::Os { op: format!("remove {}", dir.display()), source: busy });
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::os(format!("remove {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
