//! Every error of the API: RFC 9457 problem documents with a stable code. All conversions are here.

use axum::{
    Json,
    extract::rejection::{JsonRejection, PathRejection, QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use polydev_core::{ids::IdError, scrub::scrub};
use polydev_host::{AgentError, HostError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    cleaner::CleanError,
    desktop::JoinError,
    egress::{ChangeError, PortError, UpstreamFault},
    removal::RemoveError,
    slots::SlotsExhausted,
    store::StoreError,
    workspaces::WorkspaceError,
};

/// Media type of RFC 9457.
const MEDIA_TYPE: &str = "application/problem+json";

/// What a caller is told about a failed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `urn:polydev:problem:<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// One line for a person.
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// What exactly is wrong; holds no secret.
    detail: String,
    /// For programs; the meaning of one never changes.
    code: &'static str,
    /// `slots_exhausted`: place in the queue, 1 = next.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<u32>,
    /// `rate_limited`, `slots_exhausted`: when to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u64>,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:ident, $title:literal;)+) => {
        /// Classes of problems.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)+
        }
        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),+];
            /// As it is written in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }
            const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),+ }
            }
            const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),+ }
            }
        }
    };
}

codes! {
    /// The body is no JSON.
    MalformedJson = "malformed_json", BAD_REQUEST, "The request is not valid JSON";
    /// The body is JSON of another shape.
    InvalidRequest = "invalid_request", BAD_REQUEST, "The request is not valid";
    /// The body is too large.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The request is too large";
    /// The body is not declared as JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The request must be JSON";
    /// A user id that is none.
    InvalidUserId = "invalid_user_id", BAD_REQUEST, "The user id is not valid";
    /// An id that is no UUID.
    InvalidId = "invalid_id", BAD_REQUEST, "The id is not valid";
    /// No provider has this id or alias.
    UnknownProvider = "unknown_provider", NOT_FOUND, "There is no such tool";
    /// The Host header names another machine.
    BadHost = "bad_host", MISDIRECTED_REQUEST, "The request is meant for another host";
    /// The Origin header names another page.
    BadOrigin = "bad_origin", FORBIDDEN, "The request comes from another page";
    /// No credentials, or wrong ones.
    Unauthorized = "unauthorized", UNAUTHORIZED, "Access needs the one-time link or the API token";
    /// The link was used, or is too old.
    LinkInvalid = "link_invalid", UNAUTHORIZED, "The link is used up or too old";
    /// Too many requests.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, "Too many requests";
    /// It is not there.
    NotFound = "not_found", NOT_FOUND, "Not found";
    /// Not with this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method is not allowed here";
    /// Not in the present state.
    Conflict = "conflict", CONFLICT, "Not possible in the present state";
    /// Not a WebSocket request.
    WebsocketNeeded = "websocket_needed", BAD_REQUEST, "This address takes WebSocket connections";
    /// The pasted address or code does not fit the sign-in.
    InputRefused = "input_refused", UNPROCESSABLE_ENTITY, "The sign-in does not take this input";
    /// The offer of a WebRTC connection is none, or of no use.
    OfferRefused = "offer_refused", UNPROCESSABLE_ENTITY, "The offer cannot be used";
    /// The page does not offer a codec that is sent.
    CodecMissing = "codec_missing", UNPROCESSABLE_ENTITY, "The page cannot show the picture this way";
    /// The viewer is too long gone, or the token is another's.
    ViewerUnknown = "viewer_unknown", GONE, "The viewer cannot be resumed";
    /// An upstream proxy's address that is none, or that does not fit the policy.
    InvalidUpstream = "invalid_upstream", UNPROCESSABLE_ENTITY, "The upstream proxy cannot be used";
    /// All proxy ports are taken or rest.
    ProxyPortsExhausted = "proxy_ports_exhausted", SERVICE_UNAVAILABLE, "All proxy ports are in use";
    /// Another program has the user's proxy port.
    ProxyPortBusy = "proxy_port_busy", SERVICE_UNAVAILABLE, "The user's proxy port is in use";
    /// All slots are in use.
    SlotsExhausted = "slots_exhausted", SERVICE_UNAVAILABLE, "All machines are in use";
    /// No golden image.
    ImageMissing = "image_missing", SERVICE_UNAVAILABLE, "The machine image is not installed";
    /// The golden image is damaged.
    ImageDamaged = "image_damaged", SERVICE_UNAVAILABLE, "The machine image is damaged";
    /// The driver does not work here.
    DriverUnusable = "driver_unusable", SERVICE_UNAVAILABLE, "This host cannot run machines";
    /// The host process is away.
    HostUnavailable = "host_unavailable", SERVICE_UNAVAILABLE, "The machines cannot be reached for a moment";
    /// The host has not enough memory or cores for one more VM.
    NoCapacity = "no_capacity", SERVICE_UNAVAILABLE, "This host has no room for one more machine";
    /// The VM could not be put to sleep; it runs on.
    HibernateFailed = "hibernate_failed", BAD_GATEWAY, "The machine could not be put to sleep";
    /// The disk is full.
    NoSpace = "no_space", INSUFFICIENT_STORAGE, "The disk is full";
    /// The VM did not start or is gone.
    VmUnavailable = "vm_unavailable", BAD_GATEWAY, "The machine does not answer";
    /// Too many connections to one VM.
    TooManyConnections = "too_many_connections", SERVICE_UNAVAILABLE, "Too many connections to this machine";
    /// As many watch a desktop as may.
    TooManyViewers = "too_many_viewers", TOO_MANY_REQUESTS, "Too many watch this desktop";
    /// The service is shutting down.
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE, "The service is being stopped";
    /// A fault of the service; its log says more.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong in the service";
}

