//! Requests at a user's proxy port: what is asked for, and the head as it goes on.

use axum::http::{Method, Uri};
use zeroize::Zeroizing;

use super::{
    target::Target,
    upstream::{Scheme, Upstream},
};

const HEADERS_MAX: usize = 100;
const HTTP_PORT: u16 = 80;
/// Fields between two neighbours (RFC 9110 section 7.6.1), the login at this port among them. With `Max-Forwards` a
/// client would have an upstream answer in the server's place.
const NEIGHBOURS: [&str; 9] = [
    "max-forwards",
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "upgrade",
    "proxy-authorization",
    "proxy-authenticate",
    "host",
];

/// What says where a body ends is for everybody: one that `Connection` named would be read in two ways.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// A request.
pub(super) struct Asked {
    /// `Proxy-Authorization` as it came.
    pub(super) login: Option<Zeroizing<String>>,
    pub(super) target: Target,
    pub(super) port: u16,
    pub(super) what: What,
}

/// What is to be done at the target.
pub(super) enum What {
    /// Bytes are carried.
    Tunnel,
    /// One plain request.
    Forward(Forward),
}

/// A plain request without the fields that are nobody else's business.
pub(super) struct Forward {
    method: String,
    /// As the client wrote it, without credentials.
    host: String,
    path: String,
    fields: Zeroizing<Vec<u8>>,
    pub(super) body_bytes: u64,
}

/// Why a request is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("this is no request to an HTTP proxy")]
    Form,
    #[error("the host is not one")]
    Host,
    #[error("a plain request needs a body of known length")]
    Length,
    /// It asks whoever gets it to repeat all of it, an upstream's login included (RFC 9110 section 9.3.8).
    #[error("`TRACE` is not passed on")]
    Trace,
}

impl Asked {
    pub(super) fn read(head: &[u8]) -> Result<Self, BadRequest> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        request.parse(head).map_err(|_| BadRequest::Form)?;
        let (method, place) = request.method.zip(request.path).ok_or(BadRequest::Form)?;
        let login = one(request.headers, "proxy-authorization")?;
        let login = login.map(|text| Zeroizing::new(text.to_owned()));
        let uri: Uri = place.parse().map_err(|_| BadRequest::Form)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or(BadRequest::Form)?;
        let target = Target::parse(authority.host()).ok_or(BadRequest::Host)?;
        if method == Method::CONNECT.as_str() {
            let port = authority.port_u16().filter(|port| *port != 0 && uri.path_and_query().is_none());
            return Ok(Self { login, target, port: port.ok_or(BadRequest::Form)?, what: What::Tunnel });
        }
        if uri.scheme_str() != Some("http") {
            return Err(BadRequest::Form);
        }
        if method.eq_ignore_ascii_case(Method::TRACE.as_str()) {
            return Err(BadRequest::Trace);
        }
        let port = authority.port_u16().unwrap_or(HTTP_PORT);
        if port == 0 {
            return Err(BadRequest::Host);
        }
        if one(request.headers, "transfer-encoding")?.is_some() {
            return Err(BadRequest::Length);
        }
        let body_bytes = match one(request.headers, "content-length")? {
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map_err(|_| BadRequest::Length)?
            }
            Some(_) => return Err(BadRequest::Length),
            None => 0,
        };
        let forward = Forward {
            method: method.to_owned(),
            host: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            fields: passed_on(request.headers),
            body_bytes,
        };
        Ok(Self { login, target, port, what: What::Forward(forward) })
    }
}

impl Forward {
    /// The head as the server gets it, or as an upstream of this kind gets it, with its login.
    pub(super) fn head(&self, upstream: Option<&Upstream>) -> Zeroizing<Vec<u8>> {
        let http_proxy = upstream.filter(|upstream| upstream.scheme == Scheme::Http);
        let login = http_proxy.and_then(|upstream| upstream.login.as_ref()).map(|login| login.basic());
        let mut out = Zeroizing::new(Vec::with_capacity(self.fields.len() + 4096));
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        put(&[&self.method, " "]);
        if http_proxy.is_some() {
            put(&["http://", &self.host]);
        }
        put(&[&self.path, " HTTP/1.1\r\nHost: ", &self.host, "\r\nConnection: close\r\n"]);
        if let Some(login) = &login {
            put(&["Proxy-Authorization: ", login, "\r\n"]);
        }
        out.extend_from_slice(&self.fields);
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// The head of an answer as the client gets it: it is the only one on its connection. `None` when it is no head.
pub(super) fn answered(head: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut fields);
    answer.parse(head).ok()?;
    let line = head.iter().position(|byte| *byte == b'\n')? + 1;
    let mut out = Zeroizing::new(Vec::with_capacity(head.len() + 32));
    out.extend_from_slice(&head[..line]);
    out.extend_from_slice(b"Connection: close\r\n");
    out.extend_from_slice(&passed_on(answer.headers));
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// The value of a field that may be there once.
fn one<'a>(fields: &[httparse::Header<'a>], name: &str) -> Result<Option<&'a str>, BadRequest> {
    let mut values = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let Some(field) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadRequest::Form);
    }
    std::str::from_utf8(field.value).map(Some).map_err(|_| BadRequest::Form)
}

