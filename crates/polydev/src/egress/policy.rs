//! Who may go where, and by which way: a pure decision on facts that others have looked up.

use std::net::SocketAddr;

use crate::config::Strict;

/// Ports of the web.
const WEB_PORTS: [u16; 2] = [80, 443];

/// Who wants out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A browser VM, for one sign-in.
    BrowserVm,
    /// A user's workspace.
    CliVm,
    /// Whoever holds the token of a user's proxy port.
    ProxyPort,
}

/// What was decided about the user's traffic, or about everybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Everybody's: nothing but what a route names.
    RoutesOnly,
    /// The user's own: nothing at all.
    Deny,
    /// Public addresses, and what a route names.
    Direct,
    /// The user's upstream proxy, and nothing else.
    Upstream,
}

/// Facts about one connection that is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) asker: Asker,
    pub(super) way: Way,
    pub(super) strict: Strict,
    pub(super) port: u16,
    /// The host is inside by its very spelling.
    pub(super) inside: bool,
    /// The lists that apply to the asker have this host and port.
    pub(super) listed: bool,
    /// A service of this machine plays the host.
    pub(super) route: Option<SocketAddr>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Connect to that service of this machine.
    Routed(SocketAddr),
    /// Connect to the host if it is public.
    Direct,
    /// Have the upstream proxy connect.
    Upstream,
    /// Do not.
    Refused(Reason),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    /// By the user's policy, or everybody's.
    #[error("nothing may leave")]
    Denied,
    /// The host belongs to a machine or its local network.
    #[error("it is no public host")]
    Inside,
    /// Only listed hosts are reached.
    #[error("it is not on the list of the tool")]
    NotListed,
    /// A browser VM has no business there.
    #[error("a browser VM reaches the ports of the web only")]
    Port,
}

/// Decides.
pub(super) fn decide(case: &Case) -> Verdict {
    let refused = Verdict::Refused;
    let lists_rule = match (case.strict, case.asker) {
        // A port is for what its user does elsewhere; no tool's list fits that.
        (_, Asker::ProxyPort) | (Strict::Off, _) | (Strict::SignIn, Asker::CliVm) => false,
        (Strict::SignIn, Asker::BrowserVm) | (Strict::All, Asker::BrowserVm | Asker::CliVm) => true,
    };
    let web = case.asker != Asker::BrowserVm || case.listed || WEB_PORTS.contains(&case.port);
    match (case.way, case.route) {
        (Way::Deny, _) => refused(Reason::Denied),
        _ if lists_rule && !case.listed => refused(Reason::NotListed),
        (Way::RoutesOnly | Way::Direct, Some(to)) => Verdict::Routed(to),
        (Way::RoutesOnly, None) => refused(Reason::Denied),
        (Way::Direct | Way::Upstream, _) if case.inside => refused(Reason::Inside),
        (Way::Direct | Way::Upstream, _) if !web => refused(Reason::Port),
        (Way::Direct, None) => Verdict::Direct,
        (Way::Upstream, _) => Verdict::Upstream,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cases() -> impl Strategy<Value = Case> {
        let asker = prop_oneof![Just(Asker::BrowserVm), Just(Asker::CliVm), Just(Asker::ProxyPort)];
        let way = prop_oneof![Just(Way::RoutesOnly), Just(Way::Deny), Just(Way::Direct), Just(Way::Upstream)];
        let strict = prop_oneof![Just(Strict::Off), Just(Strict::SignIn), Just(Strict::All)];
        let port = prop_oneof![Just(80), Just(443), 1..=u16::MAX];
        let route = prop_oneof![Just(None), Just(Some("127.0.0.1:1".parse().unwrap()))];
        (asker, way, strict, port, any::<bool>(), any::<bool>(), route).prop_map(
            |(asker, way, strict, port, inside, listed, route)| Case {
                asker,
                way,
                strict,
                port,
                inside,
                listed,
                route,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn a_way_never_turns_into_another_one(case in cases()) {
            match decide(&case) {
                Verdict::Routed(to) => {
                    prop_assert_eq!(Some(to), case.route);
                    prop_assert!(matches!(case.way, Way::RoutesOnly | Way::Direct));
                }
                Verdict::Direct => prop_assert_eq!((case.way, case.route), (Way::Direct, None)),
                Verdict::Upstream => prop_assert_eq!(case.way, Way::Upstream),
                Verdict::Refused(_) => {}
            }
        }

        #[test]
        fn only_a_route_leads_inside(case in cases()) {
            let verdict = decide(&Case { inside: true, ..case });
            prop_assert!(matches!(verdict, Verdict::Refused(_) | Verdict::Routed(_)));
        }

        #[test]
        fn where_lists_rule_nothing_else_is_reached_and_nothing_else_is_refused_for_it(case in cases()) {
            let refused = decide(&Case { listed: false, ..case }) == Verdict::Refused(Reason::NotListed);
            let rules = case.way != Way::Deny
                && match case.asker {
                    Asker::BrowserVm => case.strict != Strict::Off,
                    Asker::CliVm => case.strict == Strict::All,
                    Asker::ProxyPort => false,
                };
            prop_assert_eq!(refused, rules);
            prop_assert_ne!(decide(&Case { listed: true, ..case }), Verdict::Refused(Reason::NotListed));
        }

        #[test]
        fn a_browser_vm_reaches_other_ports_only_of_listed_hosts(case in cases()) {
            let case = Case { asker: Asker::BrowserVm, route: None, ..case };
            if matches!(decide(&case), Verdict::Direct | Verdict::Upstream) {
                prop_assert!(case.listed || case.port == 80 || case.port == 443);
            }
        }

        #[test]
        fn a_denied_user_reaches_nothing(case in cases()) {
            prop_assert_eq!(decide(&Case { way: Way::Deny, ..case }), Verdict::Refused(Reason::Denied));
        }
    }

    #[test]
    fn a_public_site_is_reached_by_the_way_that_was_chosen() {
        for asker in [Asker::BrowserVm, Asker::CliVm, Asker::ProxyPort] {
            let case = Case {
                asker,
                way: Way::Direct,
                strict: Strict::Off,
                port: 443,
                inside: false,
                listed: false,
                route: None,
            };
            assert_eq!(decide(&case), Verdict::Direct);
            assert_eq!(decide(&Case { way: Way::Upstream, ..case }), Verdict::Upstream);
            assert_eq!(decide(&Case { way: Way::RoutesOnly, ..case }), Verdict::Refused(Reason::Denied));
        }
    }
}
