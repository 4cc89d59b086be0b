//! Follows a sign-in by server-sent events (WHATWG HTML, 9.2).

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use polydev_core::ids::SessionId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    session::{SessionDto, Shown},
};

use super::{body::Id, problem::Problem, sessions::find};

const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "last-event-id";

/// Follows a sign-in: event `session`, the whole object at each change, the present one first. `Last-Event-ID` leaves
/// out what is known; 204 says that nothing can change any more.
#[utoipa::path(
    get, path = "/api/auth/session/{id}/events", tag = "sign-in",
    params(("id" = String, Path), ("Last-Event-ID" = Option<u64>, Header, description = "`version` of the newest object known")),
    responses(
        (status = 200, body = SessionDto, content_type = "text/event-stream"),
        (status = 204, description = "Nothing can change any more"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let known = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let watch = match app.sessions.watch(id) {
        Some(watch) => watch,
        None => {
            let shown = find(&app, id).await?;
            if known == Some(shown.version()) {
                return Ok(StatusCode::NO_CONTENT.into_response());
            }
            // The sender is dropped at once: this one object is all there is to tell.
            watch::channel(shown).1
        }
    };
    let follower =
        Follower { watch, told: known, base_url: app.access.base_url(), stop: app.stop.clone(), last: false };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Follower {
    watch: watch::Receiver<Arc<Shown>>,
    told: Option<u64>,
    base_url: String,
    stop: CancellationToken,
    last: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            let shown = self.watch.borrow_and_update().clone();
            if self.told != Some(shown.version()) {
                self.told = Some(shown.version());
                let data = serde_json::to_string(&shown.dto(&self.base_url)).ok()?;
                return Some(Event::default().event("session").id(shown.version().to_string()).data(data));
            }
            if self.last {
                return None;
            }
            tokio::select! {
                changed = self.watch.changed() => self.last = changed.is_err(),
                () = self.stop.cancelled() => return None,
            }
        }
    }
}
