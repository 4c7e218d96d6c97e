//! The nkd service: network boot, Ignition, machines, images and agents.

pub mod cli;
pub mod cluster;
pub mod content;
pub mod fleet;
pub mod http;
pub mod ignition;
mod lanes;
pub mod machine;
pub mod netboot;
pub mod origin;
pub mod serve;
pub mod service;
pub mod settings;
pub mod store;
pub mod trace;
