//! The service under test: a real `nkd serve` in the network, and the real command line beside it.
#![allow(clippy::disallowed_methods, reason = "runs programs and waits for them")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Error, Network, Service, programs, within};

/// So much of a console stands in the report of a failure.
const CONSOLE_LINES: usize = 40;

/// How the service hands out addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpMode {
    /// It is the only DHCP server.
    Server,
    /// Another server hands out addresses; it only says where to boot from.
    Proxy,
    /// It says nothing by DHCP.
    Off,
}

/// A running `nkd serve` with what is needed to talk to it.
pub struct Nkd {
    service: Service,
    program: PathBuf,
    state: PathBuf,
    token: String,
}

/// The time of day as one program sees it (libfaketime). Its time limits and waits go by the real clock.
pub struct Clock {
    file: PathBuf,
}

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

impl Clock {
    /// A clock that is right, until the test says otherwise.
    pub fn new(net: &Network) -> Result<Self, Error> {
        programs::require(&[FAKETIME])?;
        let clock = Self { file: net.folder().join("clock") };
        clock.jump("+0")?;
        Ok(clock)
    }

    /// From now on the clock is off by so much: `+2h`, `-1d`.
    pub fn jump(&self, offset: &str) -> Result<(), Error> {
        std::fs::write(&self.file, offset).map_err(Error::io(self.file.display().to_string()))
    }

    /// A program that is started so goes by it.
    pub fn govern(&self, command: &mut Command) {
        command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}

/// Where the programs and images are that tests run on. `cargo xtask test` and `cargo xtask lab` set both.
#[derive(Debug, Clone)]
pub struct Builds {
    /// The `nkd` program: `NKD_PROGRAM`.
    pub program: PathBuf,
    /// Folder of the lab image: `NKD_LAB_IMAGE`.
    pub image: PathBuf,
}

impl Builds {
    /// From the environment.
    pub fn from_environment() -> Result<Self, Error> {
        Ok(Self { program: programs::built("NKD_PROGRAM")?, image: programs::built("NKD_LAB_IMAGE")? })
    }

    /// For tests that need no image.
    pub fn program_from_environment() -> Result<Self, Error> {
        Ok(Self { program: programs::built("NKD_PROGRAM")?, image: PathBuf::new() })
    }
}

impl Nkd {
    /// Starts the service in a network with `more` settings, and waits until it is ready.
    pub fn start(net: &Network, builds: &Builds, mode: DhcpMode, more: &[&str]) -> Result<Self, Error> {
        Self::start_under(net, builds, mode, more, None)
    }

    /// The same under a clock that the test sets.
    pub fn start_under(
        net: &Network,
        builds: &Builds,
        mode: DhcpMode,
        more: &[&str],
        clock: Option<&Clock>,
    ) -> Result<Self, Error> {
        let state = net.folder().join("nkd-state");
        let mut command = Command::new(&builds.program);
        command.arg("serve").arg("--state-dir").arg(&state);
        let mut settings = vec!["log.filter=info,nkd_server=debug".to_owned()];
        match mode {
            DhcpMode::Server => {
                settings.push("dhcp.mode=server".into());
                settings
                    .push("dhcp.interface=[{name='br0', pool='192.0.2.100-192.0.2.199', gateway='192.0.2.1'}]".into());
            }
            DhcpMode::Off => settings.push("dhcp.mode=off".into()),
            DhcpMode::Proxy => {
                settings.push("dhcp.mode=proxy".into());
                settings.push("dhcp.interface=[{name='br0'}]".into());
            }
        }
        settings.extend(more.iter().map(|s| (*s).to_owned()));
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        // The tests' own variables look like settings to the service, which knows none of them.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NKD_")) {
            command.env_remove(name);
        }
        if let Some(clock) = clock {
            clock.govern(&mut command);
        }
        let mut service = net.spawn("nkd", command)?;
        service.expect_log("nkd serves", within(60))?;
        let token_file = state.join("first-admin-token");
        let token = std::fs::read_to_string(&token_file).map_err(Error::io(token_file.display().to_string()))?;
        Ok(Self { service, program: builds.program.clone(), state, token })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Service {
        &mut self.service
    }

