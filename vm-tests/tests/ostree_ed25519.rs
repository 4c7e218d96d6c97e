//! The service's ed25519 signatures before a real ostree that checks them, and before Debian's, which does not.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which writes files and runs programs")]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nkd_agent::ostree::remote::{self, Checks};
use nkd_agent::ostree::{Source, difference};
use nkd_vm_tests::{Builds, DhcpMode, Error, Network, Nkd, Output, within};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

const URL: &str = "https://192.0.2.1:8443";
const REF: &str = "lab/x86_64/stable";
const BOTH: Checks = Checks { openpgp: true, ed25519: true };
const ED25519: Checks = Checks { openpgp: false, ed25519: true };
const OPENPGP: Checks = Checks { openpgp: true, ed25519: false };

/// An ostree of `cargo xtask image ostree`.
fn ostree_ed25519() -> PathBuf {
    let program = std::env::var_os("NKD_OSTREE_ED25519").map(PathBuf::from).filter(|program| program.is_file());
    program.expect("NKD_OSTREE_ED25519 is no program: set it to `bin/ostree` of what `cargo xtask image ostree` makes")
}

struct Scene {
    net: Network,
    nkd: Nkd,
    ed25519: PathBuf,
}

impl Scene {
    fn start(name: &str) -> Result<Self> {
        let net = Network::create(name)?;
        let nkd = Nkd::start(&net, &Builds::program_from_environment()?, DhcpMode::Off, &[])?;
        let scene = Self { net, nkd, ed25519: ostree_ed25519() };
        scene.stock(&["init", &scene.repo("build"), "--mode=archive"])?;
        Ok(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.net.folder().join(name)
    }

    fn repo(&self, name: &str) -> String {
        format!("--repo={}", self.path(name).display())
    }

    /// The repository that the service serves.
    fn served(&self) -> PathBuf {
        self.nkd.state().join("ostree/lab")
    }

    fn run(&self, program: &Path, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(words).env("LC_ALL", "C.UTF-8");
        self.net.run(command, within(60))
    }

    /// Debian's ostree, which has no ed25519.
    fn stock(&self, words: &[&str]) -> Result<String> {
        Ok(self.run(Path::new("ostree"), words)?.success()?.text().trim().to_owned())
    }

    fn good(&self, words: &[&str]) -> Result<String> {
        Ok(self.run(&self.ed25519, words)?.success()?.text().trim().to_owned())
    }

    fn get(&self, path: &str) -> Result<String> {
        let ca = self.nkd.state().join("ca.pem");
        let output = self.run(
            Path::new("curl"),
            &["--fail", "--silent", "--show-error", "--cacert", &ca.display().to_string(), &format!("{URL}{path}")],
        )?;
        Ok(output.success()?.text())
    }

    /// Builds a system with this content; its commit.
    fn build(&self, version: &str) -> Result<String> {
        let tree = self.path("tree/usr/bin");
        std::fs::create_dir_all(&tree).unwrap();
        // Something of which a difference is smaller than the whole.
        let content = format!("{version}\n{}", "one line of many\n".repeat(5000));
        std::fs::write(tree.join("system"), content).unwrap();
        let tree = format!("--tree=dir={}", self.path("tree").display());
        let version = format!("--add-metadata-string=version={version}");
        self.stock(&["commit", &self.repo("build"), "--branch", REF, &tree, &version])
    }

    fn publish(&self, more: &[&str]) -> Result<Value> {
        let repo = self.path("build").display().to_string();
        self.nkd.json(&self.net, &[&["channel", "publish", "stable", "--ostree", &repo], more].concat())
    }

    /// A system's repository, whose remote is as the agent writes it for an ostree that checks this.
    fn system(&self, name: &str, checks: Checks) -> Result<String> {
        self.system_that_trusts(name, checks, self.get("/ostree/key.ed25519")?.trim())
    }

    fn system_that_trusts(&self, name: &str, checks: Checks, ed25519_key: &str) -> Result<String> {
        let repo = self.repo(name);
        self.stock(&["init", &repo, "--mode=bare-user"])?;
        let key = self.path(&format!("{name}.asc"));
        std::fs::write(&key, self.get("/ostree/key.asc")?).unwrap();
        let source = Source {
            url: format!("{URL}/ostree/lab"),
            ca: String::new(),
            key: String::new(),
            ed25519_key: Some(ed25519_key.to_owned()),
            difference: None,
        };
        let text = remote::text(&source, checks, &self.nkd.state().join("ca.pem"), &key).unwrap();
        println!("== {name}\n{text}");
        let config = self.path(name).join("config");
        let before = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{before}\n{text}")).unwrap();
        Ok(repo)
    }

    fn pull(&self, program: &Path, repo: &str, what: &str, more: &[&str]) -> Result<Output> {
        let output = self.run(program, &[&["pull", repo, "nkd", what], more].concat())?;
        println!("pull {what} {more:?}: {}: {}{}", output.status, output.text(), output.error_text());
        Ok(output)
    }

    fn taken(&self, repo: &str, what: &str, more: &[&str]) -> Result<()> {
        self.pull(&self.ed25519, repo, what, more)?.success().map(drop)
    }

    fn refused(&self, repo: &str, what: &str, why: &str) -> Result<()> {
        let output = self.pull(&self.ed25519, repo, what, &[])?;
        let said = output.error_text();
        assert!(!output.status.success() && said.contains(why), "`{why}` is not in: {said}");
        let commit = if what == REF { return Ok(()) } else { what };
        // An object that failed is not kept, or is no whole commit.
        assert!(!self.run(&self.ed25519, &["ls", repo, commit])?.status.success(), "{commit} came all the same");
        Ok(())
    }

    fn object(&self, commit: &str, kind: &str) -> PathBuf {
        let (first, rest) = commit.split_at(2);
        self.served().join("objects").join(first).join(format!("{rest}.{kind}"))
    }

    /// An ed25519 key of somebody: secret and public, as ostree reads them.
    fn key(&self, name: &str) -> Result<(String, String)> {
        let path = self.path(&format!("{name}.pem")).display().to_string();
        let openssl = Path::new("openssl");
        self.run(openssl, &["genpkey", "-algorithm", "ed25519", "-out", &path])?.success()?;
        let last = |words: &[&str]| -> Result<Vec<u8>> {
            let bytes = self.run(openssl, &[&["pkey", "-in", &path, "-outform", "DER"], words].concat())?.success()?;
            Ok(bytes.stdout[bytes.stdout.len() - 32..].to_vec())
        };
        let (seed, public) = (last(&[])?, last(&["-pubout"])?);
        Ok((STANDARD.encode([seed, public.clone()].concat()), STANDARD.encode(public)))
    }
}

#[test]
#[ignore = "needs root and the ostree of `cargo xtask image ostree`"]
fn good_releases_are_taken_by_openpgp_and_by_ed25519() -> Result {
    let scene = Scene::start("ed25519-good")?;
    let version = scene.good(&["--version"])?;
    println!("{version}");
    assert_eq!(Checks::of(&version), BOTH, "what the agent reads of it");
    assert_eq!(Checks::of(&scene.stock(&["--version"])?), OPENPGP, "and of Debian's");

    let one = scene.build("1")?;
    scene.publish(&[])?;
    let by_ed25519 = scene.system("by-ed25519", ED25519)?;
    let by_both = scene.system("by-both", BOTH)?;
    let by_openpgp = scene.system("by-openpgp", OPENPGP)?;
    scene.taken(&by_ed25519, REF, &[])?;
    scene.taken(&by_both, REF, &[])?;
    scene.pull(Path::new("ostree"), &by_openpgp, REF, &[])?.success()?;
    let key = scene.get("/ostree/key.ed25519")?;
    let said = scene.good(&["sign", &by_ed25519, "--verify", "--sign-type=ed25519", &one, key.trim()])?;
    println!("{said}");
    assert!(said.contains("Signature verified successfully with key"), "{said}");
    let said = scene.stock(&["show", &by_openpgp, "--gpg-verify-remote=nkd", &one])?;
    println!("{said}");
    assert!(said.contains("Good signature from \"nkd channels"), "{said}");

    let two = scene.build("2")?;
    scene.publish(&[])?;
    scene.taken(&by_ed25519, REF, &["--require-static-deltas"])?;
    assert_eq!(scene.good(&["rev-parse", &by_ed25519, &format!("nkd:{REF}")])?, two);
    scene.taken(&by_both, &two, &[])?;
    scene.pull(Path::new("ostree"), &by_openpgp, &two, &[])?.success()?;
    Ok(())
}

#[test]
#[ignore = "needs root and the ostree of `cargo xtask image ostree`"]
fn a_delta_that_was_applied_is_no_release_until_the_signature_of_its_commit_is_verified() -> Result {
    let scene = Scene::start("ed25519-delta")?;
    let one = scene.build("1")?;
    scene.publish(&[])?;
    let node = scene.system("node", ED25519)?;
    let (_, stranger) = scene.key("stranger")?;
    let other = scene.system_that_trusts("other", ED25519, &stranger)?;
    scene.taken(&node, &one, &[])?;
    let from = scene.path("node").display().to_string();
    scene.good(&["pull-local", &other, &from, &one])?;
    let two = scene.build("2")?;
    scene.publish(&[])?;
    let delta = scene.served().join(difference::place(&one, &two).unwrap()).display().to_string();
    for repo in [&node, &other] {
        // As the agent does it.
        scene.good(&["static-delta", "apply-offline", repo, &delta])?;
        assert!(scene.good(&["ls", repo, &two]).is_ok(), "everything of it is there");
    }
    scene.taken(&node, &two, &["--disable-static-deltas"])?;
    let refused = scene.pull(&scene.ed25519, &other, &two, &["--disable-static-deltas"])?;
    let said = refused.error_text();
    assert!(!refused.status.success() && said.contains("Signature couldn't be verified"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root and the ostree of `cargo xtask image ostree`"]
fn by_ed25519_nothing_is_taken_that_the_service_did_not_sign() -> Result {
    let scene = Scene::start("ed25519-bad")?;
    let one = scene.build("1")?;
    scene.publish(&[])?;
    let repo = scene.system("node", ED25519)?;
    let (_, stranger) = scene.key("stranger")?;
    let other = scene.system_that_trusts("other", ED25519, &stranger)?;
    scene.refused(&other, REF, "Signature couldn't be verified")?;
    scene.refused(&other, &one, "Signature couldn't be verified")?;
    scene.taken(&repo, REF, &[])?;

    // Somebody writes into the served repository: a newer commit of their own, under the ref.
    let served = format!("--repo={}", scene.served().display());
    let newer = scene.build("2")?;
    let build = scene.path("build").display().to_string();
    scene.stock(&["pull-local", &served, &build, &newer])?;
    scene.refused(&repo, &newer, "without detached metadata")?;
    // With the signatures of the good one.
    std::fs::copy(scene.object(&one, "commitmeta"), scene.object(&newer, "commitmeta")).unwrap();
    scene.refused(&repo, &newer, "Signature couldn't be verified")?;
    // With a signature by somebody else.
    std::fs::remove_file(scene.object(&newer, "commitmeta")).unwrap();
    let (secret, _) = scene.key("forger")?;
    scene.good(&["sign", &served, "--sign-type=ed25519", &newer, &secret])?;
    scene.refused(&repo, &newer, "Signature couldn't be verified")?;
    // In a list whose signature is that of the list before, then in one without any.
    let signature = scene.served().join("summary.sig");
    let before = std::fs::read(&signature).unwrap();
    scene.stock(&["refs", &served, "--force", &format!("--create={REF}"), &newer])?;
    scene.stock(&["summary", &served, "--update"])?;
    std::fs::write(&signature, before).unwrap();
    // One that has seen that signature keeps to the list that it had then; another one has none.
    scene.taken(&repo, REF, &[])?;
    assert_eq!(scene.good(&["rev-parse", &repo, &format!("nkd:{REF}")])?, one);
    let late = scene.system("late", ED25519)?;
    scene.refused(&late, REF, "Signature couldn't be verified")?;
    std::fs::remove_file(&signature).unwrap();
    scene.refused(&late, REF, "summary.sig")?;

    // Starting again makes refs and summary right; then a commit that was published is changed.
    let mut scene = scene;
    scene.nkd.process().kill()?;
    scene.nkd.process().start_again()?;
    scene.nkd.process().expect_log("nkd serves", within(60))?;
    settled(&scene)?;
    scene.taken(&repo, REF, &[])?;
    let fresh = scene.system("fresh", ED25519)?;
    let path = scene.object(&one, "commit");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    scene.refused(&fresh, &one, "Corrupted commit object")?;
    Ok(())
}

/// A start makes the list of refs right beside everything else that it does; our signature is the last thing to come.
fn settled(scene: &Scene) -> Result {
    let end = std::time::Instant::now() + within(60);
    let entry = b"ostree.sign.ed25519";
    let is_signed = |bytes: Vec<u8>| bytes.windows(entry.len()).any(|window| window == entry);
    while !std::fs::read(scene.served().join("summary.sig")).is_ok_and(is_signed) {
        if std::time::Instant::now() >= end {
            let got = scene.nkd.state().display().to_string();
            return Err(Error::Unexpected { what: "the summary is signed again".into(), got });
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the ostree of `cargo xtask image ostree`"]
fn releases_from_before_there_was_an_ed25519_key_are_signed_at_the_next_start() -> Result {
    let mut scene = Scene::start("ed25519-before")?;
    let one = scene.build("1")?;
    scene.publish(&[])?;
    let two = scene.build("2")?;
    scene.publish(&[])?;
    let repo = scene.system("node", BOTH)?;
    scene.taken(&repo, &one, &[])?;
    // The repository as a service without that key has made it: the difference holds what lay beside the commit then.
    scene.nkd.process().kill()?;
    let served = format!("--repo={}", scene.served().display());
    for commit in [&one, &two] {
        std::fs::remove_file(scene.object(commit, "commitmeta")).unwrap();
    }
    scene.stock(&["static-delta", "generate", &served, &format!("--from={one}"), &format!("--to={two}")])?;
    std::fs::remove_file(scene.served().join("summary.sig")).unwrap();
    scene.nkd.process().start_again()?;
    scene.nkd.process().expect_log("nkd serves", within(60))?;
    settled(&scene)?;
    scene.taken(&repo, REF, &["--require-static-deltas"])?;
    assert_eq!(scene.good(&["rev-parse", &repo, &format!("nkd:{REF}")])?, two);
    Ok(())
}

#[test]
#[ignore = "needs root and the ostree of `cargo xtask image ostree`"]
fn what_a_builder_signed_with_ed25519_is_published_and_nothing_else() -> Result {
    let scene = Scene::start("ed25519-builder")?;
    let ((secret, public), (_, stranger)) = (scene.key("builder")?, scene.key("stranger")?);
    let file = |name: &str, text: &str| {
        let path = scene.path(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        path.display().to_string()
    };
    let (keys, others) = (file("keys", &format!("{stranger}\n{public}")), file("others", &stranger));
    let commit = scene.build("1")?;
    let refused = |keys: &str| scene.publish(&["--ed25519-key", keys]).unwrap_err().to_string();
    assert!(refused(&keys).contains("none of its 0 ed25519 signatures"), "{}", refused(&keys));
    scene.good(&["sign", &scene.repo("build"), "--sign-type=ed25519", &commit, &secret])?;
    assert!(refused(&others).contains("none of its 1 ed25519 signatures"), "{}", refused(&others));
    let release = scene.publish(&["--ed25519-key", &keys])?;
    println!("{release}");
    assert_eq!(release["signedBy"], format!("ed25519 {}", &public[..16]));
    // The builder's signature stays, and a node that trusts the builder alone takes it.
    let by_builder = scene.repo("by-builder");
    scene.stock(&["init", &by_builder, "--mode=bare-user"])?;
    let url = format!("file://{}", scene.served().display());
    let key = format!("--set=verification-ed25519-key={public}");
    let trust = ["--set=gpg-verify=false", "--set=sign-verify=ed25519", &key];
    scene.stock(&[&["remote", "add", &by_builder, "nkd", &url][..], &trust].concat())?;
    scene.taken(&by_builder, &commit, &[])?;
    scene.taken(&scene.system("node", BOTH)?, REF, &[])?;
    Ok(())
}
