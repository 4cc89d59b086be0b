//! What VMs take of the host. One series per VM and figure: there are at most as many VMs as slots, and no label says
//! whose a VM is.

use std::fmt;

use polydev_core::ids::VmId;
use polydev_host::{HostFigures, PhaseFigures, VmUsage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Figures of a moment.
#[derive(Debug)]
pub(super) struct Shown(pub(super) HostFigures);

type Read = fn(&VmUsage) -> Option<f64>;

/// Name, help and value of what is more or less from one moment to the next.
const GAUGES: [(&str, &str, Unit, Read); 8] = [
    ("vm_memory", "Memory charged to a VM, page cache included", Unit::Bytes, |vm| some(vm.memory_bytes)),
    ("vm_pss", "Memory of a VM's processes, of shared pages their share", Unit::Bytes, |vm| {
        vm.pss_bytes.and_then(some)
    }),
    ("vm_workspace", "What a user's disk takes", Unit::Bytes, |vm| {
        (!vm.browser).then_some(vm.workspace_bytes).and_then(some)
    }),
    ("vm_paused", "1 while a VM stands still until the disk has room", Unit::Other(String::new()), |vm| {
        some(u64::from(vm.paused))
    }),
    ("vm_tasks", "Processes and threads of a VM", Unit::Other(String::new()), |vm| some(vm.tasks)),
    ("vm_balloon_target", "Memory that a VM is to give back", Unit::Bytes, |vm| {
        vm.balloon.and_then(|balloon| some(balloon.target_bytes))
    }),
    ("vm_balloon_actual", "Memory that a VM gave back", Unit::Bytes, |vm| {
        vm.balloon.and_then(|balloon| some(balloon.actual_bytes))
    }),
    ("vm_guest_available", "Memory that a VM's programs could still get", Unit::Bytes, |vm| {
        vm.balloon.and_then(|balloon| balloon.available_bytes).and_then(some)
    }),
];
/// Of what only grows.
const COUNTERS: [(&str, &str, Unit, Read); 9] = [
    ("vm_cpu", "CPU time of a VM", Unit::Seconds, |vm| {
        Some(std::time::Duration::from_micros(vm.cpu_us).as_secs_f64())
    }),
    ("vm_disk_read", "Read from disks by a VM", Unit::Bytes, |vm| some(vm.disk_read_bytes)),
    ("vm_disk_written", "Written to disks by a VM", Unit::Bytes, |vm| some(vm.disk_written_bytes)),
    ("vm_oom_kills", "Processes ended for want of memory", Unit::Other(String::new()), |vm| {
        some(vm.oom_kills)
    }),
    ("vm_network_sent", "Sent by a VM's connections", Unit::Bytes, |vm| some(vm.network.bytes_up)),
    ("vm_network_received", "Received by a VM's connections", Unit::Bytes, |vm| some(vm.network.bytes_down)),
    ("vm_connections", "Connections of a VM", Unit::Other(String::new()), |vm| some(vm.network.connections)),
    ("vm_connections_refused", "Connections of a VM that were refused", Unit::Other(String::new()), |vm| {
        some(vm.network.refused)
    }),
    ("vm_throttled", "Times a VM's devices had to wait for their limits", Unit::Other(String::new()), |vm| {
        vm.throttled.and_then(some)
    }),
];

#[expect(clippy::cast_precision_loss, reason = "OpenMetrics has floating point numbers only")]
fn float(value: u64) -> f64 {
    value as f64
}

fn some(value: u64) -> Option<f64> {
    Some(float(value))
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, help, unit, read) in &GAUGES {
            let mut family = encoder.encode_descriptor(name, help, named(unit), MetricType::Gauge)?;
            for (id, usage) in &self.0.vms {
                let Some(value) = read(usage) else { continue };
                ConstGauge::new(value).encode(family.encode_family(&labels(*id, usage))?)?;
            }
        }
        for (name, help, unit, read) in &COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, named(unit), MetricType::Counter)?;
            for (id, usage) in &self.0.vms {
                let Some(value) = read(usage) else { continue };
                ConstCounter::new(value).encode(family.encode_family(&labels(*id, usage))?)?;
            }
        }
        for (name, help, bytes) in [
            ("disk_free", "Free on the disk of the data directory", self.0.disk_free_bytes),
            ("disk_reserve", "With less free no VM starts", self.0.disk_reserve_bytes),
        ] {
            let Some(bytes) = bytes else { continue };
            let family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            ConstGauge::new(float(bytes)).encode(family)?;
        }
        let help = "Phases of VMs' starts; they add up to `total`";
        let mut family =
            encoder.encode_descriptor("vm_start", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for start in &self.0.starts {
            encode_start(start, &mut family)?;
        }
        Ok(())
    }
}

