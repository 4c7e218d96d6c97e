//! Updates of this node: `nkd-agent update`, in a unit of its own.
//!
//! ```text
//! housekeeper ── nkd.io/desired on the Node ──▶ this ── nkd.io/reported ──▶ housekeeper
//!                                                │
//!      nkd serve ── the repository, signed ──▶ ostree: staged ── kubeadm out of the staged tree ── restart ── gate
//! ```
//! | module | what it does |
//! |---|---|
//! | `state` | decides, as a pure function |
//! | `event` | what that takes and gives |
//! | `journal` | what is kept over restarts |
//! | `driver` | carries the actions out |
//! | `node` | this node's object in the cluster's API |
//! | `kubernetes` | kubeadm, and the kubelet's way back |
//! | `manifests` | the static pods' way back |
//! | `plane` | of which version a control plane is |
//! | `gate` | what has to hold before a node is healthy |

mod driver;
mod event;
mod gate;
mod journal;
mod kubernetes;
mod manifests;
mod node;
mod plane;
pub mod state;

pub use driver::{Options, RunError, run};
