//! What a person brings back from their own browser.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::ids::SessionId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::{app::App, session::Command};

use super::{
    body::{Body, Id},
    problem::{Code, Problem},
    sessions::find,
};

/// Exactly one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct InputRequest {
    /// A code that the sign-in page showed.
    #[schema(value_type = Option<String>)]
    paste_code: Option<Zeroizing<String>>,
    /// The dead `http://localhost:<port>/...` address at which the person's own browser ended.
    #[schema(value_type = Option<String>)]
    callback_url: Option<Zeroizing<String>>,
}

/// The tool took it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InputTaken {
    success: bool,
}

/// Hands a pasted code or a callback address to the waiting tool.
#[utoipa::path(
    post, path = "/api/auth/session/{id}/input", tag = "sign-in", params(("id" = String, Path)), request_body = InputRequest,
    responses(
        (status = 200, body = InputTaken),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`input_refused`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn input(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Body(request): Body<InputRequest>,
) -> Result<Json<InputTaken>, Problem> {
    let command = match (request.paste_code, request.callback_url) {
        (Some(code), None) => Command::PasteCode(code),
        (None, Some(url)) => Command::CallbackUrl(url),
        _ => return Err(Problem::new(Code::InvalidRequest, "give either `pasteCode` or `callbackUrl`")),
    };
    find(&app, id).await?;
    let answer = app.sessions.command(id, command).await;
    answer.ok_or_else(|| Problem::new(Code::Conflict, "the sign-in has ended"))??;
    Ok(Json(InputTaken { success: true }))
}
