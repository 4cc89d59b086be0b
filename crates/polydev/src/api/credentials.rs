//! Stored credentials: what may be told about them, and their removal.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::ids::{CredentialId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{app::App, clock::rfc3339, store::credentials::CredentialMeta};

use super::{
    body::{Id, Params},
    problem::{Code, Problem},
};

/// Whose.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CredentialQuery {
    /// Of one user; of all unless given.
    user_id: Option<String>,
}

/// Credentials.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CredentialList {
    credentials: Vec<CredentialDto>,
}

/// What may be told about a credential.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "Credential")]
pub(super) struct CredentialDto {
    id: String,
    user_id: String,
    provider: String,
    /// Counts up with every sign-in.
    version: u32,
    /// Paths relative to the home directory.
    files: Vec<String>,
    created_at: String,
    updated_at: String,
}

/// The credential is gone from the vault.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CredentialDeleted {
    success: bool,
}

impl CredentialDto {
    pub(super) fn of(meta: &CredentialMeta) -> Self {
        let time = |unix_ms: i64| rfc3339(u64::try_from(unix_ms).unwrap_or(0));
        Self {
            id: meta.id.to_string(),
            user_id: meta.user.to_string(),
            provider: meta.provider.to_string(),
            version: meta.version,
            files: meta.files.clone(),
            created_at: time(meta.created_unix_ms),
            updated_at: time(meta.updated_unix_ms),
        }
    }
}

/// Lists stored credentials; never their content.
#[utoipa::path(
    get, path = "/api/credentials", tag = "credentials", params(CredentialQuery),
    responses((status = 200, body = CredentialList), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(query): Params<CredentialQuery>,
) -> Result<Json<CredentialList>, Problem> {
    let user: Option<UserId> = query.user_id.map(|id| id.parse()).transpose()?;
    let stored = app.store.credentials(user.as_ref()).await?;
    Ok(Json(CredentialList { credentials: stored.iter().map(|one| CredentialDto::of(&one.meta)).collect() }))
}

/// Removes a credential from the vault. The files in the CLI VM stay; the vendor's tokens are not revoked.
#[utoipa::path(
    delete, path = "/api/credentials/{id}", tag = "credentials", params(("id" = String, Path)),
    responses((status = 200, body = CredentialDeleted), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Id(id): Id<CredentialId>,
) -> Result<Json<CredentialDeleted>, Problem> {
    if !app.store.delete_credential(id).await? {
        return Err(Problem::new(Code::NotFound, "there is no such credential"));
    }
    app.store.audit(app.clock.now_db(), "credential.deleted", None, Some(&id.to_string()), None).await?;
    Ok(Json(CredentialDeleted { success: true }))
}
