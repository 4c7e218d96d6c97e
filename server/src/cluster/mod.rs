//! Clusters: what they are to be, who belongs to them, and how they come up.

pub mod kubeadm;
pub mod kubernetes;
pub mod pki;
pub mod plan;
pub mod record;
pub mod runtime;
