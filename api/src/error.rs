//! How the service says no.

use serde::{Deserialize, Serialize};

/// Body of every error answer of the REST API and the agent protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// A stable word for programs: `not_found`, `invalid`, `conflict`, `unauthenticated`, `forbidden`,
    /// `unavailable`, `internal`.
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it, when the service knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Every problem of a rejected document, each with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a document or with the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Where, as a path: `spec.pools[1].machines[0].ip`.
    pub path: String,
    /// What is wrong there and what would be right.
    pub message: String,
}
