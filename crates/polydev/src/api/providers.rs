//! Which tools can be signed in.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::session::Lane;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;

/// All tools.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProviderList {
    providers: Vec<ProviderDto>,
}

/// A tool.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Provider")]
pub(super) struct ProviderDto {
    /// Canonical id.
    id: String,
    /// For people.
    name: String,
    /// Other ids that mean the same.
    aliases: Vec<String>,
    /// Ways to its sign-in page, the usual one first.
    lanes: Vec<&'static str>,
    /// Version of the tool in the image.
    version: Option<String>,
}

/// Lists the tools that can be signed in.
#[utoipa::path(get, path = "/api/providers", tag = "sign-in", responses((status = 200, body = ProviderList)))]
pub(super) async fn providers(State(app): State<Arc<App>>) -> Json<ProviderList> {
    let providers = app.providers.iter().map(|provider| ProviderDto {
        id: provider.id().to_string(),
        name: provider.name().to_owned(),
        aliases: provider.aliases().to_vec(),
        lanes: provider.lanes().into_iter().map(Lane::as_str).collect(),
        version: provider.version().map(str::to_owned),
    });
    Json(ProviderList { providers: providers.collect() })
}
