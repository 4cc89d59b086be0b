//! Who may call: the API token for back ends, a one-time link and then a cookie for the page.
//!
//! The token is a file that only its owner can read. The cookie carries its own end and an HMAC made with a key
//! derived from the token, so that it outlives a restart and a new token ends all pages at once.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{app::App, vault::create_secret};

use super::{
    guard,
    limiter::RouteClass,
    problem::{Code, Problem},
};

const TOKEN_LEN: usize = 32;
const LINKS_MAX: usize = 64;

/// What opens the API.
pub struct Access {
    token: Zeroizing<String>,
    cookie_key: Zeroizing<[u8; 32]>,
    cookie_name: String,
    cookie_ttl: Duration,
    link_ttl: Duration,
    own_hosts: Vec<String>,
    links: Mutex<HashMap<[u8; 32], u64>>,
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    /// A back end with the API token.
    Token,
    /// A page with a cookie.
    Page(String),
}

impl Access {
    /// Reads the token file, or makes it.
    pub fn open(
        token_file: &Path,
        listen: SocketAddr,
        link_ttl: Duration,
        cookie_ttl: Duration,
    ) -> std::io::Result<Self> {
        if !token_file.exists() {
            create_secret(token_file, format!("{}\n", *random_token()?).as_bytes())?;
        }
        let token = Zeroizing::new(std::fs::read_to_string(token_file)?.trim().to_owned());
        if token.len() < TOKEN_LEN {
            return Err(std::io::Error::other(format!("{} holds no API token", token_file.display())));
        }
        let cookie_key =
            Sha256::new().chain_update(b"polydev page cookie\0").chain_update(token.as_bytes()).finalize();
        let port = listen.port();
        let own = [
            listen.to_string(),
            format!("127.0.0.1:{port}"),
            format!("localhost:{port}"),
            format!("[::1]:{port}"),
        ];
        Ok(Self {
            token,
            cookie_key: Zeroizing::new(cookie_key.into()),
            cookie_name: format!("polydev-{port}"),
            cookie_ttl,
            link_ttl,
            own_hosts: own.into(),
            links: Mutex::default(),
        })
    }

    /// `host:port` texts under which this service is reached.
    pub(super) fn own_hosts(&self) -> &[String] {
        &self.own_hosts
    }

    /// `http://host:port` of the service.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.own_hosts[0])
    }

    /// A fresh link and the time until which it can be opened.
    pub fn new_link(&self, now_ms: u64) -> std::io::Result<(String, u64)> {
        let token = random_token()?;
        let until_ms = now_ms + u64::try_from(self.link_ttl.as_millis()).unwrap_or(u64::MAX / 2);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, until| *until > now_ms);
        if links.len() >= LINKS_MAX
            && let Some(oldest) = links.iter().min_by_key(|(_, until)| **until).map(|(hash, _)| *hash)
        {
            links.remove(&oldest);
        }
        links.insert(Sha256::digest(token.as_bytes()).into(), until_ms);
        Ok((format!("{}/open#{}", self.base_url(), *token), until_ms))
    }

    /// Uses a link up. `Some` is the `Set-Cookie` of the page it opens.
    pub(super) fn redeem(&self, token: &str, now_ms: u64) -> std::io::Result<Option<String>> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let until = self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash);
        if until.is_none_or(|until| until <= now_ms) {
            return Ok(None);
        }
        let end_s = now_ms / 1000 + self.cookie_ttl.as_secs();
        let body = format!("{end_s}.{}", *random_token()?);
        let cookie = format!("{body}.{}", self.mac(&body));
        let attributes = format!("Path=/; HttpOnly; SameSite=Strict; Max-Age={}", self.cookie_ttl.as_secs());
        Ok(Some(format!("{}={cookie}; {attributes}", self.cookie_name)))
    }

    fn identify(&self, headers: &HeaderMap, now_ms: u64) -> Option<Caller> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            let same = bool::from(Sha256::digest(token.trim()).ct_eq(&Sha256::digest(self.token.as_bytes())));
            return (scheme.eq_ignore_ascii_case("bearer") && same).then_some(Caller::Token);
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, cookie) = pairs.find(|(name, _)| *name == self.cookie_name)?;
        let (body, mac) = cookie.rsplit_once('.')?;
        if !bool::from(self.mac(body).as_bytes().ct_eq(mac.as_bytes())) {
            return None;
        }
        let (end_s, nonce) = body.split_once('.')?;
        let end_s: u64 = end_s.parse().ok()?;
        (now_ms / 1000 < end_s).then(|| Caller::Page(nonce.to_owned()))
    }

    fn mac(&self, body: &str) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&*self.cookie_key).expect("HMAC takes keys of any length");
        mac.update(body.as_bytes());
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("own_hosts", &self.own_hosts).finish_non_exhaustive()
    }
}

