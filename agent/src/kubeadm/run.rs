//! The run itself, in its own unit: `nkd-agent kubeadm --order FILE`.
#![expect(clippy::disallowed_methods, reason = "writes the node's files and runs kubeadm")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nkd_api::agent::{BALANCER_CONFIG_PATH, KubeadmAction, KubeadmOrder, KubeadmState, NodeFile};

use super::recover::recover;
use super::renew::renew;
use super::snapshot::snapshot;
use super::{Entry, Journal, fit};
use crate::client::chain;
use crate::files::{self, FileError};

/// Bytes of kubeadm's output that are kept for the report.
const LOG_TAIL: usize = 4096;
/// So many of what kubeadm's checks found stand in the reason of a failure.
const FINDINGS: usize = 4;
/// kubeadm's configuration; in memory, because a join has its token in it.
pub(super) const CONFIG: &str = "/run/nkd/kubeadm.yaml";
/// Where kubeadm and what it starts are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The run could not even begin or be written down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the agent.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no order: it was carried out, or the machine was restarted.
    #[error("the order {0} is not there")]
    NoOrder(std::path::PathBuf),
}

/// A step ended badly.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {reason}")]
pub(super) struct Failure {
    step: String,
    reason: String,
    log_tail: String,
}

/// Carries an order out and writes down how it ended. The order's file is removed as soon as it is read: it holds keys.
///
/// # Errors
/// When the order is not there or the journal cannot be written. How kubeadm fares stands in the journal.
pub fn run(order: &Path, state: &Path) -> Result<(), RunError> {
    let journal = Journal::new(state);
    let path = order;
    let order: KubeadmOrder = files::read_json(path)?.ok_or_else(|| RunError::NoOrder(path.to_owned()))?;
    files::remove(path)?;
    let touched = journal.read()?.is_some_and(|entry| entry.touched);
    let mut diary = Diary { journal, entry: Entry { operation: order.operation, state: KubeadmState::Done, touched } };
    let ended = match order.action {
        KubeadmAction::Renew => renew(&order, &mut diary),
        KubeadmAction::Recover => recover(&order, state, &mut diary),
        KubeadmAction::Snapshot => snapshot(&order, state, &mut diary),
        _ => carry_out(&order, &mut diary),
    };
    files::remove(Path::new(CONFIG))?;
    diary.entry.state = match ended {
        Ok(()) => KubeadmState::Done,
        Err(Failure { step, reason, log_tail }) => KubeadmState::Failed { step, reason, log_tail },
    };
    diary.entry.touched = leaves_something(order.action, diary.entry.touched, &diary.entry.state);
    diary.journal.write(&diary.entry)?;
    Ok(())
}

/// True when a run that ended so left what the next one has to remove. What ended well is never removed by the next
/// order's beginning, unless that is a reset. Renewal, recovery and snapshot make no node.
fn leaves_something(action: KubeadmAction, before: bool, ended: &KubeadmState) -> bool {
    match action {
        KubeadmAction::Renew | KubeadmAction::Recover | KubeadmAction::Snapshot => before,
        _ => before && *ended != KubeadmState::Done,
    }
}

pub(super) struct Diary {
    journal: Journal,
    entry: Entry,
}

impl Diary {
    pub(super) fn step(&mut self, step: &str) -> Result<(), Failure> {
        self.entry.state = KubeadmState::Running { step: step.to_owned() };
        self.journal.write(&self.entry).map_err(|error| failure(step, chain(&error)))
    }
}

pub(super) fn failure(step: &str, reason: impl Into<String>) -> Failure {
    Failure { step: step.to_owned(), reason: reason.into(), log_tail: String::new() }
}

