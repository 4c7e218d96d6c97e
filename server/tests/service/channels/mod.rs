//! Channels, with the real ostree as builder and as client.

mod delete;
mod deltas;
mod gnupg;
mod here;
mod mirror;
mod promote;
mod prune;
mod sources;
mod stop;
mod summary;
mod turn;
mod upstream;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zgvariant::serialized::{Context, Data};
use zgvariant::{LE, OwnedVariant, Variant, to_bytes};

use super::full_disk::Small;
use super::harness::{self, Place};
use super::node;

const MAC: &str = "52:54:00:aa:0c:01";
const REF: &str = "lab/x86_64/stable";

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).env("LC_ALL", "C.UTF-8").output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn good(program: &str, words: &[&str]) -> String {
    let output = run(program, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "`{why}` is not in: {said}");
}

/// Where systems are built.
struct Builder {
    folder: PathBuf,
}

impl Builder {
    fn new(place: &Place) -> Self {
        let folder = place.dir.path().join("build");
        std::fs::create_dir_all(folder.join("tree/usr/bin")).unwrap();
        let builder = Self { folder };
        good("ostree", &["init", &builder.repo(), "--mode=archive"]);
        builder
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn repo(&self) -> String {
        format!("--repo={}", self.path("repo"))
    }

    /// Builds a system with this content; its commit.
    fn build(&self, version: &str, content: &[u8], more: &[&str]) -> String {
        std::fs::write(self.folder.join("tree/usr/bin/system"), content).unwrap();
        let (repo, tree) = (self.repo(), format!("--tree=dir={}", self.path("tree")));
        let version = format!("--add-metadata-string=version={version}");
        let words = ["commit", &repo, "--branch", REF, &tree, &version];
        good("ostree", &[&words[..], more].concat()).trim().to_owned()
    }

    /// Puts an ed25519 signature beside a commit, and none of another kind; the key's public half.
    fn sign_ed25519(&self, commit: &str, seed: u8) -> String {
        let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let place = |kind| object(&self.folder.join("repo"), commit, kind);
        let signature = key.sign(&std::fs::read(place("commit")).unwrap());
        let entries = HashMap::from([(ED25519_ENTRY, Variant::from(vec![signature.as_ref().to_vec()]))]);
        std::fs::write(place("commitmeta"), to_bytes(Context::new(LE, 0), &entries).unwrap().bytes()).unwrap();
        STANDARD.encode(key.public_key())
    }

    /// A key of this name: its folder, its fingerprint, and its public half as a file.
    fn key(&self, name: &str) -> (String, String, String) {
        let (home, public) = (self.path(name), self.path(&format!("{name}.asc")));
        std::fs::create_dir(&home).unwrap();
        good("chmod", &["0700", &home]);
        let batch = ["--homedir", &home, "--batch", "--quiet"];
        good("gpg", &[&batch[..], &["--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", "never"]].concat());
        good("gpg", &[&batch[..], &["--armor", "--output", &public, "--export"]].concat());
        let list = good("gpg", &[&batch[..], &["--with-colons", "--list-keys"]].concat());
        let fingerprint = list.lines().find_map(|line| line.strip_prefix("fpr:")?.split(':').nth(8)).unwrap();
        good("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]);
        (home, fingerprint.to_owned(), public)
    }
}

const ED25519_ENTRY: &str = "ostree.sign.ed25519";

/// An object of a repository.
fn object(repository: &Path, commit: &str, kind: &str) -> PathBuf {
    let (first, rest) = commit.split_at(2);
    repository.join("objects").join(first).join(format!("{rest}.{kind}"))
}

/// Whether the file of signatures holds an ed25519 one of this key for these bytes, and OpenPGP ones too.
fn bears_both(key: &str, data: &Path, signatures: &Path) -> bool {
    let (Ok(data), Ok(signatures)) = (std::fs::read(data), std::fs::read(signatures)) else { return false };
    let data_of = Data::new(&signatures[..], Context::new(LE, 0));
    let mut entries: HashMap<String, OwnedVariant> = data_of.deserialize().unwrap().0;
    let openpgp = entries.contains_key("ostree.gpgsigs");
    let ours = entries.remove(ED25519_ENTRY).map(|entry| Vec::<Vec<u8>>::try_from(entry).unwrap());
    let key = UnparsedPublicKey::new(&ED25519, STANDARD.decode(key).unwrap());
    openpgp && ours.unwrap_or_default().iter().any(|signature| key.verify(&data, signature).is_ok())
}

/// A system's repository, which trusts the service's CA and the channels' key.
fn system(place: &Place, name: &str) -> String {
    let at = place.dir.path().join(name);
    let (repo, key) = (format!("--repo={}", at.display()), place.dir.path().join("key.asc"));
    good("ostree", &["init", &repo, "--mode=bare-user"]);
    let ca = place.state().join("ca.pem").display().to_string();
    good("curl", &["-sSf", "--cacert", &ca, "-o", key.to_str().unwrap(), &place.api_url("/ostree/key.asc")]);
    let words = ["remote", "add", &repo, "nkd", &place.api_url("/ostree/lab"), "--set=gpg-verify-summary=true"];
    let trust = [format!("--set=tls-ca-path={ca}"), format!("--gpg-import={}", key.display())];
    good("ostree", &[&words[..], &[&trust[0], &trust[1]]].concat());
    repo
}

fn pull(repo: &str, what: &str) -> Output {
    run("ostree", &["pull", repo, "nkd", what])
}

fn publish(place: &Place, builder: &Builder, more: &[&str]) -> Value {
    let repo = builder.path("repo");
    let words = ["channel", "publish", "stable", "--ostree", &repo, "-o", "json"];
    serde_json::from_str(&place.ok(&[&words[..], more].concat())).unwrap()
}

/// Bytes that compress to nothing smaller, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let next = |x: &u64| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        Some(x ^ (x << 17))
    };
    std::iter::successors(Some(seed), next).skip(9).map(|x| (x >> 24) as u8).take(length).collect()
}