    /// Its state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The environment with which `nkd` talks to this service.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("NKD_SERVER", "https://192.0.2.1:8443".into()),
            ("NKD_CA", self.state.join("ca.pem").display().to_string()),
            ("NKD_TOKEN", self.token.clone()),
        ]
    }

    /// Puts the operator's image, an archive, into the registry of this service.
    pub fn push_housekeeper(&self, net: &Network, archive: &Path) -> Result<(), Error> {
        self.push_image(net, archive, concat!("housekeeper:", env!("CARGO_PKG_VERSION")))
    }

    /// Pushes the only image of an archive to the service's registry, by this name.
    pub fn push_image(&self, net: &Network, archive: &Path, name: &str) -> Result<(), Error> {
        let folder = net.folder().join("registry-ca");
        std::fs::create_dir_all(&folder).map_err(Error::io(format!("making {}", folder.display())))?;
        let ca = folder.join("ca.crt");
        std::fs::copy(self.ca(), &ca).map_err(Error::io(format!("writing {}", ca.display())))?;
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--dest-creds", &format!("nkd:{}", self.token)]);
        command.arg("--dest-cert-dir").arg(folder).arg(format!("docker-archive:{}", archive.display()));
        command.arg(format!("docker://192.0.2.1:8443/{name}"));
        net.run(command, within(120))?.success().map(drop)
    }

    /// The CA of its API and of its registry, a file.
    pub fn ca(&self) -> PathBuf {
        self.state.join("ca.pem")
    }

    /// Runs `nkd` with these words inside the network; gives what it printed.
    pub fn nkd(&self, net: &Network, words: &[&str]) -> Result<String, Error> {
        let mut command = Command::new(&self.program);
        command.args(words).envs(self.environment());
        Ok(net.run(command, within(300))?.success()?.text())
    }

    /// The same, with what it printed in a file.
    pub fn nkd_into(&self, net: &Network, words: &[&str], file: &Path) -> Result<(), Error> {
        let mut command = Command::new("sh");
        command.args(["-c", "file=$1; shift; exec \"$@\" >\"$file\"", "sh"]).arg(file).arg(&self.program);
        command.args(words).envs(self.environment());
        net.run(command, within(300))?.success().map(drop)
    }

    /// The same with `-o json`, read.
    pub fn json(&self, net: &Network, words: &[&str]) -> Result<Value, Error> {
        let text = self.nkd(net, &[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .map_err(|_| Error::Unexpected { what: format!("nkd {}", words.join(" ")), got: text })
    }

    /// One machine's record.
    pub fn machine(&self, net: &Network, name: &str) -> Result<Value, Error> {
        self.json(net, &["machine", "show", name])
    }

    /// Waits until a machine is in a phase. A machine that failed or was stopped ends the wait, unless that is awaited.
    pub fn wait_for_phase(&self, net: &Network, name: &str, phase: &str, limit: Duration) -> Result<Value, Error> {
        let lower = |text: &str| text.to_lowercase();
        self.wait_until(net, name, &format!("{name} is {phase}"), limit, |machine| {
            lower(machine["phase"]["name"].as_str().unwrap_or_default()) == lower(phase)
        })
    }

    /// Waits until a machine's record is as it should be.
    pub fn wait_until(
        &self,
        net: &Network,
        name: &str,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let end = Instant::now() + limit;
        let mut last = Value::Null;
        loop {
            // The machine may not have sent its first packet, and the service may be down on purpose.
            if let Ok(machine) = self.machine(net, name) {
                if fits(&machine) {
                    return Ok(machine);
                }
                last = machine;
            }
            if last["phase"]["name"] == "failed" || Instant::now() >= end {
                let events = self.nkd(net, &["machine", "events", name]).unwrap_or_default();
                let consoles = consoles(net.folder());
                return Err(Error::Unexpected { what: what.to_owned(), got: format!("{last:#}\n{events}{consoles}") });
            }
            // Asking costs processor time that the machines under test want.
            std::thread::sleep(Duration::from_secs(3));
        }
    }

    /// Messages of a machine's events of one kind, oldest first.
    pub fn events(&self, net: &Network, name: &str, kind: &str) -> Result<Vec<String>, Error> {
        let events = self.json(net, &["machine", "events", name, "--limit", "1000"])?;
        let of_kind = events.as_array().into_iter().flatten().filter(|e| e["kind"] == kind);
        Ok(of_kind.map(|e| e["message"].as_str().unwrap_or_default().to_owned()).collect())
    }
}

/// The last lines on the serial console of every machine of a network, for the report of a failure: elsewhere nothing else may
/// be left of it.
fn consoles(folder: &Path) -> String {
    let machines = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut logs: Vec<PathBuf> = machines.map(|machine| machine.path().join("serial.log")).collect();
    logs.sort();
    let told = logs.iter().filter_map(|log| Some((log, std::fs::read(log).ok()?)));
    let last = |text: &str| text.lines().rev().take(CONSOLE_LINES).map(str::to_owned).collect::<Vec<_>>();
    told.map(|(log, bytes)| {
        let mut lines = last(&String::from_utf8_lossy(&bytes));
        lines.reverse();
        format!("\n{}:\n{}\n", log.display(), lines.join("\n"))
    })
    .collect()
}
