//! Clusters: what they are to be, who belongs to them, and how they come up.

pub mod bringup;
mod claim;
pub mod diff;
pub mod file;
pub mod fits;
pub mod import;
pub mod kubeadm;
pub mod kubernetes;
pub mod load;
pub mod order;
pub mod pki;
pub mod plan;
pub mod record;
pub mod retry;
pub mod runtime;
pub mod snippets;
pub mod template;
