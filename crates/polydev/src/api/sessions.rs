//! How a sign-in stands, and calling it off.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::ids::SessionId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    app::App,
    session::{Command, CommandRefused, SessionDto, Shown},
};

use super::{
    body::Id,
    problem::{Code, Problem},
};

/// Where the live browser is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Novnc {
    success: bool,
    /// The page with the live browser.
    #[serde(rename = "novncURL")]
    novnc_url: String,
    /// The RFB stream itself.
    #[serde(rename = "websocketURL")]
    websocket_url: String,
}

/// The sign-in address.
#[derive(Serialize, ToSchema)]
pub(super) struct OauthUrl {
    success: bool,
    /// For the person's own browser. A secret until the sign-in is over.
    #[serde(rename = "oauthURL")]
    oauth_url: String,
}

/// What became of a sign-in.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Receipt {
    success: bool,
    session: SessionDto,
    /// The stored credential, if the sign-in succeeded and it is still there.
    credential: Option<super::credentials::CredentialDto>,
    /// The browser VM and all it had are gone.
    browser_vm_gone: bool,
}

/// A sign-in.
#[utoipa::path(
    get, path = "/api/auth/session/{id}", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = SessionDto), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn session(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
) -> Result<Json<SessionDto>, Problem> {
    Ok(Json(find(&app, id).await?.dto(&app.access.base_url())))
}

/// Where the live browser is.
#[utoipa::path(
    get, path = "/api/auth/session/{id}/novnc", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = Novnc), (status = 409, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn novnc(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
) -> Result<Json<Novnc>, Problem> {
    let shown = find(&app, id).await?;
    if shown.vm.is_none() {
        return Err(Problem::new(Code::Conflict, "there is no live browser now"));
    }
    let base_url = app.access.base_url();
    let websocket_url = format!("{}/api/auth/session/{id}/vnc", base_url.replacen("http", "ws", 1));
    Ok(Json(Novnc { success: true, novnc_url: shown.dto(&base_url).novnc_url, websocket_url }))
}

/// The sign-in address, for the person's own browser.
#[utoipa::path(
    get, path = "/api/auth/session/{id}/oauth-url", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = OauthUrl), (status = 409, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn oauth_url(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
) -> Result<Json<OauthUrl>, Problem> {
    let shown = find(&app, id).await?;
    let url =
        shown.sign_in_url().ok_or_else(|| Problem::new(Code::Conflict, "no sign-in address is known now"))?;
    Ok(Json(OauthUrl { success: true, oauth_url: url.to_owned() }))
}

/// What became of a sign-in that has ended.
#[utoipa::path(
    get, path = "/api/auth/session/{id}/receipt", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = Receipt), (status = 409, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn receipt(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
) -> Result<Json<Receipt>, Problem> {
    let shown = find(&app, id).await?;
    if !shown.is_final() {
        return Err(Problem::new(Code::Conflict, "the sign-in has not ended"));
    }
    let session = shown.dto(&app.access.base_url());
    let stored = match session.state.as_str() {
        "succeeded" => app.store.credential(&shown.user, &shown.provider).await?,
        _ => None,
    };
    let credential = stored.map(|stored| super::credentials::CredentialDto::of(&stored.meta));
    Ok(Json(Receipt { success: true, session, credential, browser_vm_gone: shown.is_closed() }))
}

/// Calls a sign-in off. Calling it off twice is no error.
#[utoipa::path(
    post, path = "/api/auth/session/{id}/cancel", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 200, body = SessionDto), (status = 409, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
) -> Result<Json<SessionDto>, Problem> {
    let shown = find(&app, id).await?;
    match app.sessions.command(id, Command::Cancel).await {
        Some(answer) => answer?,
        None if shown.dto("").state == "cancelled" => {}
        None => return Err(Problem::new(Code::Conflict, "the sign-in has ended")),
    }
    Ok(Json(find(&app, id).await?.dto(&app.access.base_url())))
}

pub(super) async fn find(app: &App, id: SessionId) -> Result<Arc<Shown>, Problem> {
    let found = app.sessions.get(id).await?;
    found.ok_or_else(|| Problem::new(Code::NotFound, "there is no such sign-in"))
}

impl From<CommandRefused> for Problem {
    fn from(refused: CommandRefused) -> Self {
        match refused {
            CommandRefused::State(detail) => Self::new(Code::Conflict, detail),
            CommandRefused::Input(detail) => Self::new(Code::InputRefused, detail),
            CommandRefused::Callback(error) => Self::new(Code::InputRefused, error.to_string()),
            CommandRefused::Agent(error) => error.into(),
        }
    }
}
