//! Commands that need root: run as they are by root, through `sudo` by anybody else.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::LazyLock;

static IS_ROOT: LazyLock<bool> =
    LazyLock::new(|| Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0"));

/// A command with root's rights. The environment is given here because `sudo` passes none on.
pub fn command<V: AsRef<OsStr>>(program: impl AsRef<OsStr>, environment: &[(&str, V)]) -> Command {
    if *IS_ROOT {
        let mut command = Command::new(program);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        return command;
    }
    let mut command = Command::new("sudo");
    command.arg("env");
    for (name, value) in environment {
        let mut assignment = std::ffi::OsString::from(format!("{name}="));
        assignment.push(value);
        command.arg(assignment);
    }
    command.arg(program);
    command
}
