//! Which host a client means, from the first bytes it sends: the server name of a TLS ClientHello (RFC 8446, RFC 6066)
//! or the `Host` of an HTTP/1 request (RFC 9112). Pure, and never believes a length.

use polydev_core::dns::is_host_name;

use crate::net::constants::FIRST_WORDS_MAX;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const RECORD_HEADER: usize = 5;

/// What the first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FirstWords {
    /// The name.
    Name(String),
    /// There is none, or none that makes sense.
    None,
    /// Not yet known.
    More,
}

/// Judges what has come so far.
pub(super) fn read(bytes: &[u8]) -> FirstWords {
    let judged = match bytes.first() {
        None => FirstWords::More,
        Some(&HANDSHAKE) => client_hello(bytes),
        Some(first) if first.is_ascii_uppercase() => request(bytes),
        Some(_) => FirstWords::None,
    };
    match judged {
        FirstWords::More if bytes.len() >= FIRST_WORDS_MAX => FirstWords::None,
        judged => judged,
    }
}

/// A name in the form it is passed on, if it is a sound one.
pub(super) fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    is_host_name(&name).then_some(name)
}

fn client_hello(bytes: &[u8]) -> FirstWords {
    // The message may be spread over records; its bytes are put together first.
    let mut message = Vec::new();
    let mut rest = bytes;
    let mut whole = true;
    while !rest.is_empty() {
        let Some((header, behind)) = rest.split_at_checked(RECORD_HEADER) else {
            whole = false;
            break;
        };
        if header[0] != HANDSHAKE {
            break;
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let part = &behind[..length.min(behind.len())];
        message.extend_from_slice(part);
        whole = part.len() == length;
        rest = &behind[part.len()..];
    }
    let Some((&[kind, a, b, c], body)) = message.split_first_chunk::<4>() else { return FirstWords::More };
    if kind != CLIENT_HELLO {
        return FirstWords::None;
    }
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match body.get(..length) {
        Some(body) => server_name(body).map_or(FirstWords::None, FirstWords::Name),
        None if whole && length > FIRST_WORDS_MAX => FirstWords::None,
        None => FirstWords::More,
    }
}

fn server_name(body: &[u8]) -> Option<String> {
    let mut hello = Reader(body);
    // Version and random, session id, cipher suites, compression methods.
    hello.take(34)?;
    hello.short_block()?;
    hello.block()?;
    hello.short_block()?;
    let mut extensions = Reader(hello.block()?);
    loop {
        let (kind, value) = (extensions.number()?, extensions.block()?);
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = Reader(Reader(value).block()?);
        while let Some(&[kind]) = names.take(1) {
            let name = names.block()?;
            if kind == HOST_NAME {
                return host_name(std::str::from_utf8(name).ok()?);
            }
        }
        return None;
    }
}

fn request(bytes: &[u8]) -> FirstWords {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let Ok(head) = std::str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]) else { return FirstWords::None };
    let mut lines = head.split("\r\n");
    // Without the empty line at the end the last line may be half of one.
    let known = if end.is_some() { usize::MAX } else { head.matches("\r\n").count() };
    let first = lines.next().unwrap_or_default();
    if known > 0 && !first.contains(" HTTP/1.") {
        return FirstWords::None;
    }
    for line in lines.take(known.saturating_sub(1)) {
        let Some((name, value)) = line.split_once(':') else { return FirstWords::None };
        if name.eq_ignore_ascii_case("host") {
            let value = value.trim();
            let host = value.rsplit_once(':').map_or(value, |(host, _)| host);
            return host_name(host).map_or(FirstWords::None, FirstWords::Name);
        }
    }
    if end.is_some() { FirstWords::None } else { FirstWords::More }
}

/// Takes blocks off a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    /// With its length in two bytes before it.
    fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    /// With its length in one byte before it.
    fn short_block(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(bytes: &[u8]) -> Vec<u8> {
        let mut all = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        all.extend_from_slice(bytes);
        all
    }

    fn hello(name: Option<&str>, record_max: usize) -> Vec<u8> {
        let mut extensions = [0x00, 0x17, 0, 0].to_vec();
        if let Some(name) = name {
            let mut entry = vec![HOST_NAME];
            entry.extend(block(name.as_bytes()));
            extensions.extend([0, 0]);
            extensions.extend(block(&block(&entry)));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([4, 1, 2, 3, 4]);
        body.extend(block(&[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(block(&extensions));
        let mut message = vec![CLIENT_HELLO, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        let record = |part: &[u8]| [vec![HANDSHAKE, 3, 1], block(part)].concat();
        message.chunks(record_max).flat_map(record).collect()
    }

    #[test]
    fn the_server_name_is_found_however_the_hello_is_cut() {
        for record_max in [1, 7, 4096] {
            let bytes = hello(Some("Auth.OpenAI.com"), record_max);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), FirstWords::More, "{end} of {}", bytes.len());
            }
            assert_eq!(read(&bytes), FirstWords::Name("auth.openai.com".to_owned()));
        }
        assert_eq!(read(&hello(None, 4096)), FirstWords::None);
        for bad in ["a b", "", "é.test", "[::1]"] {
            assert_eq!(read(&hello(Some(bad), 4096)), FirstWords::None, "{bad}");
        }
    }

    #[test]
    fn the_host_of_a_request_is_found_once_its_line_is_whole() {
        let whole = b"GET / HTTP/1.1\r\nAccept: */*\r\nhOST:  Example.test:80\r\nX: y\r\n\r\nbody";
        let line_end = whole.windows(5).position(|it| it == b":80\r\n").unwrap() + 5;
        for end in 0..line_end {
            assert_eq!(read(&whole[..end]), FirstWords::More, "{end}");
        }
        assert_eq!(read(&whole[..line_end]), FirstWords::Name("example.test".to_owned()));
        assert_eq!(read(whole), FirstWords::Name("example.test".to_owned()));
        assert_eq!(read(b"GET / HTTP/1.0\r\n\r\n"), FirstWords::None);
        assert_eq!(read(b"GET / HTTP/1.0\r\nHost: [::1]:80\r\n\r\n"), FirstWords::None);
        let address = read(b"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n");
        assert_eq!(address, FirstWords::Name("10.0.0.1".to_owned()), "policy judges addresses, too");
    }

    #[test]
    fn what_is_neither_or_never_ends_has_no_name() {
        assert_eq!(read(b"\x16\x03\x01\x00\x01\x02"), FirstWords::More);
        assert_eq!(read(b"SSH-2.0-OpenSSH\r\n"), FirstWords::None);
        assert_eq!(read(b"\0\0\0"), FirstWords::None);
        let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; FIRST_WORDS_MAX]].concat();
        assert_eq!(read(&endless), FirstWords::None);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics_and_full_buffers_are_always_judged(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..3, pad in any::<bool>(),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = [HANDSHAKE, b'G', *first][usize::from(kind)];
            }
            if pad {
                bytes.resize(FIRST_WORDS_MAX, b'x');
                prop_assert_ne!(read(&bytes), FirstWords::More);
            }
            if let FirstWords::Name(name) = read(&bytes) {
                prop_assert!(is_host_name(&name));
            }
        }

        #[test]
        fn a_damaged_hello_never_panics(at in 0usize..120, value in any::<u8>()) {
            let mut bytes = hello(Some("a.test"), 4096);
            let length = bytes.len();
            bytes[at % length] = value;
            let _ = read(&bytes);
        }
    }
}