#[tokio::test]
async fn releases_are_published_and_nodes_pull_them() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    let release = publish(&place, &builder, &["--kubernetes", "v1.20.2"]);
    assert_eq!(
        (&release["number"], &release["version"], &release["commit"]),
        (&1.into(), &"1".into(), &one.clone().into())
    );
    assert_eq!(publish(&place, &builder, &["--kubernetes", "v1.20.2"]), release, "the same again is no release");

    let repo = system(&place, "node");
    assert!(pull(&repo, REF).status.success(), "by its ref, with a signed summary");
    assert_eq!(good("ostree", &["cat", &repo, &one, "/usr/bin/system"]), "one");
    let shown = good("ostree", &["show", &repo, "--gpg-verify-remote=nkd", &one]);
    assert!(shown.contains("Good signature from \"nkd channels"), "{shown}");

    let two = builder.build("2", b"two", &[]);
    assert_eq!(publish(&place, &builder, &["--kubernetes", "v1.21.0"])["number"], 2);
    assert!(pull(&repo, &two).status.success(), "by its commit");
    assert_eq!(good("ostree", &["cat", &repo, &two, "/usr/bin/system"]), "two");
    let list = place.ok(&["channel", "list"]);
    assert!(list.contains("stable") && list.contains("v1.21.0"), "{list}");
    let show = place.ok(&["channel", "show", "stable"]);
    assert_eq!(show.lines().count(), 3, "{show}");

    // What a service that was killed left undone is done at the next start.
    drop(service);
    let summary = place.state().join("ostree/lab/summary");
    std::fs::remove_file(&summary).unwrap();
    std::fs::remove_file(place.state().join("ostree/lab/refs/heads").join(REF)).unwrap();
    let _service = place.start().await;
    harness::eventually("the summary is there again", async || summary.exists().then_some(())).await;
    assert!(pull(&system(&place, "late"), REF).status.success());
}

#[tokio::test]
async fn a_node_moves_few_bytes_from_one_release_to_the_next() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let mut content = noise(1, 1 << 20);
    let one = builder.build("1", &content, &[]);
    publish(&place, &builder, &[]);
    let repo = system(&place, "node");
    assert!(pull(&repo, &one).status.success());
    content[5000..5100].copy_from_slice(&noise(2, 100));
    let two = builder.build("2", &content, &[]);
    publish(&place, &builder, &[]);
    let required = run("ostree", &["pull", &repo, "--require-static-deltas", "nkd", REF]);
    assert!(required.status.success(), "{}", String::from_utf8_lossy(&required.stderr));
    assert_eq!(good("ostree", &["rev-parse", &repo, &format!("nkd:{REF}")]).trim(), two);
    let deltas = place.state().join("ostree/lab/deltas");
    let size = good("du", &["-sb", deltas.to_str().unwrap()]);
    let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    assert!(size < 100_000, "the difference takes {size} bytes, the file {}", content.len());
}