impl Problem {
    /// A problem; `detail` is scrubbed on its way in.
    pub fn new(code: Code, detail: impl AsRef<str>) -> Self {
        Self {
            kind: format!("urn:polydev:problem:{}", code.as_str()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: scrub(detail.as_ref()),
            code: code.as_str(),
            queue_position: None,
            retry_after_s: None,
        }
    }

    /// Adds when to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Logs a fault that a person has to look at and tells the caller only that there is one.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "request failed");
        Self::new(Code::Internal, "the service's log says more")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).expect("codes have valid statuses");
        let retry = self.retry_after_s;
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Answer to a method that a path does not have.
pub async fn method_not_allowed() -> Problem {
    Problem::new(Code::MethodNotAllowed, "see the API document for the methods of this path")
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match rejection {
            JsonRejection::JsonSyntaxError(_) => Self::new(Code::MalformedJson, rejection.body_text()),
            JsonRejection::JsonDataError(_) => Self::new(Code::InvalidRequest, rejection.body_text()),
            JsonRejection::MissingJsonContentType(_) => {
                Self::new(Code::UnsupportedMediaType, "send `content-type: application/json`")
            }
            _ if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(Code::BodyTooLarge, format!("at most {} bytes", super::BODY_MAX))
            }
            _ => Self::new(Code::InvalidRequest, "the body could not be read"),
        }
    }
}

impl From<PathRejection> for Problem {
    fn from(_: PathRejection) -> Self {
        Self::new(Code::InvalidId, "the address holds a part that is not valid")
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::InvalidRequest, rejection.body_text())
    }
}

impl From<IdError> for Problem {
    fn from(error: IdError) -> Self {
        let code = match error {
            IdError::BadUserId => Code::InvalidUserId,
            IdError::BadProviderId => Code::UnknownProvider,
            IdError::NotUuid { .. } => Code::InvalidId,
        };
        Self::new(code, error.to_string())
    }
}

impl From<SlotsExhausted> for Problem {
    fn from(error: SlotsExhausted) -> Self {
        /// A sign-in takes a person about this long.
        const TRY_AGAIN_S: u64 = 30;
        let mut problem = Self::new(Code::SlotsExhausted, error.to_string()).retry_after(TRY_AGAIN_S);
        problem.queue_position = Some(error.queue_position);
        problem
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace { .. } => {
                tracing::error!(%error, "request failed");
                Self::new(Code::NoSpace, "the service cannot write to its disk")
            }
            StoreError::Failed { .. } | StoreError::Damaged { .. } | StoreError::TooNew { .. } => {
                Self::internal(&error)
            }
        }
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let code = match &error {
            HostError::ImageMissing { .. } => Code::ImageMissing,
            HostError::ImageDamaged { .. } => Code::ImageDamaged,
            HostError::DriverUnusable { .. } => Code::DriverUnusable,
            HostError::NoSlot { total } => {
                return SlotsExhausted { total: *total, queue_position: 1 }.into();
            }
            HostError::NoSpace { .. } => Code::NoSpace,
            HostError::Unavailable { .. } => {
                /// A host process is started anew in about this time.
                const TRY_AGAIN_S: u64 = 5;
                return Self::new(Code::HostUnavailable, error.to_string()).retry_after(TRY_AGAIN_S);
            }
            HostError::NoCapacity { .. } => Code::NoCapacity,
            HostError::NotHibernatable { .. } => Code::Conflict,
            HostError::HibernateFailed { .. } => Code::HibernateFailed,
            HostError::NoSuchVm(_) => Code::NotFound,
            HostError::OutOfMemory { .. }
            | HostError::StartFailed { .. }
            | HostError::AgentSilent { .. }
            | HostError::NoNetwork { .. }
            | HostError::Identity { .. } => Code::VmUnavailable,
            _ => return Self::internal(&error),
        };
        Self::new(code, error.to_string())
    }
}

