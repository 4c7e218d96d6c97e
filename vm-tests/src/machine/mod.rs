//! A machine under QEMU: its parts, its power button, its console, its screen.

#![expect(clippy::disallowed_methods, reason = "starts QEMU, makes its files")]

pub(crate) mod accel;
pub mod boot_sector;
pub(crate) mod console;
mod debugger;
pub(crate) mod disk;
mod monitor;
mod serial;
pub(crate) mod spec;
mod terminal;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::network::{Namespace, Network, janitor};
use crate::process::{end_child, last_lines, wait_child};
use crate::{Accelerator, Error, folder, programs, within};
use console::Console;
use monitor::Monitor;
use serial::{EmulatorFault, Serial};
use spec::{Firmware, MachineSpec, Nic, OVMF_CODE, OVMF_VARS, Parts};

/// So many seconds may firmware take for its first word after a restart; it takes twenty.
const SILENCE: u64 = 120;

/// A machine on a network. It is on after [`MachineSpec::start`], and can be switched off and on; its disk and its UEFI
/// variables stay. A drop ends it.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    space: Namespace,
    folder: PathBuf,
    tap: String,
    mac: String,
    disk: Option<(PathBuf, &'static str)>,
    serial: Serial,
    /// How often it was switched on.
    number: u32,
    power: Option<Power>,
}

/// A running QEMU.
#[derive(Debug)]
struct Power {
    qemu: Child,
    keyboard: Mutex<Option<ChildStdin>>,
    monitor: Arc<OnceLock<Mutex<Monitor>>>,
    since: Instant,
}

impl MachineSpec {
    /// Builds the machine on a network and switches it on. Its logs and its disk lie in `<network's folder>/<name>/`.
    pub fn start(self, net: &Network) -> Result<Machine, Error> {
        programs::require(&["qemu-system-x86_64", "qemu-img"])?;
        match (self.firmware, self.nic) {
            (Firmware::Bios, Nic::VirtioBare) => {}
            (Firmware::Bios, Nic::VirtioWithIpxe) => programs::require(&["/usr/lib/ipxe/qemu/pxe-virtio.rom"])?,
            (_, Nic::VirtioBare) => programs::require(&[OVMF_CODE, OVMF_VARS])?,
            (_, Nic::VirtioWithIpxe) => {
                programs::require(&[OVMF_CODE, OVMF_VARS, "/usr/lib/ipxe/qemu/efi-virtio.rom"])?;
            }
        }
        let place = net.folder().join(&self.name);
        folder::fresh(&place)?;
        let file = place.join("disk.qcow2");
        let disk = self.disk.make(&file)?.map(|format| (file, format));
        if self.firmware != Firmware::Bios {
            let variables = place.join("vars.fd");
            std::fs::copy(OVMF_VARS, &variables).map_err(Error::io(format!("copying {OVMF_VARS}")))?;
        }
        let (tap, number) = net.add_tap()?;
        let mac = self.mac.clone().unwrap_or_else(|| format!("52:54:00:4e:4b:{number:02x}"));
        let serial = Serial::new(place.join("serial.log"));
        let space = Namespace::clone(net);
        let mut machine = Machine { spec: self, space, folder: place, tap, mac, disk, serial, number: 0, power: None };
        machine.power_on()?;
        Ok(machine)
    }
}

