//! Network boot: DHCP, TFTP, the boot plane and the boot decision.

pub mod bootplane;
pub mod decide;
pub mod dhcp;
pub mod ipxe;
pub mod tftp;
