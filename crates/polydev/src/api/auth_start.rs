//! Starts a sign-in.

use std::sync::Arc;

use axum::{Json, extract::State, http::HeaderMap};
use polydev_core::{ids::UserId, session::Lane};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{app::App, session::StartError};

use super::{
    body::Body,
    problem::{Code, Problem},
};

const KEY_HEADER: &str = "idempotency-key";
const KEY_MAX: usize = 128;

/// A sign-in to start.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StartRequest {
    /// The caller's name for the person: 1 to 64 characters of `[A-Za-z0-9._@-]`, not starting with a dot.
    user_id: String,
    /// Id or alias of the tool.
    provider: String,
    /// `streamed_browser`, `callback_relay` or `device_code`; the tool's usual one unless given.
    #[schema(value_type = Option<String>)]
    lane: Option<Lane>,
}

/// A sign-in that was started, or that is under way already.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "Started")]
pub(super) struct StartedDto {
    success: bool,
    session_id: String,
    /// Canonical id of the tool.
    provider: String,
    /// Name of the browser VM's place, once there is one.
    #[serde(rename = "browserIP")]
    browser_ip: Option<String>,
    /// The page with the live browser.
    #[serde(rename = "novncURL")]
    novnc_url: String,
    state: String,
    /// It was under way already.
    attached: bool,
    /// Place in the queue, 1 = next.
    queue_position: Option<u32>,
}

/// Starts a sign-in. A second start for the same user and tool attaches to the one under way, and a repeated start
/// with the same `Idempotency-Key` always finds the first one.
#[utoipa::path(
    post, path = "/api/auth/start", tag = "sign-in", request_body = StartRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 128 visible ASCII characters")),
    responses(
        (status = 200, body = StartedDto),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`unknown_provider`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`slots_exhausted` with `queuePosition`, `image_missing`, `driver_unusable`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn start(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Body(request): Body<StartRequest>,
) -> Result<Json<StartedDto>, Problem> {
    let user: UserId = request.user_id.parse()?;
    let key = idempotency_key(&headers)?;
    let started = app.sessions.start(user, &request.provider, request.lane, key).await?;
    let session = started.shown.dto(&app.access.base_url());
    Ok(Json(StartedDto {
        success: true,
        session_id: session.session_id,
        provider: session.provider,
        browser_ip: session.browser_ip,
        novnc_url: session.novnc_url,
        state: session.state,
        attached: started.attached,
        queue_position: session.queue_position,
    }))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(KEY_HEADER) else { return Ok(None) };
    let good =
        |key: &&str| !key.is_empty() && key.len() <= KEY_MAX && key.bytes().all(|b| b.is_ascii_graphic());
    let key = value.to_str().ok().filter(good);
    let wrong =
        || Problem::new(Code::InvalidRequest, "an Idempotency-Key is 1 to 128 visible ASCII characters");
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match error {
            StartError::UnknownProvider(_) => Self::new(Code::UnknownProvider, error.to_string()),
            StartError::NoSuchLane { .. } => Self::new(Code::InvalidRequest, error.to_string()),
            StartError::SlotsExhausted(error) => error.into(),
            StartError::Host(error) => error.into(),
            StartError::Store(error) => error.into(),
            StartError::ShuttingDown => Self::new(Code::ShuttingDown, "try again in a moment"),
        }
    }
}
