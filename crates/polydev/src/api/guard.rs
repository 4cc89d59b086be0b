//! Which host a request is meant for, which page it comes from, and what browsers may do with the answer.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::app::App;

use super::problem::{Code, Problem};

/// `style-src` needs `'unsafe-inline'` because the terminal computes its own style sheet; scripts have no exception.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; \
     manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(header::HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Adds the security headers; nothing is cached unless the handler said so.
pub(super) async fn security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Refuses requests for another host (DNS rebinding) and from another page (cross-site requests, WebSockets included).
pub(super) async fn check_host_and_origin(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let verdict = check(app.access.own_hosts(), &request);
    match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn check(own_hosts: &[String], request: &Request) -> Result<(), Problem> {
    let host = single(request.headers(), &header::HOST)
        .filter(|host| own_hosts.iter().any(|own| own.eq_ignore_ascii_case(host)));
    if host.is_none() {
        return Err(Problem::new(Code::BadHost, "open polydev by the address it printed at its start"));
    }
    if !request.headers().contains_key(header::ORIGIN) {
        return Ok(());
    }
    let origin = single(request.headers(), &header::ORIGIN).and_then(|origin| origin.strip_prefix("http://"));
    match origin {
        Some(origin) if own_hosts.iter().any(|own| own.eq_ignore_ascii_case(origin)) => Ok(()),
        _ => Err(Problem::new(Code::BadOrigin, "only polydev's own page may do this")),
    }
}

/// Whether a request that carries the page's cookie must also say which page it comes from.
pub(super) fn needs_origin(request: &Request) -> bool {
    let upgrade = request.headers().contains_key(header::UPGRADE) && request.version() == Version::HTTP_11;
    upgrade || !matches!(*request.method(), Method::GET | Method::HEAD)
}

fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}
