//! The nkd service: network boot, Ignition, machines, images and agents.

pub mod content;
pub mod ignition;
pub mod machine;
pub mod netboot;
pub mod store;
