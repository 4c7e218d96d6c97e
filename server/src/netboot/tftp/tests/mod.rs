//! Tests of the TFTP server, from the bytes up.

mod admission;
mod codec;
mod names;
mod network;
mod source;
mod spin;
mod transfer;
