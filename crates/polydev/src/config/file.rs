//! The TOML file: which table and key is which setting. Keys that are not listed are faults.

use super::source::Settings;

/// `(table, key, setting)`; the environment variable is `POLYDEV_` and the setting in upper case.
const KEYS: &[(&str, &str, &str)] = &[
    ("server", "listen", "listen"),
    ("server", "link_ttl_s", "link_ttl_s"),
    ("server", "cookie_ttl_s", "cookie_ttl_s"),
    ("paths", "data_dir", "data_dir"),
    ("paths", "run_dir", "run_dir"),
    ("paths", "image_dir", "image_dir"),
    ("paths", "agent", "agent_path"),
    ("paths", "desktop", "desktop_path"),
    ("paths", "providers", "providers_dir"),
    ("paths", "master_key_file", "master_key_file"),
    ("paths", "passphrase_file", "passphrase_file"),
    ("host", "socket", "host_socket"),
    ("host", "user", "host_user"),
    ("host", "data_dir", "host_data_dir"),
    ("vms", "driver", "driver"),
    ("vms", "slots", "slots"),
    ("vms", "network", "network"),
    ("vms", "firecracker", "firecracker_path"),
    ("vms", "jailer_path", "jailer_path"),
    ("vms", "jailer", "jailer"),
    ("vms", "jailer_first_uid", "jailer_first_uid"),
    ("vms", "disk_mib_per_s", "vm_disk_mib_per_s"),
    ("vms", "disk_ops_per_s", "vm_disk_ops_per_s"),
    ("vms", "network_mib_per_s", "vm_network_mib_per_s"),
    ("vms", "overlay_dir", "overlay_dir"),
    ("vms", "egress_routes", "egress_routes"),
    ("vms", "egress", "egress"),
    ("vms", "cli_memory_mib", "cli_vm_memory_mib"),
    ("vms", "cli_vcpus", "cli_vm_vcpus"),
    ("vms", "browser_memory_mib", "browser_vm_memory_mib"),
    ("vms", "browser_vcpus", "browser_vm_vcpus"),
    ("vms", "desktop_width", "desktop_width"),
    ("vms", "desktop_height", "desktop_height"),
    ("vms", "log_bytes_max", "log_bytes_max"),
    ("vms", "log_vms_max", "log_vms_max"),
    ("vms", "warm_browser_vms_low", "warm_browser_vms_low"),
    ("vms", "warm_browser_vms_high", "warm_browser_vms_high"),
    ("vms", "hibernate_after_s", "hibernate_after_s"),
    ("vms", "memory_reserve_mib", "memory_reserve_mib"),
    ("vms", "browser_vm_expected_mib", "browser_vm_expected_mib"),
    ("vms", "cli_vm_expected_mib", "cli_vm_expected_mib"),
    ("vms", "vcpus_per_core", "vcpus_per_core"),
    ("vms", "keep_failed_browser_vms", "keep_failed_browser_vms"),
    ("egress", "strict", "egress_strict"),
    ("egress", "hosts", "egress_hosts"),
    ("egress", "proxy_listen", "proxy_listen"),
    ("egress", "proxy_ports", "proxy_ports"),
    ("egress", "proxy_port_rest_s", "proxy_port_rest_s"),
    ("vms", "cpu_percent", "vm_cpu_percent"),
    ("vms", "cpu_weight", "vm_cpu_weight"),
    ("vms", "pids_max", "vm_pids_max"),
    ("vms", "io_mib_per_second", "vm_io_mib_per_second"),
    ("vms", "egress_connections", "vm_egress_connections"),
    ("vms", "egress_connections_per_second", "vm_egress_connections_per_second"),
    ("vms", "egress_mib_per_second", "vm_egress_mib_per_second"),
    ("vms", "vmm_overhead_mib", "vmm_overhead_mib"),
    ("vms", "user_disk_mib", "user_disk_mib"),
    ("vms", "disk_reserve_mib", "disk_reserve_mib"),
    ("desktop", "listen", "desktop_listen"),
    ("desktop", "public_addresses", "desktop_public_addresses"),
    ("desktop", "clipboard", "desktop_clipboard"),
    ("desktop", "viewers_max", "desktop_viewers_max"),
    ("desktop", "max_fps", "desktop_max_fps"),
    ("desktop", "max_kbps", "desktop_max_kbps"),
    ("limits", "requests", "rate_limit_requests"),
    ("limits", "window_ms", "rate_limit_window_ms"),
    ("limits", "polling_requests", "rate_limit_polling_requests"),
    ("limits", "polling_window_ms", "rate_limit_polling_window_ms"),
    ("limits", "queue", "queue_max"),
    ("limits", "queue_wait_s", "queue_wait_s"),
    ("limits", "websockets_per_vm", "websockets_per_vm"),
    ("turn", "listen", "turn_listen"),
    ("turn", "public_address", "turn_public_address"),
    ("turn", "secret_file", "turn_secret_file"),
    ("turn", "realm", "turn_realm"),
    ("turn", "ttl_s", "turn_ttl_s"),
    ("turn", "certificate_file", "turn_certificate_file"),
    ("turn", "key_file", "turn_key_file"),
    ("turn", "tls_listen", "turn_tls_listen"),
    ("turn", "tls_name", "turn_tls_name"),
    ("turn", "relay_to", "turn_relay_to"),
    ("turn", "allocations_max", "turn_allocations_max"),
    ("turn", "allocations_per_user_max", "turn_allocations_per_user_max"),
    ("turn", "connections_max", "turn_connections_max"),
    ("turn", "kbps_max", "turn_kbps_max"),
    ("turn", "datagrams_per_s", "turn_datagrams_per_s"),
    ("turn", "ice_servers_file", "turn_ice_servers_file"),
];

/// The setting of that name, when there is one.
pub(super) fn setting_named(name: &str) -> Option<&'static str> {
    KEYS.iter().map(|(_, _, setting)| *setting).find(|setting| *setting == name)
}

/// Hands every key of a file to `settings`.
pub(super) fn read(text: &str, origin: &str, settings: &mut Settings) {
    let tables: toml::Table = match text.parse() {
        Ok(tables) => tables,
        Err(error) => {
            return settings.fault(origin.to_owned(), error.to_string().trim().replace('\n', " | "));
        }
    };
    for (table, content) in &tables {
        let toml::Value::Table(content) = content else {
            settings.fault(origin.to_owned(), format!("`{table}` is no table of the configuration"));
            continue;
        };
        for (key, value) in content {
            let place = format!("{origin} [{table}] {key}");
            let known = KEYS.iter().find(|(t, k, _)| t == table && k == key);
            match (known, scalar(value)) {
                (Some((_, _, setting)), Some(text)) => settings.give(setting, place, text),
                (Some(_), None) => settings.fault(place, "must be a text, a number or true/false".to_owned()),
                (None, _) => settings.fault(place, "is no setting of polydev".to_owned()),
            }
        }
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(fact) => Some(fact.to_string()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
            None
        }
    }
}
