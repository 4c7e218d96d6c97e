//! The framework proves itself, with guests of 512 bytes where those will do, and with other people's servers.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{
    Accelerator, BootOrder, DiskCache, Error, Firmware, Machine, Network, Nic, Service, boot_sector, golden_disk,
    within,
};

type Result<T = ()> = std::result::Result<T, Error>;

/// Writes a disk whose boot sector says `text`.
fn sector(net: &Network, text: &str) -> std::path::PathBuf {
    let file = net.folder().join("sector.img");
    // On a line of its own, after SeaBIOS' "Booting from Hard Disk...".
    std::fs::write(&file, boot_sector::printing(&format!("\r\n{text}"))).unwrap();
    file
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn namespaces() -> String {
    String::from_utf8(Command::new("ip").args(["netns", "list"]).output().unwrap().stdout).unwrap()
}

/// Whether a process runs. One that has ended and is not reaped yet does not.
fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// dnsmasq as DHCP and TFTP server, with router advertisements so that iPXE does not wait for one.
fn dnsmasq(net: &Network, more: &[&str]) -> Result<Service> {
    let folder = net.folder().display();
    let leases = format!("--dhcp-leasefile={folder}/leases");
    let root = format!("--tftp-root={folder}");
    let mut words = vec!["dnsmasq", "-k", "-C", "/dev/null", "--port=0", "--user=root", "--pid-file=", "--log-dhcp"];
    words.extend([
        "--log-facility=-",
        "--interface=br0",
        "--bind-interfaces",
        "--no-ping",
        "--enable-ra",
        "--enable-tftp",
    ]);
    words.extend(["--dhcp-range=192.0.2.100,192.0.2.150,1h", "--dhcp-range=fd00:192::,ra-only", &leases, &root]);
    words.extend(["--dhcp-userclass=set:ipxe,iPXE", "--dhcp-boot=tag:ipxe,http://192.0.2.1:8000/boot.ipxe"]);
    words.extend(more);
    let mut server = net.spawn("dnsmasq", command(&words))?;
    server.expect_log("started", within(20))?;
    Ok(server)
}

/// Python's HTTP server on the network's folder.
fn http_server(net: &Network, script: &str) -> Result<Service> {
    std::fs::write(net.folder().join("boot.ipxe"), script).unwrap();
    let folder = net.folder().display().to_string();
    let mut python = command(&[
        "/usr/bin/python3",
        "-u",
        "-m",
        "http.server",
        "-p",
        "HTTP/1.1",
        "--bind",
        "192.0.2.1",
        "-d",
        &folder,
        "8000",
    ]);
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    let mut server = net.spawn("http", python)?;
    server.expect_log("Serving HTTP", within(20))?;
    Ok(server)
}

#[test]
fn a_guest_is_seen_switched_and_photographed() -> Result {
    let net = Network::create("framework-guest")?;
    let disk = sector(&net, "hello from the sector\r\n");
    let mut machine = Machine::named("sector").memory_mib(64).processors(1).disk_from(&disk).start(&net)?;
    let seen = machine.console().expect("hello from", within(60))?;
    assert_eq!(seen.line, "hello from the sector");
    assert!(seen.after > Duration::ZERO);

    machine.reset()?;
    machine.console().expect("hello from", within(60))?;

    let picture = net.folder().join("screen.png");
    machine.screenshot(&picture)?;
    assert_eq!(std::fs::read(&picture).unwrap()[..4], *b"\x89PNG");

    machine.power_cut()?;
    assert!(!machine.is_on());
    assert!(matches!(machine.reset(), Err(Error::Power { is: "off", .. })));
    machine.power_on()?;
    machine.console().expect("hello from", within(60))?;

    // This guest knows no power button: the wait ends all the same.
    let error = machine.power_off(Duration::from_millis(500)).unwrap_err().to_string();
    assert!(error.contains("not within 500") && error.contains("hello from the sector"), "{error}");
    let log = std::fs::read_to_string(machine.folder().join("serial.log")).unwrap();
    assert_eq!(log.matches("hello from").count(), 3, "{log}");
    assert_eq!(log.matches("switched on").count(), 2, "{log}");
    Ok(())
}

#[test]
fn a_silent_guest_is_an_error_that_one_can_read() -> Result {
    let net = Network::create("framework-silent")?;
    let disk = sector(&net, "");
    let machine = Machine::named("silent").memory_mib(64).processors(1).disk_from(&disk).start(&net)?;
    let begin = Instant::now();
    let error = machine.console().expect("login:", Duration::from_secs(3)).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(60), "the limit was three seconds");
    let text = format!("{error:?}");
    for part in ["silent: waited for \"login:\"", "within 3", "serial.log", "failure.png"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(machine.folder().join("failure.png").exists());
    Ok(())
}

#[test]
fn a_panic_ends_the_wait_at_once() -> Result {
    let net = Network::create("framework-panic")?;
    let disk = sector(&net, "[ 1.0] Kernel panic - not syncing: no init\r\n[ 1.1] the end trace\r\n");
    let spec = Machine::named("panic").memory_mib(64).processors(1).disk_from(&disk);
    let machine = spec.clone().start(&net)?;
    let begin = Instant::now();
    let error = machine.console().expect("login:", within(300)).unwrap_err().to_string();
    assert!(begin.elapsed() < within(100), "it waited for its limit");
    assert!(error.contains("the machine said \"[ 1.0] Kernel panic - not syncing: no init\""), "{error}");
    assert!(error.contains("the end trace"), "{error}");
    drop(machine);

    let fallback = spec.survives_trouble().start(&net)?;
    fallback.console().expect("the end trace", within(60))?;
    Ok(())
}

#[test]
fn a_machine_that_the_emulator_has_hung_is_reset() -> Result {
    let net = Network::create("framework-hung")?;
    let line = "rcu: Possible timer handling issue on cpu=1 timer-softirq=4\r\n";
    let disk = sector(&net, &format!("up\r\n{}the end", line.repeat(3)));
    let machine = Machine::named("hung").memory_mib(64).processors(1).disk_from(&disk).start(&net)?;
    for _ in 0..2 {
        machine.console().expect("up", within(60))?;
    }
    drop(machine);

    // A computer that is busy makes a system say so once or twice.
    let disk = sector(&net, &format!("up\r\n{}the end", line.repeat(2)));
    let machine = Machine::named("busy").memory_mib(64).processors(1).disk_from(&disk).start(&net)?;
    machine.console().expect("the end", within(60))?;
    assert!(machine.console().expect("up", Duration::from_secs(5)).is_err(), "it was reset");
    Ok(())
}

#[test]
fn what_the_emulator_has_translated_is_forgotten_and_the_machine_goes_on() -> Result {
    let net = Network::create("framework-forgets")?;
    let disk = sector(&net, "up");
    let at_rest = Machine::named("rests").memory_mib(64).disk_from(&disk).start(&net)?;
    at_rest.console().expect("up", within(60))?;
    assert!(at_rest.forget_translations().is_err(), "a processor at rest takes no step");
    at_rest.reset()?;
    at_rest.console().expect("up", within(60))?;
    drop(at_rest);

    // This one does nothing as fast as it can, `nop` in the place of `hlt`.
    let mut bytes = std::fs::read(&disk).unwrap();
    let rest = bytes.windows(3).position(|code| code == [0xf4, 0xeb, 0xfd]).unwrap();
    bytes[rest] = 0x90;
    std::fs::write(&disk, bytes).unwrap();
    let machine = Machine::named("forgets").memory_mib(64).disk_from(&disk).start(&net)?;
    machine.console().expect("up", within(60))?;
    for _ in 0..2 {
        machine.forget_translations()?;
    }
    machine.reset()?;
    machine.console().expect("up", within(60))?;
    machine.pause()?;
    assert!(machine.forget_translations().is_err(), "it would go on");
    Ok(())
}

#[test]
fn a_machine_that_ends_says_so() -> Result {
    let net = Network::create("framework-ended")?;
    let disk = sector(&net, "up\r\n");
    let spec = Machine::named("ended").memory_mib(64).disk_from(&disk);
    let error = spec.clone().qemu(&["-device", "no-such-device"]).start(&net).unwrap_err().to_string();
    assert!(error.contains("no-such-device"), "{error}");

    let mut machine = spec.start(&net)?;
    machine.console().expect("up", within(60))?;
    machine.power_cut()?;
    let begin = Instant::now();
    let error = machine.console().expect("login:", within(300)).unwrap_err().to_string();
    assert!(begin.elapsed() < within(30) && error.contains("the machine is off"), "{error}");
    Ok(())
}

#[test]
fn a_machine_that_switches_itself_off_is_waited_for() -> Result {
    let net = Network::create("framework-off")?;
    let disk = net.folder().join("off.img");
    std::fs::write(&disk, boot_sector::printing_then_off("\r\nwork is done\r\n")).unwrap();
    let mut machine = Machine::named("off").memory_mib(64).disk_from(&disk).start(&net)?;
    machine.console().expect("work is done", within(60))?;
    assert!(machine.wait_exit(within(30))?.success());
    // What was said before the end is still there.
    assert!(machine.console().text().contains("work is done"));
    Ok(())
}

#[test]
fn a_drop_leaves_nothing() -> Result {
    let net = Network::create("framework-drop")?;
    let name = net.name().to_owned();
    let peer = net.host("peer", Some("192.0.2.2/24"))?;
    // A service whose child goes its own way.
    let mut stray = net.spawn("stray", command(&["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"]))?;
    let child: u32 = stray.expect_log("", within(10))?.trim().parse().unwrap();
    let service = stray.id().unwrap();
    let disk = sector(&net, "up\r\n");
    let machine = Machine::named("machine").memory_mib(64).disk_from(&disk).start(&net)?;
    machine.console().expect("up", within(60))?;
    let disk = machine.disk().unwrap().to_owned();
    assert!(runs(child) && runs(service) && disk.exists() && namespaces().contains(&name));

    let folder = net.folder().to_owned();
    // In a panic as well.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _all = (machine, stray, peer, net);
        panic!("a test fails");
    }));
    assert!(end.is_err());
    assert!(!runs(child) && !runs(service), "a process is left");
    assert!(!namespaces().contains(&name), "a namespace is left");
    assert!(!Path::new("/run/nkd-vm").join(&name).exists() && !disk.exists(), "a file is left");
    assert!(folder.join("machine/serial.log").exists() && folder.join("machine/failure.png").exists());
    Ok(())
}

