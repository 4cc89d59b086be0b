//! Is it alive, and with what?

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_host::FastStart;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;

/// State of the service.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Health {
    /// `healthy`, or `degraded` when no VM can be made.
    status: &'static str,
    /// Version of polydev.
    version: &'static str,
    /// `qemu`, `container`, or `none`.
    driver: String,
    /// Guests share the host's kernel.
    shared_kernel: bool,
    /// Id of the golden image.
    image: Option<String>,
    /// `ready` when browser VMs start as fast as the driver can start them, `preparing` while what that needs is being
    /// made, `failed` when it could not be made, `none` when nothing was asked for.
    fast_start: &'static str,
    /// Places for VMs.
    slots: SlotCount,
    /// Sign-ins.
    sessions: SessionCount,
    /// Port of desktops over WebRTC, for UDP and TCP.
    media_port: u16,
    /// Why no VM can be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct SlotCount {
    used: usize,
    total: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct SessionCount {
    active: usize,
}

/// Is it alive, and with what?
#[utoipa::path(get, path = "/health", tag = "service", security(()), responses((status = 200, body = Health)))]
pub(super) async fn health(State(app): State<Arc<App>>) -> Json<Health> {
    let status = app.machines.status();
    let (used, total) = app.slots.count();
    let reason = app.machines.ready().err().map(|error| error.to_string());
    Json(Health {
        status: if reason.is_none() { "healthy" } else { "degraded" },
        version: env!("CARGO_PKG_VERSION"),
        driver: status.driver,
        shared_kernel: status.shared_kernel,
        image: Some(status.image).filter(|image| !image.is_empty()),
        fast_start: match status.fast_start {
            FastStart::None => "none",
            FastStart::Preparing => "preparing",
            FastStart::Ready => "ready",
            FastStart::Failed => "failed",
        },
        slots: SlotCount { used, total },
        sessions: SessionCount { active: app.sessions.active() },
        media_port: app.endpoint.address().port(),
        reason,
    })
}
