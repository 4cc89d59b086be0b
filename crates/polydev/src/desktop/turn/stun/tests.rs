use proptest::prelude::*;

use super::*;

/// RFC 5769 section 2.1: a request with short-term credentials.
const SAMPLE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e2074657374\
    20636c69656e74002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020\
    000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
/// RFC 5769 section 2.2: its answer over IPv4, for 192.0.2.1:32853.
const SAMPLE_ANSWER: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
const SAMPLE_PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn the_samples_of_rfc_5769_are_read() {
    let request = bytes(SAMPLE_REQUEST);
    let request = Message::parse(&request).unwrap();
    assert_eq!((request.class, request.method), (Class::Request, method::BINDING));
    assert_eq!(request.get(attribute::USERNAME), Some(&b"evtj:h6vY"[..]));
    assert!(request.fingerprinted && request.is_signed_with(SAMPLE_PASSWORD));
    assert!(!request.is_signed_with(b"another"));
    let answer = bytes(SAMPLE_ANSWER);
    let answer = Message::parse(&answer).unwrap();
    assert_eq!(answer.address(attribute::XOR_MAPPED_ADDRESS), Some("192.0.2.1:32853".parse().unwrap()));
    assert!(answer.is_signed_with(SAMPLE_PASSWORD));
}

#[test]
fn what_is_behind_the_signature_does_not_count() {
    let key = [7; 16];
    let signed = Builder::new(Class::Request, method::REFRESH, [1; 12]).finish(Some(&key), false);
    let mut message = signed.clone();
    message.extend([0x00, 0x0d, 0, 4, 0, 0, 0, 9]);
    let length = u16::try_from(message.len() - HEADER_LEN).unwrap();
    message[2..4].copy_from_slice(&length.to_be_bytes());
    let message = Message::parse(&message).unwrap();
    assert!(message.is_signed_with(&key));
    assert_eq!(message.get(attribute::LIFETIME), None);
}

#[test]
fn a_stream_is_cut_into_frames_with_their_padding() {
    assert_eq!(frame_len(&[0x40, 0, 0]), Ok(None));
    assert_eq!(frame_len(&[0x40, 0, 0, 5]), Ok(Some(12)));
    assert_eq!(frame_len(&[0, 1, 0, 8]), Ok(Some(28)));
    assert_eq!(frame_len(&[0, 1, 0, 6]), Err(Malformed::Header));
    assert_eq!(frame_len(&[0x80, 1, 0, 8]), Err(Malformed::Header));
    let frame = write_channel(0x4001, b"hello", true);
    assert_eq!((frame.len(), read_channel(&frame)), (12, Some((0x4001, &b"hello"[..]))));
}

proptest! {
    #[test]
    fn bytes_never_panic_and_are_read_as_they_were_written(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        value in prop::collection::vec(any::<u8>(), 0..80),
        kind in 0x8100_u16..0x8200, method in 0_u16..0x1000, transaction in any::<[u8; 12]>(),
        ip in any::<u128>(), port in any::<u16>(), v6 in any::<bool>(), flip in any::<prop::sample::Index>(),
    ) {
        let _ = (Message::parse(&noise), read_channel(&noise), frame_len(&noise));
        let ip = if v6 { IpAddr::V6(Ipv6Addr::from(ip)) } else { IpAddr::V4(Ipv4Addr::from(ip as u32)) };
        let address = SocketAddr::new(ip, port);
        let written = Builder::new(Class::Request, method, transaction).with(kind, &value)
            .with_address(attribute::XOR_PEER_ADDRESS, address).finish(Some(b"key"), true);
        let read = Message::parse(&written).unwrap();
        prop_assert_eq!((read.method, read.class, read.transaction), (method, Class::Request, transaction));
        prop_assert_eq!(read.get(kind), Some(&value[..]));
        prop_assert_eq!(read.address(attribute::XOR_PEER_ADDRESS), Some(address));
        prop_assert!(read.is_signed_with(b"key"));
        let mut broken = written.clone();
        let at = flip.index(broken.len());
        broken[at] ^= 0x10;
        let passed = Message::parse(&broken).is_ok_and(|message| message.fingerprinted);
        prop_assert!(!passed, "a flipped bit passed the fingerprint");
    }
}