fn encode_start(
    start: &PhaseFigures,
    family: &mut prometheus_client::encoding::MetricEncoder<'_>,
) -> Result<(), fmt::Error> {
    let labels =
        [("kind", start.kind.as_str()), ("start", start.start.as_str()), ("phase", start.phase.as_str())];
    let count = start.buckets.iter().map(|(_, count)| count).sum();
    let buckets: Vec<(f64, u64)> =
        start.buckets.iter().map(|(bound, count)| (bound.unwrap_or(f64::INFINITY), *count)).collect();
    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(start.sum_s, count, &buckets, None)
}

fn labels(id: VmId, usage: &VmUsage) -> [(&'static str, String); 2] {
    let kind = if usage.browser { "browser" } else { "cli" };
    [("vm", id.to_string()), ("kind", kind.to_owned())]
}

fn named(unit: &Unit) -> Option<&Unit> {
    match unit {
        Unit::Other(_) => None,
        unit => Some(unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polydev_host::BalloonUsage;
    use prometheus_client::{encoding::text::encode, registry::Registry};

    #[test]
    fn figures_of_vms_and_starts_are_written_as_openmetrics() {
        let id = VmId::from_uuid(uuid::Uuid::from_u128(7));
        let usage = VmUsage {
            memory_bytes: 4096,
            pss_bytes: None,
            cpu_us: 1_500_000,
            workspace_bytes: 512,
            balloon: Some(BalloonUsage {
                target_bytes: 2 << 20,
                actual_bytes: 1 << 20,
                available_bytes: None,
            }),
            ..VmUsage::default()
        };
        let start = PhaseFigures {
            kind: "cli".to_owned(),
            start: "woken".to_owned(),
            phase: "total".to_owned(),
            sum_s: 2.5,
            buckets: vec![(Some(1.0), 1), (None, 2)],
        };
        let figures = HostFigures {
            vms: vec![(id, usage)],
            starts: vec![start],
            disk_free_bytes: Some(9),
            disk_reserve_bytes: Some(5),
        };
        let mut registry = Registry::with_prefix("polydev");
        registry.register_collector(Box::new(Shown(figures)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            format!("polydev_vm_memory_bytes{{vm=\"{id}\",kind=\"cli\"}} 4096"),
            format!("polydev_vm_workspace_bytes{{vm=\"{id}\",kind=\"cli\"}} 512"),
            format!("polydev_vm_balloon_target_bytes{{vm=\"{id}\",kind=\"cli\"}} 2097152"),
            format!("polydev_vm_balloon_actual_bytes{{vm=\"{id}\",kind=\"cli\"}} 1048576"),
            format!("polydev_vm_cpu_seconds_total{{vm=\"{id}\",kind=\"cli\"}} 1.5"),
            format!("polydev_vm_oom_kills_total{{vm=\"{id}\",kind=\"cli\"}} 0"),
            "polydev_disk_free_bytes 9".to_owned(),
            "polydev_disk_reserve_bytes 5".to_owned(),
            format!("polydev_vm_paused{{vm=\"{id}\",kind=\"cli\"}} 0"),
            "polydev_vm_start_seconds_bucket{le=\"1.0\",kind=\"cli\",start=\"woken\",phase=\"total\"} 1"
                .to_owned(),
            "polydev_vm_start_seconds_bucket{le=\"+Inf\",kind=\"cli\",start=\"woken\",phase=\"total\"} 3"
                .to_owned(),
            "polydev_vm_start_seconds_count{kind=\"cli\",start=\"woken\",phase=\"total\"} 3".to_owned(),
        ] {
            assert!(
                text.lines().any(|it| it.strip_suffix(".0").unwrap_or(it) == line),
                "no {line} in\n{text}"
            );
        }
        for name in ["vm_pss_bytes", "vm_guest_available_bytes", "vm_throttled_total"] {
            assert!(!text.contains(&format!("polydev_{name}{{")), "{name} was not measured: it is not zero");
        }
    }
}
