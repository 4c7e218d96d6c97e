//! A system whose images are somebody else's business: a program of the site's own does what ostree does elsewhere.
//!
//! ```text
//! PROGRAM status           [{"id": "...", "booted": true, "staged": false}, ...], the one that boots next first
//! PROGRAM stage ID         lays the release out; writes the path of its tree
//! PROGRAM arm ID           a restart makes it the next system; refused when another one is staged
//! PROGRAM confirm          what runs stays
//! PROGRAM revert ID        this one boots next again
//! PROGRAM discard ID       puts it away, if it does not run
//! ```
//! Exit code 0: done. 65: no further try will fare better. Any other: another try may. Standard error is the reason.

use std::path::PathBuf;

use nkd_api::update::OsRelease;
use serde::Deserialize;

use super::program::{ProgramError, STATUS, ask, ask_within, tell};
use super::{Backend, Source, again, never};
use crate::update::state::{Deployment, Failure, id_of};

/// The exit code of what is final (EX_DATAERR).
const FINAL: i32 = 65;

/// The program.
pub struct Site {
    program: String,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    booted: bool,
    #[serde(default)]
    staged: bool,
}

impl Site {
    /// This one.
    #[must_use]
    pub fn new(program: String) -> Self {
        Self { program }
    }

    fn run(&self, words: &[&str]) -> Result<(), Failure> {
        tell(&self.program, words).map_err(judged)
    }
}

fn judged(error: ProgramError) -> Failure {
    if error.code == Some(FINAL) { never(error) } else { again(error) }
}

impl Backend for Site {
    fn deployments(&self) -> Result<Vec<Deployment>, String> {
        let text = ask_within(STATUS, &self.program, &["status"])?;
        let listed: Vec<Listed> =
            serde_json::from_str(&text).map_err(|error| format!("`{} status` does not read: {error}", self.program))?;
        Ok(listed.into_iter().map(|l| Deployment { id: l.id, booted: l.booted, staged: l.staged }).collect())
    }

    fn finalize_failure(&self) -> Option<String> {
        None
    }

    fn stage(&self, os: &OsRelease, _: Result<&Source, &Failure>) -> Result<PathBuf, Failure> {
        let id = id_of(os).ok_or_else(|| never("the release names neither commit nor image".to_owned()))?;
        let tree = ask(&self.program, &["stage", id]).map_err(judged)?;
        Ok(PathBuf::from(tree.trim()))
    }

    fn arm(&self, id: &str) -> Result<(), Failure> {
        self.run(&["arm", id])
    }

    fn confirm(&self) -> Result<(), Failure> {
        self.run(&["confirm"])
    }

    fn revert(&self, from: &str) -> Result<(), Failure> {
        self.run(&["revert", from])
    }

    fn discard(&self, id: &str) -> Result<(), Failure> {
        self.run(&["discard", id])
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes a program")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::update::state::Retry;

    #[test]
    fn its_exit_code_says_whether_another_try_may_fare_better() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("os");
        let text = "#!/bin/sh\ncase $1 in\nstatus) echo '[{\"id\": \"a\", \"booted\": true}]' ;;\nstage) echo no room >&2; exit $2 ;;\n*) exit 65 ;;\nesac\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let site = Site::new(path.display().to_string());
        let running = Deployment { id: "a".into(), booted: true, staged: false };
        assert_eq!(site.deployments(), Ok(vec![running]));
        let stage = |code: &str| {
            let os = OsRelease { commit: Some(code.into()), ..OsRelease::default() };
            site.stage(&os, Err(&never("nobody asks"))).unwrap_err()
        };
        assert_eq!(["65", "1", "64"].map(|code| stage(code).retry), [Retry::Never, Retry::Few, Retry::Few]);
        assert!(stage("1").reason.contains("no room"), "{}", stage("1").reason);
        assert_eq!(site.arm("a").unwrap_err().retry, Retry::Never);
    }
}