#[tokio::test]
async fn what_is_not_signed_as_asked_is_not_published() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let repo = builder.path("repo");
    let ((home, ours_id, ours), (_, _, theirs)) = (builder.key("builder"), builder.key("stranger"));
    builder.build("1", b"unsigned", &[]);
    let order = |key: &str| place.cli(&["channel", "publish", "stable", "--ostree", &repo, "--key", key]);
    refused(&order(&ours), "not signed with a key of the given file");
    builder.build("2", b"signed", &[&format!("--gpg-sign={ours_id}"), &format!("--gpg-homedir={home}")]);
    good("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]);
    refused(&order(&theirs), "not signed with a key of the given file");
    let no_keys = builder.path("tree/usr/bin/system");
    refused(&order(&no_keys), "no OpenPGP keys could be read");
    assert_eq!(place.ok(&["channel", "list", "-o", "json"]).trim(), "[]", "nothing was published");
    let release = publish(&place, &builder, &["--key", &ours]);
    assert_eq!((&release["number"], &release["signedBy"]), (&1.into(), &"builder".into()));
    // Nor is it said to be well because it is there already.
    refused(&order(&theirs), "not signed with a key of the given file");
    refused(&order("/nowhere.asc"), "/nowhere.asc");
    assert_eq!(publish(&place, &builder, &["--key", &ours])["number"], 1);
}

/// A backup holds the list, and not the commits: each that is published again takes its own place, in whatever order.
#[tokio::test]
async fn releases_whose_commits_are_lost_are_published_again_as_themselves() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let mut commits = Vec::new();
    for number in 1..=3_u8 {
        commits.push(builder.build(&number.to_string(), &[number; 9], &[]));
        assert_eq!(publish(&place, &builder, &[])["number"], number);
    }
    std::fs::remove_dir_all(place.state().join("ostree/lab")).unwrap();
    for number in [3_usize, 1, 2] {
        let commit = &commits[number - 1];
        let again = publish(&place, &builder, &["--ref", commit]);
        assert_eq!((&again["number"], &again["commit"]), (&number.into(), &commit.as_str().into()));
        assert!(object(&place.state().join("ostree/lab"), commit, "commit").exists());
    }
    let channel: Value = serde_json::from_str(&place.ok(&["channel", "show", "stable", "-o", "json"])).unwrap();
    assert_eq!(channel["releases"].as_array().unwrap().len(), 3);
}

/// Refs are files: a branch of one builder may be called like the folder of another's, or of ours.
#[tokio::test]
async fn branches_that_are_in_each_others_way_take_no_release_off_the_list() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let (parent, _) = REF.split_once('/').unwrap();
    for (channel, branch) in [("second", parent), ("third", "nkd"), ("fourth", REF)] {
        let repo = builder.path(channel);
        let flag = format!("--repo={repo}");
        good("ostree", &["init", &flag, "--mode=archive"]);
        std::fs::write(builder.folder.join("tree/usr/bin/system"), channel).unwrap();
        let (tree, version) = (format!("--tree=dir={}", builder.path("tree")), "--add-metadata-string=version=1");
        good("ostree", &["commit", &flag, "--branch", branch, &tree, version]);
        let words = ["channel", "publish", channel, "--ostree", &repo, "--profile", "lab", "--architecture", "x86_64"];
        place.ok(&words);
    }
    let ours = place.state().join("ostree/lab");
    let refs = good("ostree", &["refs", &format!("--repo={}", ours.display())]);
    let summary = std::fs::read(ours.join("summary")).unwrap();
    // The newest has the name that two wanted.
    for name in ["nkd/stable/1", "nkd/second/1", "nkd/third/1", "nkd/fourth/1", REF] {
        assert!(refs.lines().any(|line| line == name), "{name}: {refs}");
        assert!(summary.windows(name.len()).any(|part| part == name.as_bytes()), "{name} is not in the summary");
    }
    assert!(refs.lines().all(|line| line != parent && line != "nkd"), "{refs}");
}

