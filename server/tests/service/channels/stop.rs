//! A stop of the service waits for what is under way, and leaves no process behind.

use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::libc::O_NONBLOCK;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::harness::{Place, Running, eventually};
use super::{Builder, good};

/// The real ostree, where this service finds it. What signs commits waits at a gate.
pub(super) struct Gate {
    folder: PathBuf,
}

/// What waits there.
pub(super) struct Waiting {
    process: String,
    /// The folder of the unpacked key.
    home: PathBuf,
    /// The process that knows the key.
    agent: String,
}

impl Gate {
    pub(super) fn new(place: &Place) -> Self {
        let folder = place.dir.path().join("gate");
        std::fs::create_dir(&folder).unwrap();
        good("mkfifo", &[folder.join("open").to_str().unwrap()]);
        let (at, ostree) = (folder.display(), good("sh", &["-c", "command -v ostree"]));
        let wait = format!("echo $$ \"$@\" >{at}/new; mv {at}/new {at}/arrived; read _ <{at}/open");
        let script = format!("#!/bin/sh\nif [ \"$1\" = gpg-sign ]; then {wait}; fi\nexec {} \"$@\"\n", ostree.trim());
        std::fs::write(folder.join("ostree"), script).unwrap();
        std::fs::set_permissions(folder.join("ostree"), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    /// Starts the service behind it.
    pub(super) async fn start(&self, place: &Place) -> Running {
        let path = format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap());
        let log = std::fs::File::create(place.log()).unwrap();
        let mut command = place.serve();
        command.env("PATH", path).stdout(log.try_clone().unwrap()).stderr(log);
        let running = Running { child: command.spawn().unwrap() };
        eventually("it is ready", async || reqwest::get(place.metrics_url("/readyz")).await.ok()).await;
        running
    }

    pub(super) async fn waiting(&self) -> Waiting {
        let arrived = self.folder.join("arrived");
        let said = eventually("a commit is to be signed", async || std::fs::read_to_string(&arrived).ok()).await;
        let process = said.split_whitespace().next().unwrap().to_owned();
        let home = said.split_whitespace().find_map(|word| word.strip_prefix("--gpg-homedir=")).unwrap();
        let agent = good("gpg-connect-agent", &["--homedir", home, "--no-autostart", "getinfo pid", "/bye"]);
        let agent = agent.lines().find_map(|line| line.strip_prefix("D ")).unwrap().to_owned();
        Waiting { process, home: home.into(), agent }
    }

    pub(super) async fn open(&self) {
        let gate = self.folder.join("open");
        let open = || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&gate).ok();
        eventually("somebody is at the gate", async || open()).await;
    }
}

impl Waiting {
    /// Nothing of it is there any more.
    fn is_gone(&self) {
        let lives = |process: &str| {
            let status = std::fs::read_to_string(Path::new("/proc").join(process).join("stat")).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z ")
        };
        assert!(!lives(&self.process), "ostree goes on");
        assert!(!lives(&self.agent), "gpg's agent goes on");
        assert!(!self.home.exists(), "the unpacked key is left");
    }
}

/// Somebody who publishes.
pub(super) fn publisher(place: &Place, builder: &Builder) -> Child {
    let repo = builder.path("repo");
    let mut client = place.client(&place.admin_token());
    client.args(["channel", "publish", "stable", "--ostree", &repo]).stdout(Stdio::null()).stderr(Stdio::null());
    client.spawn().unwrap()
}

#[tokio::test]
async fn what_was_ordered_is_done_before_the_service_ends_although_the_caller_has_left() {
    let place = Place::new();
    let (gate, builder) = (Gate::new(&place), Builder::new(&place));
    let mut service = gate.start(&place).await;
    let commit = builder.build("1", b"one", &[]);
    let mut caller = publisher(&place, &builder);
    let waiting = gate.waiting().await;
    caller.kill().unwrap();
    caller.wait().unwrap();
    service.signal(Signal::SIGTERM);
    let closed = async || reqwest::get(place.metrics_url("/readyz")).await.is_err().then_some(());
    eventually("it takes no more orders", closed).await;
    assert!(service.child.try_wait().unwrap().is_none(), "it waits: {}", place.log_text());
    gate.open().await;
    assert!(service.ended().success());
    waiting.is_gone();
    assert!(!place.log_text().contains("the drain limit is over"), "{}", place.log_text());

    let _service = place.start().await;
    let channel: Value = serde_json::from_str(&place.ok(&["channel", "show", "stable", "-o", "json"])).unwrap();
    assert_eq!(channel["releases"][0]["commit"], commit, "{channel:#}");
}

/// It takes as long as the service waits.
#[tokio::test]
async fn what_does_not_come_to_its_end_is_cut_off_and_leaves_nothing() {
    let place = Place::new();
    let (gate, builder) = (Gate::new(&place), Builder::new(&place));
    let mut service = gate.start(&place).await;
    builder.build("1", b"one", &[]);
    let mut caller = publisher(&place, &builder);
    let waiting = gate.waiting().await;
    service.signal(Signal::SIGTERM);
    assert!(service.ended().success());
    assert!(place.log_text().contains("the drain limit is over"), "{}", place.log_text());
    waiting.is_gone();
    assert!(!caller.wait().unwrap().success());

    let _service = place.start().await;
    assert_eq!(place.ok(&["channel", "list", "-o", "json"]).trim(), "[]", "nothing was published");
    let repo = builder.path("repo");
    place.ok(&["channel", "publish", "stable", "--ostree", &repo]);
}

/// A program that goes on would write where the next service works.
#[tokio::test]
async fn what_a_killed_service_ran_has_ended_when_the_next_one_serves() {
    let place = Place::new();
    let (gate, builder) = (Gate::new(&place), Builder::new(&place));
    let service = gate.start(&place).await;
    builder.build("1", b"one", &[]);
    let mut caller = publisher(&place, &builder);
    let waiting = gate.waiting().await;
    service.kill();
    assert!(!caller.wait().unwrap().success());
    let _service = place.start().await;
    waiting.is_gone();
    let repo = builder.path("repo");
    place.ok(&["channel", "publish", "stable", "--ostree", &repo]);
    good("ostree", &["fsck", &super::prune::repo(&place)]);
}
