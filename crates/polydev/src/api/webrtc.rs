//! Kept from the origin: which ICE servers a page should use.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// ICE servers. The live browser comes over a WebSocket of this service, so there are none to name.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct IceServers {
    success: bool,
    ice_servers: Vec<String>,
}

/// Lists ICE servers: none, since no media goes by WebRTC.
#[utoipa::path(get, path = "/api/webrtc/ice-servers", tag = "stream", responses((status = 200, body = IceServers)))]
pub(super) async fn ice_servers() -> Json<IceServers> {
    Json(IceServers { success: true, ice_servers: Vec::new() })
}
