//! From a blank disk to an enrolled node, on real machines, and what must not happen on the way. What takes longest runs in
//! soak; the way itself is seen in every run, by BIOS and by UEFI, in `whole_chain.rs`.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::process::Command;

use nkd_vm_tests::{
    BootOrder, Builds, Clock, DhcpMode, Error, Firmware, Machine, MachineSpec, Network, Nic, Nkd, other_dhcp, within,
};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

const IMAGE: &str = "lab";
const MAC: &str = "52:54:00:00:00:01";

/// A service in a network of its own, with the lab image imported.
fn service(net: &Network, mode: DhcpMode) -> Result<Nkd> {
    service_with(net, mode, &[])
}

fn service_with(net: &Network, mode: DhcpMode, settings: &[&str]) -> Result<Nkd> {
    let builds = Builds::from_environment()?;
    let nkd = Nkd::start(net, &builds, mode, settings)?;
    nkd.nkd(net, &["image", "import", &builds.image.display().to_string(), "--name", IMAGE])?;
    Ok(nkd)
}

/// A machine that is to become a node, declared before its first packet.
fn declared(net: &Network, nkd: &Nkd, name: &str) -> Result<MachineSpec> {
    nkd.nkd(net, &["machine", "declare", name, "--mac", MAC, "--image", IMAGE])?;
    Ok(Machine::named(name).mac(MAC).disk_gib(4).boot(BootOrder::NetworkThenDisk))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn phase(machine: &Value) -> &str {
    machine["phase"]["name"].as_str().unwrap_or_default()
}

/// Installed again only when the generation was raised, through power cuts. That it is installed once and boots its disk ever
/// after is seen in the whole chain.
#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn a_bios_machine_is_installed_again_only_by_generation() -> Result {
    let net = Network::create("bios")?;
    let nkd = service(&net, DhcpMode::Server)?;
    let mut machine = declared(&net, &nkd, "bios-1")?.firmware(Firmware::Bios).start(&net)?;
    nkd.wait_for_phase(&net, "bios-1", "Installing", within(400))?;
    let node = nkd.wait_for_phase(&net, "bios-1", "Enrolled", within(700))?;
    assert_eq!(node["installedGeneration"], 1);
    assert!(node["facts"]["bootedDeployment"].is_string(), "{node:#}");
    assert_eq!(node["facts"]["live"], false);

    // Reinstall by generation.
    let explained = |word| Ok::<_, Error>(nkd.json(&net, &["machine", "explain", word])?["answer"].clone());
    assert_eq!(explained(MAC)?, "local-disk");
    nkd.nkd(&net, &["machine", "reinstall", "bios-1"])?;
    assert_eq!(explained(MAC)?, "live-install");
    machine.power_off(within(180))?;
    machine.power_on()?;
    // Power fails while the disk is written: the same generation is begun again, and ends well.
    nkd.wait_until(&net, "bios-1", "generation 2 is being installed", within(500), |m| {
        phase(m) == "installing" && m["generation"] == 2
    })?;
    machine.power_cut()?;
    machine.power_on()?;
    // And once more while the installed system runs Ignition for the first time.
    nkd.wait_until(&net, "bios-1", "generation 2 is installed", within(700), |m| m["installedGeneration"] == 2)?;
    machine.console().expect("Starting ignition-disks.service", within(400))?;
    machine.power_cut()?;
    machine.power_on()?;
    let node = nkd.wait_until(&net, "bios-1", "generation 2 enrolls", within(900), |m| {
        phase(m) == "enrolled" && m["installedGeneration"] == 2
    })?;
    assert_eq!(node["generation"], 2);
    machine.power_off(within(180))
}

/// The firmware's own PXE, so that our TFTP is used; another server hands out the addresses; and the service dies while
/// the disk is written.
#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn a_uefi_machine_enrolls_beside_another_dhcp_server_though_the_service_is_killed() -> Result {
    let net = Network::create("uefi-proxy")?;
    let _dnsmasq = other_dhcp(&net)?;
    let mut nkd = service(&net, DhcpMode::Proxy)?;
    let machine = declared(&net, &nkd, "uefi-1")?
        .firmware(Firmware::Uefi)
        .nic(Nic::VirtioBare)
        .boot(BootOrder::DiskThenNetwork)
        .start(&net)?;
    nkd.wait_for_phase(&net, "uefi-1", "Installing", within(700))?;
    // The loader came by TFTP from us.
    let log = nkd.process().log()?;
    assert!(
        log.lines().any(|l| l.contains("TFTP transfer ended") && l.contains("Delivered")),
        "no TFTP transfer in the log"
    );
    nkd.process().kill()?;
    nkd.process().start_again()?;
    nkd.process().expect_log("nkd serves", within(60))?;
    let node = nkd.wait_for_phase(&net, "uefi-1", "Enrolled", within(900))?;
    assert_eq!(node["identity"]["firmware"], "uefi");
    assert_eq!(node["installedGeneration"], 1);
    drop(machine);
    Ok(())
}