/// A release for which there is no room is not called one that is not signed.
#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn a_release_without_room_says_so_and_leaves_nothing() {
    let place = Place::new();
    let state = place.state();
    let _small = Small::mount(&state);
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let repo = builder.path("repo");
    let (home, id, public) = builder.key("builder");
    let signed = [format!("--gpg-sign={id}"), format!("--gpg-homedir={home}")];
    let signed: Vec<&str> = signed.iter().map(String::as_str).collect();
    builder.build("1", &noise(1, 20 << 20), &signed);
    for more in [&["--key", &public][..], &[]] {
        let order = place.cli(&[&["channel", "publish", "stable", "--ostree", &repo], more].concat());
        refused(&order, "there is no room for commit");
    }
    assert_eq!(place.ok(&["channel", "list", "-o", "json"]).trim(), "[]", "nothing was published");
    let ours = state.join("ostree/lab");
    let left = |folder: &str, of: &str| {
        let names = std::fs::read_dir(ours.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().contains(of)).count()
    };
    assert_eq!((left("state", "commitpartial"), left("tmp", "staging-")), (0, 0));
    assert!(good("find", &[ours.join("objects").to_str().unwrap(), "-type", "f"]).is_empty());
    builder.build("2", b"small", &signed);
    good("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]);
    let release = publish(&place, &builder, &["--key", &public]);
    assert_eq!((&release["number"], &release["signedBy"]), (&1.into(), &"builder".into()));
}

#[tokio::test]
async fn whose_release_is_published_without_a_summary_is_told_and_it_is_tried_again() {
    let place = Place::new().with("channels.grace=1");
    let _service = place.start().await;
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let ours = place.state().join("ostree/lab");
    let summary = ours.join("summary");
    std::fs::remove_file(&summary).unwrap();
    std::fs::create_dir_all(summary.join("in the way")).unwrap();
    let two = builder.build("2", b"two", &[]);
    let repo = builder.path("repo");
    let order = || place.cli(&["channel", "publish", "stable", "--ostree", &repo, "-o", "json"]);
    let output = order();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("warning: the release is published") && said.contains("lab/summary"), "{said}");
    let release: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&release["number"], &release["commit"]), (&2.into(), &two.clone().into()));
    // It is tried again, more seldom each time, and told once.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let log = place.log_text();
    assert_eq!(log.matches("or a summary is not written: tried again").count(), 1, "{log}");

    std::fs::remove_dir_all(&summary).unwrap();
    let repo = format!("--repo={}", ours.display());
    harness::eventually("it is written", async || {
        let listed = summary.is_file().then(|| run("ostree", &["summary", &repo, "-v"]))?;
        String::from_utf8_lossy(&listed.stdout).contains(&two).then_some(())
    })
    .await;
    let again = order();
    assert!(again.status.success() && !String::from_utf8_lossy(&again.stderr).contains("warning"), "{again:?}");
}

#[tokio::test]
async fn what_bears_no_ed25519_signature_of_a_given_key_is_not_published() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let repo = builder.path("repo");
    let (ours, theirs) = ([1, 2].map(|seed| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())).into();
    let (home, openpgp_id, openpgp) = builder.key("builder");
    let file = |name: &str, text: &str| {
        std::fs::write(builder.folder.join(name), text).unwrap();
        builder.path(name)
    };
    let public = |key: &Ed25519KeyPair| STANDARD.encode(key.public_key());
    let trusted = file("trusted", &format!("{}\n{}\n", STANDARD.encode([9; 32]), public(&ours)));
    let strangers = file("strangers", &public(&theirs));
    let commit = builder.build("1", b"one", &[]);
    let order = |key: &str| place.cli(&["channel", "publish", "stable", "--ostree", &repo, "--ed25519-key", key]);
    refused(&order(&trusted), "none of its 0 ed25519 signatures is by a key of");

    // As a builder leaves it: a signature that is none, and one over the commit.
    let (repository, place_of) =
        (builder.folder.join("repo"), |kind| object(&builder.folder.join("repo"), &commit, kind));
    let signature = ours.sign(&std::fs::read(object(&repository, &commit, "commit")).unwrap());
    let list = vec![vec![7; 3], signature.as_ref().to_vec()];
    let entries = HashMap::from([(ED25519_ENTRY, Variant::from(list))]);
    let sign = |entries| to_bytes(Context::new(LE, 0), entries).unwrap().bytes().to_vec();
    std::fs::write(place_of("commitmeta"), sign(&entries)).unwrap();
    good("ostree", &["gpg-sign", &builder.repo(), &format!("--gpg-homedir={home}"), &commit, &openpgp_id]);
    good("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]);
    refused(&order(&strangers), "none of its 2 ed25519 signatures is by a key of");
    refused(&order(&file("empty", "\n")), "there is no key; write public keys in base64");
    refused(&order(&openpgp), "line 1 is no ed25519 key");
    refused(&order("/nowhere"), "cannot read /nowhere");
    assert_eq!(place.ok(&["channel", "list", "-o", "json"]).trim(), "[]", "nothing was published");

    let release = publish(&place, &builder, &["--ed25519-key", &trusted, "--key", &openpgp]);
    let signed_by = format!("builder, ed25519 {}", &public(&ours)[..16]);
    assert_eq!((&release["number"], &release["signedBy"]), (&1.into(), &signed_by.into()));
    let served = place.state().join("ostree/lab");
    let bears =
        |key: &str| bears_both(key, &object(&served, &commit, "commit"), &object(&served, &commit, "commitmeta"));
    assert!(bears(&public(&ours)), "the builder's signature stays");
    assert!(bears(std::fs::read_to_string(place.state().join("ostree/key.ed25519")).unwrap().trim()), "beside ours");
}