#[test]
fn the_janitor_removes_what_a_killed_program_left() -> Result {
    // The first network of a process sweeps, so another process is the killed one, and one more the next.
    let test = std::env::current_exe().unwrap();
    let helper = |what: &str| {
        let mut command = Command::new(&test);
        command.args(["--exact", "helper_for_the_janitor", "--nocapture"]).env("NKD_VM_HELPER", what);
        command.output().unwrap()
    };
    let killed = String::from_utf8(helper("die").stdout).unwrap();
    let word = |key: &str| killed.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    let (name, pid) = (word("namespace "), word("process ").parse::<u32>().unwrap());
    assert!(namespaces().contains(&name) && runs(pid), "the helper left nothing: {killed}");
    assert!(helper("sweep").status.success());
    assert!(!namespaces().contains(&name) && !runs(pid));
    Ok(())
}

/// Runs as a process of its own for the test above; does nothing otherwise.
#[test]
fn helper_for_the_janitor() -> Result {
    match std::env::var("NKD_VM_HELPER").as_deref() {
        Ok("die") => {
            let net = Network::create("framework-janitor")?;
            let service = net.spawn("sleep", command(&["sleep", "1000"]))?;
            println!("\nnamespace {}\nprocess {}", net.name(), service.id().unwrap());
            // Ends without a drop, as a crash does.
            std::process::exit(1);
        }
        Ok("sweep") => Network::create("framework-janitor").map(|_| ()),
        _ => Ok(()),
    }
}

