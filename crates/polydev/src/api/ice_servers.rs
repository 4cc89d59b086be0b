//! Which ICE servers a page should use: the built-in one and those elsewhere, with credentials that end.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{app::App, desktop::turn::IceServer};

use super::access::Caller;

/// ICE servers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct IceServers {
    success: bool,
    /// For `RTCPeerConnection`, as they are.
    ice_servers: Vec<IceServer>,
    /// For how many seconds the credentials can be used to begin; what has begun goes on.
    ttl_seconds: u64,
}

/// Lists ICE servers with credentials made for the caller.
#[utoipa::path(
    get,
    path = "/api/webrtc/ice-servers",
    tag = "stream",
    responses((status = 200, body = IceServers))
)]
pub(super) async fn ice_servers(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Json<IceServers> {
    let name = match &caller {
        Caller::Token => "token",
        Caller::Page(nonce) => nonce,
    };
    let (ice_servers, ttl_seconds) = (app.turn.ice_servers(name), app.turn.ttl().as_secs());
    Json(IceServers { success: true, ice_servers, ttl_seconds })
}
