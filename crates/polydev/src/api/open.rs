//! One-time links: a back end asks for one, a person's page redeems it.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{AppendHeaders, IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{app::App, clock::rfc3339};

use super::{
    body::Body,
    problem::{Code, Problem},
};

/// A link to redeem.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OpenRequest {
    /// What comes after `#` in the link.
    token: String,
}

/// The page is signed in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Opened {
    success: bool,
}

/// A fresh link.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Link {
    success: bool,
    /// The address to open; works once.
    url: String,
    /// RFC 3339; afterwards it does not work.
    expires_at: String,
}

/// Uses a one-time link up; the answer sets the page's cookie.
#[utoipa::path(
    post, path = "/api/open", tag = "access", security(()), request_body = OpenRequest,
    responses((status = 200, body = Opened), (status = 401, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn open(
    State(app): State<Arc<App>>,
    Body(request): Body<OpenRequest>,
) -> Result<Response, Problem> {
    let cookie = app.access.redeem(&request.token, app.clock.now_ms()).map_err(no_random)?;
    let cookie =
        cookie.ok_or_else(|| Problem::new(Code::LinkInvalid, "run `polydev open` for a fresh link"))?;
    let cookie = HeaderValue::from_str(&cookie).expect("a cookie of ours is plain ASCII");
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Json(Opened { success: true })).into_response())
}

/// Makes a one-time link.
#[utoipa::path(post, path = "/api/links", tag = "access", responses((status = 200, body = Link)))]
pub(super) async fn new_link(State(app): State<Arc<App>>) -> Result<Json<Link>, Problem> {
    let (url, until_ms) = app.access.new_link(app.clock.now_ms()).map_err(no_random)?;
    Ok(Json(Link { success: true, url, expires_at: rfc3339(until_ms) }))
}

fn no_random(error: std::io::Error) -> Problem {
    tracing::error!(%error, "no random bytes");
    Problem::new(Code::Internal, "the service's log says more")
}
