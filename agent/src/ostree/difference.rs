//! What a release has that the running one has not, as one piece: ostree's static delta.
//!
//! `ostree pull` knows deltas too. But it begins to fetch the release's objects one by one while the delta is on its way, so
//! that on a fast line most objects come all the same. So the delta is fetched first and applied, and the pull after it
//! fetches what is still missing.
//!
//! Nothing that is applied is trusted. Objects are kept under their own checksums, and the pull verifies the commit's
//! signatures as ever. The commit is marked as one of which parts may be missing before anything of it is there: without
//! that mark, a pull takes folders that are there for complete, and what a power cut took would never come.

use std::path::{Path, PathBuf};

use super::program::{ProgramError, tell};
use super::{Source, remote};
use crate::client::{CallError, Client};

/// Of ostree's own number; a part has 32 MiB.
const MOST_PARTS: u32 = 4096;

/// Where a repository keeps the delta between two commits: both in base64 with `_` for `/`, the first two characters a
/// folder. None: these are no commits.
#[must_use]
pub fn place(from: &str, to: &str) -> Option<String> {
    let (from, to) = (name(from)?, name(to)?);
    let (first, rest) = from.split_at_checked(2)?;
    Some(format!("deltas/{first}/{rest}-{to}"))
}

fn name(commit: &str) -> Option<String> {
    let bytes = hex::decode(commit).ok().filter(|bytes| bytes.len() == 32)?;
    Some(base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, bytes).replace('/', "_"))
}

/// Whether everything of a commit is in the repository of the system at `root`.
#[must_use]
pub fn is_whole(root: &Path, commit: &str) -> bool {
    let repository = repository(root);
    let (first, rest) = commit.split_at_checked(2).unwrap_or((commit, ""));
    repository.join("objects").join(first).join(format!("{rest}.commit")).exists()
        && !mark(&repository, commit).exists()
}

fn repository(root: &Path) -> PathBuf {
    root.join("ostree/repo")
}

/// The file by which ostree knows that parts may be missing.
fn mark(repository: &Path, commit: &str) -> PathBuf {
    repository.join("state").join(format!("{commit}.commitpartial"))
}

/// Fetches the delta between two commits from the service's repository at the path `repository` into `folder`; whether
/// there is one.
///
/// # Errors
/// [`CallError`]; what came so far is of no use.
pub async fn fetch(client: &Client, repository: &str, [from, to]: [&str; 2], folder: &Path) -> Result<bool, CallError> {
    let Some(place) = place(from, to) else { return Ok(false) };
    let at = |name: &str| (format!("{repository}/{place}/{name}"), folder.join(name));
    let (path, file) = at("superblock");
    if !client.download(&path, &file).await? {
        return Ok(false);
    }
    for number in 0..MOST_PARTS {
        let (path, file) = at(&number.to_string());
        if !client.download(&path, &file).await? {
            break;
        }
    }
    Ok(true)
}

/// A delta that was fetched and is of no more use goes. What cannot be removed now is when the next one comes.
pub fn discard(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

/// Marks the commit, on the disk, and applies a delta: repository, mark, delta. That takes minutes of a processor, which pods and
/// an API server may need meanwhile.
const APPLY: &str = "mkdir -p \"$1/state\" && : >\"$2\" && sync -f \"$2\" && exec nice -n 19 ostree static-delta apply-offline \"--repo=$1\" \"$3\"";

/// Applies a delta that was fetched to `folder`.
fn apply(repository: &Path, folder: &Path, commit: &str) -> Result<(), ProgramError> {
    let [repo, mark, folder] = [repository, &mark(repository, commit), folder].map(|path| path.display().to_string());
    let words = ["-c", APPLY, "sh", &repo, &mark, &folder];
    match nix::unistd::access(repository, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => tell("sh", &words),
        // /sysroot is mounted for reading only: it is writable in a mount namespace of its own, as ostree does it for its own
        // pulls.
        Err(_) => {
            let script = format!("mount -o remount,rw /sysroot && {APPLY}");
            tell("unshare", &["--mount", "--", "sh", "-c", &script, "sh", &repo, &mark, &folder])
        }
    }
}

/// Pulls a commit by this ostree, what there is of its delta first. Applied or of no use, the delta's folder goes before the pull,
/// which needs the room.
pub(super) fn pull(ostree: &str, root: &Path, source: &Source, commit: &str) -> Result<(), ProgramError> {
    if let Some(folder) = &source.difference {
        let applied = apply(&repository(root), folder, commit);
        discard(folder);
        if let Err(error) = applied {
            tracing::warn!(reason = error.reason, "the release's delta is of no use; its objects are fetched");
        }
    }
    // One that was applied would be fetched once more. One that is damaged is where ostree would give up: it knows its digest
    // from the summary.
    tell(ostree, &["pull", "--disable-static-deltas", remote::NAME, commit])
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "makes repositories")]
mod tests {
    use super::super::ask;
    use super::*;