#[test]
fn hosts_on_a_bridge_reach_each_other_and_a_capture_sees_them() -> Result {
    let net = Network::create("framework-hosts")?;
    let client = net.host("client", Some("192.0.2.7/24"))?;
    let bare = net.host("bare", None)?;
    let _server = http_server(&net, "#!ipxe\n")?;
    let capture = net.capture("web", "tcp port 8000")?;
    let answer = client.http_get("http://192.0.2.1:8000/boot.ipxe", within(10))?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "#!ipxe\n"));
    assert_eq!(client.http_get("http://192.0.2.1:8000/nothing", within(10))?.status, 404);
    let head = client.curl(&["--head", "http://192.0.2.1:8000/boot.ipxe"], within(10))?;
    assert!(head.text().contains("Content-Length: 7"), "{}", head.text());
    capture.expect("dst port 8000", "192.0.2.7", within(10))?;
    assert!(capture.stop()?.exists());

    // No address, no way.
    assert!(bare.http_get("http://192.0.2.1:8000/boot.ipxe", within(10)).is_err());
    // A socket that is made inside is on that host.
    let address = client.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.0.2.1:9").unwrap();
        socket.local_addr().unwrap().ip().to_string()
    })?;
    assert_eq!(address, "192.0.2.7");
    Ok(())
}