impl From<AgentError> for Problem {
    fn from(error: AgentError) -> Self {
        use polydev_core::wire::ErrorCode;
        let code = match &error {
            AgentError::Refused { refusal, .. } => match refusal.code {
                ErrorCode::UrlRefused | ErrorCode::BadRequest => Code::InputRefused,
                ErrorCode::Conflict => Code::Conflict,
                ErrorCode::NotFound => Code::NotFound,
                ErrorCode::NoSpace => Code::NoSpace,
                ErrorCode::VersionMismatch | ErrorCode::Os | ErrorCode::TimedOut => Code::VmUnavailable,
            },
            AgentError::Closed | AgentError::TimedOut { .. } | AgentError::Protocol { .. } => {
                Code::VmUnavailable
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<WorkspaceError> for Problem {
    fn from(error: WorkspaceError) -> Self {
        match error {
            WorkspaceError::Store(error) => error.into(),
            WorkspaceError::Host(error) => error.into(),
            WorkspaceError::Agent(error) => error.into(),
            WorkspaceError::Vault(error) => Self::internal(&error),
            WorkspaceError::NotThere | WorkspaceError::InUse => Self::new(Code::Conflict, error.to_string()),
            WorkspaceError::SlotTimeout { total } => SlotsExhausted { total, queue_position: 1 }.into(),
        }
    }
}

impl From<UpstreamFault> for Problem {
    fn from(fault: UpstreamFault) -> Self {
        Self::new(Code::InvalidUpstream, fault.to_string())
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let code = match error {
            ChangeError::UpstreamMissing | ChangeError::UpstreamUnwanted | ChangeError::UpstreamIsOwn => {
                Code::InvalidUpstream
            }
            ChangeError::Overtaken => Code::Conflict,
            ChangeError::Port(PortError::Exhausted { .. }) => Code::ProxyPortsExhausted,
            ChangeError::Port(PortError::Listen { .. }) => Code::ProxyPortBusy,
            ChangeError::Port(PortError::Ended) => Code::ShuttingDown,
            ChangeError::Port(PortError::Store(error)) | ChangeError::Store(error) => return error.into(),
            ChangeError::Vault(error) => return Self::internal(&error),
        };
        Self::new(code, error.to_string())
    }
}

impl From<RemoveError> for Problem {
    fn from(error: RemoveError) -> Self {
        match error {
            RemoveError::Busy => Self::new(Code::Conflict, error.to_string()),
            RemoveError::Workspace(error) => error.into(),
            RemoveError::Clean(CleanError::Host(error)) | RemoveError::Host(error) => error.into(),
            RemoveError::Clean(CleanError::Store(error)) | RemoveError::Store(error) => error.into(),
        }
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        let code = match error {
            JoinError::UnknownSession => Code::NotFound,
            JoinError::NoDesktop => Code::Conflict,
            JoinError::TooManyViewers { .. } => Code::TooManyViewers,
            JoinError::UnknownViewer => Code::ViewerUnknown,
            JoinError::ShuttingDown => Code::ShuttingDown,
            JoinError::NoRandomness => return Self::internal(&error),
            JoinError::Store(error) => return error.into(),
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_written_in_snake_case() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(texts.iter().all(|text| text.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        texts.sort_unstable();
        let count = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }

    #[test]
    fn a_detail_never_carries_a_code_of_a_sign_in() {
        let problem =
            Problem::new(Code::InputRefused, "http://localhost:1455/auth/callback?code=FAKEcode123&state=x");
        assert!(!problem.detail.contains("FAKEcode123"), "{}", problem.detail);
    }
}
