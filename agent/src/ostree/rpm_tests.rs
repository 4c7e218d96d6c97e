//! What rpm-ostree says, and what it is told: no Debian suite has it, so a stand-in takes the words, and those of ostree, which
//! would pull into the repository of the system that the test runs on.

use super::super::LOCKED;
use super::*;
use crate::update::state::Retry;

/// Writes its words down, says what lies beside it, and refuses a rebase as the real one does: for an option that its help does not
/// name, while an update driver is there, and to a commit that was not pulled before.
const STAND_IN: &str = r#"#!/bin/sh
here=$(dirname "$0")
refuse() { echo "error: $1" >&2; exit 1; }
case "$1 $2" in
'status --json') exec cat "$here/status" ;;
'rebase --help') exec cat "$here/help" ;;
'admin status') if [ -e "$here/locks" ]; then exec cat "$here/locks"; else refuse 'Unknown option --skip-signatures'; fi ;;
esac
echo "${0##*/} $*" >>"$here/words"
case " $* " in
' rebase'*' --bypass-driver '*) grep -q -e --bypass-driver "$here/help" || refuse 'Unknown option --bypass-driver' ;;
' rebase '*) [ ! -e "$here/driver" ] || refuse 'Updates and deployments are driven by Zincati (zincati.service)' ;;
esac
case "$1 $2 $3" in
'admin lock-finalization --unlock') sed -i 's/finalization locked/staged/' "$here/locks" ;;
'pull --disable-static-deltas nkd') echo "$4" >>"$here/pulled" ;;
rebase*)
    for target; do :; done
    case $target in nkd:*) grep -qsx "${target#nkd:}" "$here/pulled" || refuse "${target#nkd:} is not there" ;; esac
    cp "$here/after" "$here/status"
    ;;
esac
"#;
const HELP: &str = "  --skip-purge       Keep previous refspec after rebase\n";
const HELP_WITH_DRIVERS: &str = "  --skip-purge       Keep previous refspec after rebase\n  --bypass-driver    Force a rebase even if an updates driver is registered\n";

/// What a deployment is.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Booted,
    Staged,
    There,
}

/// A node with the stand-in.
struct Node {
    folder: tempfile::TempDir,
    rpm: Rpm,
}

impl Node {
    fn new(help: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("text"), STAND_IN).unwrap();
        // Written by another process, it is in nobody's way: no thread of ours has it open for writing.
        for name in ["rpm-ostree", "ostree"] {
            tell("install", &["-m", "755", &path("text"), &path(name)]).unwrap();
        }
        let rpm = Rpm { program: path("rpm-ostree"), ostree: path("ostree"), ..Rpm::new(folder.path(), None) };
        for place in ["etc/nkd", "run/ostree"] {
            std::fs::create_dir_all(folder.path().join(place)).unwrap();
        }
        let node = Self { folder, rpm };
        node.write("help", help);
        node.write("locks", "  nestos a.0 (staged)\n* nestos b.0\n");
        node
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// What the stand-in says is there, now or after a rebase.
    fn has(&self, when: &str, deployments: &[(&str, Is)]) {
        let all: Vec<_> = deployments
            .iter()
            .map(|(id, is)| {
                let digest = id.starts_with("sha256:").then_some(id);
                serde_json::json!({
                    "osname": "nestos", "serial": 0, "checksum": if digest.is_some() { "c" } else { id },
                    "container-image-reference-digest": digest,
                    "booted": *is == Is::Booted, "staged": *is == Is::Staged,
                })
            })
            .collect();
        self.write(when, &serde_json::json!({"deployments": all}).to_string());
    }

    /// Its boot loader counts.
    fn counts(&mut self) {
        let folder = self.folder.path().to_owned();
        std::fs::create_dir_all(folder.join("boot/grub2")).unwrap();
        self.write("boot/grub2/grubenv", "# GRUB Environment Block\n");
        let [text, editor] = ["text", "grub2-editenv"].map(|name| folder.join(name).display().to_string());
        tell("install", &["-m", "755", &text, &editor]).unwrap();
        let counter = BootCounter::find(&folder, &folder.display().to_string()).unwrap().without_mounts();
        self.rpm.counter = Some(counter);
    }

    /// What the editor of the counter is told.
    fn edit(&self, words: &str) -> String {
        format!("grub2-editenv {} {words}", self.folder.path().join("boot/grub2/grubenv").display())
    }

    /// What it was told since the last time.
    fn words(&self) -> Vec<String> {
        let path = self.folder.path().join("words");
        let words = std::fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
        crate::files::remove(&path).unwrap();
        words
    }
}

fn image(digest: &str) -> OsRelease {
    OsRelease { image: Some(format!("registry.example/os@{digest}")), ..OsRelease::default() }
}

fn commit(commit: &str) -> OsRelease {
    OsRelease { commit: Some(commit.into()), ..OsRelease::default() }
}

fn source() -> Source {
    Source {
        url: "https://192.0.2.1:8443/ostree/nestos".into(),
        ca: "the authority".into(),
        key: "the key".into(),
        ed25519_key: None,
        difference: None,
    }
}