#[tokio::test]
async fn releases_bear_both_kinds_of_signatures_and_a_start_signs_those_that_do_not() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    place.import().await;
    place.admin().declare("n1", MAC).await;
    let commits: Vec<String> = ["1", "2"]
        .map(|version| {
            let commit = builder.build(version, version.as_bytes(), &[]);
            publish(&place, &builder, &[]);
            commit
        })
        .into();
    let http = place.https().build().unwrap();
    let get = async |path: &str| http.get(place.api_url(path)).send().await.unwrap();
    let key = get("/ostree/key.ed25519").await.text().await.unwrap().trim().to_owned();
    let (_, _, node) = node::install(&place, MAC).await;
    let path = format!("/agent/v1/release?commit={}", commits[1]);
    let source: Value = node.http.get(place.api_url(&path)).send().await.unwrap().json().await.unwrap();
    assert_eq!(source["ed25519Key"], key);
    assert!(source["key"].as_str().unwrap().starts_with("-----BEGIN PGP PUBLIC KEY"), "{source}");

    let served = place.state().join("ostree/lab");
    let signatures = |commit: &str| object(&served, commit, "commitmeta");
    let (summary, summary_sig) = (served.join("summary"), served.join("summary.sig"));
    let complete = |key: &str| {
        let bears = |commit: &String| bears_both(key, &object(&served, commit, "commit"), &signatures(commit));
        commits.iter().all(bears) && bears_both(key, &summary, &summary_sig)
    };
    assert!(complete(&key));
    assert!(!complete(&STANDARD.encode([9; 32])), "by no other key");
    // What may change is asked for again.
    let (first, rest) = commits[1].split_at(2);
    for (kind, cache) in [("commit", "public, max-age=31536000, immutable"), ("commitmeta", "no-cache")] {
        let answer = get(&format!("/ostree/lab/objects/{first}/{rest}.{kind}")).await;
        assert_eq!(answer.headers()["cache-control"], cache, "{kind}");
    }

    // As a service left it that had no such key, or was killed: commits and the difference without its signatures.
    drop(service);
    let before = std::fs::read(signatures(&commits[1])).unwrap();
    commits.iter().for_each(|commit| std::fs::remove_file(signatures(commit)).unwrap());
    let (from, to) = (format!("--from={}", commits[0]), format!("--to={}", commits[1]));
    good("ostree", &["static-delta", "generate", &format!("--repo={}", served.display()), &from, &to]);
    std::fs::remove_file(&summary_sig).unwrap();
    std::fs::remove_file(place.state().join("ostree/key.ed25519")).unwrap();
    let _service = place.start().await;
    super::harness::eventually("all is signed again", async || complete(&key).then_some(())).await;
    assert_eq!(get("/ostree/key.ed25519").await.text().await.unwrap().trim(), key, "the key is the same");
    let ours = &before[before.windows(64).position(|w| bears_alone(&key, &served, &commits[1], w)).unwrap()..][..64];
    let superblock = good("find", &[served.join("deltas").to_str().unwrap(), "-name", "superblock"]);
    let superblock = std::fs::read(superblock.trim()).unwrap();
    assert!(superblock.windows(64).any(|w| w == ours), "the difference carries the signature");
}

/// Whether these bytes are a signature of this key over this commit.
fn bears_alone(key: &str, repository: &Path, commit: &str, signature: &[u8]) -> bool {
    let data = std::fs::read(object(repository, commit, "commit")).unwrap();
    UnparsedPublicKey::new(&ED25519, STANDARD.decode(key).unwrap()).verify(&data, signature).is_ok()
}