    /// Two commits of a repository, and another repository that has the first.
    struct Repositories {
        folder: tempfile::TempDir,
        commits: [String; 2],
    }

    impl Repositories {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name).display().to_string();
            let tree = folder.path().join("tree");
            std::fs::create_dir(&tree).unwrap();
            let repo = format!("--repo={}", path("repo"));
            ask("ostree", &["init", "--mode=archive", &repo]).unwrap();
            let commit = |text: &str| {
                for number in 0..20 {
                    std::fs::write(tree.join(format!("{number}")), format!("{text} {number}\n").repeat(999)).unwrap();
                }
                let from = format!("--tree=dir={}", tree.display());
                ask("ostree", &["commit", &repo, "--branch=x", &from]).unwrap().trim().to_owned()
            };
            let commits = [commit("one"), commit("two")];
            let ends = [format!("--from={}", commits[0]), format!("--to={}", commits[1])];
            ask("ostree", &["static-delta", "generate", &repo, &ends[0], &ends[1]]).unwrap();
            let node = format!("--repo={}", path("node"));
            ask("ostree", &["init", "--mode=bare-user", &node]).unwrap();
            ask("ostree", &["pull-local", &node, &path("repo"), &commits[0]]).unwrap();
            Self { folder, commits }
        }

        fn node(&self) -> String {
            format!("--repo={}", self.path("node").display())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn delta(&self) -> PathBuf {
            self.path("repo").join(place(&self.commits[0], &self.commits[1]).unwrap())
        }

        fn apply(&self) -> Result<(), ProgramError> {
            apply(&self.path("node"), &self.delta(), &self.commits[1])
        }

        fn pull(&self) {
            self.pull_by("up", "--no-gpg-verify").unwrap();
        }

        /// By a remote that is added with this word.
        fn pull_by(&self, name: &str, verify: &str) -> Result<String, ProgramError> {
            let [_, to] = &self.commits;
            let url = format!("file://{}", self.path("repo").display());
            ask("ostree", &["remote", "add", &self.node(), "--set=gpg-verify=true", verify, name, &url]).unwrap();
            ask("ostree", &["pull", &self.node(), "--disable-static-deltas", name, to])
        }

        /// Makes an OpenPGP key: its home and, in a file, its public part.
        fn key(&self, name: &str) -> (String, String) {
            let (home, public) = (self.path(name), self.path(&format!("{name}.asc")).display().to_string());
            crate::files::make_private_dir(&home).unwrap();
            let home = home.display().to_string();
            let gpg = |words: &[&str]| ask("gpg", &[&["--homedir", &home, "--batch"], words].concat()).unwrap();
            gpg(&["--passphrase", "", "--quick-gen-key", name, "ed25519", "default", "never"]);
            gpg(&["--output", &public, "--armor", "--export"]);
            (home, public)
        }
    }

    #[test]
    fn a_delta_is_where_ostree_puts_it_and_gives_the_release() {
        let all = Repositories::new();
        assert!(all.delta().join("superblock").is_file(), "{}", all.delta().display());
        all.apply().unwrap();
        let listed = ask("ostree", &["ls", &all.node(), "-R", &all.commits[1]]).unwrap();
        assert_eq!(listed.lines().count(), 21, "{listed}");
        assert!(mark(&all.path("node"), &all.commits[1]).exists(), "it is not known to be whole");
        all.pull();
        assert!(!mark(&all.path("node"), &all.commits[1]).exists());
        ask("ostree", &["fsck", &all.node()]).unwrap();
    }

    #[test]
    fn a_delta_that_was_applied_is_no_release_until_the_signature_of_its_commit_is_verified() {
        let all = Repositories::new();
        let [(home, right), (other_home, wrong)] = [all.key("right"), all.key("wrong")];
        let repo = format!("--repo={}", all.path("repo").display());
        let key = ask("gpg", &["--homedir", &home, "--list-keys", "--with-colons"]).unwrap();
        let key = key.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().trim_matches(':').to_owned();
        ask("ostree", &["gpg-sign", &repo, &format!("--gpg-homedir={home}"), &all.commits[1], &key]).unwrap();
        all.apply().unwrap();
        let refused = all.pull_by("other", &format!("--gpg-import={wrong}")).unwrap_err().reason;
        assert!(refused.contains("public key not found"), "{refused}");
        assert!(mark(&all.path("node"), &all.commits[1]).exists());
        all.pull_by("up", &format!("--gpg-import={right}")).unwrap();
        for home in [home, other_home] {
            ask("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]).unwrap();
        }
    }

    #[test]
    fn what_a_power_cut_took_of_an_applied_delta_comes_with_the_pull() {
        let all = Repositories::new();
        let files = || {
            let found = ask("find", &[&all.path("node/objects").display().to_string(), "-name", "*.file"]).unwrap();
            found.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let before = files();
        all.apply().unwrap();
        let new = files();
        let lost: Vec<_> = new.difference(&before).step_by(3).collect();
        assert!(lost.len() > 5, "{lost:?}");
        for file in lost {
            std::fs::remove_file(file).unwrap();
        }
        all.pull();
        ask("ostree", &["fsck", &all.node()]).unwrap();
        assert_eq!(files(), new);
    }

    /// The summary tells its digest, by which ostree's own pull would end.
    #[test]
    fn a_release_comes_by_its_objects_where_its_delta_is_damaged() {
        pulls(true);
    }

    #[test]
    fn the_pull_after_a_delta_has_its_room() {
        pulls(false);
    }

    fn pulls(damaged: bool) {
        let all = Repositories::new();
        let up = all.path("repo").display().to_string();
        ask("ostree", &["summary", "--update", &format!("--repo={up}")]).unwrap();
        if damaged {
            std::fs::write(all.delta().join("superblock"), b"garbage").unwrap();
        }
        let fetched = all.path("fetched");
        ask("cp", &["-r", &all.delta().display().to_string(), &fetched.display().to_string()]).unwrap();
        let add = ["remote", "add", &all.node(), "--no-gpg-verify", remote::NAME, &format!("file://{up}")];
        ask("ostree", &add).unwrap();
        // The ostree of a system has a repository without being told which. From a folder it takes no deltas in any case: here it
        // takes what needs one for a failure, as it does over a network.
        let (system, mark) = (all.path("ostree"), mark(&all.path("node"), &all.commits[1]));
        let script = format!(
            "#!/bin/sh\nverb=$1\nshift\n[ \"$1\" = --disable-static-deltas ] || exit 9\n[ ! -e {} ] || exit 8\n\
             [ -e {} ] || exit 7\nexec ostree $verb {} \"$@\"\n",
            fetched.display(),
            mark.display(),
            all.node()
        );
        std::fs::write(&system, script).unwrap();
        std::fs::set_permissions(&system, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let repository = repository(&all.path("root"));
        std::fs::create_dir_all(repository.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(all.path("node"), &repository).unwrap();
        let (url, ca, key) = (String::new(), String::new(), String::new());
        let source = Source { url, ca, key, ed25519_key: None, difference: Some(fetched) };
        pull(&system.display().to_string(), &all.path("root"), &source, &all.commits[1]).unwrap();
        ask("ostree", &["fsck", &all.node()]).unwrap();
    }

    #[test]
    fn a_delta_that_is_garbage_or_not_all_there_is_refused_and_spoils_nothing() {
        let all = Repositories::new();
        for (part, bytes) in [("0", &b"garbage"[..]), ("superblock", b"garbage"), ("superblock", b"")] {
            std::fs::write(all.delta().join(part), bytes).unwrap();
            all.apply().unwrap_err();
        }
        std::fs::remove_file(all.delta().join("superblock")).unwrap();
        all.apply().unwrap_err();
        all.pull();
        ask("ostree", &["fsck", &all.node()]).unwrap();
    }

    #[test]
    fn what_is_no_commit_has_no_delta() {
        let commit = "a".repeat(64);
        assert!(place(&commit, &commit).is_some());
        for wrong in ["", "sha256:aa", &commit[1..], &"+a".repeat(32), &"ä".repeat(32)] {
            assert_eq!((place(wrong, &commit), place(&commit, wrong)), (None, None), "{wrong}");
        }
    }
}
