//! Load order of kernel modules.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::collections::{BTreeMap, BTreeSet};

use polydev_host::image::{ModuleError, load_order};
use proptest::prelude::*;

fn depends(rows: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    rows.iter()
        .map(|(name, needs)| ((*name).to_owned(), needs.iter().map(|need| (*need).to_owned()).collect()))
        .collect()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn dependencies_come_first_and_once() {
    let table = depends(&[
        ("virtio_net", &["net_failover", "virtio"]),
        ("net_failover", &["failover"]),
        ("failover", &[]),
        ("virtio", &["virtio_ring"]),
        ("virtio_ring", &[]),
        ("virtio_blk", &["virtio"]),
    ]);
    let order = load_order(&names(&["virtio_blk", "virtio_net"]), &table, &BTreeSet::new()).unwrap();
    assert_eq!(order, ["virtio_ring", "virtio", "virtio_blk", "failover", "net_failover", "virtio_net"]);
}

#[test]
fn what_is_built_in_is_left_out() {
    let table = depends(&[("erofs", &["libcrc32c"])]);
    assert_eq!(
        load_order(&names(&["erofs"]), &table, &BTreeSet::from(["libcrc32c".to_owned()])).unwrap(),
        ["erofs"]
    );
    assert!(
        load_order(&names(&["erofs"]), &table, &BTreeSet::from(["libcrc32c".to_owned(), "erofs".to_owned()]))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn dashes_and_underscores_are_the_same() {
    assert_eq!(
        load_order(&names(&["virtio-rng"]), &depends(&[("virtio_rng", &[])]), &BTreeSet::new()).unwrap(),
        ["virtio_rng"]
    );
}

#[test]
fn a_missing_module_is_named_with_who_needs_it() {
    let error =
        load_order(&names(&["erofs"]), &depends(&[("erofs", &["libcrc32c"])]), &BTreeSet::new()).unwrap_err();
    assert_eq!(error, ModuleError::Missing { name: "libcrc32c".to_owned(), needed_by: "erofs".to_owned() });
}

#[test]
fn a_cycle_is_an_error() {
    let error =
        load_order(&names(&["a"]), &depends(&[("a", &["b"]), ("b", &["a"])]), &BTreeSet::new()).unwrap_err();
    assert_eq!(error, ModuleError::Cycle("a".to_owned()));
}

proptest! {
    #[test]
    fn every_module_follows_all_it_needs(edges in proptest::collection::vec((0u8..20, 0u8..20), 0..60), wanted in proptest::collection::vec(0u8..20, 1..6)) {
        let name = |n: u8| format!("m{n}");
        let mut table: BTreeMap<String, Vec<String>> = (0..20).map(|n| (name(n), Vec::new())).collect();
        for (a, b) in edges {
            // Only from higher to lower numbers, so there is no cycle.
            if a > b { table.get_mut(&name(a)).unwrap().push(name(b)); }
        }
        let order = load_order(&wanted.iter().map(|n| name(*n)).collect::<Vec<_>>(), &table, &BTreeSet::new()).unwrap();
        for (at, module) in order.iter().enumerate() {
            for need in &table[module] {
                prop_assert!(order[..at].contains(need), "{module} before {need} in {order:?}");
            }
            prop_assert!(!order[..at].contains(module));
        }
        for n in wanted { prop_assert!(order.contains(&name(n))); }
    }
}