#[test]
fn a_golden_disk_is_made_once_and_never_written() -> Result {
    let net = Network::create("framework-golden")?;
    let key = format!("framework-{}", std::process::id());
    let mut made = 0;
    let mut golden = || {
        golden_disk(&key, |file| {
            made += 1;
            let disk = sector(&net, "golden\r\n");
            let mut machine = Machine::named("maker").memory_mib(64).disk_from(&disk).start(&net)?;
            machine.console().expect("golden", within(60))?;
            machine.power_cut()?;
            machine.save_disk(file)
        })
    };
    let first: Result<_> = golden();
    let (first, second) = (first?, golden()?);
    assert_eq!((&first, made), (&second, 1));
    let before = std::fs::read(&first).unwrap();
    let machine = Machine::named("user")
        .memory_mib(64)
        .disk_from(&first)
        .disk_cache(DiskCache::Writethrough)
        .serial_number("rack7,3")
        .uuid("6b1c2a3e-0000-4000-8000-000000000001")
        .start(&net)?;
    machine.console().expect("golden", within(60))?;
    drop(machine);
    assert_eq!(std::fs::read(&first).unwrap(), before);
    std::fs::remove_file(&first).unwrap();
    std::fs::remove_file(first.with_extension("lock")).unwrap();
    Ok(())
}

#[test]
fn kvm_is_chosen_only_by_a_guest_that_runs() {
    // Whatever this computer has, the answer is the same twice, and quick the second time.
    let choice = Accelerator::of_this_computer();
    let begin = Instant::now();
    assert_eq!(Accelerator::of_this_computer(), choice);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_blank_bios_machine_boots_ipxe_from_the_network() -> Result {
    let net = Network::create("framework-bios")?;
    let _dnsmasq = dnsmasq(&net, &[])?;
    let _http = http_server(&net, "#!ipxe\necho the script runs on ${net0/mac}\n")?;
    let machine = Machine::named("bios").mac("52:54:00:00:00:01").memory_mib(512).disk_gib(1).start(&net)?;
    machine.console().expect("iPXE", within(60))?;
    machine.console().expect("the script runs on 52:54:00:00:00:01", within(120))?;
    Ok(())
}

#[test]
fn ovmf_loads_ipxe_by_its_own_pxe_over_tftp() -> Result {
    let net = Network::create("framework-uefi")?;
    std::fs::copy("/usr/lib/ipxe/snponly.efi", net.folder().join("snponly.efi")).unwrap();
    let mut dnsmasq =
        dnsmasq(&net, &["--dhcp-match=set:efi,option:client-arch,7", "--dhcp-boot=tag:efi,tag:!ipxe,snponly.efi"])?;
    let _http = http_server(&net, "#!ipxe\necho the script runs\n")?;
    let machine = Machine::named("uefi")
        .firmware(Firmware::Uefi)
        .nic(Nic::VirtioBare)
        .boot(BootOrder::NetworkThenDisk)
        .memory_mib(1024)
        .disk_gib(1)
        .start(&net)?;
    machine.console().expect("PXE", within(120))?;
    machine.console().expect("the script runs", within(240))?;
    dnsmasq.expect_log("sent", within(10))?;
    Ok(())
}

#[test]
fn ovmf_loads_ipxe_by_http_boot() -> Result {
    let net = Network::create("framework-uefi-http")?;
    std::fs::copy("/usr/lib/ipxe/snponly.efi", net.folder().join("snponly.efi")).unwrap();
    let _dnsmasq = dnsmasq(
        &net,
        &[
            "--dhcp-vendorclass=set:http,HTTPClient",
            "--dhcp-option-force=tag:http,60,HTTPClient",
            "--dhcp-boot=tag:http,tag:!ipxe,http://192.0.2.1:8000/snponly.efi",
        ],
    )?;
    let mut http = http_server(&net, "#!ipxe\necho the script runs\n")?;
    let spec = Machine::named("uefi").firmware(Firmware::UefiHttp).nic(Nic::VirtioBare);
    let machine = spec.memory_mib(1024).disk_gib(1).start(&net)?;
    machine.console().expect("Start HTTP Boot over IPv4", within(120))?;
    machine.console().expect("the script runs", within(240))?;
    http.expect_log("GET /snponly.efi", within(10))?;
    assert!(!machine.console().text().contains("Start PXE"));
    Ok(())
}
