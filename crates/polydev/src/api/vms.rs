//! VMs: list, start a workspace, remove, read logs.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use polydev_core::ids::{UserId, VmId};
use polydev_host::{HostError, LogKind, VmUsage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    app::App,
    clock::rfc3339,
    egress::EgressCounts,
    session::Command,
    store::vms::{VmRecord, VmRole, VmState},
};

use super::{
    body::{Body, Id},
    problem::{Code, Problem},
};

/// State of a VM that stands still until its host's disk has room.
pub(super) const PAUSED: &str = "paused";
/// Most bytes of a log in one answer.
const LOG_BYTES_MAX: usize = 1 << 20;

/// VMs that are not gone, and failed ones of which files are kept.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmList {
    vms: Vec<VmDto>,
}

/// A VM.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "Vm")]
pub(super) struct VmDto {
    id: String,
    /// `browser` or `cli`.
    kind: &'static str,
    user_id: String,
    /// The sign-in that a browser VM belongs to.
    session_id: Option<String>,
    /// Number of its place.
    slot: Option<u8>,
    /// Name of its place; not an address that can be reached.
    address: Option<String>,
    /// `creating`, `running`, `paused` (its host's disk is nearly full: nothing is lost, and it goes on by itself once
    /// there is room), `hibernated`, `failed` or `destroyed`.
    state: &'static str,
    created_at: String,
    destroyed_at: Option<String>,
    /// Files of this failed browser VM are kept for a look; a `DELETE` removes them.
    files_kept: bool,
    egress: EgressDto,
}

/// A VM that was woken.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "ResumedVm")]
pub(super) struct ResumedDto {
    vm: VmDto,
    /// Why all that ran in it was lost, if it was: the VM has started anew from its disk then.
    memory_lost: Option<String>,
}

/// Connections that a VM tried, and what went over them, since it was made or taken over.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct EgressDto {
    allowed: u64,
    refused: u64,
    unreachable: u64,
    /// Bytes that the VM sent.
    bytes_out: u64,
    /// Bytes that it received.
    bytes_in: u64,
}

/// A workspace to start.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CreateRequest {
    user_id: String,
}

/// The VM is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmDestroyed {
    success: bool,
}

/// Lists VMs that are not gone, and failed ones of which files are kept.
#[utoipa::path(get, path = "/api/vms", tag = "vms", responses((status = 200, body = VmList)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<VmList>, Problem> {
    let mut vms = app.store.live_vms().await?;
    let kept = kept(&app).await?;
    for id in &kept {
        if vms.iter().all(|vm| vm.id != *id) {
            vms.extend(app.store.vm(*id).await?);
        }
    }
    let taken = app.machines.figures().await.vms;
    Ok(Json(VmList { vms: vms.iter().map(|vm| dto(&app, vm, &kept, &taken)).collect() }))
}

