//! The tests and the programs that they need, built at once.
//!
//! Cargo builds a crate anew for each choice of packages whose features differ. One choice for everything builds it once.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::repository;

/// What was built.
pub struct Suite {
    built: Vec<Built>,
}

/// A program, or the tests of a target.
struct Built {
    /// Of the package, as the tests expect to be started in.
    folder: PathBuf,
    target: String,
    is_test: bool,
    path: PathBuf,
}

/// What one has said is not mixed with what another says.
static SHOWN: Mutex<()> = Mutex::new(());

/// Tests of one target: folder of its package, name of the target.
pub type Target<'a> = (&'a str, &'a str);

impl Suite {
    /// Builds everything; what cargo says of it is the caller's.
    pub fn build() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let words = ["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"];
        let output = Command::new(cargo)
            .args(words)
            .current_dir(repository())
            .stderr(Stdio::inherit())
            .output()
            .context("cargo cannot be run")?;
        ensure!(output.status.success(), "cargo {} failed ({})", words.join(" "), output.status);
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(messages: &str) -> Result<Self> {
        let messages = messages.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
        let built = messages.context("cargo's messages are not JSON")?.iter().filter_map(Built::of).collect();
        Ok(Self { built })
    }

    /// A program, as the tests use it.
    pub fn program(&self, name: &str) -> Result<&Path> {
        let found = self.built.iter().find(|built| !built.is_test && built.target == name);
        found.map(|built| built.path.as_path()).with_context(|| format!("cargo has built no program `{name}`"))
    }

    /// Runs the tests of these targets one after the other, as cargo does.
    pub fn run(&self, targets: &[Target<'_>], words: &[&str], environment: &[(&str, &OsStr)]) -> Result<()> {
        for target in targets {
            let status = self.command(*target, words, environment)?.status();
            Self::ended(target.1, words, status)?;
        }
        Ok(())
    }

    /// Runs the tests of these targets, with these words each: the inner ones one after the other, the outer ones at once,
    /// which is worth it where they wait most of their time. What each says is shown when it has ended.
    pub fn run_at_once(&self, all: &[Vec<(Target<'_>, Vec<&str>)>], environment: &[(&str, &OsStr)]) -> Result<()> {
        let one = |(target, words): &(Target<'_>, Vec<&str>)| {
            let output = self.command(*target, words, environment)?.output();
            if let Ok(output) = &output {
                let _shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
                eprintln!("     Ended {}", target.1);
                std::io::stdout()
                    .write_all(&output.stdout)
                    .and_then(|()| std::io::stderr().write_all(&output.stderr))?;
            }
            Self::ended(target.1, words, output.map(|output| output.status))
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = all.iter().map(|lane| scope.spawn(move || lane.iter().try_for_each(one))).collect();
            let ended: Vec<Result<()>> =
                all.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a thread has panicked"))).collect();
            ended.into_iter().collect()
        })
    }

    fn command(&self, (folder, target): Target<'_>, words: &[&str], environment: &[(&str, &OsStr)]) -> Result<Command> {
        let folder = repository().join(folder);
        let is_it = |built: &&Built| built.is_test && built.folder == folder && built.target == target;
        let built = self.built.iter().find(is_it).with_context(|| format!("there are no tests `{target}`"))?;
        eprintln!("     Running {target} ({})", built.path.display());
        let mut command = Command::new(&built.path);
        command.args(words).envs(environment.iter().copied()).current_dir(&folder);
        Ok(command)
    }

    fn ended(target: &str, words: &[&str], status: std::io::Result<ExitStatus>) -> Result<()> {
        let status = status.with_context(|| format!("the tests `{target}` cannot be run"))?;
        ensure!(status.success(), "the tests `{target}` {} failed ({status})", words.join(" "));
        Ok(())
    }
}

impl Built {
    fn of(message: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        (message["reason"] == "compiler-artifact").then_some(())?;
        Some(Self {
            folder: PathBuf::from(text(&message["manifest_path"])?).parent()?.to_owned(),
            target: text(&message["target"]["name"])?,
            is_test: message["profile"]["test"] == true,
            path: text(&message["executable"])?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tests_and_programs_of_one_name_are_told_apart() {
        let message = |folder: &str, test: bool, path: Option<&str>| {
            let manifest = repository().join(folder).join("Cargo.toml");
            json!({"reason": "compiler-artifact", "manifest_path": manifest, "target": {"name": "housekeeper"},
                "profile": {"test": test}, "executable": path})
            .to_string()
        };
        let all = [
            message("operator", true, Some("/t/deps/housekeeper-1")),
            message("operator", false, Some("/t/housekeeper")),
            message("vm-tests", true, Some("/bin/true")),
            message("api", false, None),
            json!({"reason": "build-finished", "success": true}).to_string(),
        ];
        let suite = Suite::parse(&all.join("\n")).unwrap();
        assert_eq!(suite.program("housekeeper").unwrap(), Path::new("/t/housekeeper"));
        assert!(suite.program("nkd").is_err());
        suite.run(&[("vm-tests", "housekeeper")], &[], &[]).unwrap();
        assert!(suite.run(&[("server", "housekeeper")], &[], &[]).is_err());
        let (good, absent) = ((("vm-tests", "housekeeper"), vec![]), (("server", "housekeeper"), vec![]));
        suite.run_at_once(&[vec![good.clone(); 2], vec![good.clone()]], &[]).unwrap();
        assert!(suite.run_at_once(&[vec![good.clone()], vec![good.clone(), absent.clone()]], &[]).is_err());
        assert!(suite.run_at_once(&[vec![absent, good.clone()], vec![good]], &[]).is_err());
    }
}
