//! Who may restart: leases that nodes take by the FleetLock protocol.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The right of one node to restart, for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Its group.
    pub group: String,
    /// The node, as it calls itself.
    pub id: String,
    /// Where it asked from last; not given for leases that are older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<IpAddr>,
    /// Grows from one lease to the next, in all groups together; the lease of a node that asks again keeps it.
    pub fencing: u64,
    /// When it was given.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// When it ends, unless its node asks again.
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
}
