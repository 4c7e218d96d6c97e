//! Upgrades of a whole cluster: the service checks, asks the operator in the cluster, and follows.
//!
//! ```text
//! nkd upgrade start ──▶ preflight (pure) ──▶ kept ──▶ snapshot of etcd ──▶ Update resource in the cluster ──▶ housekeeper ──▶ the
//!                                             ▲                                     │ status                     nodes' updaters
//!                                             └─────────────────────────────────────┘
//! ```
//! What was promised is in the store before it is in the cluster. The resource is applied again whenever the two differ, so
//! a service that was killed goes on; and a rollout goes on while the service is away.

pub mod beside;
pub mod budgets;
pub mod follow;
pub mod metrics;
pub mod preflight;
mod prepare;
pub mod resource;
