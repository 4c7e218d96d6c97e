//! What a machine is made of, and the QEMU command line of it. Pure: it opens and starts nothing.

use std::path::{Path, PathBuf};

use super::accel::Accelerator;
use super::disk::{DiskCache, DiskSource};

/// OVMF without Secure Boot.
pub(crate) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Its empty variable store, copied for each machine.
pub(crate) const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Texts on a console after which no expectation can come true any more. The last is how the lab image begins the report
/// of a failed boot.
const TROUBLE: &[&str] = &[
    "Kernel panic",
    "Entering emergency mode",
    "You are in emergency mode",
    "Welcome to emergency mode",
    "nestos-emergency: begin",
];

/// The firmware of a machine, and how it boots from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS; PXE is what the ROM of the network card offers.
    Bios,
    /// OVMF with PXE over IPv4, then IPv6, then HTTP.
    Uefi,
    /// OVMF with PXE switched off, so that HTTP boot comes at once and not after minutes.
    UefiHttp,
}

/// Which device the firmware tries first. An empty disk falls through to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootOrder {
    /// As a machine that is installed once.
    DiskThenNetwork,
    /// As a machine whose owner left network boot on top.
    NetworkThenDisk,
}

/// The network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// virtio with QEMU's ROM, which is iPXE.
    VirtioWithIpxe,
    /// virtio without a ROM: the firmware's own network stack. SeaBIOS has none.
    VirtioBare,
}

/// A machine that is not built yet; [`MachineSpec::start`] builds it and switches it on.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub(crate) name: String,
    pub(crate) firmware: Firmware,
    pub(crate) mac: Option<String>,
    pub(crate) memory_mib: u32,
    pub(crate) processors: u32,
    pub(crate) disk: DiskSource,
    pub(crate) cache: DiskCache,
    pub(crate) boot: BootOrder,
    pub(crate) nic: Nic,
    pub(crate) uuid: Option<String>,
    pub(crate) serial_number: Option<String>,
    pub(crate) trouble: Vec<String>,
    pub(crate) extra: Vec<String>,
}

