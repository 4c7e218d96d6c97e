//! Boots the live system of a lab image from the network, installs it to the disk and boots that, with dnsmasq and
//! Python's web server in place of the service; prints when each step was reached. For trying an image by hand:
//!
//! ```text
//! cargo run -p nkd-vm-tests --example live_boot -- IMAGE_FOLDER [bios|uefi] [live|install]
//! ```
//!
//! `IMAGE_FOLDER` holds a `stream.json` and what it names.

#![allow(clippy::disallowed_methods, reason = "a program that starts servers and writes their files")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use nkd_vm_tests::{Console, Firmware, Machine, MachineSpec, Network, Nic, Service, within};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const WEB: &str = "http://192.0.2.1:8000";
const RUN: &str = "/usr/local/bin/live-boot";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rest @ ..] = words.as_slice() else {
        return Err("usage: live_boot IMAGE_FOLDER [bios|uefi] [live|install]".into());
    };
    let uefi = rest.iter().any(|word| word == "uefi");
    let install = rest.iter().any(|word| word == "install");

    let net = Network::create(if uefi { "live-boot-uefi" } else { "live-boot-bios" })?;
    publish(&net, Path::new(folder), install)?;
    let _servers = [dnsmasq(&net)?, web_server(&net)?];
    let machine = machine(uefi).disk_gib(8).start(&net)?;
    let machine = follow(machine, install);
    println!("logs: {}", net.folder().display());
    machine.map(|_| ())
}

fn machine(uefi: bool) -> MachineSpec {
    match uefi {
        false => Machine::named("bios"),
        true => Machine::named("uefi").firmware(Firmware::Uefi).nic(Nic::VirtioBare),
    }
}

fn follow(mut machine: Machine, install: bool) -> Result<Machine> {
    let console = machine.console();
    step(&console, "iPXE 1", 180)?;
    step(&console, "Linux version", 240)?;
    step(&console, "LIVE-BOOT up", 600)?;
    if !install {
        return Ok(machine);
    }
    step(&console, "LIVE-BOOT installed", 900)?;
    machine.wait_exit(within(120))?;
    machine.power_on()?;
    println!("switched on again");
    let console = machine.console();
    step(&console, "Linux version", 120)?;
    step(&console, "LIVE-BOOT from disk", 600)?;
    step(&console, "login:", 300)?;
    machine.power_off(within(120))?;
    println!("switched off");
    Ok(machine)
}

fn step(console: &Console<'_>, text: &str, limit: u64) -> Result<()> {
    let seen = console.expect(text, within(limit))?;
    println!("{:7.1} s  {}", seen.after.as_secs_f64(), seen.line.trim());
    Ok(())
}

/// Lays out what the web server serves: the image, the script, and the Ignition configurations.
fn publish(net: &Network, image: &Path, install: bool) -> Result<()> {
    let image = image.canonicalize()?;
    let stream: Value = serde_json::from_slice(&std::fs::read(image.join("stream.json"))?)?;
    let formats = &stream["architectures"]["x86_64"]["artifacts"]["metal"]["formats"];
    let location = |file: &Value| match file["location"].as_str() {
        Some(name) => Ok(format!("{WEB}/image/{name}")),
        None => Err(format!("no location in stream.json: {file}")),
    };
    let pxe = &formats["pxe"];
    let (kernel, initramfs) = (location(&pxe["kernel"])?, location(&pxe["initramfs"])?);
    let (rootfs, disk) = (location(&pxe["rootfs"])?, location(&formats["raw.zst"]["disk"])?);

    let web = web_folder(net);
    std::fs::create_dir_all(&web)?;
    std::os::unix::fs::symlink(&image, web.join("image"))?;
    std::fs::copy("/usr/lib/ipxe/snponly.efi", web.join("snponly.efi"))?;
    let script = format!(
        "#!ipxe\nkernel {kernel} initrd=initramfs console=ttyS0,115200 nestos.live.rootfs_url={rootfs} \
         ignition.firstboot ignition.platform.id=metal ignition.config.url={WEB}/live.ign\n\
         initrd --name initramfs {initramfs}\nboot\n"
    );
    std::fs::write(web.join("boot.ipxe"), script)?;
    let live = match install {
        false => "echo LIVE-BOOT up\n".to_owned(),
        true => format!(
            "set -e\necho LIVE-BOOT up\ncoreos-installer install --image-url {disk} --insecure \
             --ignition-file /etc/disk.ign /dev/vda\necho LIVE-BOOT installed\nsystemctl poweroff\n"
        ),
    };
    let on_disk = ignition("echo LIVE-BOOT from disk $(cat /proc/cmdline)\n", None);
    std::fs::write(web.join("live.ign"), ignition(&live, Some(&on_disk)))?;
    Ok(())
}

/// An Ignition configuration that runs `script` once the system is up, its output on the console.
fn ignition(script: &str, disk: Option<&str>) -> String {
    let data = |text: &str| format!("data:,{}", percent(text));
    let mut files =
        vec![json!({"path": RUN, "mode": 0o755, "contents": {"source": data(&format!("#!/bin/bash\n{script}"))}})];
    files.extend(
        disk.map(|config| json!({"path": "/etc/disk.ign", "mode": 0o600, "contents": {"source": data(config)}})),
    );
    let unit = format!(
        "[Unit]\nRequires=network-online.target\nAfter=network-online.target systemd-resolved.service\n[Service]\n\
         Type=oneshot\nStandardOutput=journal+console\nStandardError=journal+console\nExecStart={RUN}\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    let units = json!([{"name": "live-boot.service", "enabled": true, "contents": unit}]);
    json!({"ignition": {"version": "3.3.0"}, "storage": {"files": files}, "systemd": {"units": units}}).to_string()
}

/// RFC 3986: all but the unreserved characters.
fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn dnsmasq(net: &Network) -> Result<Service> {
    let mut command = Command::new("dnsmasq");
    command.args(["-k", "-C", "/dev/null", "--port=0", "--user=root", "--pid-file=", "--log-dhcp", "--log-facility=-"]);
    command.args(["--interface=br0", "--bind-interfaces", "--no-ping", "--enable-ra", "--enable-tftp"]);
    command.args(["--dhcp-range=192.0.2.100,192.0.2.150,1h", "--dhcp-range=fd00:192::,ra-only"]);
    command.args(["--dhcp-userclass=set:ipxe,iPXE", "--dhcp-boot=tag:!ipxe,snponly.efi"]);
    command.arg(format!("--dhcp-boot=tag:ipxe,{WEB}/boot.ipxe"));
    command.arg(format!("--dhcp-leasefile={}/leases", net.folder().display()));
    command.arg(format!("--tftp-root={}", web_folder(net).display()));
    let mut server = net.spawn("dnsmasq", command)?;
    server.expect_log("started", within(20))?;
    Ok(server)
}

fn web_server(net: &Network) -> Result<Service> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-u", "-m", "http.server", "-p", "HTTP/1.1", "--bind", "192.0.2.1", "-d"]);
    command.arg(web_folder(net)).arg("8000");
    let mut server = net.spawn("web", command)?;
    server.expect_log("Serving HTTP", within(20))?;
    Ok(server)
}

fn web_folder(net: &Network) -> PathBuf {
    net.folder().join("web")
}
