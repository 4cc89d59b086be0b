//! The HTTP API: routes, their order of checks, and the OpenAPI document.
//!
//! Every request passes, in this order: security headers, Host and Origin, who is calling, rate limit, access,
//! body size, handler. A route is public only if it is listed in [`access::is_public`].

pub mod access;
mod auth_start;
mod body;
mod credentials;
mod guard;
mod health;
mod ice_servers;
mod input;
mod limiter;
mod metrics;
mod open;
mod page;
pub mod problem;
mod providers;
mod session_events;
mod sessions;
mod stream;
mod terminal;
mod user_egress;
mod users;
mod vms;
mod vnc;
mod webrtc;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit, middleware};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{app::App, web};

pub use limiter::RateLimiter;

/// Largest request body.
pub const BODY_MAX: usize = 64 << 10;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "polydev",
        description = "Signs a vendor's CLI in inside a disposable VM. Errors are RFC 9457 problem documents with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Schemes),
    security(("bearer" = []), ("page" = [])),
    components(schemas(problem::Problem))
)]
struct Document;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The text of the file `api-token` in the data directory."))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let cookie = ApiKeyValue::with_description("polydev-<port>", "Set by opening a one-time link.");
        components.add_security_scheme("page", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    }
}

fn documented() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::health))
        .routes(routes!(open::open))
        .routes(routes!(open::new_link))
        .routes(routes!(providers::providers))
        .routes(routes!(auth_start::start))
        .routes(routes!(sessions::session))
        .routes(routes!(session_events::events))
        .routes(routes!(sessions::novnc))
        .routes(routes!(sessions::oauth_url))
        .routes(routes!(sessions::receipt))
        .routes(routes!(sessions::cancel))
        .routes(routes!(input::input))
        .routes(routes!(vnc::vnc))
        .routes(routes!(stream::stream))
        .routes(routes!(ice_servers::ice_servers))
        .routes(routes!(webrtc::offer, webrtc::last_offer))
        .routes(routes!(webrtc::last_answer, webrtc::answer))
        .routes(routes!(webrtc::candidates, webrtc::add_candidates))
        .routes(routes!(vms::list, vms::create))
        .routes(routes!(vms::get, vms::destroy))
        .routes(routes!(vms::log))
        .routes(routes!(vms::hibernate))
        .routes(routes!(vms::resume))
        .routes(routes!(terminal::terminal))
        .routes(routes!(credentials::list))
        .routes(routes!(credentials::delete))
        .routes(routes!(users::list))
        .routes(routes!(users::remove))
        .routes(routes!(user_egress::get, user_egress::put, user_egress::delete))
        .routes(routes!(metrics::metrics))
}

/// The OpenAPI document as it is committed under `openapi/`.
pub fn openapi_json() -> String {
    let (_, document) = documented().split_for_parts();
    document.to_pretty_json().expect("the document is made of plain data") + "\n"
}

/// The whole service.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(web::serve)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), access::admit))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::check_host_and_origin))
        .layer(middleware::from_fn(guard::security_headers))
        .with_state(app)
}
