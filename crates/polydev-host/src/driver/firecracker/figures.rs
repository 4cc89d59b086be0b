//! What VMMs tell of their VMs' devices: how often a limit held one back, and how much memory the balloon has.
//!
//! Firecracker writes its metrics once a minute and never cuts what it wrote; so they go to a pipe, which the host
//! empties. While no manager reads, the pipe is full after some minutes and Firecracker leaves lines out: it never waits.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileTypeExt as _,
    path::Path,
};

use futures::{StreamExt as _, stream};
use polydev_core::ids::VmId;
use rustix::fs::{Mode, OFlags, open};
use serde::Deserialize;

use crate::{
    driver::Places,
    firecracker::vmm::{Home, METRICS, Vmm},
    record::{Phase, VmRecord, VmState},
    usage::BalloonUsage,
};

/// The latest of Firecracker's metrics, in the run directory.
const LATEST: &str = "metrics.json";
/// A line of Firecracker 1.16 with five disks has some 15 kB; what is longer is not read.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Read at once from one VMM: whatever it writes, the others get their turn.
const ROUND_BYTES_MAX: u64 = 256 << 10;
/// VMMs that are asked at the same time.
const ASKED_AT_ONCE: usize = 8;

/// What came from a VMM's pipe so far.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// The beginning of a line.
    part: Vec<u8>,
    /// How often a device had to wait for its limit; none before the first line.
    throttled: Option<u64>,
}

/// Of a line, what is looked at. Counters begin anew with each line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    block: Block,
    net: Net,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Block {
    rate_limiter_throttled_events: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Net {
    rx_rate_limiter_throttled: u64,
    tx_rate_limiter_throttled: u64,
}

impl Metrics {
    /// Empties a VM's pipe; tells how often its disks and its network device were held back since the first time.
    pub(crate) fn empty(&mut self, run_dir: &Path) -> Option<u64> {
        match pipe(&run_dir.join(METRICS)) {
            Ok(Some(pipe)) => {
                if let Some(latest) = self.read(pipe)
                    && let Err(error) = fs::write(run_dir.join(LATEST), latest)
                {
                    tracing::debug!(dir = %run_dir.display(), %error, "metrics of firecracker are not kept");
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(dir = %run_dir.display(), %error, "metrics of firecracker cannot be read");
            }
        }
        self.throttled
    }

    /// Adds up whole lines; returns the last one. What is no line of metrics is left out: lines are cut while the pipe
    /// is full.
    fn read(&mut self, pipe: impl Read) -> Option<Vec<u8>> {
        // An error is an empty pipe, or one whose writer is gone.
        let _ = pipe.take(ROUND_BYTES_MAX).read_to_end(&mut self.part);
        let mut latest = None;
        let mut lines = self.part.split(|byte| *byte == b'\n');
        let rest = lines.next_back().unwrap_or_default().to_vec();
        for line in lines.filter(|line| line.len() <= LINE_BYTES_MAX) {
            let Ok(Line { block, net }) = serde_json::from_slice::<Line>(line) else { continue };
            let all = [
                block.rate_limiter_throttled_events,
                net.rx_rate_limiter_throttled,
                net.tx_rate_limiter_throttled,
            ];
            self.throttled = Some(all.into_iter().fold(self.throttled.unwrap_or(0), u64::saturating_add));
            latest = Some(line.to_vec());
        }
        self.part = if rest.len() > LINE_BYTES_MAX { Vec::new() } else { rest };
        latest
    }
}

/// A VM's pipe; none where an earlier release started the VM, whose metrics are a file.
fn pipe(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(file.metadata()?.file_type().is_fifo().then_some(file))
}

/// Asks the VMMs of running VMs for their balloons. Whoever does not answer is left out.
pub(crate) async fn balloons(places: &Places, records: &[VmRecord]) -> Vec<(VmId, BalloonUsage)> {
    let runs = |record: &&VmRecord| {
        record.driver == super::NAME && record.phase == Phase::Running && record.state != VmState::Hibernated
    };
    let home = |record: &VmRecord| Home {
        id: record.id,
        dir: places.vm(record.id),
        instance: places.instance.clone(),
    };
    let homes: Vec<Home> = records.iter().filter(runs).map(home).collect();
    let told: Vec<_> = stream::iter(homes).map(balloon).buffer_unordered(ASKED_AT_ONCE).collect().await;
    told.into_iter().flatten().collect()
}

async fn balloon(home: Home) -> Option<(VmId, BalloonUsage)> {
    let id = home.id;
    let told = match Vmm::adopt(home).await {
        Ok(vmm) => vmm?.memory().await,
        Err(error) => Err(error),
    };
    match told {
        Ok(told) => {
            let (target_bytes, actual_bytes) =
                (u64::from(told.target_mib) << 20, u64::from(told.actual_mib) << 20);
            Some((id, BalloonUsage { target_bytes, actual_bytes, available_bytes: told.available_memory }))
        }
        Err(error) => {
            tracing::debug!(vm.id = %id, %error, "firecracker does not tell of its balloon");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(block: u64, net: u64) -> String {
        format!(
            r#"{{"utc_timestamp_ms":1,"block":{{"rate_limiter_throttled_events":{block},"read_count":9}},"net":{{"rx_rate_limiter_throttled":{net},"tx_rate_limiter_throttled":1}},"vcpu":{{}}}}"#
        )
    }

    #[test]
    fn lines_that_come_in_pieces_are_added_up_and_the_last_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::default();
        assert_eq!(metrics.empty(dir.path()), None, "no pipe");
        crate::firecracker::vmm::make_pipe(&dir.path().join(METRICS)).unwrap();
        // As Firecracker opens it: it never waits for a reader.
        let mut vmm = File::options().read(true).write(true).open(dir.path().join(METRICS)).unwrap();
        assert_eq!(metrics.empty(dir.path()), None, "nothing said");
        let (one, two) = (line(2, 3), line(10, 0));
        vmm.write_all(format!("{one}\n{}", &two[..40]).as_bytes()).unwrap();
        assert_eq!(metrics.empty(dir.path()), Some(6));
        assert_eq!(fs::read_to_string(dir.path().join(LATEST)).unwrap(), one);
        vmm.write_all(format!("{}\n", &two[40..]).as_bytes()).unwrap();
        assert_eq!(metrics.empty(dir.path()), Some(17));
        assert_eq!(metrics.empty(dir.path()), Some(17));
        assert_eq!(fs::read_to_string(dir.path().join(LATEST)).unwrap(), two);
    }

    #[test]
    fn what_was_cut_is_left_out_and_what_never_ends_takes_no_memory() {
        let mut metrics = Metrics::default();
        let cut = format!("{}{}\n{}\n", &line(5, 5)[..30], line(7, 7), line(1, 0));
        metrics.read(cut.as_bytes());
        assert_eq!(metrics.throttled, Some(2));
        for _ in 0..10 {
            metrics.read(io::repeat(b'x'));
            assert!(metrics.part.len() <= LINE_BYTES_MAX);
        }
        metrics.read(format!("\n{}\n", line(u64::MAX, 1)).as_bytes());
        assert_eq!(metrics.throttled, Some(u64::MAX));
    }

    #[test]
    fn a_file_of_an_earlier_release_and_a_link_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS);
        fs::write(&path, line(1, 1)).unwrap();
        assert!(pipe(&path).unwrap().is_none());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        pipe(&path).unwrap_err();
    }
}