/// UEFI HTTP boot; and a machine that nobody knows gets no configuration, but stands in the list and says why it waits.
#[test]
fn an_unknown_machine_waits_until_it_is_accepted() -> Result {
    let net = Network::create("unknown")?;
    let nkd = service(&net, DhcpMode::Server)?;
    let machine = Machine::named("stranger").mac(MAC).disk_gib(4).firmware(Firmware::UefiHttp).start(&net)?;
    machine.console().expect("not accepted yet", within(240))?;
    let record = nkd.machine(&net, MAC)?;
    assert_eq!(phase(&record), "discovered");
    assert_eq!(record["accepted"], false);
    assert_eq!(record["identity"]["vendor"], "QEMU");
    assert_eq!(record["identity"]["firmware"], "uefi");
    let name = record["name"].as_str().unwrap_or_default().to_owned();
    assert_eq!(nkd.json(&net, &["machine", "explain", MAC])?["answer"], "not-now");
    // Whoever only knows the MAC address, and was not given the machine's lease, is told nothing at all.
    let other = net.host("other", Some("192.0.2.3/24"))?;
    let asked = other.http_get(&format!("http://192.0.2.1:8080/boot.ipxe?mac={MAC}"), within(20))?;
    assert!(asked.status == 403 && asked.text().contains("is not leased to"), "{asked:?}");
    // Nothing of it is behind the boot plane.
    assert_eq!(nkd.events(&net, &name, "config")?.len(), 0);

    nkd.nkd(&net, &["machine", "accept", &name, "--name", "known", "--image", IMAGE])?;
    nkd.wait_for_phase(&net, "known", "Booting", within(120))?;
    nkd.wait_until(&net, "known", "Ignition took its configuration", within(400), |m| {
        m["steps"].as_array().is_some_and(|steps| steps.iter().any(|s| s["name"] == "live"))
    })?;
    Ok(())
}

/// With a discovery image, a stranger tells its hardware, waits, and restarts by itself into its installation when it is
/// let in.
#[test]
fn a_discovered_machine_tells_its_facts_and_installs_when_it_is_let_in() -> Result {
    let net = Network::create("discovery")?;
    let nkd = service_with(&net, DhcpMode::Server, &[&format!("discovery_image={IMAGE}")])?;
    let machine = Machine::named("found").mac(MAC).disk_gib(4).boot(BootOrder::NetworkThenDisk).start(&net)?;
    let found = nkd.wait_until(&net, MAC, "the machine tells its facts", within(600), |m| m["facts"].is_object())?;
    assert_eq!(phase(&found), "discovered");
    assert_eq!(found["facts"]["live"], true);
    assert_eq!(found["facts"]["disks"][0]["sizeBytes"], 4u64 << 30, "{found:#}");
    assert!(found["facts"]["nics"].as_array().unwrap().iter().any(|n| n["mac"] == MAC));
    let name = found["name"].as_str().unwrap_or_default().to_owned();
    nkd.nkd(&net, &["machine", "accept", &name, "--name", "found", "--image", IMAGE])?;
    nkd.wait_for_phase(&net, "found", "Installing", within(700))?;
    drop(machine);
    Ok(())
}

/// One flipped byte in the disk image (and BIOS beside another DHCP server): the agent finds it, says so, and nothing can boot from the disk.
#[test]
fn a_wrong_digest_never_boots() -> Result {
    let net = Network::create("digest")?;
    let _dnsmasq = other_dhcp(&net)?;
    let nkd = service(&net, DhcpMode::Proxy)?;
    let image = nkd.json(&net, &["image", "show", IMAGE])?;
    let disk = image["artifacts"].as_array().unwrap().iter().find(|a| a["kind"] == "disk").unwrap();
    let digest = disk["sha256"].as_str().unwrap();
    let blob = nkd.state().join("blobs/sha256").join(&digest[..2]).join(&digest[2..]);
    flip_byte(&blob, disk["size"].as_u64().unwrap() - 4096);

    let mut machine = declared(&net, &nkd, "digest-1")?.firmware(Firmware::Bios).start(&net)?;
    let failed = nkd.wait_for_phase(&net, "digest-1", "Failed", within(700))?;
    assert_eq!(failed["phase"]["step"], "verify", "{failed:#}");
    assert!(failed["installedGeneration"].is_null());
    // There is no boot sector and no partition table on the disk.
    machine.power_cut()?;
    assert!(machine.disk_begins_with_zeros()?, "the first MiB of the disk holds something");
    Ok(())
}