#[tokio::test]
async fn a_node_takes_nothing_that_was_tampered_with() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let repo = system(&place, "node");
    // Somebody writes into the served repository: a commit of their own, under the ref.
    let served = place.state().join("ostree/lab");
    let ours = format!("--repo={}", served.display());
    let evil = builder.build("9", b"evil", &[]);
    good("ostree", &["pull-local", &ours, &builder.path("repo"), &evil]);
    refused(&pull(&repo, &evil), "no signatures found");
    good("ostree", &["summary", &ours, "--update"]);
    refused(&pull(&repo, REF), "no summary.sig found");
    assert!(!run("ostree", &["show", &repo, &evil]).status.success(), "it did not come");
}

#[tokio::test]
async fn wrong_orders_say_what_to_do() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let repo = builder.path("repo");
    let order = |more: &[&str]| place.cli(&[&["channel", "publish", "stable", "--ostree", &repo], more].concat());
    refused(&order(&[]), "the repository has no ref");
    refused(&place.cli(&["channel", "publish", "stable", "--ostree", "/nowhere"]), "is no ostree repository");
    builder.build("1", b"one", &[]);
    refused(&order(&["--ref", "lab/x86_64/other"]), "is no ref or commit there; the repository has: lab/x86_64/stable");
    refused(&order(&["--ref=--help"]), "is no ref or commit there");
    refused(&order(&["--kubernetes", "1.21"]), "write it like v1.31.4");
    refused(&order(&["--profile", "windows"]), "--profile: nestos, fedora-coreos or lab");
    refused(&place.cli(&["channel", "publish", "No Name", "--ostree", &repo]), "channel: ");
    refused(&order(&["--version", " "]), "say it with --version");
    publish(&place, &builder, &[]);
    refused(&place.cli(&["channel", "mark", "stable", "1"]), "--barrier");
    refused(&place.cli(&["channel", "mark", "none", "1", "--barrier", "true"]), "there is no channel `none`");
    let long = "x".repeat(501);
    refused(&place.cli(&["channel", "mark", "stable", "1", "--dead-end", &long]), "at most 500 characters");
    refused(&place.cli(&["channel", "mark", "stable", "1", "--dead-end", "a\nb"]), "deadEnd: character 2 is a control");
    refused(&order(&["--version", "1\u{1b}[2J"]), "version: character 2 is a control character");
    refused(&order(&["--notes", &"x".repeat(4001)]), "notes: it has 4001 characters: write at most 4000");
    let trail = place.ok(&["audit"]);
    assert!(!trail.contains(&long) && !trail.contains("[2J"), "{trail}");
    // The same commit once more, called otherwise: marks of the first would not count, and a dead end stays one.
    publish(&place, &builder, &["--version", "1 again"]);
    let mark = |number| place.cli(&["channel", "mark", "stable", number, "--dead-end", "it eats disks"]);
    refused(&mark("1"), "is the same commit as release 2, which is what counts");
    assert!(mark("2").status.success());
    for again in [&["--version", "1 yet again"][..], &["--version", "1 again"]] {
        refused(&order(again), "release 2 of the channel `stable` is a dead end: it eats disks");
    }
    builder.build("2", b"two", &[]);
    let number = |more: &[&str]| publish(&place, &builder, more)["number"].clone();
    assert_eq!(number(&["--kubernetes", "v1.21.0", "--notes", "hello"]), 3);
    // What is not said is not changed; what is said and would be lost is refused.
    assert_eq!((number(&[]), number(&["--notes", "hello"])), (3.into(), 3.into()));
    for more in [&["--barrier"][..], &["--rollout", "48h"], &["--notes", "good-bye"]] {
        refused(&order(more), "`nkd channel mark stable 3` changes marks, notes stay as they are");
    }
    good("ostree", &["refs", &builder.repo(), "--create=lab/aarch64/stable", REF]);
    let other = ["--ref", "lab/aarch64/stable"];
    refused(&order(&other), "`lab/aarch64/stable` is of aarch64, and the channel `stable` of x86_64");
    assert!(order(&[&other[..], &["--architecture", "x86_64"]].concat()).status.success());
    good("ostree", &["refs", &builder.repo(), "--delete", "lab/aarch64/stable"]);
    refused(&order(&["--profile", "nestos"]), "is of lab: publish to another channel");
    refused(&place.cli(&["channel", "show", "none"]), "there is no channel `none`");
    let viewer = place.ok(&["user", "create", "eve", "--role", "viewer", "-o", "json"]);
    let viewer: Value = serde_json::from_str(&viewer).unwrap();
    let words = ["channel", "publish", "stable", "--ostree", &repo];
    refused(&place.cli_as(viewer["token"].as_str().unwrap(), &words), "this takes the role operator");
}

