//! Clusters: the cluster file and what is made of it.

pub mod diff;
pub mod file;
pub mod import;
pub mod load;
pub mod template;
