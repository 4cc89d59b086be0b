//! What the driver `firecracker` is told by the configuration.

use std::path::PathBuf;

use super::{RateLimiter, TokenBucket, vmm::Limits};

/// Programs, users and rates of the driver `firecracker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirecrackerConfig {
    /// Firecracker.
    pub program: PathBuf,
    /// Its jailer, of the same release.
    pub jailer: PathBuf,
    /// Whether VMMs are jailed; `None`: where the jailer is installed.
    pub jailed: Option<bool>,
    /// The user and group of a jailed VMM are this plus its slot: 254 ids that nothing else on the machine has.
    pub first_uid: u32,
    /// Most MiB per second of each disk, both ways together.
    pub disk_mib_per_s: Option<u32>,
    /// Most operations per second of each disk.
    pub disk_ops_per_s: Option<u32>,
    /// Most MiB per second of the network interface, each way.
    pub network_mib_per_s: Option<u32>,
}

impl Default for FirecrackerConfig {
    fn default() -> Self {
        Self {
            program: "/usr/local/bin/firecracker".into(),
            jailer: "/usr/local/bin/jailer".into(),
            jailed: None,
            first_uid: 100_000,
            disk_mib_per_s: None,
            disk_ops_per_s: None,
            network_mib_per_s: None,
        }
    }
}

impl FirecrackerConfig {
    /// Whether VMMs are jailed.
    pub(crate) fn jails(&self) -> bool {
        self.jailed.unwrap_or_else(|| self.jailer.exists())
    }

    pub(crate) fn limits(&self) -> Limits {
        let bucket = |per_s: u64| TokenBucket { size: per_s, refill_time: 1000 };
        let bytes = |mib_per_s: Option<u32>| mib_per_s.map(|mib| bucket(u64::from(mib) << 20));
        let limiter = |bandwidth: Option<TokenBucket>, ops: Option<TokenBucket>| {
            (bandwidth.is_some() || ops.is_some()).then_some(RateLimiter { bandwidth, ops })
        };
        Limits {
            disk: limiter(bytes(self.disk_mib_per_s), self.disk_ops_per_s.map(|ops| bucket(u64::from(ops)))),
            network: limiter(bytes(self.network_mib_per_s), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_become_buckets_of_a_second_and_none_is_no_limit() {
        assert_eq!(FirecrackerConfig::default().limits(), Limits::default());
        let limited = FirecrackerConfig {
            disk_mib_per_s: Some(100),
            disk_ops_per_s: Some(2000),
            ..FirecrackerConfig::default()
        };
        let limits = limited.limits();
        let disk = limits.disk.unwrap();
        assert_eq!(disk.bandwidth.unwrap(), TokenBucket { size: 100 << 20, refill_time: 1000 });
        assert_eq!(disk.ops.unwrap().size, 2000);
        assert_eq!(limits.network, None);
    }
}
