//! The nkd service: network boot, Ignition, machines, images and agents.

pub mod content;
pub mod netboot;
