//! Control groups of a node: one folder in each hierarchy, under the group of the program that made the node.
//!
//! Their paths stand in a file in the runtime folder of the node, so that another program finds them when this one was
//! killed. Whoever is in one of them was started by the node.

#![expect(clippy::disallowed_methods, reason = "makes and removes control groups, ends what is in them")]

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Error;
use crate::network::janitor;

const ROOT: &str = "/sys/fs/cgroup";
const RECORD: &str = "cgroups";
/// How long killed processes may need to be gone.
const GRACE: Duration = Duration::from_secs(15);

/// The control groups of a running node.
#[derive(Debug)]
pub(super) struct Cgroups {
    folders: Vec<PathBuf>,
    /// As `/proc/self/cgroup` names them: `memory`, `cpu,cpuacct`, `name=systemd`.
    pub hierarchies: Vec<String>,
}

impl Cgroups {
    /// Makes the groups; the runtime folder of `space` must be there.
    pub(super) fn create(space: &str) -> Result<Self, Error> {
        let own = std::fs::read_to_string("/proc/self/cgroup").map_err(Error::io("reading /proc/self/cgroup"))?;
        let found = hierarchies(&own)?;
        let folders: Vec<PathBuf> = found
            .iter()
            .map(|(hierarchy, path)| {
                Path::new(ROOT).join(folder_name(hierarchy)).join(path.trim_start_matches('/')).join(space)
            })
            .collect();
        let record = janitor::runtime_folder(space).join(RECORD);
        let lines: String = folders.iter().map(|folder| format!("{}\n", folder.display())).collect();
        std::fs::write(&record, lines).map_err(Error::io(format!("writing {}", record.display())))?;
        for folder in &folders {
            make(folder).map_err(Error::io(format!("making the control group {}", folder.display())))?;
        }
        Ok(Self { folders, hierarchies: found.into_iter().map(|(hierarchy, _)| hierarchy).collect() })
    }

    /// The folders as one word for `enter.sh`.
    pub(super) fn word(&self) -> String {
        self.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" ")
    }
}

/// Ends everything in the groups of a node with SIGKILL, and removes them. Nothing happens if there are none. What is
/// left is said on standard error.
pub(crate) fn end(space: &str) {
    let record = janitor::runtime_folder(space).join(RECORD);
    let folders: Vec<PathBuf> =
        std::fs::read_to_string(&record).unwrap_or_default().lines().map(PathBuf::from).collect();
    let limit = Instant::now() + GRACE;
    loop {
        let left: BTreeSet<i32> = folders.iter().flat_map(|folder| members(folder)).collect();
        for pid in left.iter().filter(|pid| pid.cast_unsigned() != std::process::id()) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let stubborn: Vec<&PathBuf> = folders.iter().filter(|folder| !remove(folder)).collect();
        if stubborn.is_empty() {
            break;
        }
        if Instant::now() >= limit {
            eprintln!("control groups are left behind: {stubborn:?}, with the processes {left:?}");
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = std::fs::remove_file(record);
}

/// The hierarchies of version 1 with the path of this process in each.
fn hierarchies(own: &str) -> Result<Vec<(String, String)>, Error> {
    let found: Vec<(String, String)> = own
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, name, path) = (parts.next()?, parts.next()?, parts.next()?);
            (!name.is_empty()).then(|| (name.to_owned(), path.to_owned()))
        })
        .collect();
    let has = |wanted: &str| found.iter().any(|(name, _)| name.split(',').any(|one| one == wanted));
    match ["memory", "cpu", "cpuset", "pids", "devices", "name=systemd"].into_iter().find(|wanted| !has(wanted)) {
        None => Ok(found),
        Some(missing) => Err(Error::Argument(format!(
            "nodes want control groups of version 1, and there is no hierarchy {missing:?}: \
             boot this computer with systemd.unified_cgroup_hierarchy=0"
        ))),
    }
}

fn folder_name(hierarchy: &str) -> &str {
    hierarchy.strip_prefix("name=").unwrap_or(hierarchy)
}

fn make(folder: &Path) -> io::Result<()> {
    match std::fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    // A new group of processors has none, and takes nobody in.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let (true, Some(above)) = (folder.join(file).exists(), folder.parent()) {
            std::fs::write(folder.join(file), std::fs::read(above.join(file))?)?;
        }
    }
    Ok(())
}

/// The processes in a group and in those below it.
fn members(folder: &Path) -> Vec<i32> {
    let here = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let below = below(folder).into_iter().flat_map(|group| members(&group));
    here.lines().filter_map(|line| line.parse().ok()).chain(below).collect()
}

/// Whether the group is gone afterwards.
fn remove(folder: &Path) -> bool {
    for group in below(folder) {
        remove(&group);
    }
    let _ = std::fs::remove_dir(folder);
    !folder.exists()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "9:name=systemd:/\n8:pids:/\n5:devices:/\n4:memory:/a/b\n3:cpuset:/\n2:cpu,cpuacct:/x\n0::/\n";

    #[test]
    fn every_hierarchy_of_version_1_is_found_with_our_place_in_it() {
        let found = hierarchies(OWN).unwrap();
        assert_eq!(found.len(), 6);
        assert!(found.contains(&("memory".to_owned(), "/a/b".to_owned())));
        assert!(found.contains(&("cpu,cpuacct".to_owned(), "/x".to_owned())));
    }

    #[test]
    fn a_computer_with_version_2_only_is_refused_with_the_way_out() {
        let error = hierarchies("0::/user.slice\n").unwrap_err().to_string();
        assert!(error.contains("version 1") && error.contains("systemd.unified_cgroup_hierarchy=0"), "{error}");
        assert!(hierarchies(&OWN.replace("name=systemd", "name=other")).is_err());
    }
}
