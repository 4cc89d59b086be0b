//! What vendors' programs print: the text does not depend on how it arrives and stays within its size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev_agent::{
    output::{Lines, Output, tail},
    tcp_table,
};

fuzz_target!(|bytes: &[u8]| {
    let mut whole = Output::default();
    let links = whole.push(bytes);
    let mut pieces = Output::default();
    let cut: Vec<String> = bytes.chunks(3).flat_map(|piece| pieces.push(piece)).collect();
    assert_eq!((whole.text(), links), (pieces.text(), cut));
    let _ = tail(whole.text(), &[]);
    let mut lines = Lines::default();
    lines.push(bytes);
    let _ = tcp_table::shows_visitor(whole.text(), 1455);
});
