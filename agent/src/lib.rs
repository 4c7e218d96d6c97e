//! The node agent: enrolls with the service, installs in the live system, reports.
//!
//! | module | what it does |
//! |---|---|
//! | `state` | decides, as a pure function: events in, actions out |
//! | `driver` | carries the actions out |
//! | `client`, `upload`, `tls`, `clock` | the agent protocol, the pinned CA, the service's clock |
//! | `identity`, `files` | key, certificate, token and journal on disk |
//! | `install` | disk choice, image relay, installer |
//! | `kubeadm` | a run of kubeadm in a unit of its own |
//! | `balance` | the balancer towards the API servers of the node's cluster, in a unit of its own |
//! | `update`, `ostree` | an update of the node, in a unit of its own; the deployments on its disk |
//! | `facts` | what the machine says of itself |
//! | `console`, `status`, `reboot`, `resolve` | the machine around it |

pub mod balance;
mod client;
mod clock;
mod console;
mod driver;
pub mod facts;
mod files;
mod identity;
mod install;
pub mod kubeadm;
pub mod ostree;
mod reboot;
mod resolve;
pub mod state;
pub mod status;
mod tls;
pub mod update;
mod upload;

pub use client::chain;
pub use driver::{Options, RunError, run};
pub use install::Patience;
pub use reboot::Reboot;