fn flip_byte(path: &std::path::Path, offset: u64) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Somebody else on the segment boots as this machine while it boots itself: the alarm stops the machine, and only an
/// operator lets it go on.
#[test]
fn a_stolen_first_stage_raises_an_alarm() -> Result {
    let net = Network::create("stolen")?;
    let _dnsmasq = other_dhcp(&net)?;
    let nkd = service(&net, DhcpMode::Proxy)?;
    let thief = net.host("thief", Some("192.0.2.3/24"))?;
    let machine = declared(&net, &nkd, "victim")?.firmware(Firmware::Bios).survives_trouble().start(&net)?;
    nkd.wait_for_phase(&net, "victim", "Booting", within(120))?;
    // The thief takes a script, an overlay and, with the token in it, the configuration.
    let script = thief.http_get(&format!("http://192.0.2.1:8080/boot.ipxe?mac={MAC}"), within(20))?.text();
    let initrd = script.split_whitespace().find(|w| w.contains("/boot/")).unwrap_or_default().to_owned();
    let file = net.folder().join("stolen.img").display().to_string();
    thief.run(command(&["curl", "-sSf", "-o", &file, &initrd]), within(60))?.success()?;
    let bytes = std::fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&bytes[bytes.len() - 4096..]).into_owned();
    let token = text.split("Bearer ").nth(1).and_then(|t| t.split('"').next()).unwrap_or_default().to_owned();
    let header = format!("Authorization: Bearer {token}");
    let config = ["curl", "-sS", "-k", "-H", &header, "https://192.0.2.1:8443/ignition/v1/config"];
    assert!(thief.run(command(&config), within(20))?.success()?.text().contains("nkd-agent"));
    // The machine itself comes too late with its own token: refused, and everybody is told.
    let victim = nkd.wait_until(&net, "victim", "the machine is stopped", within(400), |m| m["stopped"].is_string())?;
    assert!(victim["stopped"].as_str().unwrap().contains("two parties"), "{victim:#}");
    assert_eq!(nkd.events(&net, "victim", "alarm")?.len(), 1);
    // From now on nobody gets anything, the thief no more than the machine.
    assert!(thief.run(command(&config), within(20))?.success()?.text().contains("is stopped"));
    machine.console().expect("victim is stopped", within(300))?;
    nkd.nkd(&net, &["machine", "release", "victim"])?;
    assert!(nkd.machine(&net, "victim")?["stopped"].is_null());
    Ok(())
}

/// The machine's way is cut off where it is weakest: its token is too old when Ignition comes with it, and power fails
/// between the configuration and the enrollment. Each time it begins again by itself, and nobody is accused.
#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn an_old_token_and_a_power_cut_before_enrollment_only_cost_time() -> Result {
    let net = Network::create("late")?;
    let builds = Builds::from_environment()?;
    let clock = Clock::new(&net)?;
    let nkd = Nkd::start_under(&net, &builds, DhcpMode::Server, &[], Some(&clock))?;
    nkd.nkd(&net, &["image", "import", &builds.image.display().to_string(), "--name", IMAGE])?;
    let mut machine = declared(&net, &nkd, "late-1")?.firmware(Firmware::Bios).survives_trouble().start(&net)?;
    nkd.wait_for_phase(&net, "late-1", "Booting", within(120))?;
    clock.jump("+2h")?;
    nkd.wait_until(&net, "late-1", "the old token is refused", within(400), |m| {
        m["waiting"].as_str().is_some_and(|w| w.contains("whose time is over"))
    })?;
    nkd.wait_until(&net, "late-1", "Ignition took its configuration after another boot", within(400), |m| {
        m["steps"].as_array().is_some_and(|steps| steps.iter().any(|s| s["name"] == "live"))
    })?;
    machine.power_cut()?;
    assert_eq!(nkd.events(&net, "late-1", "enrolled")?.len(), 0, "too late for this test");
    machine.power_on()?;
    let installing = nkd.wait_for_phase(&net, "late-1", "Installing", within(400))?;
    assert!(installing["stopped"].is_null(), "{installing:#}");
    assert_eq!(nkd.events(&net, "late-1", "alarm")?, Vec::<String>::new());
    Ok(())
}
