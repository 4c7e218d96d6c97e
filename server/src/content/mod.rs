//! Content: images, the blobs that they are made of, channels of releases, and the registry of container images.

pub mod blob;
pub mod channel;
pub mod graph;
pub mod image;
pub mod registry;
