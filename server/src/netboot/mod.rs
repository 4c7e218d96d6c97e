//! Network boot: DHCP, TFTP, the boot plane and the boot decision.

pub mod bootplane;
pub mod dhcp;
pub mod tftp;
