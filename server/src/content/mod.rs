//! Content: images, the blobs that they are made of, and channels of releases.

pub mod blob;
pub mod channel;
pub mod graph;
pub mod image;
