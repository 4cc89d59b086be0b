//! Signalling of the desktop over WebRTC: one offer, one answer.
//!
//! The service answers an offer itself and at once, with its candidates in the answer. The origin had page and VM leave
//! offer, answer and candidates here and poll for those of the other; these routes are kept and say what is known.

use std::sync::Arc;

use axum::{Json, extract::State};
use polydev_core::ids::SessionId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use zeroize::Zeroizing;

use crate::{
    app::App,
    desktop::{
        talk::Role,
        webrtc::{Answered, CandidateUse, Offer, OfferError, OfferFault, Signalled, Wish, judge_candidate},
    },
};

use super::{
    body::{Body, Id, Params},
    problem::{Code, Problem},
    sessions::find,
};

/// Candidates in one request.
const CANDIDATES_MAX: usize = 64;

/// A page's offer.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OfferRequest {
    /// SDP with one section that takes H.264 baseline, and one for data channels named `input` and `moves`.
    sdp: String,
    /// `offer`, if it is given at all.
    #[serde(rename = "type", default)]
    kind: Option<String>,
    /// What the page wants to do; `control` unless told otherwise. One viewer at a time has it.
    #[serde(default)]
    role: Option<Role>,
    /// The token of the viewer this page was, to keep its number and role.
    #[serde(default)]
    resume: Option<String>,
    /// With `resume`: the connection of this viewer goes on, as at an ICE restart.
    #[serde(default)]
    viewer_id: Option<u32>,
}

/// One side's description of a connection.
#[derive(Serialize, ToSchema)]
pub(super) struct Description {
    /// `offer` or `answer`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// SDP.
    sdp: String,
}

/// The answer to an offer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfferAnswer {
    success: bool,
    /// The viewer's number.
    viewer_id: u32,
    /// With it, the viewer can come again within a minute. A secret.
    resume: String,
    /// For `setRemoteDescription`. Has the candidates of the service in it.
    answer: Description,
}

/// The offer of a viewer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LastOffer {
    success: bool,
    /// The viewer's number.
    viewer_id: u32,
    /// What its page offered, without its candidates.
    offer: Description,
}

/// The answer a viewer got.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LastAnswer {
    success: bool,
    /// The viewer's number.
    viewer_id: u32,
    /// What its page was answered.
    answer: Description,
}

/// Candidates of the service.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceCandidates {
    success: bool,
    /// The viewer's number.
    viewer_id: u32,
    /// For `addIceCandidate`; they are in the answer, too.
    candidates: Vec<CandidateLine>,
}

/// One candidate, as `RTCIceCandidate` has it.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CandidateLine {
    /// `candidate:...`
    candidate: String,
    /// Section it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sdp_mid: Option<String>,
    /// The same, as a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sdp_m_line_index: Option<u16>,
    /// Name of the ICE session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username_fragment: Option<String>,
}

/// Candidates of a page.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PageCandidates {
    /// At most 64.
    candidates: Vec<CandidateLine>,
    /// Whose they are.
    #[serde(default)]
    viewer_id: Option<u32>,
}

/// What became of a page's candidates.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CandidatesTaken {
    success: bool,
    /// For each in turn: `noted`, `local_name` (names of mDNS say nothing here), `foreign_address` (nobody can be reached
    /// there) or `malformed`. None of them is needed: the service answers to where verified requests come from.
    results: Vec<&'static str>,
}

/// Which viewer is meant.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
pub(super) struct WhichViewer {
    /// Its number; the newest one unless given.
    #[serde(default)]
    viewer_id: Option<u32>,
}