/// Fields for the other side: neither those between neighbours nor those that `Connection` names.
fn passed_on(fields: &[httparse::Header<'_>]) -> Zeroizing<Vec<u8>> {
    let connection = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
    let named: Vec<&str> = connection
        .filter_map(|field| std::str::from_utf8(field.value).ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let neighbours =
        |name: &str| NEIGHBOURS.iter().chain(&named).any(|other| name.eq_ignore_ascii_case(other));
    let room = fields.iter().map(|field| field.name.len() + field.value.len() + 4).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(room));
    let frames = |name: &str| FRAMING.iter().any(|other| name.eq_ignore_ascii_case(other));
    for field in fields.iter().filter(|field| frames(field.name) || !neighbours(field.name)) {
        for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(head: &str, upstream: Option<&str>) -> String {
        let What::Forward(forward) = Asked::read(head.as_bytes()).unwrap().what else { panic!("a tunnel") };
        let upstream = upstream.map(|text| Upstream::parse(text).unwrap());
        String::from_utf8(forward.head(upstream.as_ref()).to_vec()).unwrap()
    }

    #[test]
    fn a_tunnel_names_host_and_port_and_nothing_else() {
        let asked = Asked::read(
            b"CONNECT a.test:443 HTTP/1.1\r\nHost: b.test\r\nProxy-Authorization: Basic eA==\r\n\r\n",
        )
        .unwrap();
        assert_eq!(asked.target.authority(asked.port), "a.test:443");
        assert_eq!(asked.login.unwrap().as_str(), "Basic eA==");
        for bad in [
            "CONNECT a.test",
            "CONNECT a.test:0",
            "CONNECT x@a.test:1",
            "CONNECT http://a.test:1/",
            "GET /",
            "GET https://a.test/",
            "GET *",
        ] {
            let head = format!("{bad} HTTP/1.1\r\n\r\n");
            assert!(Asked::read(head.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plain_request_goes_on_without_what_is_between_neighbours() {
        let head = "POST http://a.test:8080/x?y=1 HTTP/1.1\r\nHost: other.test\r\nProxy-Authorization: Basic FAKE\r\n\
                    Connection: keep-alive, X-Own\r\nX-Own: 1\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n";
        let sent = forwarded(head, None);
        assert_eq!(
            sent,
            "POST /x?y=1 HTTP/1.1\r\nHost: a.test:8080\r\nConnection: close\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n"
        );
        let sent = forwarded(head, Some("http://u:p@proxy.test:1"));
        assert!(sent.starts_with("POST http://a.test:8080/x?y=1 HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains("Proxy-Authorization: Basic dTpw\r\n") && !sent.contains("FAKE"), "{sent}");
        let sent = forwarded(head, Some("socks5://u:p@proxy.test:1"));
        assert!(sent.starts_with("POST /x?y=1 ") && !sent.contains("Authorization"), "{sent}");
    }

    #[test]
    fn nobody_is_asked_to_repeat_a_request_or_to_answer_in_the_servers_place() {
        let head = "TRACE http://a.test/ HTTP/1.1\r\nMax-Forwards: 0\r\n\r\n";
        assert_eq!(Asked::read(head.as_bytes()).err(), Some(BadRequest::Trace));
        let sent = forwarded("OPTIONS http://a.test/ HTTP/1.1\r\nMax-Forwards: 0\r\nA: b\r\n\r\n", None);
        assert_eq!(sent, "OPTIONS / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nA: b\r\n\r\n");
    }

    #[test]
    fn an_answer_says_that_it_is_the_last() {
        let head = b"HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n";
        let told = answered(head).unwrap();
        assert_eq!(*told, b"HTTP/1.1 200 Fine\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
        assert!(answered(b"SSH-2.0-FAKE\r\n\r\n").is_none());
    }

    #[test]
    fn a_body_has_one_length() {
        let refused = |fields: &str| {
            let head = format!("POST http://a.test/ HTTP/1.1\r\n{fields}\r\n\r\n");
            Asked::read(head.as_bytes()).err()
        };
        assert_eq!(refused("Transfer-Encoding: chunked"), Some(BadRequest::Length));
        assert_eq!(refused("Content-Length: +3"), Some(BadRequest::Length));
        assert_eq!(refused("Content-Length: 3\r\nContent-Length: 4"), Some(BadRequest::Form));
        assert_eq!(refused("Connection: content-length\r\nContent-Length: 3"), None);
    }
}
