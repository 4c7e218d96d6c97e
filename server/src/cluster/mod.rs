//! Clusters: what they are to be, who belongs to them, and how they come up.

pub mod bringup;
pub mod certificates;
mod claim;
pub mod diff;
pub mod etcd;
pub mod file;
pub mod fits;
pub mod health;
pub mod import;
pub mod kubeadm;
pub mod kubernetes;
pub mod load;
pub mod order;
pub mod pki;
pub mod plan;
pub mod quorum;
pub mod record;
pub mod renewal;
pub mod runtime;
pub mod snippets;
pub mod template;
pub mod watch;
