//! Clusters: what they are to be, who belongs to them, and how they come up.

pub mod bringup;
mod claim;
pub mod fits;
pub mod kubernetes;
pub mod plan;
pub mod record;
pub mod snippets;
