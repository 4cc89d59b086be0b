//! Users: who is known, and the removal of all that is kept for one.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::ids::UserId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{app::App, clock::rfc3339, store::users::UserRecord};

use super::{body::Id, problem::Problem};

/// Users.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UserList {
    users: Vec<UserDto>,
}

/// A user.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "User")]
pub(super) struct UserDto {
    id: String,
    created_at: String,
    /// `default`, `deny`, `direct` or `upstream`.
    egress: String,
    /// Stays the user's until the user is removed.
    proxy_port: Option<u16>,
    /// How many are stored.
    credentials: i64,
    /// How many are not gone.
    vms: i64,
}

/// The user is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UserRemoved {
    success: bool,
    /// Something was known of the user.
    existed: bool,
}

/// Lists everybody for whom something is kept.
#[utoipa::path(get, path = "/api/users", tag = "users", responses((status = 200, body = UserList)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<UserList>, Problem> {
    let dto = |user: UserRecord| UserDto {
        id: user.id.to_string(),
        created_at: rfc3339(u64::try_from(user.created_unix_ms).unwrap_or(0)),
        egress: user.policy.unwrap_or_else(|| "default".to_owned()),
        proxy_port: user.proxy_port,
        credentials: user.credentials,
        vms: user.vms,
    };
    Ok(Json(UserList { users: app.store.users().await?.into_iter().map(dto).collect() }))
}

/// Removes a user: calls sign-ins off and removes CLI VM, disk, credentials, egress policy and proxy port. The
/// vendors' tokens are not revoked. Asked again, it does nothing.
#[utoipa::path(
    delete, path = "/api/users/{id}", tag = "users", params(("id" = String, Path)),
    responses((status = 200, body = UserRemoved), (status = 409, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Id(user): Id<UserId>,
) -> Result<Json<UserRemoved>, Problem> {
    // On its own: a caller that hangs up must not leave it half done.
    let removing = tokio::spawn(async move { app.remove_user(&user).await });
    let existed = removing.await.map_err(|error| Problem::internal(&error))??;
    Ok(Json(UserRemoved { success: true, existed }))
}
