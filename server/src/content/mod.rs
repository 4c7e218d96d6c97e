//! Content: images and the blobs that they are made of.

pub mod blob;
pub mod image;
