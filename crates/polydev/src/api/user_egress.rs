//! How a user's traffic leaves. An upstream proxy's credentials go in and never come out again.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::ids::UserId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::{
    app::App,
    clock::rfc3339,
    config::EgressPolicy,
    egress::{Change, Changed, PortSeen, Upstream},
    store::egress::{EgressRecord, UserPolicy},
};

use super::{
    body::{Body, Id},
    problem::{Code, Problem},
};

/// What is to be decided.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EgressChange {
    /// `deny`, `direct` or `upstream`.
    policy: String,
    /// With `upstream`: `http://user:password@host:port` or `socks5://user:password@host:port`, percent-encoded.
    /// Without it the one that is stored stays.
    #[schema(value_type = Option<String>)]
    upstream: Option<Zeroizing<String>>,
    /// Makes a new token for the proxy port.
    #[serde(default)]
    new_proxy_token: bool,
}

/// How a user's traffic leaves.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "UserEgress")]
pub(super) struct UserEgressDto {
    user_id: String,
    /// `default` (everybody's holds), `deny`, `direct` or `upstream`.
    policy: &'static str,
    /// What holds: `deny`, `direct` or `upstream`.
    effective: &'static str,
    upstream: Option<UpstreamDto>,
    proxy: Option<ProxyDto>,
    /// Password for the proxy port, with any user name. Given when it is made, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    proxy_token: Option<Zeroizing<String>>,
    /// Of a change: the connections that existed have ended. If not, the host could not be reached: ask again.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_ended: Option<bool>,
    updated_at: Option<String>,
}

/// An upstream proxy without its credentials.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpstreamDto {
    /// `http` or `socks5`.
    scheme: &'static str,
    host: String,
    port: u16,
    /// It is told a user name and a password.
    has_credentials: bool,
}

/// The user's proxy port: an HTTP proxy for programs on this machine. Counts are since it was opened.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyDto {
    host: String,
    port: u16,
    /// It is open. If not, another program has the port; it is tried again.
    listening: bool,
    /// Connections carried now.
    active: usize,
    /// Connections made.
    connected: u64,
    /// Requests refused.
    refused: u64,
    /// Bytes towards targets.
    bytes_out: u64,
    /// Bytes from targets.
    bytes_in: u64,
}

/// How a user's traffic leaves.
#[utoipa::path(
    get, path = "/api/users/{id}/egress", tag = "users", params(("id" = String, Path)),
    responses((status = 200, body = UserEgressDto), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Id(user): Id<UserId>,
) -> Result<Json<UserEgressDto>, Problem> {
    let record = app.store.egress(&user).await?;
    Ok(Json(dto(&app, &user, record.as_ref())?))
}

/// Decides how a user's traffic leaves. The first time the user gets a proxy port. Connections that exist end, unless
/// nothing but a new token is asked for.
#[utoipa::path(
    put, path = "/api/users/{id}/egress", tag = "users", params(("id" = String, Path)),
    request_body = EgressChange,
    responses(
        (status = 200, body = UserEgressDto),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Id(user): Id<UserId>,
    Body(request): Body<EgressChange>,
) -> Result<Json<UserEgressDto>, Problem> {
    // A text that is no policy is not repeated: somebody may have put the upstream there.
    let policy = UserPolicy::of_word(&request.policy)
        .ok_or_else(|| Problem::new(Code::InvalidRequest, "a policy is `deny`, `direct` or `upstream`"))?;
    let upstream = request.upstream.as_ref().map(|text| Upstream::parse(text)).transpose()?;
    let change = Change { policy, upstream, new_token: request.new_proxy_token };
    let Changed { record, token, policy_decided } = app.egress.change(&user, change).await?;
    let mut answer = dto(&app, &user, Some(&record))?;
    answer.proxy_token = token;
    if policy_decided {
        answer.connections_ended = Some(app.end_connections(&user).await);
    }
    Ok(Json(answer))
}

/// Takes a user's policy back: everybody's holds again. The proxy port is closed but stays the user's. Connections that
/// exist end.
#[utoipa::path(
    delete, path = "/api/users/{id}/egress", tag = "users", params(("id" = String, Path)),
    responses((status = 200, body = UserEgressDto), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Id(user): Id<UserId>,
) -> Result<Json<UserEgressDto>, Problem> {
    app.egress.reset(&user).await?;
    let mut answer = dto(&app, &user, None)?;
    answer.connections_ended = Some(app.end_connections(&user).await);
    Ok(Json(answer))
}

fn dto(app: &App, user: &UserId, record: Option<&EgressRecord>) -> Result<UserEgressDto, Problem> {
    let everybodys = match app.config.vms.egress {
        EgressPolicy::Deny => "deny",
        EgressPolicy::Direct => "direct",
    };
    let upstream = match record {
        Some(record) => app.egress.upstream_of(record).map_err(|error| Problem::internal(&error))?,
        None => None,
    };
    Ok(UserEgressDto {
        user_id: user.to_string(),
        policy: record.map_or("default", |record| record.policy.word()),
        effective: record.map_or(everybodys, |record| record.policy.word()),
        upstream: upstream.map(|upstream| UpstreamDto {
            scheme: upstream.scheme().word(),
            host: upstream.host(),
            port: upstream.port(),
            has_credentials: upstream.has_login(),
        }),
        proxy: app.egress.port_seen(user).map(|seen| proxy_dto(app, seen)),
        proxy_token: None,
        connections_ended: None,
        updated_at: record.map(|record| rfc3339(u64::try_from(record.updated_unix_ms).unwrap_or(0))),
    })
}

fn proxy_dto(app: &App, seen: PortSeen) -> ProxyDto {
    let PortSeen { port, listening, active, connected, refused, bytes_out, bytes_in } = seen;
    let host = app.egress.proxy_address().to_string();
    ProxyDto { host, port, listening, active, connected, refused, bytes_out, bytes_in }
}
