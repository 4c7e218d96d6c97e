//! The nodes' side of the service: certificates, enrollment, tasks and reports.

pub mod config;
pub mod enroll;
pub mod fingerprint;
pub mod pki;
pub mod secret;
pub mod task;
