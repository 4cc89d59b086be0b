//! The page: files of the web UI, built into the binary.

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::api::problem::{Code, Problem};

/// `web/dist`; empty when the page was not built before the binary.
#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct Dist;

const INDEX: &str = "index.html";
/// Paths of the page's own router.
const PAGES: [&str; 4] = ["/", "/open", "/session/", "/terminal/"];
/// Vite puts a hash of the content into these names.
const HASHED_DIR: &str = "assets/";
const NOT_BUILT: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>polydev</title>\
     <h1>The web UI is not built</h1><p>Run <code>cargo xtask web</code>, then build polydev again. \
     The API works all the same.</p>";

/// Everything that is no route of the API.
pub(crate) async fn serve(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    if path == "/api" || path.starts_with("/api/") {
        return Problem::new(Code::NotFound, "there is no such route").into_response();
    }
    if !matches!(method, Method::GET | Method::HEAD) {
        return Problem::new(Code::MethodNotAllowed, "files can only be read").into_response();
    }
    let name = path.trim_start_matches('/');
    if let Some(file) = Dist::get(name).filter(|_| !name.is_empty()) {
        return answer(name, file);
    }
    let is_page = PAGES
        .iter()
        .any(|page| path == *page || (page.len() > 1 && page.ends_with('/') && path.starts_with(page)));
    match Dist::get(INDEX) {
        Some(index) if is_page => answer(INDEX, index),
        Some(_) => Problem::new(Code::NotFound, "there is no such page").into_response(),
        None => {
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            (StatusCode::SERVICE_UNAVAILABLE, [(header::CONTENT_TYPE, html)], NOT_BUILT).into_response()
        }
    }
}

fn answer(name: &str, file: EmbeddedFile) -> Response {
    let kind = HeaderValue::from_str(file.metadata.mimetype())
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let cache = if name.starts_with(HASHED_DIR) { "public, max-age=31536000, immutable" } else { "no-cache" };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static(cache))];
    let body = match file.data {
        Cow::Borrowed(bytes) => axum::body::Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    (headers, body).into_response()
}
