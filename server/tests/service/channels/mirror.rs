//! A channel follows an upstream repository, which is a real one behind a real server.

use std::sync::atomic::Ordering;

use serde_json::Value;

use super::harness::{Place, eventually, text};
use super::upstream::Upstream;
use super::{Builder, REF, good, pull, refused, system};

fn file_url(builder: &Builder) -> String {
    format!("file://{}", builder.path("repo"))
}

/// Has it looked at; the mirror then. It fails exactly if the mirror stands still.
fn looked(place: &Place) -> Value {
    let output = place.cli(&["channel", "mirror", "stable", "--now", "-o", "json"]);
    let mirror: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), mirror["problem"].is_null(), "{output:?}");
    mirror
}

fn shown(place: &Place) -> Value {
    serde_json::from_str(&place.ok(&["channel", "mirror", "stable", "-o", "json"])).unwrap()
}

fn releases(place: &Place) -> Vec<Value> {
    let output = place.cli(&["channel", "show", "stable", "-o", "json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    shown["releases"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn each_new_commit_of_a_signed_upstream_is_a_release() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let (home, id, public) = builder.key("upstream");
    let signed = [format!("--gpg-sign={id}"), format!("--gpg-homedir={home}")];
    let one = builder.build("1", b"one", &[&signed[0], &signed[1], "--add-metadata-string=nkd.kubernetes=v1.20.2"]);
    let order = ["channel", "mirror", "stable", "--from", &file_url(&builder), "--ref", REF, "--key", &public];
    place.ok(&order);
    let first = eventually("the first release", async || releases(&place).first().cloned()).await;
    assert_eq!((&first["commit"], &first["signedBy"]), (&one.clone().into(), &"upstream".into()));
    assert_eq!((&first["kubernetes"], &first["reference"]), (&"v1.20.2".into(), &REF.into()));
    let trail = place.ok(&["audit"]);
    assert!(trail.contains("channel.mirror") && trail.contains("channel.publish"), "{trail}");

    // It survives an end of the service, and what is the same is no release.
    service.kill();
    let _service = place.start().await;
    let before = shown(&place);
    let mirror = looked(&place);
    assert_ne!(mirror["lookedAt"], before["lookedAt"], "it has looked when that command ends");
    assert_eq!((&mirror["failures"], releases(&place).len()), (&0.into(), 1), "{mirror}");

    let two = builder.build("2", b"two", &[&signed[0], &signed[1]]);
    looked(&place);
    assert_eq!(releases(&place)[1]["commit"], two);
    let repo = system(&place, "node");
    assert!(pull(&repo, &two).status.success());

    // Not signed, then signed by somebody else: the channel stays.
    builder.build("3", b"unsigned", &[]);
    let mirror = looked(&place);
    assert!(mirror["problem"].as_str().unwrap().contains("no signatures found"), "{mirror}");
    let (other_home, other, _) = builder.key("stranger");
    builder.build("4", b"theirs", &[&format!("--gpg-sign={other}"), &format!("--gpg-homedir={other_home}")]);
    let mirror = looked(&place);
    assert!(mirror["problem"].as_str().unwrap().contains("public key not found"), "{mirror}");
    assert_eq!((&mirror["failures"], releases(&place).len()), (&2.into(), 2), "{mirror}");
    good("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]);
    good("gpgconf", &["--homedir", &other_home, "--kill", "gpg-agent"]);

    // As after a backup was restored: it brings back what is the newest release and not here.
    drop(_service);
    std::fs::remove_dir_all(place.state().join("ostree")).unwrap();
    let up = builder.repo();
    good("ostree", &["refs", &up, "--force", &format!("--create={REF}"), &two]);
    let _service = place.start().await;
    eventually("it is here again", async || {
        looked(&place);
        let shown: Value = serde_json::from_str(&place.ok(&["channel", "show", "stable", "-o", "json"])).unwrap();
        (shown["missing"] == serde_json::json!([1])).then_some(())
    })
    .await;

    // Who wants it looked at more often has not taken another upstream.
    let before = shown(&place);
    // By its own answer: the look that follows has its own success.
    let after = place.ok(&[&order[..], &["--every", "90m", "-o", "json"]].concat());
    let after: Value = serde_json::from_str(&after).unwrap();
    assert_eq!((&after["succeededAt"], &after["everyMinutes"]), (&before["succeededAt"], &90.into()), "{after}");
    let all: Value = serde_json::from_str(&place.ok(&["channel", "mirror", "-o", "json"])).unwrap();
    assert_eq!((&all[0]["channel"], all.as_array().unwrap().len()), (&"stable".into(), 1), "{all}");

    place.ok(&["channel", "mirror", "stable", "--off"]);
    assert_eq!(place.ok(&["channel", "mirror", "-o", "json"]).trim(), "[]");
    refused(&place.cli(&["channel", "mirror", "stable"]), "the channel `stable` follows no upstream");
    assert_eq!(releases(&place).len(), 2, "the releases stay");
    let folder = place.state().join("ostree/.mirror-stable");
    eventually("its folder goes", async || (!folder.exists()).then_some(())).await;
}

// The upstream answers while commands wait.
#[tokio::test]
async fn an_upstream_may_sign_by_ed25519_alone() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    let (keys, from) = (builder.path("keys.ed25519"), file_url(&builder));
    std::fs::write(&keys, builder.sign_ed25519(&one, 1)).unwrap();
    let order = ["channel", "mirror", "stable", "--from", &from, "--ref", REF, "--ed25519-key"];
    refused(&place.cli(&[&order[..], &[&builder.path("repo/config")]].concat()), "line 1 is no ed25519 key");
    place.ok(&[&order[..], &[&keys]].concat());
    assert!(place.ok(&["channel", "mirror", "stable"]).contains(&format!("signed with a key of {keys}")));
    let first = eventually("the first release", async || releases(&place).first().cloned()).await;
    assert_eq!(first["commit"], one);
    assert!(first["signedBy"].as_str().unwrap().starts_with("ed25519 "), "{first}");
    // Not signed, then by somebody else: the channel stays. What is signed again goes on.
    let two = builder.build("2", b"two", &[]);
    let problem = |mirror: Value| mirror["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem(looked(&place)).contains("none of its 0 ed25519 signatures"), "{}", shown(&place));
    builder.sign_ed25519(&two, 2);
    let said = problem(looked(&place));
    assert!(said.contains("none of its 1 ed25519 signatures") && said.contains(&*keys), "{}", shown(&place));
    assert_eq!(releases(&place).len(), 1);
    builder.sign_ed25519(&two, 1);
    assert_eq!(problem(looked(&place)), "");
    assert_eq!(releases(&place)[1]["commit"], two);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_or_goes_back_leaves_the_channel_as_it_is() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let at = |day: u32| format!("--timestamp=2026-01-{day:02} 00:00:00 +0000");
    let one = builder.build("1", b"one", &[&at(1)]);
    let two = builder.build("2", b"two", &[&at(2)]);
    let repo = builder.repo();
    good("ostree", &["summary", &repo, "-u"]);
    // Behind HTTPS, with an authority of its own.
    let upstream = Upstream::serve(&place, &builder.path("repo")).await;
    let from = format!("https://{}/", upstream.address);
    let words = [
        "channel",
        "mirror",
        "stable",
        "--from",
        &from,
        "--ref",
        REF,
        "--insecure-unsigned",
        "--upstream-ca",
        &upstream.ca,
    ];
    place.ok(&[&words[..], &["--kubernetes", "v1.21.0"]].concat());
    let first = eventually("the first release", async || releases(&place).first().cloned()).await;
    assert_eq!((&first["commit"], &first["kubernetes"]), (&two.clone().into(), &"v1.21.0".into()));
    let mirror = eventually("a success", async || Some(shown(&place)).filter(|m| m["succeededAt"].is_string())).await;
    let success = mirror["succeededAt"].clone();

    let problem = |what: &str| {
        let mirror = looked(&place);
        let problem = mirror["problem"].as_str().unwrap_or_default();
        assert!(problem.contains(what), "`{what}` is not in: {mirror}");
        assert_eq!(mirror["succeededAt"], success, "the last success is shown");
        assert_eq!(releases(&place), std::slice::from_ref(&first));
    };
    // Back to an older commit; to garbage; gone.
    good("ostree", &["reset", &repo, REF, &one]);
    good("ostree", &["summary", &repo, "-u"]);
    problem("the upstream went back to commit");
    std::fs::write(builder.path("repo/summary"), b"this is no summary").unwrap();
    problem("ostree pull");
    std::fs::remove_file(builder.path("repo/summary")).unwrap();
    std::fs::rename(builder.path("repo/refs"), builder.path("refs")).unwrap();
    problem("ostree pull");
    std::fs::rename(builder.path("refs"), builder.path("repo/refs")).unwrap();
    // A commit whose objects are not what they are called.
    let three = builder.build("3", b"three", &[&at(3)]);
    let objects =
        good("find", &[&builder.path("repo/objects"), "-name", "*.filez", "-newer", &builder.path("repo/config")]);
    for object in objects.lines() {
        std::fs::write(object, b"garbage").unwrap();
    }
    problem("ostree pull");
    assert!(!place.state().join(format!("ostree/lab/objects/{}/{}.commit", &three[..2], &three[2..])).exists());
    let said = place.ok(&["channel", "mirror", "stable"]);
    assert!(said.contains("stands still: ") && said.contains("last success: "), "{said}");
    let list = place.ok(&["channel", "mirror"]);
    assert!(list.contains("CHANNEL") && list.contains("stable") && list.contains("stands still"), "{list}");
    assert!(place.log_text().contains("a mirror stands still"));
    let metrics = reqwest::get(place.metrics_url("/metrics")).await.unwrap().text().await.unwrap();
    let failed = "nkd_channel_mirror_looks_total{channel=\"stable\",result=\"failed\"} 4";
    assert!(metrics.contains(failed) && metrics.contains("nkd_channel_mirror_success_timestamp_seconds"), "{metrics}");
}

/// An upstream that has one commit; the commit.
async fn upstream_of_one(place: &Place, builder: &Builder) -> (String, Upstream) {
    let one = builder.build("1", b"one", &["--add-metadata-string=nkd.kubernetes=v1.20.2"]);
    good("ostree", &["summary", &builder.repo(), "-u"]);
    (one, Upstream::serve(place, &builder.path("repo")).await)
}

fn follow(place: &Place, upstream: &Upstream) {
    let from = format!("https://{}/", upstream.address);
    let order = ["channel", "mirror", "stable", "--from", &from, "--ref", REF, "--insecure-unsigned"];
    place.ok(&[&order[..], &["--upstream-ca", &upstream.ca]].concat());
}

// The upstream answers while commands wait.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_on_its_way_is_no_release_until_it_came_whole() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let (one, upstream) = upstream_of_one(&place, &builder).await;
    upstream.cuts.store(true, Ordering::SeqCst);
    follow(&place, &upstream);
    let mirror = looked(&place);
    assert!(mirror["problem"].as_str().unwrap().contains("ostree pull"), "{mirror}");
    assert_eq!(releases(&place), Vec::<Value>::new());
    upstream.cuts.store(false, Ordering::SeqCst);
    let mirror = looked(&place);
    assert!(mirror["problem"].is_null(), "{mirror}");
    assert_eq!(releases(&place)[0]["commit"], one);
    assert!(pull(&system(&place, "node"), &one).status.success());
}

/// The processes that pull into a channel's mirror.
fn pulls(place: &Place) -> Vec<String> {
    let folder = place.state().join("ostree/.mirror-stable/repo").display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pulls = entries.filter(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        words.contains("pull") && words.contains(&folder)
    });
    pulls.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_a_service_that_was_killed_ends_before_the_next_one_begins() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let (one, upstream) = upstream_of_one(&place, &builder).await;
    upstream.holds.send_replace(true);
    follow(&place, &upstream);
    eventually("it waits for an object", async || (upstream.held.load(Ordering::SeqCst) > 0).then_some(())).await;
    let first = pulls(&place);
    assert_eq!(first.len(), 1);
    // It says what it does, also in its first look.
    let mirror = shown(&place);
    assert!(mirror["lookedAt"].is_null() && mirror["lookingSince"].is_string(), "{mirror}");
    let said = place.ok(&["channel", "mirror", "stable"]);
    assert!(said.contains("looked:       never; looking now, since "), "{said}");

    service.kill();
    assert_eq!(pulls(&place), first, "nobody ended it");
    let _service = place.start().await;
    eventually("another one pulls", async || {
        let now = pulls(&place);
        assert!(now.len() < 2, "{now:?}");
        (!now.is_empty() && now != first).then_some(())
    })
    .await;
    upstream.holds.send_replace(false);
    let release = eventually("it is a release", async || releases(&place).first().cloned()).await;
    assert_eq!(release["commit"], one);
    eventually("it looks no more", async || shown(&place)["lookingSince"].is_null().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_followed_no_more_publishes_nothing_and_holds_up_nobody() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let (one, upstream) = upstream_of_one(&place, &builder).await;
    upstream.holds.send_replace(true);
    follow(&place, &upstream);
    eventually("it waits for an object", async || (upstream.held.load(Ordering::SeqCst) > 0).then_some(())).await;

    let copy = format!("--repo={}", builder.path("copy"));
    good("ostree", &["init", &copy, "--mode=archive"]);
    good("ostree", &["pull-local", &copy, &builder.path("repo"), &one]);
    let tree = format!("--tree=ref={one}");
    let other = good("ostree", &["commit", &copy, "--branch", REF, &tree, "--add-metadata-string=version=9"]);
    let from = format!("file://{}", builder.path("copy"));
    place.ok(&["channel", "mirror", "stable", "--from", &from, "--ref", REF, "--insecure-unsigned"]);
    let first = eventually("the other upstream's commit", async || releases(&place).first().cloned()).await;
    assert_eq!(first["commit"], other.trim());
    upstream.holds.send_replace(false);
    let mirror = looked(&place);
    assert!(mirror["problem"].is_null(), "{mirror}");
    assert_eq!(releases(&place).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_an_upstream_goes_when_it_is_followed_no_more_or_at_the_next_start() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let (_, upstream) = upstream_of_one(&place, &builder).await;
    upstream.holds.send_replace(true);
    follow(&place, &upstream);
    eventually("it waits for an object", async || (upstream.held.load(Ordering::SeqCst) > 0).then_some(())).await;
    let folder = place.state().join("ostree/.mirror-stable");
    assert!(folder.join("repo").is_dir());
    place.ok(&["channel", "mirror", "stable", "--off"]);
    eventually("its folder goes", async || (!folder.exists()).then_some(())).await;
    assert!(!place.log_text().contains("a mirror stands still"), "{}", place.log_text());

    // As a service leaves it that was killed in between.
    drop(service);
    std::fs::create_dir_all(folder.join("repo")).unwrap();
    let _service = place.start().await;
    eventually("it goes", async || (!folder.exists()).then_some(())).await;
}

#[tokio::test]
async fn wrong_mirrors_say_what_to_do() {
    let place = Place::new();
    let _service = place.start().await;
    let order = |more: &[&str]| place.cli(&[&["channel", "mirror", "stable"], more].concat());
    refused(
        &order(&["--from", "https://up.example/repo", "--ref", REF]),
        "--ed25519-key FILE, or take them --insecure-unsigned",
    );
    refused(
        &order(&["--from", "ftp://up.example/", "--ref", REF, "--insecure-unsigned"]),
        "write the repository's address",
    );
    // What a word does not use is not as if it were not there.
    for words in [["--now", "--every=6h"], ["--off", "--kubernetes=v1.31.4"], ["--now", "--off"]] {
        let out = order(&words);
        assert_eq!(out.status.code(), Some(2), "{words:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains("cannot be used with"), "{}", text(&out.stderr));
    }
    for secret in ["https://a:s3cret@up.example/", "https://:s3cret@up.example/"] {
        let why = "holds a name or a password";
        refused(&order(&["--from", secret, "--ref", REF, "--insecure-unsigned"]), why);
    }
    assert!(!place.ok(&["audit"]).contains("s3cret"));
    let zeros = order(&["--from", "https://up.example/", "--ref", REF, "--key", "/dev/zero"]);
    refused(&zeros, "/dev/zero is no file");
    refused(
        &order(&["--from", "https://up.example/", "--ref=-x", "--insecure-unsigned"]),
        "name a ref of the upstream",
    );
    refused(
        &order(&["--from", "https://up.example/", "--ref", "main", "--insecure-unsigned"]),
        "say it with --profile",
    );
    refused(&order(&["--from", "https://up.example/", "--ref", REF, "--key", "/etc/hostname"]), "name an armored file");
    refused(&order(&["--now"]), "the channel `stable` follows no upstream");
    for no_name in [&["channel", "mirror", "--now"][..], &["channel", "mirror", "--off"]] {
        assert_eq!(place.cli(no_name).status.code(), Some(2));
    }
}
