//! kubeadm on this node: `init`, `join`, `reset`, the renewal of certificates, etcd brought back, and snapshots of it.
//!
//! ```text
//! agent ── order (in memory, 0600) ──▶ unit nkd-kubeadm-<operation> ── nkd-agent kubeadm ──▶ files, hooks, kubeadm
//!   ▲                                                                        │
//!   └────────────── journal: step, done, failed (/var/lib/nkd-agent) ◀───────┘
//! ```
//! kubeadm runs in a unit of its own, because it needs what the agent's sandbox forbids, and because it goes on when the
//! agent is killed. After a power cut there is neither unit nor end in the journal: the next run removes what kubeadm
//! left (`kubeadm reset`) and begins again.

mod certificates;
mod etcd;
mod fit;
mod journal;
mod local;
mod proof;
mod recover;
mod renew;
mod run;
mod snapshot;
mod watch;

pub(crate) use certificates::embedded;
pub use certificates::{Shown, gather as certificates};
pub use journal::{Entry, Journal};
pub(crate) use recover::{Etcd, own_etcd};
pub(crate) use renew::{API_SERVER, COMPONENTS, api_server_port, port_of};
pub(crate) use run::shout;
pub use run::{RunError, run};
pub use watch::{Place, carry_out};

/// Asks this node's own API server, as its administrator.
///
/// # Errors
/// In one sentence.
pub(crate) fn ask_api_server(root: &std::path::Path, port: u16, path: &str) -> Result<Vec<u8>, String> {
    local::get(&root.join("etc/kubernetes"), port, path)
}
