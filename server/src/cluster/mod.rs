//! Clusters: what they are to be, who belongs to them, and how they come up.

mod balancer;
pub mod bringup;
pub mod change;
mod claim;
pub mod diff;
mod drain;
pub mod etcd;
pub mod file;
pub mod fits;
pub mod import;
pub mod kubeadm;
pub mod kubernetes;
pub mod leave;
pub mod load;
pub mod order;
mod part;
pub mod pki;
pub mod plan;
pub mod precheck;
pub mod quorum;
pub mod reach;
pub mod record;
pub mod runtime;
pub mod snippets;
pub mod template;