fn carry_out(order: &KubeadmOrder, diary: &mut Diary) -> Result<(), Failure> {
    if order.action != KubeadmAction::Reset {
        fit::clock(order).map_err(|reason| failure("clock", reason))?;
    }
    if diary.entry.touched || order.action == KubeadmAction::Reset {
        diary.step("reset")?;
        reset(order.action)?;
        diary.entry.touched = false;
    }
    if order.action == KubeadmAction::Reset {
        // The balancer ends when it sees that.
        return files::remove(Path::new(BALANCER_CONFIG_PATH)).map_err(|error| failure("reset", chain(&error)));
    }
    fit::room(order).map_err(|reason| failure("room", reason))?;
    diary.step("files")?;
    for file in &order.files {
        write(file).map_err(|error| failure("files", format!("{}: {error}", file.path)))?;
    }
    if !order.restart.is_empty() {
        // Drop-ins may be among the files.
        command("files", "systemctl", &["daemon-reload"], |_| Ok(()))?;
        // Enabled: what the cluster needs is there after a restart of the machine too.
        for verb in ["enable", "restart"] {
            let mut words = vec![verb];
            words.extend(order.restart.iter().map(String::as_str));
            command("files", "systemctl", &words, |_| Ok(()))?;
        }
    }
    for (number, script) in order.before.iter().enumerate() {
        diary.step("hooks")?;
        let path = format!("/run/nkd/hook-{number}");
        let file = NodeFile { path: path.clone(), mode: 0o700, contents: script.clone() };
        write(&file).map_err(|error| failure("hooks", format!("{path}: {error}")))?;
        let interpreter = if script.starts_with("#!") { path.as_str() } else { "/bin/sh" };
        let words = if script.starts_with("#!") { vec![] } else { vec!["-eu", path.as_str()] };
        command("hooks", interpreter, &words, |_| Ok(()))
            .map_err(|f| Failure { reason: format!("script {} of hooks.before: {}", number + 1, f.reason), ..f })?;
    }
    diary.entry.touched = true;
    diary.step("preflight")?;
    let config = NodeFile { path: CONFIG.into(), mode: 0o600, contents: order.config.clone() };
    write(&config).map_err(|error| failure("files", format!("{CONFIG}: {error}")))?;
    let verb = if order.action == KubeadmAction::Init { "init" } else { "join" };
    let config = format!("--config={CONFIG}");
    let skip = format!("--skip-phases={}", order.skip_phases.join(","));
    let ignore = format!("--ignore-preflight-errors={}", order.ignore_preflight_errors.join(","));
    let mut words = vec![verb, config.as_str()];
    if !order.skip_phases.is_empty() {
        words.push(&skip);
    }
    if !order.ignore_preflight_errors.is_empty() {
        words.push(&ignore);
    }
    let mut last = "preflight".to_owned();
    let ended = command(verb, "kubeadm", &words, |line| match phase(line) {
        Some(phase) if phase != last => {
            phase.clone_into(&mut last);
            diary.step(phase)
        }
        _ => Ok(()),
    });
    ended.map_err(|failure| Failure { step: last, ..failure })
}

/// The phase that a line of kubeadm's output is about: `[certs] Generating ...`.
fn phase(line: &str) -> Option<&str> {
    let (phase, _) = line.strip_prefix('[')?.split_once(']')?;
    let fits = |c: char| c.is_ascii_lowercase() || c == '-';
    (!phase.is_empty() && phase.chars().all(fits)).then_some(phase)
}

/// A line of kubeadm's output without the tokens and keys that it tells people to copy.
fn without_secrets(line: &str) -> String {
    let mut hide = false;
    line.split_inclusive(char::is_whitespace)
        .map(|word| {
            let secret = std::mem::replace(&mut hide, matches!(word.trim_end(), "--token" | "--certificate-key"));
            let end = &word[word.trim_end().len()..];
            if secret { format!("(hidden){end}") } else { word.to_owned() }
        })
        .collect::<String>()
        .replace("--token ", "--token=")
}

