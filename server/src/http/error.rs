//! How the API says no: one type, turned into status and [`ErrorBody`] at one place.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nkd_api::{ErrorBody, Problem};

use super::refusals::Because;
use crate::cluster::bringup::BringUpError;
use crate::fleet::config::ConfigError;
use crate::fleet::enroll::EnrollError;
use crate::fleet::pki::PkiError;
use crate::ignition::IgnitionError;
use crate::machine::RegistryError;
use crate::machine::lifecycle::Refused;
use crate::netboot::plane::PlaneError;
use crate::store::StoreError;

/// An answer that is not a success.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody { code: code.into(), message: message.into(), hint: None, problems: Vec::new() },
        }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// 400: the document is wrong at these places.
    pub fn problems(message: impl Into<String>, problems: Vec<Problem>) -> Self {
        let mut error = Self::invalid(message);
        error.body.problems = problems;
        error
    }

    /// 401: nobody we know.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "this needs a valid token")
            .hint("run `nkd login`, or set NKD_TOKEN")
    }

    /// 403: known, but not allowed.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 409: it does not fit the state of things.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 408: the request did not come to its end.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid", message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid", message)
    }

    /// 503: worth a retry.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    /// Status and message, for answers of another form.
    pub(super) fn into_parts(self) -> (StatusCode, String) {
        (self.status, self.body.message)
    }

    /// A failure of our own: in the log with its causes, in the answer without.
    fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a request failed");
        Self::unavailable("the service cannot do this now; its log says why")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let because = Because(self.body.message.clone());
        let mut response = (self.status, Json(self.body)).into_response();
        response.extensions_mut().insert(because);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
        }
        response
    }
}

/// No such path.
pub(super) async fn no_route() -> ApiError {
    ApiError::not_found("there is nothing at this address; GET /openapi.json lists what there is")
}

/// The path is there, with other methods.
pub(super) async fn no_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", "this address does not take this method")
        .hint("GET /openapi.json lists what there is")
}

/// A handler panicked: a defect, said without its details.
pub(super) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the service failed; its log says more")
        .into_response()
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(message) => Self::conflict(message),
            StoreError::Stale => Self::conflict(error.to_string()),
            StoreError::Full(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
                Self::unavailable(error.to_string())
            }
            other => Self::broken(&other),
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(store) => store.into(),
            RegistryError::NotFound(_) => Self::not_found(error.to_string()),
            RegistryError::Refused(Refused::BadName(_)) => Self::invalid(error.to_string()),
            RegistryError::Refused(_) | RegistryError::Ambiguous(..) | RegistryError::TooManyUnknown => {
                Self::conflict(error.to_string())
            }
            RegistryError::Waits { ref machine, ref wanted, .. } => {
                let name = wanted.as_ref().map(|name| format!(" --name {name}")).unwrap_or_default();
                Self::conflict(error.to_string())
                    .hint(format!("accept it instead: `nkd machine accept {machine}{name}`, with the same assignment"))
            }
        }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Ignition(IgnitionError::Invalid(problems)) => {
                Self::problems("the configuration of this machine would not be valid", problems)
            }
            ConfigError::Ignition(ignition) => Self::invalid(chain(&ignition)),
            other => Self::broken(&other),
        }
    }
}

impl From<BringUpError> for ApiError {
    fn from(error: BringUpError) -> Self {
        match error {
            BringUpError::Store(store) => store.into(),
            BringUpError::Registry(registry) => registry.into(),
            BringUpError::Over => Self::conflict(error.to_string()),
            other => Self::unavailable(chain(&other)),
        }
    }
}

impl From<EnrollError> for ApiError {
    fn from(error: EnrollError) -> Self {
        match error {
            EnrollError::Token(_) | EnrollError::Reused(_) | EnrollError::Stopped(_) => {
                Self::forbidden(error.to_string())
            }
            EnrollError::Refused(refused @ Refused::OtherBoot(_)) => Self::forbidden(refused.to_string()),
            EnrollError::Refused(refused) => Self::conflict(refused.to_string()),
            EnrollError::Pki(PkiError::Request(_)) => Self::invalid(chain(&error)),
            EnrollError::Registry(registry) => registry.into(),
            EnrollError::Store(store) => store.into(),
            EnrollError::Pki(pki) => Self::broken(&pki),
        }
    }
}

impl From<PlaneError> for ApiError {
    fn from(error: PlaneError) -> Self {
        match error {
            PlaneError::Registry(registry) => registry.into(),
            PlaneError::Store(store) => store.into(),
            PlaneError::Config(config) => config.into(),
            other => Self::broken(&other),
        }
    }
}

/// An error as Cincinnati and FleetLock have it: `{"kind", "value"}`.
pub(super) fn kind_and_value(status: StatusCode, kind: &str, value: String) -> Response {
    (status, axum::Json(serde_json::json!({"kind": kind, "value": value}))).into_response()
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text = format!("{text}: {source_text}");
        }
        next = source.source();
    }
    text
}
