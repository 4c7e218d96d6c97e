//! Machines: who they are, where they stand, and what happened to them.

pub mod assignment;
pub mod identity;
pub mod lifecycle;
mod registry;
pub mod rules;

pub use registry::{Registry, RegistryError, Selector};
