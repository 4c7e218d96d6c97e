//! The image store against real folders, ISOs, HTTP servers, signatures and full disks.

mod folder;
mod garbage;
mod http;
mod iso;
mod signature;
mod space;
mod support;
