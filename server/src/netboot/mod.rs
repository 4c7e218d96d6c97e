//! Network boot: DHCP, TFTP, the boot plane and the boot decision.

pub mod bootplane;
pub mod decide;
pub mod dhcp;
pub mod ipxe;
pub mod leases;
pub mod plane;
pub mod sighted;
pub mod tftp;
pub mod tree;

#[cfg(test)]
mod corpus_tests;