#[tokio::test]
async fn only_what_is_public_is_served_and_questions_may_be_conditional() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let http = place.https().build().unwrap();
    let get = async |path: &str| http.get(place.api_url(path)).send().await.unwrap();
    let unless = async |path: &str, tag: &reqwest::header::HeaderValue| {
        http.get(place.api_url(path)).header("if-none-match", tag).send().await.unwrap()
    };
    let commit = format!("/ostree/lab/objects/{}/{}.commit", &one[..2], &one[2..]);
    let mut tags = Vec::new();
    for path in ["/ostree/lab/config", "/ostree/lab/summary", &commit] {
        let tag = get(path).await.headers()["etag"].clone();
        let same = unless(path, &tag).await;
        assert_eq!((same.status().as_u16(), &same.headers()["etag"]), (304, &tag), "{path}");
        assert!(same.bytes().await.unwrap().is_empty(), "{path}");
        tags.push(tag);
    }
    let summary = get("/ostree/lab/summary").await;
    assert_eq!(summary.status(), 200);
    let changed = summary.headers()["last-modified"].clone();
    let again = http.get(place.api_url("/ostree/lab/summary")).header("if-modified-since", changed);
    assert_eq!(again.send().await.unwrap().status(), 304);
    builder.build("2", b"two", &[]);
    publish(&place, &builder, &[]);
    let new = unless("/ostree/lab/summary", &tags[1]).await;
    assert_eq!(new.status(), 200, "it is another one");
    assert_ne!(new.headers()["etag"], tags[1]);
    assert_eq!(unless(&commit, &tags[2]).await.status(), 304, "it stays what it was");
    for path in
        ["/ostree/lab/.lock", "/ostree/lab/tmp/", "/ostree/lab/state", "/ostree/other/config", "/ostree/lab/refs"]
    {
        assert_eq!(get(path).await.status(), 404, "{path}");
    }
    for path in ["/ostree/lab/objects/%2e%2e/%2e%2e/%2e%2e/secret.key", "/ostree/lab/refs/../../../../ca.pem"] {
        let output =
            run("curl", &["-sk", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", &place.api_url(path)]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "404", "{path}");
    }
    let private = Path::new(&place.state()).join("ostree");
    let secret = run("grep", &["-rl", "PRIVATE KEY", private.to_str().unwrap()]);
    assert!(secret.stdout.is_empty(), "{}", String::from_utf8_lossy(&secret.stdout));
}

#[tokio::test]
async fn a_client_of_the_graph_is_led_from_release_to_release() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let mut commits = Vec::new();
    for (version, more) in [("1", &[][..]), ("2", &["--barrier"]), ("3", &[]), ("4", &["--rollout", "48h"])] {
        commits.push(builder.build(version, version.as_bytes(), &[]));
        publish(&place, &builder, more);
    }
    // As zincati asks; it reads texts only, and stops at anything else.
    let http = place.https().build().unwrap();
    let ask = async |more: &str| {
        let query = "/v1/graph?basearch=x86_64&stream=stable&group=default&platform=metal&os_version=1";
        let request = http.get(format!("{}{query}{more}", place.api_url(""))).header("accept", "application/json");
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let edges = async |more: &str| {
        let (status, graph) = ask(&format!("&os_checksum={}{more}", commits[0])).await;
        assert_eq!(status, 200, "{graph}");
        for (age, node) in graph["nodes"].as_array().unwrap().iter().enumerate() {
            assert_eq!(node["payload"], commits[age].as_str());
            let metadata = node["metadata"].as_object().unwrap();
            assert!(metadata.values().all(Value::is_string), "{node}");
            assert_eq!(metadata["org.fedoraproject.coreos.releases.age_index"], age.to_string());
            assert_eq!(metadata["org.fedoraproject.coreos.scheme"], "checksum");
        }
        graph["edges"].clone()
    };
    let rolled_out = json!([[0, 1], [1, 3], [2, 3]]);
    let cautious = json!([[0, 1], [1, 2]]);
    assert_eq!(edges("&rollout_wariness=0.000000").await, rolled_out);
    assert_eq!(edges("&rollout_wariness=0.999999&node_uuid=00112233445566778899aabbccddeeff").await, cautious);
    place.ok(&["channel", "mark", "stable", "4", "--rollout", "0m"]);
    assert_eq!(edges("&rollout_wariness=1.000000").await, rolled_out);
    let marked = place.ok(&["channel", "mark", "stable", "4", "--dead-end", "it eats disks"]);
    assert_eq!(marked.trim(), "stable: release 4: dead end: it eats disks");
    assert_eq!(edges("&rollout_wariness=0.000000").await, cautious);
    place.ok(&["channel", "mark", "stable", "2", "--barrier", "false"]);
    assert_eq!(edges("").await, json!([[0, 2], [1, 2]]));

    let (status, error) = ask("&rollout_wariness=often").await;
    assert_eq!((status, &error["kind"]), (400, &"invalid_params".into()));
    let (status, error) = ask("&stream=none").await;
    assert_eq!((status, error["kind"].is_string()), (400, true), "a parameter that comes twice: {error}");
    let other = http.get(place.api_url("/v1/graph?basearch=x86_64&stream=none")).send().await.unwrap();
    assert_eq!(other.status(), 404);
    assert_eq!(other.json::<Value>().await.unwrap()["kind"], "no_graph");
    ask(&format!("&os_checksum={:064}&node_uuid=0a0b", 0)).await;
    let unknown: Value = serde_json::from_str(&place.ok(&["channel", "unknown", "stable", "-o", "json"])).unwrap();
    assert_eq!(unknown.as_array().map(Vec::len), Some(1), "{unknown:#}");
    let (runs, node, times) = (&unknown[0]["payload"], &unknown[0]["node"], &unknown[0]["times"]);
    assert_eq!((runs, node, times), (&format!("{:064}", 0).into(), &"0a0b".into(), &1.into()));
    assert!(place.ok(&["channel", "unknown", "stable"]).contains("0a0b"));
    ask("").await;
    assert_eq!(place.ok(&["channel", "unknown", "stable"]).lines().count(), 2, "who says nothing is no system");
    refused(&place.cli(&["channel", "unknown", "none"]), "there is no channel `none`");
    assert!(place.log_text().contains("a system asks for updates from a release that the channel does not have"));
    let metrics = reqwest::get(place.metrics_url("/metrics")).await.unwrap().text().await.unwrap();
    for kind in ["unknown", "none"] {
        let count = format!("nkd_graph_requests_total{{channel=\"stable\",payload=\"{kind}\"}} 1\n");
        assert!(metrics.contains(&count), "{metrics}");
    }
    for number in [0].into_iter().chain(1..=20) {
        ask(&format!("&os_checksum={number:064}")).await;
    }
    let output = place.cli(&["channel", "unknown", "stable"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.lines().count() == 17 && out.contains(&format!("{:064}", 0)), "what is asked from again stays: {out}");
    assert!(err.contains("5 more were left out"), "{err}");
    refused(
        &place.cli(&["channel", "mark", "stable", "9", "--barrier", "true"]),
        "no release 9 in the channel `stable`",
    );
    refused(&place.cli(&["channel", "mark", "stable", "4", "--rollout", "soon"]), "write it like 90m, 48h or 7d");
}

#[tokio::test]
async fn why_a_machine_is_led_to_a_release_or_not() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    place.import().await;
    place.admin().declare("n1", MAC).await;
    let explain = || place.ok(&["channel", "explain", "stable", "n1"]);
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    assert_eq!(explain().trim(), "n1: the machine has not said which deployment it runs");
    let (_, _, node) = node::install(&place, MAC).await;
    let facts =
        |commit: &str| json!({"kind": "facts", "facts": {"architecture": "x86_64", "bootedDeployment": commit}});
    node.report(&place, facts(&"0".repeat(64))).await;
    assert_eq!(explain().trim(), "n1: what it runs is no release of the channel `stable`");
    node.report(&place, facts(&one)).await;
    assert_eq!(explain().trim(), "n1: release 1 is the newest");
    builder.build("2", b"two", &[]);
    publish(&place, &builder, &["--barrier"]);
    builder.build("3", b"three", &[]);
    publish(&place, &builder, &[]);
    let said = explain();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines[0], "n1: from release 1 to release 2");
    assert!(lines[2].ends_with("open") && lines[3].ends_with("release 2 is a barrier and comes first"), "{said}");
    place.ok(&["channel", "mark", "stable", "1", "--dead-end", "reinstall it"]);
    assert!(explain().starts_with("n1: stays at release 1, and a dead end: reinstall it\n"), "{}", explain());
}
