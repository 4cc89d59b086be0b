//! Reads `/proc/net/tcp` and `/proc/net/tcp6`: whether somebody is connected to a loopback port, without touching it.
//!
//! A probe connection would not do: one vendor's listener gives the sign-in up when it gets a request it does not expect.
//!
//! For these tables the kernel walks all connections of the machine, which takes milliseconds: whether it can be worth
//! it, a counter tells that costs nothing.

/// States (linux/include/net/tcp_states.h) in which the connection was established once.
const ONCE_ESTABLISHED: [u8; 6] = [0x01, 0x04, 0x05, 0x06, 0x08, 0x09];

/// Whether the table shows a connection towards `port` on loopback, from either end: the side that closed first is the
/// one that lingers.
pub fn shows_visitor(table: &str, port: u16) -> bool {
    table.lines().skip(1).filter_map(row).any(|row| {
        let at_port = |(is_loopback, p): (bool, u16)| is_loopback && p == port;
        ONCE_ESTABLISHED.contains(&row.state) && (at_port(row.local) || at_port(row.remote))
    })
}

/// Whether a listener has accepted a connection since the last look.
#[derive(Debug, Default)]
pub struct Visits {
    accepted: Option<u64>,
    again: bool,
}

impl Visits {
    /// Judges by the counters of `/proc/net/snmp`; true at first, and always if they cannot be read.
    pub fn may_be_new(&mut self, counters: &str) -> bool {
        let accepted = passive_opens(counters);
        // A connection is counted a moment before it shows: the look after a change is not the last one.
        let changed = accepted.is_none() || accepted != self.accepted;
        let again = std::mem::replace(&mut self.again, changed);
        self.accepted = accepted;
        changed || again
    }
}

/// `Tcp: PassiveOpens` (RFC 4022) of this network namespace.
fn passive_opens(counters: &str) -> Option<u64> {
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let at = lines.next()?.split_ascii_whitespace().position(|name| name == "PassiveOpens")?;
    lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// One line: whether each end is a loopback address, its port, and the state.
struct Row {
    local: (bool, u16),
    remote: (bool, u16),
    state: u8,
}

fn row(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let end = |field: &str| {
        let (address, port) = field.split_once(':')?;
        Some((is_loopback(address), u16::from_str_radix(port, 16).ok()?))
    };
    let (local, remote) = (end(fields.next()?)?, end(fields.next()?)?);
    Some(Row { local, remote, state: u8::from_str_radix(fields.next()?, 16).ok()? })
}

/// Addresses are printed as 32-bit words in host order (little endian on every platform that polydev runs on).
fn is_loopback(address: &str) -> bool {
    match address.len() {
        8 => address.ends_with("7F"),
        32 => {
            address == "00000000000000000000000001000000"
                || (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";

    #[test]
    fn an_established_connection_to_the_port_is_seen_and_a_listener_is_not() {
        let listener = format!(
            "{HEAD}   0: 0100007F:05AF 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000\n"
        );
        assert!(!shows_visitor(&listener, 1455));
        let visitor = format!(
            "{listener}   1: 0100007F:A1B2 0100007F:05AF 01 00000000:00000000 00:00000000 00000000  1001\n"
        );
        assert!(shows_visitor(&visitor, 1455));
        assert!(!shows_visitor(&visitor, 1457));
        let elsewhere = format!("{HEAD}   1: 0200000A:A1B2 0100000A:05AF 01 0:0 0:0 0 1001\n");
        assert!(!shows_visitor(&elsewhere, 1455));
        let connecting = format!("{HEAD}   1: 0100007F:A1B2 0100007F:05AF 02 0:0 0:0 0 1001\n");
        assert!(!shows_visitor(&connecting, 1455));
    }

    #[test]
    fn a_connection_that_the_listener_closed_lingers_at_its_end_and_is_seen_there() {
        let closed = format!("{HEAD}   0: 0100007F:05AF 0100007F:A1B2 06 0:0 0:0 0 0\n");
        assert!(shows_visitor(&closed, 1455));
        assert!(!shows_visitor(&closed, 1457));
    }

    #[test]
    fn both_forms_of_loopback_in_the_ipv6_table_count() {
        for remote in ["00000000000000000000000001000000", "0000000000000000FFFF00000100007F"] {
            let table =
                format!("{HEAD}   0: 00000000000000000000000001000000:A1B2 {remote}:2310 06 0:0 0:0 0 0\n");
            assert!(shows_visitor(&table, 8976), "{remote}");
        }
    }

    #[test]
    fn the_tables_are_worth_a_look_at_first_and_twice_after_a_connection_was_accepted() {
        let counters = |accepted: u32| {
            format!(
                "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm ActiveOpens PassiveOpens InSegs\nTcp: 1 7 {accepted} 9\n"
            )
        };
        let mut visits = Visits::default();
        let looks: Vec<bool> =
            [3, 3, 3, 4, 4, 4, 5, 6, 6, 6].into_iter().map(|n| visits.may_be_new(&counters(n))).collect();
        assert_eq!(looks, [true, true, false, true, true, false, true, true, true, false]);
        for unreadable in
            ["", "Tcp: PassiveOpens\n", "Tcp: ActiveOpens\nTcp: 1\n", "Tcp: PassiveOpens\nTcp: x\n"]
        {
            assert!(visits.may_be_new(unreadable) && visits.may_be_new(unreadable), "{unreadable}");
        }
    }

    #[test]
    fn an_accepted_connection_of_this_machine_is_counted() {
        let accepted = || passive_opens(&std::fs::read_to_string("/proc/net/snmp").unwrap()).unwrap();
        let before = accepted();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _visitor = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept().unwrap();
        assert!(accepted() > before);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,300}") {
            let _ = shows_visitor(&format!("{HEAD}{text}"), 80);
        }
    }
}
