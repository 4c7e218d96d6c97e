//! The nodes' side of the service: certificates, enrollment, tasks and reports.

pub mod config;
pub mod enroll;
pub mod fingerprint;
pub mod lock;
pub mod pki;
pub mod reboots;
pub mod secret;
pub mod task;