#[test]
fn a_release_is_laid_out_past_an_update_driver() {
    let node = Node::new(HELP_WITH_DRIVERS);
    node.write("driver", "");
    let no_source = never("nobody asks");
    for (os, id, before, target) in [
        (image("sha256:1"), "sha256:1", None, "ostree-unverified-registry:registry.example/os@sha256:1"),
        (commit("new"), "new", Some("ostree pull --disable-static-deltas nkd new"), "nkd:new"),
    ] {
        node.has("status", &[("old", Is::Booted)]);
        node.has("after", &[(id, Is::Staged), ("old", Is::Booted)]);
        let source = source();
        let source = if os.commit.is_some() { Ok(&source) } else { Err(&no_source) };
        let tree = node.rpm.stage(&os, source).unwrap();
        assert!(tree.starts_with(node.folder.path().join("sysroot/ostree/deploy/nestos/deploy")), "{tree:?}");
        let rebase = format!("rpm-ostree rebase --lock-finalization --skip-purge --bypass-driver {target}");
        assert_eq!(node.words(), before.into_iter().chain([rebase.as_str()]).collect::<Vec<_>>());
        // It is there: nothing is told, and nobody is asked where it is.
        assert_eq!(node.rpm.stage(&os, Err(&no_source)), Ok(tree));
        assert!(node.words().is_empty());
    }
}

#[test]
fn an_older_rpm_ostree_is_not_told_what_it_does_not_know() {
    let node = Node::new(HELP);
    node.has("status", &[("old", Is::Booted)]);
    node.has("after", &[("sha256:1", Is::Staged), ("old", Is::Booted)]);
    node.rpm.stage(&image("sha256:1"), Err(&never("nobody asks"))).unwrap();
    let target = "ostree-unverified-registry:registry.example/os@sha256:1";
    assert_eq!(node.words(), [format!("rpm-ostree rebase --lock-finalization --skip-purge {target}")]);
}

/// It may be the one that boots next still.
#[test]
fn a_release_that_was_given_up_is_put_away_before_it_is_laid_out_anew() {
    let node = Node::new(HELP);
    node.has("status", &[("sha256:1", Is::There), ("old", Is::Booted)]);
    node.has("after", &[("sha256:1", Is::Staged), ("old", Is::Booted)]);
    node.rpm.stage(&image("sha256:1"), Err(&never("nobody asks"))).unwrap();
    let words = node.words();
    assert_eq!(words[..2], ["rpm-ostree rollback", "rpm-ostree cleanup --rollback"]);
    assert!(words[2].starts_with("rpm-ostree rebase"), "{words:?}");
}

#[test]
fn a_release_that_is_not_staged_after_all_is_an_error() {
    let node = Node::new(HELP);
    node.has("status", &[("old", Is::Booted)]);
    node.has("after", &[("old", Is::Booted)]);
    let failure = node.rpm.stage(&image("sha256:1"), Err(&never("nobody asks"))).unwrap_err();
    assert_eq!((failure.retry, failure.reason.as_str()), (Retry::Few, "rpm-ostree has staged nothing"));
    let by_tag = OsRelease { image: Some("registry.example/os:latest".into()), ..OsRelease::default() };
    assert_eq!(node.rpm.stage(&by_tag, Err(&never("nobody asks"))).unwrap_err().retry, Retry::Never);
}

/// Only what was asked for is unlocked, and it is not rpm-ostree that restarts the machine.
#[test]
fn arming_unlocks_the_release_and_tells_nothing() {
    let node = Node::new(HELP_WITH_DRIVERS);
    let lock = node.folder.path().join("run/ostree/staged-deployment-locked");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    std::fs::write(&lock, "").unwrap();
    node.has("status", &[("other", Is::Staged), ("old", Is::Booted)]);
    assert_eq!(node.rpm.arm("new").unwrap_err().retry, Retry::Never);
    assert!(lock.exists());
    node.has("status", &[("new", Is::Staged), ("old", Is::Booted)]);
    node.rpm.arm("new").unwrap();
    assert!(!lock.exists());
    assert!(node.words().is_empty());
}

#[test]
fn what_ran_before_boots_next_by_a_rollback() {
    let node = Node::new(HELP_WITH_DRIVERS);
    node.has("status", &[("new", Is::Booted), ("old", Is::There)]);
    node.rpm.revert("old").unwrap();
    assert_eq!(node.words(), ["rpm-ostree rollback"]);
    assert_eq!(node.rpm.revert("gone").unwrap_err().retry, Retry::Never);
    // It was done before.
    node.has("status", &[("old", Is::There), ("new", Is::Booted)]);
    node.rpm.revert("old").unwrap();
    assert!(node.words().is_empty());
}

