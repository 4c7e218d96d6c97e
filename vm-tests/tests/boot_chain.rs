//! From a blank disk to an enrolled node, on real machines.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use nkd_vm_tests::{BootOrder, Builds, DhcpMode, Error, Firmware, Machine, Network, Nkd, within};

type Result<T = ()> = std::result::Result<T, Error>;

const IMAGE: &str = "lab";

/// A service in a network of its own, with the lab image imported.
fn service(net: &Network, mode: DhcpMode, more: &[&str]) -> Result<Nkd> {
    let builds = Builds::from_environment()?;
    let nkd = Nkd::start(net, &builds, mode, more)?;
    nkd.nkd(net, &["image", "import", &builds.image.display().to_string(), "--name", IMAGE])?;
    Ok(nkd)
}

#[test]
fn a_blank_bios_machine_enrolls() -> Result {
    let net = Network::create("bios")?;
    let nkd = service(&net, DhcpMode::Server, &[])?;
    nkd.nkd(&net, &["machine", "declare", "bios-1", "--mac", "52:54:00:00:00:01", "--image", IMAGE])?;
    let mut machine = Machine::named("bios-1")
        .firmware(Firmware::Bios)
        .mac("52:54:00:00:00:01")
        .disk_gib(4)
        .boot(BootOrder::NetworkThenDisk)
        .start(&net)?;
    nkd.wait_for_phase(&net, "bios-1", "Booting", within(90))?;
    nkd.wait_for_phase(&net, "bios-1", "Installing", within(400))?;
    nkd.wait_for_phase(&net, "bios-1", "Installed", within(400))?;
    let node = nkd.wait_for_phase(&net, "bios-1", "Enrolled", within(400))?;
    assert_eq!(node["installedGeneration"], 1);
    println!("{}", nkd.nkd(&net, &["machine", "show", "bios-1"])?);
    println!("{}", nkd.nkd(&net, &["machine", "events", "bios-1"])?);
    machine.power_off(within(120))?;
    Ok(())
}
