//! Harm that is done to a node from inside, at the very step that a test names: a kill, or a restart without a word, which
//! loses what has not reached the disk, as a power cut does.
//!
//! The programs that the updater runs are found through its `PATH`. In front of them stands a script for each
//! (`wrapper.sh`), which knows the step by what it is asked to run and by the updater's journal.

use std::time::Duration;

use crate::remote::Remote;
use crate::{Error, within};

const WRAPPER: &str = include_str!("wrapper.sh");
/// What the updater runs that changes something, or that tells where it stands.
const PROGRAMS: [&str; 3] = ["ostree", "systemctl", "unshare"];
const PLACE: &str = "/var/lib/faults";

/// How a node is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// The updater is killed, with everything that it has started.
    Kill,
    /// The machine restarts at once.
    Power,
}

impl Harm {
    /// The word in plans and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Power => "power",
        }
    }
}

/// What does harm on a node.
#[derive(Debug)]
pub struct Saboteur<'a> {
    node: &'a Remote,
}

impl<'a> Saboteur<'a> {
    /// That of a node on which it was put already.
    pub fn of(node: &'a Remote) -> Self {
        Self { node }
    }

    /// Puts it on a node; `unit` are further lines for the updater's unit. The updater starts anew.
    pub fn install(node: &'a Remote, unit: &str) -> Result<Self, Error> {
        let links = PROGRAMS.map(|name| format!("ln -sf ../wrapper {PLACE}/bin/{name}")).join("\n");
        let folder = "/etc/systemd/system/nkd-updater.service.d";
        let script = format!(
            "set -e\nmkdir -p {PLACE}/bin {folder}\n: >{PLACE}/plan\n: >{PLACE}/done\n\
             cat >{PLACE}/wrapper <<'WRAPPER'\n{WRAPPER}\nWRAPPER\nchmod 755 {PLACE}/wrapper\n{links}\n\
             cat >{folder}/10-faults.conf <<'UNIT'\n[Service]\nEnvironment=PATH={PLACE}/bin:/usr/sbin:/usr/bin\n{unit}\nUNIT\n\
             sync\nsystemctl daemon-reload\nsystemctl restart nkd-updater\n"
        );
        node.run(&script, within(60))?;
        Ok(Self { node })
    }

    /// From now on, harm is done at these steps, `after arm`, once each. What was planned before is forgotten.
    pub fn plan(&self, steps: &[&str], harm: Harm) -> Result<(), Error> {
        let lines: String = steps.iter().map(|step| format!("{step} {}\n", harm.word())).collect();
        let script = format!("printf '%s' '{lines}' >{PLACE}/plan && : >{PLACE}/done && sync -f {PLACE}");
        self.node.run(&script, within(60)).map(drop)
    }

    /// The steps at which harm was done, in their order.
    pub fn done(&self) -> Result<Vec<String>, Error> {
        let said = self.node.run(&format!("cat {PLACE}/done"), within(60))?;
        Ok(said.lines().filter_map(|line| line.rsplit_once(' ')).map(|(step, _)| step.to_owned()).collect())
    }

    /// Harm at once, wherever the updater is. The node does not answer any more after a [`Harm::Power`].
    pub fn now(&self, harm: Harm) -> Result<(), Error> {
        match harm {
            Harm::Kill => {
                self.node.run("systemctl kill --kill-who=main --signal=KILL nkd-updater", within(60)).map(drop)
            }
            Harm::Power => {
                // The connection breaks with it.
                let _ = self.node.run("echo b >/proc/sysrq-trigger", Duration::from_secs(5));
                Ok(())
            }
        }
    }
}
