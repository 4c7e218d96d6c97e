//! The image store against real folders, ISOs, HTTP servers, signatures and full disks.

#![expect(clippy::disallowed_methods, reason = "tests on real files, sockets and processes")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod folder;
mod garbage;
mod http;
mod iso;
mod killed;
mod signature;
mod space;
mod support;