/// Answers an offer to watch the live browser. The same offer again gets the same answer.
#[utoipa::path(
    post, path = "/api/webrtc/session/{id}/offer", tag = "stream", params(("id" = String, Path)),
    request_body = OfferRequest,
    responses(
        (status = 200, body = OfferAnswer),
        (status = 404, description = "There is no such sign-in", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "There is no live browser now", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The viewer cannot be resumed", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The offer cannot be used; watch over the WebSocket", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many viewers", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn offer(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Body(request): Body<OfferRequest>,
) -> Result<Json<OfferAnswer>, Problem> {
    let OfferRequest { sdp, kind, role, resume, viewer_id } = request;
    if kind.is_some_and(|kind| kind != "offer") {
        return Err(Problem::new(Code::InvalidRequest, "`type` must be `offer`"));
    }
    let offer = Offer::parse(&Zeroizing::new(sdp)).map_err(OfferError::from)?;
    find(&app, id).await?;
    let wish = Wish {
        offer,
        role: role.unwrap_or(Role::Control),
        resume: resume.map(Zeroizing::new),
        viewer: viewer_id,
    };
    let Answered { viewer, resume, answer } = app.endpoint.answer(&app.desktops, id, wish).await?;
    Ok(Json(OfferAnswer {
        success: true,
        viewer_id: viewer,
        resume: resume.to_string(),
        answer: Description { kind: "answer", sdp: answer },
    }))
}

/// The newest offer, or that of a viewer.
#[utoipa::path(
    get, path = "/api/webrtc/session/{id}/offer", tag = "stream", params(("id" = String, Path), WhichViewer),
    responses(
        (status = 200, body = LastOffer),
        (status = 404, description = "Nobody has offered anything", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn last_offer(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Params(which): Params<WhichViewer>,
) -> Result<Json<LastOffer>, Problem> {
    let Signalled { offer, answered } = signalled(&app, id, &which).await?;
    let offer = Description { kind: "offer", sdp: offer };
    Ok(Json(LastOffer { success: true, viewer_id: answered.viewer, offer }))
}

/// The newest answer, or that to a viewer.
#[utoipa::path(
    get, path = "/api/webrtc/session/{id}/answer", tag = "stream", params(("id" = String, Path), WhichViewer),
    responses(
        (status = 200, body = LastAnswer),
        (status = 404, description = "Nobody has offered anything", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn last_answer(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Params(which): Params<WhichViewer>,
) -> Result<Json<LastAnswer>, Problem> {
    let Answered { viewer, answer, .. } = signalled(&app, id, &which).await?.answered;
    let answer = Description { kind: "answer", sdp: answer };
    Ok(Json(LastAnswer { success: true, viewer_id: viewer, answer }))
}

/// Always refused: the service answers offers itself.
#[utoipa::path(
    post, path = "/api/webrtc/session/{id}/answer", tag = "stream", params(("id" = String, Path)),
    responses((status = 409, description = "Offers are answered by the service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn answer(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
) -> Result<Json<LastAnswer>, Problem> {
    find(&app, id).await?;
    Err(Problem::new(Code::Conflict, "offers are answered by the service itself"))
}

/// Candidates of the service, as in its newest answer or in that to a viewer.
#[utoipa::path(
    get, path = "/api/webrtc/session/{id}/candidates", tag = "stream", params(("id" = String, Path), WhichViewer),
    responses(
        (status = 200, body = ServiceCandidates),
        (status = 404, description = "Nobody has offered anything", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn candidates(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Params(which): Params<WhichViewer>,
) -> Result<Json<ServiceCandidates>, Problem> {
    let Answered { viewer, answer, .. } = signalled(&app, id, &which).await?.answered;
    let mut lines: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("a=")).collect();
    // All sections share one connection, so each candidate is there once per section.
    lines.retain(|line| line.starts_with("candidate:"));
    lines.sort_unstable();
    lines.dedup();
    let line = |candidate: &str| CandidateLine {
        candidate: candidate.to_owned(),
        sdp_mid: None,
        sdp_m_line_index: Some(0),
        username_fragment: None,
    };
    Ok(Json(ServiceCandidates {
        success: true,
        viewer_id: viewer,
        candidates: lines.into_iter().map(line).collect(),
    }))
}

/// Takes note of a page's candidates.
#[utoipa::path(
    post, path = "/api/webrtc/session/{id}/candidates", tag = "stream", params(("id" = String, Path)),
    request_body = PageCandidates,
    responses(
        (status = 200, body = CandidatesTaken),
        (status = 404, description = "Nobody has offered anything", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn add_candidates(
    State(app): State<Arc<App>>,
    Id(id): Id<SessionId>,
    Body(request): Body<PageCandidates>,
) -> Result<Json<CandidatesTaken>, Problem> {
    if request.candidates.len() > CANDIDATES_MAX {
        let detail = format!("at most {CANDIDATES_MAX} candidates in one request");
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    signalled(&app, id, &WhichViewer { viewer_id: request.viewer_id }).await?;
    let results = request.candidates.iter().map(|line| match judge_candidate(&line.candidate) {
        CandidateUse::Noted => "noted",
        CandidateUse::LocalName => "local_name",
        CandidateUse::ForeignAddress => "foreign_address",
        CandidateUse::Malformed => "malformed",
    });
    Ok(Json(CandidatesTaken { success: true, results: results.collect() }))
}

async fn signalled(app: &App, id: SessionId, which: &WhichViewer) -> Result<Signalled, Problem> {
    find(app, id).await?;
    let signalled = app.endpoint.signalled(id, which.viewer_id);
    signalled.ok_or_else(|| Problem::new(Code::NotFound, "no page is connected by WebRTC"))
}

impl From<OfferError> for Problem {
    fn from(error: OfferError) -> Self {
        let code = match error {
            OfferError::Join(error) => return error.into(),
            OfferError::Fault(OfferFault::TooLong(_)) => Code::BodyTooLarge,
            OfferError::Fault(OfferFault::Unusable(_)) => Code::OfferRefused,
            OfferError::Fault(OfferFault::NoH264) => Code::CodecMissing,
            OfferError::InProgress => Code::Conflict,
            OfferError::UnknownViewer => Code::ViewerUnknown,
            OfferError::Full => Code::TooManyConnections,
            OfferError::Failed => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
