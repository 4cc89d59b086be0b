//! Figures of egress: per VM and per proxy port.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Egress;

/// How often a VM was let out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressCounts {
    /// Connections made.
    pub allowed: u64,
    /// Connections that policy forbade.
    pub refused: u64,
    /// Connections that were allowed and could not be made.
    pub unreachable: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmOutcome {
    vm: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortOutcome {
    port: u32,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PortBytes {
    port: u32,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Port {
    port: u32,
}

impl Egress {
    /// Adds the figures of this moment. Whoever is gone has none.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let vms: Family<VmOutcome, Counter> = Family::default();
        for (vm, remembered) in self.gate.lock().iter() {
            let EgressCounts { allowed, refused, unreachable } = remembered.counts;
            for (outcome, count) in [("allowed", allowed), ("refused", refused), ("unreachable", unreachable)]
            {
                vms.get_or_create(&VmOutcome { vm: vm.to_string(), outcome }).inc_by(count);
            }
        }
        let connections: Family<PortOutcome, Counter> = Family::default();
        let bytes: Family<PortBytes, Counter> = Family::default();
        let active: Family<Port, Gauge> = Family::default();
        for seen in self.ports.all_seen() {
            let port = u32::from(seen.port);
            for (outcome, count) in [("connected", seen.connected), ("refused", seen.refused)] {
                connections.get_or_create(&PortOutcome { port, outcome }).inc_by(count);
            }
            for (direction, count) in [("out", seen.bytes_out), ("in", seen.bytes_in)] {
                bytes.get_or_create(&PortBytes { port, direction }).inc_by(count);
            }
            active.get_or_create(&Port { port }).set(i64::try_from(seen.active).unwrap_or(i64::MAX));
        }
        registry.register("egress_connections", "Connections that a VM asked for", vms);
        registry.register(
            "proxy_port_connections",
            "Connections asked for at a user's proxy port",
            connections,
        );
        registry.register("proxy_port_bytes", "Bytes carried by a user's proxy port", bytes);
        registry.register("proxy_port_active", "Connections that a user's proxy port carries now", active);
    }
}