impl Machine {
    /// A machine to be: BIOS, 2 processors, 2 GiB of memory, one network card, no disk.
    pub fn named(name: &str) -> MachineSpec {
        MachineSpec::new(name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The MAC address of its network card.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// Where its logs and its disk lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its disk, a qcow2 image.
    pub fn disk(&self) -> Option<&Path> {
        self.disk.as_ref().map(|(file, _)| file.as_path())
    }

    /// Its serial console.
    pub fn console(&self) -> Console<'_> {
        Console { machine: self }
    }

    /// How long it has been on; nothing if it is off.
    pub fn uptime(&self) -> Option<Duration> {
        self.power.as_ref().map(|power| power.since.elapsed())
    }

    /// Whether it is on.
    pub fn is_on(&mut self) -> bool {
        let ended = self.power.as_mut().is_some_and(|power| matches!(power.qemu.try_wait(), Ok(Some(_))));
        if ended {
            self.collect();
        }
        self.power.is_some()
    }

    /// Switches it on again.
    pub fn power_on(&mut self) -> Result<(), Error> {
        if self.is_on() {
            return Err(self.is("on", "it cannot be switched on"));
        }
        let socket = self.runtime_file("qmp");
        let variables = self.folder.join("vars.fd");
        let parts = Parts {
            accelerator: Accelerator::of_this_computer(),
            tap: &self.tap,
            mac: &self.mac,
            disk: self.disk.as_ref().map(|(file, format)| (file, *format)),
            variables: &variables,
            monitor: &socket,
        };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(self.spec.arguments(&parts));
        let mut command = self.space.command(&command);
        let log = self.qemu_log();
        let errors = OpenOptions::new().create(true).append(true).open(&log);
        let errors = errors.map_err(Error::io(format!("opening {}", log.display())))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut qemu = command.spawn().map_err(Error::io("starting qemu-system-x86_64"))?;
        let since = Instant::now();
        let keyboard = Mutex::new(qemu.stdin.take());
        self.number += 1;
        let monitor = Arc::new(OnceLock::new());
        let begun = match qemu.stdout.take() {
            Some(output) => self.serial.attach(output, self.number, within(SILENCE), self.help_when_faulty(&monitor)),
            None => Ok(()),
        };
        let connected =
            begun.and_then(|()| Monitor::connect(&self.spec.name, &socket, || matches!(qemu.try_wait(), Ok(None))));
        match connected {
            Ok(connected) => {
                monitor.get_or_init(|| Mutex::new(connected));
                self.power = Some(Power { qemu, keyboard, monitor, since });
                Ok(())
            }
            Err(e) => {
                let status = end_child(&mut qemu).to_string();
                self.serial.detach();
                match std::fs::read_to_string(&log).unwrap_or_default() {
                    said if said.trim().is_empty() => Err(e),
                    said => {
                        let detail = format!("; {}", last_lines(&said));
                        Err(Error::Ended { name: format!("{}'s QEMU", self.spec.name), status, detail })
                    }
                }
            }
        }
    }

    /// Presses the power button and waits until the system has shut down. A system that has just come up may not listen
    /// to the button yet, so it is pressed again from time to time, as a person would.
    pub fn power_off(&mut self, limit: Duration) -> Result<(), Error> {
        const PATIENCE: Duration = Duration::from_secs(15);
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.ask("system_powerdown", json!({})) {
                Ok(_) => {}
                // It went off between two presses.
                Err(_) if !self.is_on() => return Ok(()),
                Err(error) => return Err(error),
            }
            match self.wait_exit(left.min(PATIENCE)) {
                Err(Error::TooLate { .. }) if left > PATIENCE => {}
                outcome => return outcome.map(|_| ()),
            }
        }
    }