impl MachineSpec {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            firmware: Firmware::Bios,
            mac: None,
            memory_mib: 2048,
            processors: 2,
            disk: DiskSource::None,
            cache: DiskCache::Unsafe,
            boot: BootOrder::DiskThenNetwork,
            nic: Nic::VirtioWithIpxe,
            uuid: None,
            serial_number: None,
            trouble: TROUBLE.iter().map(|text| (*text).to_owned()).collect(),
            extra: Vec::new(),
        }
    }

    /// The firmware; BIOS if nothing is said.
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// The MAC address of the network card, like `52:54:00:00:00:01`; one that is free in its network if nothing is said.
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// Memory in MiB; 2048 if nothing is said.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// The number of processors; 2 if nothing is said.
    pub fn processors(mut self, number: u32) -> Self {
        self.processors = number;
        self
    }

    /// An empty disk of this size. It is `/dev/vda`. Without a call there is none.
    pub fn disk_gib(mut self, size: u32) -> Self {
        self.disk = DiskSource::Blank { gib: size };
        self
    }

    /// A disk that begins as this image (raw or qcow2), which is never written: what the machine writes goes to an overlay.
    pub fn disk_from(mut self, base: &Path) -> Self {
        self.disk = DiskSource::Overlay { base: base.to_owned() };
        self
    }

    /// What a lost power supply may lose; nothing survives a crash of this computer if nothing is said.
    pub fn disk_cache(mut self, cache: DiskCache) -> Self {
        self.cache = cache;
        self
    }

    /// The boot order; the disk first if nothing is said.
    pub fn boot(mut self, order: BootOrder) -> Self {
        self.boot = order;
        self
    }

    /// The network card; with iPXE in its ROM if nothing is said.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nic = nic;
        self
    }

    /// The machine's UUID in SMBIOS and in PXE's option 97.
    pub fn uuid(mut self, uuid: &str) -> Self {
        self.uuid = Some(uuid.to_owned());
        self
    }

    /// The machine's serial number in SMBIOS.
    pub fn serial_number(mut self, serial: &str) -> Self {
        self.serial_number = Some(serial.to_owned());
        self
    }

    /// Lets expectations go on after a kernel panic or an emergency shell, for tests of fallback.
    pub fn survives_trouble(mut self) -> Self {
        self.trouble.clear();
        self
    }

    /// One more text on the console that fails every expectation at once.
    pub fn trouble(mut self, text: &str) -> Self {
        self.trouble.push(text.to_owned());
        self
    }

    /// Further arguments for QEMU, such as a watchdog.
    pub fn qemu(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The arguments of `qemu-system-x86_64`.
    pub(super) fn arguments(&self, parts: &Parts<'_>) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut say = |option: &str, value: String| words.extend([option.to_owned(), value]);
        match parts.accelerator {
            Accelerator::Kvm => {
                say("-accel", "kvm".into());
                say("-cpu", "host".into());
            }
            // Without cx16: QEMU 7.2 panics guests on cmpxchg16b with several TCG threads.
            Accelerator::Tcg => {
                say("-accel", "tcg,thread=multi,tb-size=512".into());
                say("-cpu", "max,-cx16".into());
            }
        }
        // graphics=off makes SeaBIOS speak on the serial port as well; the VGA card stays for screenshots.
        say("-machine", "q35,graphics=off".into());
        say("-smp", self.processors.to_string());
        say("-m", self.memory_mib.to_string());
        say("-name", self.name.replace(',', ",,"));
        say("-display", "none".into());
        say("-vga", "std".into());
        say("-serial", "stdio".into());
        say("-qmp", format!("unix:{},server=on,wait=off", escape(parts.monitor)));
        say("-object", "rng-random,filename=/dev/urandom,id=rng0".into());
        say("-device", "virtio-rng-pci,rng=rng0".into());
        if self.firmware == Firmware::Bios {
            // The firmware begins its boot order again, as that of a server does: SeaBIOS else stops for ever after one try.
            say("-boot", "reboot-timeout=5000".into());
        }
        if self.firmware != Firmware::Bios {
            say("-drive", format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}"));
            say("-drive", format!("if=pflash,format=raw,file={}", escape(parts.variables)));
        }
        if self.firmware == Firmware::UefiHttp {
            for stack in ["IPv4PXESupport", "IPv6PXESupport"] {
                say("-fw_cfg", format!("name=opt/org.tianocore/{stack},string=n"));
            }
        }
        let (disk_place, network_place) = match self.boot {
            BootOrder::DiskThenNetwork => (1, 2),
            BootOrder::NetworkThenDisk => (2, 1),
        };
        if let Some((disk, format)) = parts.disk {
            let cache = match self.cache {
                DiskCache::Unsafe => "unsafe",
                DiskCache::Writethrough => "writethrough",
            };
            let file = escape(disk);
            say("-drive", format!("file={file},if=none,id=disk0,format={format},cache={cache},discard=unmap"));
            say("-device", format!("virtio-blk-pci,drive=disk0,bootindex={disk_place}"));
        }
        let rom = match self.nic {
            Nic::VirtioWithIpxe => "",
            Nic::VirtioBare => ",romfile=",
        };
        say("-netdev", format!("tap,id=net0,ifname={},script=no,downscript=no", parts.tap));
        say("-device", format!("virtio-net-pci,netdev=net0,mac={},bootindex={network_place}{rom}", parts.mac));
        if let Some(uuid) = &self.uuid {
            say("-uuid", uuid.clone());
        }
        if let Some(serial) = &self.serial_number {
            say("-smbios", format!("type=1,manufacturer=NKD,product=lab,serial={}", serial.replace(',', ",,")));
        }
        words.extend(["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
        words.extend(self.extra.iter().cloned());
        words
    }
}

/// What a specification becomes when the machine is built.
pub(super) struct Parts<'a> {
    pub accelerator: Accelerator,
    pub tap: &'a str,
    pub mac: &'a str,
    pub disk: Option<(&'a PathBuf, &'static str)>,
    pub variables: &'a Path,
    pub monitor: &'a Path,
}

/// A path inside one of QEMU's comma-separated values.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(spec: &MachineSpec) -> String {
        let disk = PathBuf::from("/t/a,b.qcow2");
        let parts = Parts {
            accelerator: Accelerator::Tcg,
            tap: "tap1",
            mac: "52:54:00:00:00:01",
            disk: Some((&disk, "qcow2")),
            variables: Path::new("/t/vars.fd"),
            monitor: Path::new("/t/qmp"),
        };
        spec.arguments(&parts).join(" ")
    }

    #[test]
    fn the_disk_boots_before_the_network_unless_told_otherwise() {
        let spec = MachineSpec::new("a").disk_gib(8);
        let first = line(&spec);
        assert!(first.contains("drive=disk0,bootindex=1") && first.contains("mac=52:54:00:00:00:01,bootindex=2"));
        let second = line(&spec.boot(BootOrder::NetworkThenDisk));
        assert!(second.contains("drive=disk0,bootindex=2") && second.contains("mac=52:54:00:00:00:01,bootindex=1"));
    }

    #[test]
    fn only_http_boot_switches_pxe_off() {
        let spec = MachineSpec::new("a");
        assert!(!line(&spec).contains("pflash"));
        assert!(!line(&spec.clone().firmware(Firmware::Uefi)).contains("PXESupport"));
        assert_eq!(line(&spec.firmware(Firmware::UefiHttp)).matches("PXESupport,string=n").count(), 2);
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert!(line(&MachineSpec::new("a").disk_gib(1)).contains("file=/t/a,,b.qcow2,if=none"));
    }

    #[test]
    fn a_bare_card_has_no_rom() {
        assert!(line(&MachineSpec::new("a").nic(Nic::VirtioBare)).contains("bootindex=2,romfile="));
        assert!(!line(&MachineSpec::new("a")).contains("romfile"));
    }
}
