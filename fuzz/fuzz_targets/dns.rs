//! Name questions of guest programs: the answer is never much longer than the question and carries its id.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use polydev_core::dns;

fuzz_target!(|packet: &[u8]| {
    let reply = dns::answer(packet, |name| {
        assert!(dns::is_host_name(name), "only sound names get an address");
        Some(Ipv4Addr::LOCALHOST)
    });
    if let Some(reply) = reply {
        assert!(reply.len() <= packet.len() + 16);
        assert_eq!(reply[..2], packet[..2]);
    }
});