/// Starts the user's workspace, or finds it running.
#[utoipa::path(
    post, path = "/api/vms", tag = "vms", request_body = CreateRequest,
    responses((status = 200, body = VmDto), (status = 503, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Body(request): Body<CreateRequest>,
) -> Result<Json<VmDto>, Problem> {
    let user: UserId = request.user_id.parse()?;
    app.machines.ready()?;
    let (vm, _) = app.workspaces.ensure(&user).await?;
    Ok(Json(shown(&app, &find(&app, vm.id).await?).await?))
}

/// A VM, gone or not.
#[utoipa::path(
    get, path = "/api/vms/{id}", tag = "vms", params(("id" = String, Path)),
    responses((status = 200, body = VmDto), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn get(State(app): State<Arc<App>>, Id(id): Id<VmId>) -> Result<Json<VmDto>, Problem> {
    Ok(Json(shown(&app, &find(&app, id).await?).await?))
}

/// Removes a VM. A CLI VM's disk stays; a browser VM's sign-in is called off, and what is kept of it is removed.
#[utoipa::path(
    delete, path = "/api/vms/{id}", tag = "vms", params(("id" = String, Path)),
    responses((status = 200, body = VmDestroyed), (status = 409, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn destroy(
    State(app): State<Arc<App>>,
    Id(id): Id<VmId>,
) -> Result<Json<VmDestroyed>, Problem> {
    let record = find(&app, id).await?;
    if app.machines.kept_failed().await?.contains(&id) {
        app.machines.forget_failed(id).await?;
    }
    match (record.role, record.session) {
        (VmRole::Cli, _) => app.workspaces.destroy(&record.user, id).await?,
        (VmRole::Browser, Some(session)) => {
            // A sign-in that has ended is removing its VM already.
            if let Some(answer) = app.sessions.command(session, Command::Cancel).await {
                answer?;
            }
        }
        (VmRole::Browser, None) => app.cleaner.destroy_later(id).await,
    }
    Ok(Json(VmDestroyed { success: true }))
}

/// Puts a CLI VM to sleep with all that runs in it; its next use wakes it. Refused while one of its terminals is open.
#[utoipa::path(
    post, path = "/api/vms/{id}/hibernate", tag = "vms", params(("id" = String, Path)),
    responses(
        (status = 200, body = VmDto),
        (status = 409, description = "Not a CLI VM, not running, in use, or of a host that cannot do it", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "It could not be put to sleep and runs on", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn hibernate(State(app): State<Arc<App>>, Id(id): Id<VmId>) -> Result<Json<VmDto>, Problem> {
    let record = cli_vm(&app, id).await?;
    app.workspaces.hibernate(&record.user, id).await?;
    Ok(Json(shown(&app, &find(&app, id).await?).await?))
}

/// Wakes a CLI VM that sleeps, or finds it awake.
#[utoipa::path(
    post, path = "/api/vms/{id}/resume", tag = "vms", params(("id" = String, Path)),
    responses(
        (status = 200, body = ResumedDto),
        (status = 409, description = "Not a CLI VM, or gone", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The host has no room for it now; it sleeps on", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Id(id): Id<VmId>,
) -> Result<Json<ResumedDto>, Problem> {
    let record = cli_vm(&app, id).await?;
    let memory_lost = app.workspaces.resume(&record.user, id).await?;
    let vm = shown(&app, &find(&app, id).await?).await?;
    Ok(Json(ResumedDto { vm, memory_lost: memory_lost.map(|reason| polydev_core::scrub::scrub(&reason)) }))
}

/// The end of a VM's log, alive or archived.
#[utoipa::path(
    get, path = "/api/vms/{id}/logs/{kind}", tag = "vms",
    params(("id" = String, Path), ("kind" = String, Path, description = "`console`, `driver` or `agent`")),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn log(
    State(app): State<Arc<App>>,
    Path((id, kind)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id: VmId = id.parse()?;
    let kind = match kind.as_str() {
        "console" => LogKind::Console,
        "driver" => LogKind::Driver,
        "agent" => LogKind::Agent,
        _ => return Err(Problem::new(Code::NotFound, "logs are `console`, `driver` and `agent`")),
    };
    find(&app, id).await?;
    let text = match app.machines.read_log(id, kind, LOG_BYTES_MAX).await {
        Ok(text) => text,
        Err(HostError::NoSuchVm(_)) => {
            return Err(Problem::new(Code::NotFound, "this log is not kept any more"));
        }
        Err(error) => return Err(error.into()),
    };
    let text = polydev_core::scrub::scrub(&text);
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

async fn cli_vm(app: &App, id: VmId) -> Result<VmRecord, Problem> {
    let record = find(app, id).await?;
    match record.role {
        VmRole::Cli => Ok(record),
        VmRole::Browser => Err(Problem::new(Code::Conflict, "only CLI VMs sleep")),
    }
}

pub(super) async fn find(app: &App, id: VmId) -> Result<VmRecord, Problem> {
    let found = app.store.vm(id).await?;
    found.ok_or_else(|| Problem::new(Code::NotFound, "there is no such VM"))
}

async fn shown(app: &App, vm: &VmRecord) -> Result<VmDto, HostError> {
    Ok(dto(app, vm, &kept(app).await?, &app.machines.figures().await.vms))
}

/// Failed VMs of which files are kept. While the host is away VMs are shown without that.
async fn kept(app: &App) -> Result<Vec<VmId>, HostError> {
    if app.machines.ready().is_err() {
        return Ok(Vec::new());
    }
    app.machines.kept_failed().await
}

fn stands_still(app: &App, vm: &VmRecord) -> bool {
    vm.state == VmState::Running && app.machines.paused().borrow().contains(&vm.id)
}

fn dto(app: &App, vm: &VmRecord, kept: &[VmId], taken: &[(VmId, VmUsage)]) -> VmDto {
    let sent = taken.iter().find(|(id, _)| *id == vm.id).map(|(_, usage)| usage.network).unwrap_or_default();
    let time = |unix_ms: i64| rfc3339(u64::try_from(unix_ms).unwrap_or(0));
    let EgressCounts { allowed, refused, unreachable } = app.egress.counts(vm.id);
    VmDto {
        id: vm.id.to_string(),
        kind: vm.role.word(),
        user_id: vm.user.to_string(),
        session_id: vm.session.map(|id| id.to_string()),
        slot: vm.slot.map(|slot| slot.index()),
        address: vm.slot.map(|slot| slot.address().to_string()),
        state: if stands_still(app, vm) { PAUSED } else { vm.state.word() },
        created_at: time(vm.created_unix_ms),
        destroyed_at: vm.destroyed_unix_ms.map(time),
        files_kept: kept.contains(&vm.id),
        egress: EgressDto {
            allowed,
            refused,
            unreachable,
            bytes_out: sent.bytes_up,
            bytes_in: sent.bytes_down,
        },
    }
}
