//! `housekeeper`: upgrades the nodes of a cluster one by one, from inside it.
//!
//! [`plan`] decides from what [`seen`] and [`wish`] hold, and knows no clock and no socket. [`run`] looks, asks it, and does
//! what it says, as long as [`lease`] lets it.

pub mod blocked;
pub mod budget;
pub mod cluster;
pub mod credentials;
pub mod image;
pub mod lease;
pub mod lookups;
pub mod plan;
pub mod registry;
pub mod run;
pub mod seen;
pub mod serve;
pub mod step;
pub mod tell;
pub mod turn;
pub mod waits;
pub mod watch;
pub mod wish;
