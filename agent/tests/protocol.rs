//! The whole agent against a real TLS service whose clock is fourteen years ahead of this machine's.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "files, sockets and programs of the tests")]

mod service;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nkd_agent::status::{self, Status};
use nkd_agent::{Options, Patience, Reboot};
use nkd_api::Sha256Digest;
use nkd_api::agent::{AgentConfig, InstallTask, Purpose, ReportEvent, Task};
use tokio::task::JoinHandle;
use uuid::Uuid;

use service::{FarClock, Fault, Seen, Service, Setup, image_server};

const DISK: usize = 4 << 20;

/// A machine in a directory.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(service: &Service, purpose: Purpose, token: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for dir in ["sys/block/vda", "dev", "proc/sys/kernel/random", "etc", "bin"] {
            fs::create_dir_all(machine.path(dir)).unwrap();
        }
        fs::write(machine.path("sys/block/vda/size"), (DISK / 512).to_string()).unwrap();
        fs::write(machine.path("dev/vda"), vec![9; DISK]).unwrap();
        fs::write(machine.path("proc/uptime"), "12.50 20.00\n").unwrap();
        fs::write(machine.path("proc/sys/kernel/random/boot_id"), "a-boot\n").unwrap();
        machine.program("bin/reboot", &format!("touch {}; sleep 60", machine.path("restarted").display()));
        machine.configure(service, purpose, token);
        machine
    }

    fn path(&self, place: &str) -> PathBuf {
        self.0.path().join(place)
    }

    fn program(&self, place: &str, script: &str) {
        fs::write(self.path(place), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(self.path(place), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn configure(&self, service: &Service, purpose: Purpose, token: &str) {
        let config = AgentConfig {
            server: service.url(),
            ca: service.ca.clone(),
            machine: Uuid::from_u128(7),
            purpose,
            generation: 1,
            token: token.into(),
        };
        fs::write(self.path("etc/agent.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    }

    fn config(&self) -> AgentConfig {
        serde_json::from_slice(&fs::read(self.path("etc/agent.json")).unwrap()).unwrap()
    }

    fn start(&self) -> Agent {
        let short = Duration::from_millis(1);
        let options = Options {
            config: self.path("etc/agent.json"),
            state: self.path("state"),
            root: self.0.path().to_owned(),
            run_dir: self.path("run"),
            orders: self.path("orders"),
            socket: self.path("socket"),
            path: format!("{}:/usr/bin:/bin", self.path("bin").display()),
            reboot: Reboot::Program(self.path("bin/reboot")),
            patience: Patience { tries: 3, first: short, cap: short, stall: Duration::from_secs(20) },
        };
        Agent(tokio::spawn(async move { nkd_agent::run(options).await.map_err(|error| nkd_agent::chain(&error)) }))
    }

    /// Waits until the agent's status is as `wanted`.
    async fn status(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        for _ in 0..600 {
            if let Ok(status) = status::ask(&self.path("socket")).await {
                if wanted(&status) {
                    return status;
                }
                last = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the status is not: {what}; it is {last:#?}");
    }

    async fn restarted(&self) {
        for _ in 0..600 {
            if self.path("restarted").exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the machine did not restart");
    }
}

/// A running agent; killed when dropped.
struct Agent(JoinHandle<Result<(), String>>);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn at<'a>(path: &'a str, status: u16) -> impl Fn(&Seen) -> bool + 'a {
    move |seen| seen.path == path && seen.status == status
}

fn event(wanted: impl Fn(&ReportEvent) -> bool) -> impl Fn(&Seen) -> bool {
    move |seen| seen.status == 200 && seen.event.as_ref().is_some_and(&wanted)
}

fn install(url: String, image: &[u8]) -> Task {
    let digest = ring::digest::digest(&ring::digest::SHA256, image);
    Task::Install(InstallTask {
        generation: 1,
        image_url: url,
        image_sha256: Sha256Digest(digest.as_ref().try_into().unwrap()),
        image_size: image.len() as u64,
        disk: None,
        installer: "nestos-installer".into(),
        append_kargs: Vec::new(),
        firstboot_args: String::new(),
    })
}

const INSTALLER: &str = r#"for last; do :; done
curl -sf "${2#--image-url=}" -o "$last.part" || { echo "Error: decoding and writing image" >&2; exit 1; }
dd if="$last.part" of="$last" bs=1M conv=notrunc 2>/dev/null"#;

#[tokio::test]
async fn a_blank_machine_is_installed_and_restarts_after_it_was_heard() {
    let service = Service::start(Setup::default()).await;
    service.allow("once");
    service.fault("time", &[Fault::Unavailable]);
    service.fault("install-config", &[Fault::Unavailable, Fault::LostAnswer]);
    let machine = Machine::new(&service, Purpose::Install, "once");
    machine.program("bin/nestos-installer", INSTALLER);
    let image = vec![3u8; 2 << 20];
    service.set_task(install(image_server(image.clone()).await, &image));

    let _agent = machine.start();
    machine.restarted().await;
    let installed = event(|event| matches!(event, ReportEvent::Installed { generation: 1 }));
    assert_eq!(service.count(&installed), 1, "heard before the restart");
    assert!(service.count(event(|event| matches!(event, ReportEvent::InstallProgress { .. }))) > 0);
    assert_eq!(service.count(event(|event| matches!(event, ReportEvent::Failed { .. }))), 0);
    assert!(service.seen().iter().filter(|seen| seen.path == "install-config").all(|seen| seen.certified));
    let disk = fs::read(machine.path("dev/vda")).unwrap();
    assert!(disk[..2 << 20] == image && disk[2 << 20..].iter().all(|b| *b == 9));
    assert_eq!(machine.config().token, "", "the token is gone");
    for file in ["state/identity.json", "state/client.pem", "etc/agent.json", "state/journal.json"] {
        assert_eq!(fs::metadata(machine.path(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    assert_eq!(fs::metadata(machine.path("state")).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!machine.path("state/enrolling.json").exists());
}

#[tokio::test]
async fn an_agent_killed_before_it_was_heard_does_not_install_twice() {
    let service = Service::start(Setup::default()).await;
    service.allow("once");
    let machine = Machine::new(&service, Purpose::Install, "once");
    machine.program("bin/nestos-installer", &format!("echo x >> {}; {INSTALLER}", machine.path("runs").display()));
    let image = vec![3u8; 2 << 20];
    service.set_task(install(image_server(image.clone()).await, &image));
    service.fault("report", &[Fault::Unavailable; 9]);
    let agent = machine.start();
    machine.status("installed", |status| status.phase == "installed").await;
    assert!(!machine.path("restarted").exists());
    drop(agent);
    service.fault("report", &[]);
    let _agent = machine.start();
    machine.restarted().await;
    assert_eq!(fs::read_to_string(machine.path("runs")).unwrap(), "x\n");
}

#[tokio::test]
async fn an_agent_killed_while_the_installer_runs_starts_it_again() {
    let service = Service::start(Setup::default()).await;
    service.allow("once");
    let machine = Machine::new(&service, Purpose::Install, "once");
    let first = machine.path("first");
    let hang = format!("[ -e {0} ] || {{ echo $$ > {0}; exec sleep 60; }}", first.display());
    machine.program("bin/nestos-installer", &format!("{hang}\n{INSTALLER}"));
    let image = vec![3u8; 2 << 20];
    service.set_task(install(image_server(image.clone()).await, &image));
    let agent = machine.start();
    for _ in 0..600 {
        if first.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(machine.status("installing", |status| status.phase == "installing").await.generation, 1);
    drop(agent);
    let pid = fs::read_to_string(&first).unwrap();
    let status = PathBuf::from("/proc").join(pid.trim()).join("exe");
    for _ in 0..600 {
        if fs::read_link(&status).is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(fs::read_link(&status).is_err(), "the installer dies with the agent");
    let _agent = machine.start();
    machine.restarted().await;
    assert_eq!(service.count(at("enroll", 200)), 1);
    assert!(fs::read(machine.path("dev/vda")).unwrap()[..2 << 20] == image);
}

#[tokio::test]
async fn a_wrong_digest_is_reported_and_never_tried_again() {
    let service = Service::start(Setup::default()).await;
    service.allow("once");
    let machine = Machine::new(&service, Purpose::Install, "once");
    machine.program("bin/nestos-installer", INSTALLER);
    let url = image_server(vec![3u8; 2 << 20]).await;
    service.set_task(install(url.clone(), &vec![4u8; 2 << 20]));
    let _agent = machine.start();
    let failed = event(|event| matches!(event, ReportEvent::Failed { step, .. } if step == "verify"));
    service.wait_for("the failure", 1, &failed).await;
    let disk = fs::read(machine.path("dev/vda")).unwrap();
    assert!(disk[..1 << 20].iter().chain(&disk[3 << 20..]).all(|b| *b == 0));
    // The same task under a new revision changes nothing; another one restarts the machine.
    service.set_task(install(url, &vec![4u8; 2 << 20]));
    let polls = service.count(at("task", 200));
    service.wait_for("a later poll", polls + 2, at("task", 200)).await;
    assert_eq!(service.count(&failed), 1);
    assert!(!machine.path("restarted").exists());
    service.set_task(Task::Reboot { reason: "try again".into() });
    machine.restarted().await;
}

#[tokio::test]
async fn a_node_enrolls_renews_and_goes_on_after_it_was_killed() {
    let service = Service::start(Setup { first_renewal: time::Duration::seconds(2), ..Setup::default() }).await;
    service.allow("once");
    let machine = Machine::new(&service, Purpose::Node, "once");
    let agent = machine.start();
    let facts = event(|event| matches!(event, ReportEvent::Facts { facts } if facts.disks.len() == 1));
    service.wait_for("facts", 1, &facts).await;
    let identity = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(machine.path("state/identity.json")).unwrap()).unwrap()
    };
    // What the container runtime shows: the certificate, and the key that belongs to it.
    let shown = |of: &serde_json::Value| {
        let pem = fs::read_to_string(machine.path("state/client.pem")).unwrap();
        let at = pem.find(of["key"].as_str().unwrap());
        at.is_some_and(|at| pem[..at].trim_end() == of["certificate"].as_str().unwrap().trim_end())
    };
    let before = identity();
    assert!(shown(&before));
    service.wait_for("a renewal", 1, at("renew", 200)).await;
    let status = machine.status("renewed", |status| status.message.contains("renewed")).await;
    assert_eq!(status.phase, "waiting");
    assert!(status.last_contact.is_some_and(|at| at > time::OffsetDateTime::now_utc() + time::Duration::days(5000)));
    let renewed = identity();
    assert_ne!(before["key"], renewed["key"], "a new key");
    assert!(shown(&renewed) && !shown(&before));
    drop(agent);
    // It died between the two files, or is of a release that did not know the second one.
    fs::remove_file(machine.path("state/client.pem")).unwrap();
    let _agent = machine.start();
    service.wait_for("facts again", 2, &facts).await;
    assert!(shown(&renewed));
    assert_eq!(service.count(at("enroll", 200)), 1);
    assert_eq!(service.count(|seen| seen.path == "renew"), 1);
}

#[tokio::test]
async fn a_lost_answer_is_no_loss_where_the_service_knows_the_key_again() {
    let service = Service::start(Setup { same_key_again: true, ..Setup::default() }).await;
    service.allow("once");
    service.fault("enroll", &[Fault::Unavailable, Fault::LostAnswer]);
    let machine = Machine::new(&service, Purpose::Node, "once");
    let agent = machine.start();
    service.wait_for("the lost answer", 1, at("enroll", 0)).await;
    drop(agent);
    let _agent = machine.start();
    service.wait_for("facts", 1, event(|event| matches!(event, ReportEvent::Facts { .. }))).await;
    assert_eq!(service.count(at("enroll", 200)), 1);
}

#[tokio::test]
async fn a_lost_answer_elsewhere_is_said_and_a_new_token_helps() {
    let service = Service::start(Setup::default()).await;
    service.allow("once");
    service.fault("enroll", &[Fault::LostAnswer]);
    let machine = Machine::new(&service, Purpose::Node, "once");
    let agent = machine.start();
    let status = machine.status("refused", |status| status.message.contains("refused")).await;
    assert_eq!(status.phase, "enrolling");
    assert!(status.message.contains("this token was used") && status.message.contains("new token"), "{status:?}");
    drop(agent);
    service.allow("another");
    machine.configure(&service, Purpose::Node, "another");
    let _agent = machine.start();
    service.wait_for("facts", 1, event(|event| matches!(event, ReportEvent::Facts { .. }))).await;
}

#[tokio::test]
async fn discovery_tells_its_facts_and_restarts_when_told() {
    let service = Service::start(Setup::default()).await;
    service.allow("once");
    service.set_task(Task::Wait { reason: "nobody accepted this machine".into() });
    let machine = Machine::new(&service, Purpose::Discovery, "once");
    let _agent = machine.start();
    machine.status("waiting", |status| status.message.contains("nobody accepted this machine")).await;
    service.set_task(Task::Reboot { reason: "accepted".into() });
    machine.restarted().await;
}

/// Nothing but the clock is ever asked of a service that is not the one.
async fn never_enrolls(service: &Service, machine: &Machine, why: &str) {
    service.allow("once");
    let _agent = machine.start();
    machine.status(why, |status| status.message.contains(why)).await;
    assert_eq!(service.count(|seen| seen.path != "time"), 0, "{:?}", service.seen());
    assert_eq!(machine.config().token, "once");
}

#[tokio::test]
async fn a_service_of_another_ca_gets_no_token() {
    let (service, other) = (Service::start(Setup::default()).await, Service::start(Setup::default()).await);
    let machine = Machine::new(&service, Purpose::Node, "once");
    let config = AgentConfig { ca: other.ca.clone(), ..machine.config() };
    fs::write(machine.path("etc/agent.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    never_enrolls(&service, &machine, "invalid peer certificate").await;
    assert!(service.seen().is_empty());
}

#[tokio::test]
async fn a_service_of_another_name_gets_no_token() {
    let service = Service::start(Setup { name: "192.0.2.1", ..Setup::default() }).await;
    let machine = Machine::new(&service, Purpose::Node, "once");
    never_enrolls(&service, &machine, "not valid for").await;
    assert!(service.seen().is_empty());
}

#[tokio::test]
async fn a_service_whose_certificate_has_expired_by_its_own_clock_gets_no_token() {
    let leaf = (-time::Duration::days(9), -time::Duration::days(1));
    let service = Service::start(Setup { leaf, ..Setup::default() }).await;
    let machine = Machine::new(&service, Purpose::Node, "once");
    never_enrolls(&service, &machine, "expired").await;
}

#[tokio::test]
async fn a_clock_that_runs_ahead_by_years_is_no_hindrance() {
    let clock = FarClock(-time::Duration::days(365 * 20));
    let service = Service::start(Setup { clock, ..Setup::default() }).await;
    service.allow("once");
    let machine = Machine::new(&service, Purpose::Node, "once");
    let _agent = machine.start();
    service.wait_for("facts", 1, event(|event| matches!(event, ReportEvent::Facts { .. }))).await;
}
