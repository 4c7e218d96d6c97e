//! Content: images and the blobs that they are made of.

pub mod image;