    /// Cuts the power: the system gets no notice. What it has handed to its disk is there, what it has not is lost.
    pub fn power_cut(&mut self) -> Result<(), Error> {
        // `quit` stops the guest at once, and lets QEMU close the disk image in good order, which SIGKILL would not.
        self.ask("quit", json!({}))?;
        self.wait_exit(within(30)).map(|_| ())
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<(), Error> {
        self.ask("system_reset", json!({})).map(|_| ())
    }

    /// Freezes the processors, as a machine that hangs. [`Machine::resume`] lets them go on.
    pub fn pause(&self) -> Result<(), Error> {
        self.ask("stop", json!({})).map(|_| ())
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<(), Error> {
        self.ask("cont", json!({})).map(|_| ())
    }

    /// Pulls the network cable, or plugs it in again.
    pub fn plug_network(&self, plugged: bool) -> Result<(), Error> {
        self.ask("set_link", json!({"name": "net0", "up": plugged})).map(|_| ())
    }

    /// Waits until it is off, by itself or by its power button.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let Some(power) = &mut self.power else { return Err(self.is("off", "nothing to wait for")) };
        let waited = wait_child(&mut power.qemu, limit).map_err(Error::io("waiting for QEMU"))?;
        let Some(status) = waited else {
            let detail = format!("; {}\n  serial log: {}", self.last_lines(), self.serial.log().display());
            return Err(Error::TooLate { what: format!("{} switches itself off", self.spec.name), limit, detail });
        };
        self.collect();
        Ok(status)
    }

    /// Writes a picture of its screen as PNG.
    pub fn screenshot(&self, file: &Path) -> Result<(), Error> {
        let file = std::path::absolute(file).map_err(Error::io(format!("finding {}", file.display())))?;
        self.ask("screendump", json!({"filename": file, "format": "png"})).map(|_| ())
    }

    /// Copies the disk of a machine that is off to a file that can be a base of others ([`MachineSpec::disk_from`]).
    pub fn save_disk(&mut self, to: &Path) -> Result<(), Error> {
        disk::flatten(self.disk_at_rest()?, to)
    }

    /// True when the disk of a machine that is off has neither boot sector nor partition table: its first MiB is zero.
    pub fn disk_begins_with_zeros(&mut self) -> Result<bool, Error> {
        Ok(disk::head(self.disk_at_rest()?)?.iter().all(|byte| *byte == 0))
    }

    fn disk_at_rest(&mut self) -> Result<&Path, Error> {
        if self.is_on() {
            return Err(self.is("on", "its disk can be read only when it is off"));
        }
        self.disk().ok_or_else(|| Error::Argument(format!("{} has no disk", self.spec.name)))
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let power = self.on("nobody hears what is typed")?;
        let mut keyboard = lock(&power.keyboard);
        let typed =
            keyboard.as_mut().map_or(Ok(()), |keyboard| keyboard.write_all(bytes).and_then(|()| keyboard.flush()));
        typed.map_err(Error::io(format!("typing on the console of {}", self.spec.name)))
    }

    /// What QEMU said last, for the message about a machine that is off unexpectedly.
    pub(crate) fn last_words(&self) -> String {
        match std::fs::read_to_string(self.qemu_log()).unwrap_or_default() {
            said if said.trim().is_empty() => String::new(),
            said => format!("; QEMU: {}", last_lines(&said)),
        }
    }

    fn ask(&self, command: &str, arguments: serde_json::Value) -> Result<serde_json::Value, Error> {
        lock(self.monitor("QEMU cannot be asked")?).execute(command, arguments)
    }

    fn monitor(&self, wanted: &'static str) -> Result<&Mutex<Monitor>, Error> {
        self.on(wanted)?.monitor.get().ok_or_else(|| self.is("off", wanted))
    }

    /// Has the emulator forget what it has translated of the machine's code. It goes on at once.
    pub fn forget_translations(&self) -> Result<(), Error> {
        let monitor = self.monitor("QEMU cannot be asked")?;
        lock(monitor).forget_translations(&self.runtime_file("gdb"))
    }

    /// Helps a machine that the emulator has brought to a halt, and says so: as somebody at a rack would, by its reset button,
    /// but where it would come to the same halt again.
    fn help_when_faulty(
        &self,
        monitor: &Arc<OnceLock<Mutex<Monitor>>>,
    ) -> impl Fn(EmulatorFault) + Clone + Send + 'static {
        let (name, monitor, debugger) = (self.spec.name.clone(), Arc::clone(monitor), self.runtime_file("gdb"));
        move |fault| {
            let Some(monitor) = monitor.get() else { return };
            let helped = match fault {
                EmulatorFault::NoTimer | EmulatorFault::StaleCode => {
                    println!("{name} hangs: {fault}, which is the emulator's fault. It is reset.");
                    lock(monitor).execute("system_reset", json!({})).map(|_| ())
                }
                EmulatorFault::SilentFirmware => {
                    println!("{name} hangs: {fault}, which may be the emulator's fault. It translates all code anew.");
                    lock(monitor).forget_translations(&debugger)
                }
            };
            if let Err(error) = helped {
                println!("{error}");
            }
        }
    }

    fn runtime_file(&self, kind: &str) -> PathBuf {
        janitor::runtime_folder(self.space.name()).join(format!("{}.{kind}", self.tap))
    }

    fn on(&self, wanted: &'static str) -> Result<&Power, Error> {
        self.power.as_ref().ok_or_else(|| self.is("off", wanted))
    }

    fn is(&self, is: &'static str, wanted: &'static str) -> Error {
        Error::Power { machine: self.spec.name.clone(), is, wanted }
    }

    /// After QEMU's end: reads what it had still to say.
    fn collect(&mut self) {
        self.power = None;
        self.serial.detach();
    }

    fn last_lines(&self) -> String {
        last_lines(&self.serial.tail(crate::process::TAIL).join("\n"))
    }

    fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // For whoever looks into the folder; a machine that is off has no screen.
            let _ = self.screenshot(&self.folder.join("failure.png"));
        }
        if let Some(power) = &mut self.power {
            end_child(&mut power.qemu);
        }
        self.collect();
        // The network may be gone already, and the tap with it.
        let _ = self.space.ip(&format!("link del {}", self.tap));
        if let (Some((disk, _)), false) = (&self.disk, folder::keeps_disks()) {
            let _ = std::fs::remove_file(disk);
        }
    }
}

/// A poisoned lock only means that another thread has panicked with it; what it guards is a connection.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
