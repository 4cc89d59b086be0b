//! Figures for Prometheus. Read with the API token like everything else: how many watch and when is nobody's business.

mod host;

use std::sync::Arc;

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};

use crate::app::App;

use super::problem::{Code, Problem};

/// OpenMetrics 1.0, which Prometheus reads.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures of the service in the OpenMetrics text format.
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses((status = 200, description = "OpenMetrics", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let mut registry = Registry::with_prefix("polydev");
    let (used, total) = app.slots.count();
    let now = [
        ("sessions_active", "Sign-ins that have not ended", app.sessions.active()),
        ("slots_used", "Places for VMs that are taken", used),
        ("slots", "Places for VMs", total),
        ("vms_warm", "Browser VMs that wait for somebody", app.machines.status().warm),
    ];
    for (name, help, count) in now {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    app.egress.register_metrics(&mut registry);
    app.desktops.metrics().register(&mut registry);
    app.sessions.figures().register(&mut registry);
    registry.register_collector(Box::new(host::Shown(app.machines.figures().await)));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| {
        tracing::error!(%error, "figures could not be written");
        Problem::new(Code::Internal, "the service's log says more")
    })?;
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}
