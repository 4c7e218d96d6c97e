//! Real agents, and their ends.
#![expect(clippy::disallowed_methods, reason = "starts processes, and looks at them")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Instant;

use super::*;

/// A folder for an agent.
pub fn private(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
}

fn say(program: &'static str, folder: &Path, words: &[&str]) -> String {
    let home = ["--homedir".into(), OsString::from(folder)];
    let words: Vec<_> = home.into_iter().chain(words.iter().map(OsString::from)).collect();
    String::from_utf8(run(program, "gnupg", &words, b"").unwrap()).unwrap()
}

/// The number by which an agent calls itself.
fn own_number(folder: &Path) -> i32 {
    let said = say("gpg-connect-agent", folder, &["--no-autostart", "getinfo pid", "/bye"]);
    said.lines().find_map(|line| line.strip_prefix("D ")?.parse().ok()).unwrap()
}

/// Starts an agent; its process.
pub fn launch(folder: &Path) -> i32 {
    say("gpgconf", folder, &["--launch", "gpg-agent"]);
    own_number(folder)
}

pub fn lives(process: i32) -> bool {
    // Its parent may not have been told yet that it ended.
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.contains("(gpg-agent)") && !status.contains(") Z ")
}

fn eventually(what: &str, so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(40), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_has_ended_when_that_is_said_and_nobody_is_ended_where_none_is() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("home");
    private(&folder);
    let address = address(&folder).unwrap();
    end(&address).unwrap();
    let process = launch(&folder);
    assert!(lives(process));
    end(&address).unwrap();
    assert!(!lives(process));
    // Its socket is there still.
    end(&address).unwrap();
}

#[test]
fn one_that_cannot_be_killed_is_told_to_end() {
    for refused in [Errno::NOSYS, Errno::PERM] {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("home");
        private(&folder);
        let process = launch(&folder);
        end_by(&address(&folder).unwrap(), |_| Err(refused)).unwrap();
        eventually("it ends", || !lives(process));
    }
}

/// Its own number is another process's here.
#[test]
#[ignore = "namespace tier: needs root"]
fn one_of_another_pid_namespace_is_ended_and_nobody_else() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("home");
    private(&folder);
    let launch = format!("gpgconf --homedir {} --launch gpg-agent && exec sleep 300", folder.display());
    let mut namespace =
        Command::new("unshare").args(["--pid", "--fork", "--kill-child", "sh", "-c", &launch]).spawn().unwrap();
    let address = address(&folder).unwrap();
    eventually("it listens", || UnixStream::connect(&address).is_ok());
    let (own, here) = (own_number(&folder), Agent::meet(&address).unwrap().hear().unwrap().unwrap());
    assert!(lives(here.as_raw_pid()) && own != here.as_raw_pid(), "{own} {here:?}");
    end(&address).unwrap();
    assert!(!lives(here.as_raw_pid()));
    assert!(namespace.try_wait().unwrap().is_none(), "and nothing else of it");
    namespace.kill().unwrap();
    namespace.wait().unwrap();
}