/// Removes what kubeadm made: it has to begin from nothing.
fn reset(action: KubeadmAction) -> Result<(), Failure> {
    command("reset", "kubeadm", reset_words(action), |_| Ok(()))?;
    // kubeadm leaves these to the administrator.
    for folder in ["/etc/cni/net.d", "/var/lib/etcd", "/etc/kubernetes/pki", "/etc/kubernetes/manifests"] {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // A mount point cannot be removed; its content can.
                empty(Path::new(folder)).map_err(|error| failure("reset", format!("{folder}: {error}")))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The service has taken this node out of etcd before it gives an order to join: kubeadm would ask for minutes after a
/// member that is not there.
fn reset_words(action: KubeadmAction) -> &'static [&'static str] {
    match action {
        KubeadmAction::Join => &["reset", "--force", "--skip-phases=remove-etcd-member"],
        _ => &["reset", "--force"],
    }
}

fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

/// Writes a file in one step, its folders too.
pub(super) fn write(file: &NodeFile) -> std::io::Result<()> {
    let path = Path::new(&file.path);
    let sane = path.is_absolute() && !path.components().any(|c| matches!(c, std::path::Component::ParentDir));
    if !sane {
        return Err(std::io::Error::other("not an absolute path"));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let beside = path.with_extension("nkd-new");
    let _ = std::fs::remove_file(&beside);
    let write = || {
        let mut target = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        std::io::Write::write_all(&mut target, file.contents.as_bytes())?;
        target.set_permissions(std::fs::Permissions::from_mode(file.mode & 0o7777))?;
        target.sync_all()?;
        std::fs::rename(&beside, path)
    };
    // The disk may be full: what is half written is not left there.
    write().inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// Runs a program to its end; every line of what it says is heard and goes to the journal of the system.
pub(super) fn command(
    step: &str,
    program: &str,
    words: &[&str],
    mut hear: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (reader, writer) = std::io::pipe().map_err(|error| failure(step, error.to_string()))?;
    let error_writer = writer.try_clone().map_err(|error| failure(step, error.to_string()))?;
    let mut command = Command::new(program);
    command.args(words).env_clear().env("PATH", PATH).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(writer).stderr(error_writer);
    let mut child = command.spawn().map_err(|error| failure(step, format!("`{program}` could not be run: {error}")))?;
    // The pipe ends when the child and this command are gone.
    drop(command);
    let mut tail = String::new();
    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    while lines.by_ref().take(64 * 1024).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = without_secrets(&String::from_utf8_lossy(&line));
        print!("{text}");
        tail.push_str(&text);
        let excess = tail.ceil_char_boundary(tail.len().saturating_sub(LOG_TAIL));
        tail.drain(..excess);
        if let Err(failure) = hear(text.trim_end()) {
            // The journal cannot be written: whoever reads it must not take this for a run that goes on.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failure);
        }
        line.clear();
    }
    let status = child.wait().map_err(|error| failure(step, error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure {
        step: step.to_owned(),
        reason: format!("`{program}` ended with {status}: {}", told(&tail)),
        log_tail: tail,
    })
}

/// Runs a program that has much to say, all of which goes to the journal of the system.
///
/// # Errors
/// In one sentence.
pub(crate) fn shout(step: &str, program: &str, words: &[&str]) -> Result<(), String> {
    command(step, program, words, |_| Ok(())).map_err(|failure| failure.reason)
}

/// Why a program failed, as it says itself: what kubeadm's checks found, its error, or the last line.
fn told(tail: &str) -> String {
    let found: Vec<&str> = tail.lines().map(str::trim).filter(|line| line.contains("[ERROR ")).take(FINDINGS).collect();
    if !found.is_empty() {
        return found.join("; ");
    }
    let last = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    tail.lines().find(|line| line.starts_with("error")).unwrap_or(last).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_what_kubeadm_says() {
        assert_eq!(phase("[certs] Using certificateDir folder"), Some("certs"));
        assert_eq!(phase("[kubelet-start] Starting the kubelet"), Some("kubelet-start"));
        for other in ["", "[", "[]", "W0101 [x] y", "[ERROR Swap]: running", "Your Kubernetes control-plane"] {
            assert_eq!(phase(other), None, "{other}");
        }
    }

    #[test]
    fn a_renewal_recovery_or_snapshot_that_fails_leaves_nothing_to_reset() {
        let failed = KubeadmState::Failed { step: "x".into(), reason: "y".into(), log_tail: String::new() };
        for action in [KubeadmAction::Init, KubeadmAction::Join] {
            assert!(leaves_something(action, true, &failed) && !leaves_something(action, true, &KubeadmState::Done));
            assert!(!leaves_something(action, false, &failed), "kubeadm was not started");
        }
        // Otherwise the next run would reset a control plane that works.
        for action in [KubeadmAction::Renew, KubeadmAction::Recover, KubeadmAction::Snapshot] {
            assert!(!leaves_something(action, false, &failed));
        }
        assert!(leaves_something(KubeadmAction::Renew, true, &KubeadmState::Done), "what a join left is still there");
    }

    #[test]
    fn who_leaves_takes_its_etcd_out_and_who_joins_anew_is_out() {
        assert!(reset_words(KubeadmAction::Join).contains(&"--skip-phases=remove-etcd-member"));
        assert_eq!(reset_words(KubeadmAction::Reset), ["reset", "--force"]);
    }

    #[test]
    fn tokens_are_not_repeated() {
        let line = "  kubeadm join 192.0.2.11:6443 --token glovzh.nujrtvqzutff1k8j --certificate-key 0011 \\\n";
        let shown = without_secrets(line);
        assert_eq!(shown, "  kubeadm join 192.0.2.11:6443 --token=(hidden) --certificate-key (hidden) \\\n");
        assert_eq!(without_secrets("[certs] Using\tx\n"), "[certs] Using\tx\n");
    }

    #[test]
    fn a_program_that_fails_gives_its_reason_and_the_end_of_its_log() {
        let mut heard = 0;
        let result = command("x", "sh", &["-c", "seq 2000; echo '	[ERROR Swap]: swap is on' >&2; exit 3"], |_| {
            heard += 1;
            Ok(())
        });
        let failure = result.unwrap_err();
        assert!(failure.reason.contains("swap is on"), "{}", failure.reason);
        assert!(failure.log_tail.len() <= LOG_TAIL && failure.log_tail.ends_with("swap is on\n"));
        assert_eq!(heard, 2001);
        assert!(command("x", "no-such-program", &[], |_| Ok(())).unwrap_err().reason.contains("could not be run"));
    }

    #[test]
    fn the_reason_is_what_the_checks_found_not_that_they_found_something() {
        let head = "error execution phase preflight: [preflight] Some fatal errors occurred:\n";
        let found =
            "\t[ERROR ImagePull]: failed to pull image a: output: x\n, error: exit status 1\n\t[ERROR Swap]: on\n";
        let end = "[preflight] If you know what you are doing, you can make a check non-fatal\n";
        let reason = told(&format!("{head}{found}{end}"));
        assert_eq!(reason, "[ERROR ImagePull]: failed to pull image a: output: x; [ERROR Swap]: on");
        assert_eq!(told("a\nerror execution phase x: y\nTo see the stack trace\n"), "error execution phase x: y");
        assert_eq!(told("a\n b \n\n"), "b");
    }

    #[test]
    fn files_get_their_folders_and_modes_and_nothing_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c.key");
        let file = NodeFile { path: path.display().to_string(), mode: 0o600, contents: "secret".into() };
        write(&file).unwrap();
        write(&file).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
        for bad in ["relative", "/etc/../x"] {
            assert!(write(&NodeFile { path: bad.into(), ..file.clone() }).is_err(), "{bad}");
        }
    }
}