#[test]
fn a_release_is_put_away_wherever_it_is() {
    let node = Node::new(HELP_WITH_DRIVERS);
    let cases: [(&[_], &[&str]); 5] = [
        (&[("new", Is::Staged), ("old", Is::Booted), ("older", Is::There)], &["rpm-ostree cleanup --pending"]),
        // Made, and given up by the boot loader.
        (&[("new", Is::There), ("old", Is::Booted)], &["rpm-ostree rollback", "rpm-ostree cleanup --rollback"]),
        (&[("old", Is::Booted), ("new", Is::There)], &["rpm-ostree cleanup --rollback"]),
        (&[("old", Is::Booted), ("older", Is::There)], &[]),
        // What runs is not put away.
        (&[("new", Is::Booted), ("old", Is::There)], &[]),
    ];
    for (deployments, words) in cases {
        node.has("status", deployments);
        node.rpm.discard("new").unwrap();
        assert_eq!(node.words(), words);
    }
}

/// A counter that has run out boots whatever stands second: were the power cut between these two, the given-up one would.
#[test]
fn the_boot_loader_counts_anew_while_deployments_change_places() {
    let mut node = Node::new(HELP_WITH_DRIVERS);
    node.counts();
    node.has("status", &[("new", Is::There), ("old", Is::Booted)]);
    node.rpm.discard("new").unwrap();
    let [set, unset] = ["set boot_counter=3 boot_success=0", "unset boot_counter"].map(|words| node.edit(words));
    assert_eq!(node.words(), [&set, "rpm-ostree rollback", &unset, "rpm-ostree cleanup --rollback", &unset]);
}

/// An agent that was killed right after it had armed a release, and whose update waits or is called off from then on.
#[test]
fn a_release_that_was_armed_is_locked_when_it_is_laid_out_again() {
    let mut node = Node::new(HELP_WITH_DRIVERS);
    node.counts();
    node.has("status", &[("sha256:1", Is::Staged), ("old", Is::Booted)]);
    let lock = node.folder.path().join(LOCKED);
    std::fs::write(&lock, "").unwrap();
    node.rpm.arm("sha256:1").unwrap();
    assert!(!lock.exists());
    assert_eq!(node.words(), [node.edit("set boot_counter=3 boot_success=0")]);
    node.rpm.stage(&image("sha256:1"), Err(&never("nobody asks"))).unwrap();
    assert!(lock.exists());
    assert_eq!(node.words(), [node.edit("unset boot_counter")]);
    // What runs keeps its counter until it is confirmed, and what somebody has staged beside it, of the same image, is his.
    for more in [&[][..], &[("sha256:1", Is::Staged)]] {
        crate::files::remove(&lock).unwrap();
        node.has("status", &[more, &[("sha256:1", Is::Booted), ("old", Is::There)]].concat());
        node.rpm.stage(&image("sha256:1"), Err(&never("nobody asks"))).unwrap();
        assert!(node.words().is_empty() && !lock.exists());
    }
}

/// The lock of ostree since 2023.8, which is in what it stages: the file alone says nothing then.
#[test]
fn both_locks_of_a_release_are_opened() {
    let node = Node::new(HELP_WITH_DRIVERS);
    node.has("status", &[("sha256:1", Is::Staged), ("old", Is::Booted)]);
    let lock = node.folder.path().join(LOCKED);
    for (locks, words) in [
        ("  nestos a.0 (finalization locked)\n* nestos b.0\n", &["ostree admin lock-finalization --unlock"][..]),
        ("  nestos a.0 (staged)\n* nestos b.0\n", &[]),
    ] {
        node.write("locks", locks);
        std::fs::write(&lock, "").unwrap();
        node.rpm.arm("sha256:1").unwrap();
        assert_eq!(node.words(), words);
        assert!(!lock.exists());
    }
    // An ostree of 2022 has the file alone, and does not know that option.
    std::fs::remove_file(node.folder.path().join("locks")).unwrap();
    std::fs::write(&lock, "").unwrap();
    node.rpm.arm("sha256:1").unwrap();
    assert!(!lock.exists() && node.words().is_empty());
    node.write("locks", "  nestos a.0 (finalization locked, for ever) (finalization locked)\n");
    node.rpm.arm("sha256:1").unwrap_err();
}

#[test]
fn what_rpm_ostree_says_reads() {
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let text = format!(
        r#"{{"transaction":null,"deployments":[
        {{"osname":"nestos","checksum":"{a}","serial":1,"staged":true,"booted":false,"finalization-locked":true,
          "container-image-reference":"ostree-unverified-registry:r.example/os@sha256:1","container-image-reference-digest":"sha256:1"}},
        {{"osname":"nestos","checksum":"{b}","serial":0,"base-checksum":"{a}","staged":false,"booted":true}}]}}"#
    );
    let list = listed(&text).unwrap();
    let found: Vec<_> = list.iter().map(Listed::deployment).collect();
    let expected = [
        Deployment { id: "sha256:1".into(), booted: false, staged: true },
        Deployment { id: a.clone(), booted: true, staged: false },
    ];
    assert_eq!(found, expected);
    let rpm = Rpm::new(Path::new("/"), None);
    assert_eq!(rpm.tree(&list[0]), PathBuf::from(format!("/sysroot/ostree/deploy/nestos/deploy/{a}.1")));
    assert!(listed("{}").is_err());
}