/// Paths that need no credentials: health, opening a link, and the page's own files.
pub fn is_public(path: &str) -> bool {
    path == "/api/open" || !(path == "/metrics" || path == "/api" || path.starts_with("/api/"))
}

/// Finds out who is calling, counts the request, and refuses those who may not.
pub(super) async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match judge(&app, &request) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

fn judge(app: &App, request: &Request) -> Result<Option<Caller>, Problem> {
    let now_ms = app.clock.now_ms();
    let path = request.uri().path();
    let caller = app.access.identify(request.headers(), now_ms);
    let is_file = is_public(path) && path != "/api/open" && path != "/health";
    if !is_file {
        let name = match &caller {
            Some(Caller::Token) => "token",
            Some(Caller::Page(nonce)) => nonce.as_str(),
            None => "nobody",
        };
        app.limiter.count(route_class(path), name, now_ms).map_err(|wait| {
            let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
            Problem::new(Code::RateLimited, format!("try again in {seconds} s")).retry_after(seconds)
        })?;
    }
    if is_public(path) {
        return Ok(caller);
    }
    match &caller {
        None => Err(Problem::new(Code::Unauthorized, "run `polydev open` for a fresh link")),
        Some(Caller::Page(_))
            if guard::needs_origin(request) && !request.headers().contains_key(header::ORIGIN) =>
        {
            Err(Problem::new(Code::BadOrigin, "a page has to say where it comes from"))
        }
        Some(Caller::Page(_) | Caller::Token) => Ok(caller),
    }
}

fn route_class(path: &str) -> RouteClass {
    let polled = path == "/health"
        || path.starts_with("/api/auth/session/")
        || path.starts_with("/api/webrtc/")
        || path.ends_with("/terminal");
    if polled { RouteClass::Polling } else { RouteClass::Other }
}

fn random_token() -> std::io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; TOKEN_LEN]);
    getrandom::fill(&mut *bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn access(dir: &Path) -> Access {
        let listen = "127.0.0.1:4000".parse().unwrap();
        Access::open(&dir.join("api-token"), listen, Duration::from_secs(900), Duration::from_secs(3600))
            .unwrap()
    }

    fn with_cookie(set_cookie: &str) -> HeaderMap {
        let pair = set_cookie.split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, format!("other=1; {pair}").parse().unwrap())])
    }

    #[test]
    fn a_link_opens_once_and_not_after_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let access = access(dir.path());
        let token = |link: String| link.split_once("/open#").unwrap().1.to_owned();
        let link = token(access.new_link(0).unwrap().0);
        assert!(access.redeem(&link, 1).unwrap().is_some());
        assert!(access.redeem(&link, 2).unwrap().is_none(), "opened twice");
        let (late, until) = access.new_link(0).unwrap();
        assert!(access.redeem(&token(late), until).unwrap().is_none(), "opened too late");
    }

    #[test]
    fn a_cookie_outlives_a_restart_but_neither_its_time_nor_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let first = access(dir.path());
        let link = first.new_link(0).unwrap().0.split_once('#').unwrap().1.to_owned();
        let cookie = with_cookie(&first.redeem(&link, 0).unwrap().unwrap());
        let restarted = access(dir.path());
        assert!(matches!(restarted.identify(&cookie, HOUR_MS - 1), Some(Caller::Page(_))));
        assert_eq!(restarted.identify(&cookie, HOUR_MS), None);
        let text =
            cookie[header::COOKIE].to_str().unwrap().replace("polydev-4000=3600.", "polydev-4000=9999.");
        let longer = HeaderMap::from_iter([(header::COOKIE, text.parse().unwrap())]);
        assert_eq!(restarted.identify(&longer, 0), None);
    }

    #[test]
    fn only_the_right_token_is_a_back_end() {
        let dir = tempfile::tempdir().unwrap();
        let access = access(dir.path());
        let bearer = |text: &str| HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
        let token = std::fs::read_to_string(dir.path().join("api-token")).unwrap();
        assert_eq!(access.identify(&bearer(&format!("Bearer {}", token.trim())), 0), Some(Caller::Token));
        for wrong in ["Bearer x", "Bearer ", "Bearer", "Basic eDp5", &format!("Basic {}", token.trim())] {
            assert_eq!(access.identify(&bearer(wrong), 0), None, "{wrong}");
        }
    }
}
