//! What DHCP keeps from a machine stands in the list of machines, and goes from it.

use std::path::Path;
use std::process::Command;

use crate::mac_of;
use crate::net::{Lan, Namespace, Program, eventually};

/// The service and its command line, in the namespace of the server.
struct Served<'a> {
    lan: &'a Lan,
    state: &'a Path,
    token: String,
    program: Program,
}

impl<'a> Served<'a> {
    /// Starts the service with this pool.
    fn start(lan: &'a Lan, state: &'a Path, pool: &str) -> Self {
        let program = Self::serve(lan, state, pool);
        let token = std::fs::read_to_string(state.join("first-admin-token")).unwrap();
        Self { lan, state, token, program }
    }

    /// Kills the service and starts it with another pool.
    fn restart(&mut self, pool: &str) {
        self.program.end();
        self.program = Self::serve(self.lan, self.state, pool);
    }

    fn serve(lan: &Lan, state: &Path, pool: &str) -> Program {
        let pool = format!("dhcp.interface.pool={pool}");
        let settings = ["dhcp.mode=server", "dhcp.interface.name=br0", &pool];
        let serve = ["serve", "--state-dir", state.to_str().unwrap()];
        let arguments: Vec<&str> =
            serve.into_iter().chain(settings.iter().flat_map(|setting| ["--set", setting])).collect();
        let program = lan.server.start(env!("CARGO_BIN_EXE_nkd"), &arguments);
        program.wait_for("nkd serves");
        program
    }

    /// A command of the command line as the admin.
    fn nkd(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nkd"));
        command.args(arguments).env_clear().env("HOME", self.state).env("NKD_SERVER", "https://127.0.0.1:8443");
        command.env("NKD_TOKEN", &self.token).env("NKD_CA", self.state.join("ca.pem"));
        let output = self.lan.server.run(|| command.output().unwrap());
        assert!(output.status.success(), "nkd {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until the list shows `text` for the machine.
    fn lists(&self, machine: &Namespace, text: &str) {
        let mac = mac_of(machine).to_string();
        let line = |list: &str| list.lines().any(|line| line.contains(&mac) && line.contains(text));
        eventually(&format!("`machine list` says `{text}` of {mac}"), || line(&self.nkd(&["machine", "list"])));
    }
}

/// Asks for an address so many times, a second apart, with these further options; tells whether one came.
fn asks(machine: &Namespace, times: u8, options: &[&str]) -> bool {
    let times = times.to_string();
    let arguments = ["-f", "-q", "-n", "-t", &times, "-T", "1", "-i", "eth0", "-s", "/bin/true"];
    machine.run(|| Command::new("udhcpc").args(arguments).args(options).output().unwrap()).status.success()
}

/// Gets an address. The reply waits until the lease is on the disk, which may have much else to write: it asks as often
/// as firmware does.
fn gets(machine: &Namespace, options: &[&str]) -> bool {
    asks(machine, 20, options)
}

#[test]
#[ignore = "namespace tier: needs root and udhcpc"]
fn a_machine_without_an_address_or_a_loader_is_shown_with_the_reason() {
    let mut lan = Lan::new();
    let (tablet, late) = (lan.machine(), lan.machine());
    let folder = tempfile::tempdir().unwrap();
    let mut service = Served::start(&lan, folder.path(), "192.0.2.50-192.0.2.50");

    let firmware = ["-V", "PXEClient:Arch:00006:UNDI:003001", "-x", "0x5d:0006"];
    assert!(gets(&tablet, &firmware));
    service.lists(&tablet, "nothing to boot: its firmware is of architecture 6 (IA32");

    assert!(!asks(&late, 1, &[]));
    service.lists(&late, "no address: the pool of br0 (192.0.2.50-192.0.2.50)");
    let mac = mac_of(&late).to_string();
    let told = |service: &Served<'_>| service.nkd(&["machine", "events", &mac]).matches("not-served").count();
    assert_eq!(told(&service), 1);
    assert!(!asks(&late, 1, &[]));
    assert_eq!(told(&service), 1, "the same again is no news");

    service.restart("192.0.2.50-192.0.2.51");
    assert!(gets(&late, &[]), "the pool is larger now");
    let healed = |list: &str| list.lines().any(|line| line.contains(&mac) && !line.contains("no address"));
    eventually("the reason is gone", || healed(&service.nkd(&["machine", "list"])));
}
