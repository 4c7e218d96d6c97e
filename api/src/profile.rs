//! Distribution profiles: how an image wants to be booted and installed.

use serde::{Deserialize, Serialize};

/// Behaviour of one family of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// `nestos`, `fedora-coreos` or `lab`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Prefix of live and installer arguments: `nestos` or `coreos`.
    pub karg_prefix: String,
    /// Newest Ignition specification that its images read, `3.3.0`.
    pub ignition_spec: String,
    /// The account that gets the SSH keys.
    pub default_user: String,
    /// Kernel arguments of the live system beside those the service needs itself.
    pub live_args: Vec<String>,
    /// Kernel arguments appended to the installed system.
    pub installed_args: Vec<String>,
    /// Program that writes the disk image.
    pub installer: String,
    /// The image carries `nkd-agent`; otherwise Ignition brings it.
    pub agent_in_image: bool,
}
