//! The OCI distribution specification 1.1 as far as it needs no I/O: names, addresses, manifests, ranges. Pure.

mod manifest;
mod name;
mod range;
mod target;

pub use manifest::{Manifest, ManifestError, Part, Summary, summary};
pub use name::{NameError, Reference, Repository, digest, digest_text};
pub use range::chunk;
pub use target::{Target, TargetError};
