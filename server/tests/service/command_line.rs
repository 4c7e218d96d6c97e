//! The command line against a running service.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::channel;

use serde_json::{Value, json};

use super::harness::{PATIENCE, Place, eventually, mode, text};
use super::registry::{Hand, good, run};
use super::{cluster, node};

/// What a command says in JSON and in YAML; as a table it shows a word. A word of its own, `{}`, is another one each time.
fn spoken(place: &Place, args: &[&str], shown: &str) -> (Value, Value) {
    let say = |format: &str| {
        let args: Vec<String> = args.iter().map(|word| word.replace("{}", format)).collect();
        let output = place.client(&place.admin_token()).args(&args).args(["-o", format]).output().unwrap();
        assert!(output.status.success(), "{args:?} -o {format}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let table = say("table");
    assert!(table.contains(shown), "{args:?}:\n{table}");
    assert!(table.lines().all(|l| l == l.trim_end()), "{args:?}: spaces at the end");
    let (json, yaml) = (say("json"), say("yaml"));
    (
        serde_json::from_str(&json).unwrap_or_else(|e| panic!("{args:?}: {e}\n{json}")),
        serde_saphyr::from_str(&yaml).unwrap_or_else(|e| panic!("{args:?}: {e}\n{yaml}")),
    )
}

#[tokio::test]
async fn every_noun_speaks_table_json_and_yaml() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    place.ok(&["machine", "declare", "n1", "--mac", "52:54:00:0e:00:01", "--image", "lab-1"]);
    place.ok(&["rule", "set", "r1", "--mac", "52:54:00:0f:*"]);
    node::live(&place, "52:54:00:0e:00:01").await;
    for (args, shown) in [
        (&["machine", "list"][..], "n1"),
        (&["machine", "show", "n1"], "52:54:00:0e:00:01"),
        (&["machine", "events"], "first-stage-or-seen"),
        (&["machine", "events", "n1"], "boot-script"),
        (&["machine", "explain", "52:54:00:0e:00:01"], "live-install"),
        (&["machine", "accept", "n1"], "n1"),
        (&["image", "list"], "lab-1"),
        (&["image", "show", "lab-1"], "rootfs"),
        (&["image", "profiles"], "nestos"),
        (&["image", "gc", "--dry-run"], ""),
        (&["rule", "list"], "r1"),
        (&["user", "list"], "admin"),
        (&["audit"], "machine.declare"),
        (&["status"], "admin"),
    ] {
        let shown = if shown == "first-stage-or-seen" { "n1" } else { shown };
        let (json, yaml) = spoken(&place, args, shown);
        // Reading may itself be seen: only the shape is the same for sure.
        assert_eq!(json.is_array(), yaml.is_array(), "{args:?}");
    }
    let reinstalled: Value = serde_json::from_str(&place.ok(&["machine", "reinstall", "n1", "-o", "json"])).unwrap();
    assert_eq!(reinstalled["generation"], 2);
    assert!(place.ok(&["completion", "bash"]).contains("complete -F _nkd"));
    // A reader that has had enough is no error.
    let mut child = place
        .client(&place.admin_token())
        .arg("openapi")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
}

/// A repository with a commit.
fn repository(place: &Place) -> String {
    let (repo, tree) = (place.dir.path().join("repo"), place.dir.path().join("tree"));
    std::fs::create_dir_all(tree.join("usr")).unwrap();
    let (of, tree) = (format!("--repo={}", repo.display()), format!("--tree=dir={}", tree.display()));
    let ostree = |words: &[&str]| good(std::process::Command::new("ostree").arg(&of).args(words));
    ostree(&["init", "--mode=archive"]);
    ostree(&["commit", "--branch", "lab/x86_64/stable", &tree, "--add-metadata-string=version=1.20"]);
    repo.display().to_string()
}

#[tokio::test]
async fn releases_images_locks_and_clusters_speak_table_json_and_yaml() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let repo = repository(&place);
    let upstream = format!("file://{repo}");
    let hand = Hand::admin(&place);
    for tag in ["table", "json", "yaml", "kept"] {
        hand.image("team/app", tag, tag.as_bytes()).await;
    }
    let lease = json!({"client_params": {"id": "node1", "group": "workers"}}).to_string();
    let asked = place.https().build().unwrap().post(place.api_url("/v1/pre-reboot")).body(lease);
    assert!(asked.header("fleet-lock-protocol", "true").send().await.unwrap().status().is_success());
    let file = cluster::write(&place, &cluster::file(&[1], ""));

    // What changes something says the same in every form, as far as it can be done three times.
    let mirror = ["--from", &upstream, "--ref", "lab/x86_64/stable", "--insecure-unsigned", "--every", "7d"];
    for (args, shown) in [
        (&["channel", "publish", "stable", "--ostree", &repo][..], "stable: release 1 is 1.20"),
        (&["channel", "promote", "stable", "--to", "testing"], "testing: release 1 is 1.20"),
        (&["channel", "mark", "stable", "1", "--rollout", "48h"], "rolled out over 2d"),
        (&["channel", "prune", "stable", "--keep", "1", "--dry-run"], "stable: "),
        (&[&["channel", "mirror", "followed"][..], &mirror].concat(), "followed: follows lab/x86_64/stable"),
        (&["channel", "mirror", "followed", "--now"], "last success:"),
        (&["registry", "delete", "team/app:{}"], "the tag is gone"),
        (&["registry", "gc", "--dry-run"], "would free"),
        (&["registry", "gc"], "freed"),
        (&["rule", "set", "r1", "--mac", "52:54:00:0f:*"], "rule r1 is set"),
        (&["cluster", "apply", "-f", &file], "rack7"),
        (&["cluster", "list"], "rack7"),
        (&["cluster", "status", "rack7"], "cp1"),
    ] {
        let (json, yaml) = spoken(&place, args, shown);
        let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<BTreeSet<_>>());
        assert_eq!((json.is_array(), keys(&json)), (yaml.is_array(), keys(&yaml)), "{args:?}");
    }
    eventually("w1 is taken", async || place.cli(&["machine", "show", "w1"]).status.success().then_some(())).await;
    for (args, shown) in [
        (&["channel", "list"][..], "stable"),
        (&["channel", "show", "stable"], "rolled out over 2d"),
        (&["channel", "explain", "stable", "w1"], "has not said which deployment it runs"),
        (&["channel", "unknown", "stable"], "Nothing found."),
        (&["channel", "mirror", "followed"], "takes:"),
        (&["registry", "list"], "team/app"),
        (&["registry", "tags", "team/app"], "kept"),
        (&["lock", "list"], "node1"),
        (&["cluster", "diff", "-f", &file], "rack7"),
        (&["cluster", "snapshot", "list", "rack7"], "Nothing found."),
        (&["upgrade", "history", "rack7"], "Nothing found."),
        (&["upgrade", "explain", "w1"], "rack7 was never upgraded"),
    ] {
        let (json, yaml) = spoken(&place, args, shown);
        assert_eq!(json, yaml, "{args:?}");
    }
    // What only takes something away has nothing to show in another form, and says so before it does it.
    for args in [
        &["channel", "mirror", "followed", "--off"][..],
        &["lock", "release", "workers", "node1"],
        &["rule", "remove", "r1"],
    ] {
        let refused = place.cli(&[args, &["-o", "json"]].concat());
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {}", text(&refused.stdout));
        assert!(place.ok(args).lines().count() == 1, "{args:?}");
    }
}

/// As the README has them.
#[tokio::test]
async fn exit_codes_tell_a_failure_from_wrong_words_and_wrong_input() {
    let place = Place::new();
    let code = |args: &[&str]| run(place.nkd().args(args)).status.code();
    let file = |name: &str, text: &str| {
        let path = place.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (words, empty) = (file("words", "no certificate"), file("empty", ""));
    let broken = file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let nowhere = format!("https://{}:1", place.ip);
    for (args, expected) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["completion", "bash"], 0),
        (&["status", "--server", &nowhere, "--token", "t"], 1),
        (&["login", "--server", &nowhere, "--token", "t"], 1),
        (&[], 2),
        (&["machine"], 2),
        (&["machine", "list", "--nonsense"], 2),
        (&["channel", "prune", "stable"], 2),
        (&["channel", "mirror", "a", "--from", "b", "--ref", "c", "--every", "sometimes"], 2),
        (&["upgrade", "start", "rack7", "--os-only", "--kubernetes-only"], 2),
        (&["serve", "--set", "no-value"], 2),
        (&["login"], 2),
        (&["cluster", "template", "--platform", "metal", "--name", "Rack 7"], 2),
        (&["status"], 64),
        (&["status", "--server", &nowhere], 64),
        (&["status", "--server", "http://192.0.2.1", "--token", "t"], 64),
        (&["login", "--server", "nowhere", "--token", "t"], 64),
        (&["status", "--server", &nowhere, "--token", "t", "--ca", "/nonexistent"], 64),
        (&["status", "--server", &nowhere, "--token", "t", "--ca", &words], 64),
        (&["status", "--server", &nowhere, "--token", "t", "--ca", &broken], 64),
        (&["status", "--server", &nowhere, "--token", "two words"], 64),
        (&["login", "--server", &nowhere, "--token-file", &empty], 64),
        (&["login", "--server", &nowhere, "--token-file", "/nonexistent"], 64),
        (&["cluster", "check", "-f", "/nonexistent"], 64),
        (&["cluster", "check", "-f", &words], 64),
        (&["cluster", "import", &words], 64),
        (&["backup", "/nonexistent/backup", "--state-dir", "/nonexistent"], 64),
        (&["restore", "/nonexistent", "--state-dir", "/nonexistent"], 64),
        (&["restore", &words, "--state-dir", "/nonexistent"], 64),
        (&["serve", "--set", "dhcp.mode=loud"], 64),
        (&["serve", "--config", "/nonexistent"], 64),
    ] {
        assert_eq!(code(args), Some(expected), "{args:?}");
    }
    let _service = place.start().await;
    for (args, expected) in [
        (&["status"][..], 0),
        (&["machine", "show", "nobody"], 1),
        // What the service refuses is a failure, whatever was wrong.
        (&["machine", "list", "--label", "no-value"], 1),
        (&["status", "--token", "wrong"], 1),
        (&["rule", "set", "--mac", "52:54:00:*"], 2),
        (&["rule", "set", "--file", "/nonexistent"], 64),
        (&["rule", "set", "--file", &words], 64),
        (&["machine", "accept", "--label", "no-value"], 2),
        (&["machine", "assign", "n1"], 2),
        (&["cluster", "apply", "-f", &words], 64),
    ] {
        let output = place.cli(args);
        assert_eq!(output.status.code(), Some(expected), "{args:?}: {}", text(&output.stderr));
    }
}

#[tokio::test]
async fn errors_say_what_to_do_next() {
    let place = Place::new();
    let out = place.nkd().args(["machine", "list"]).output().unwrap();
    assert_eq!(out.status.code(), Some(64));
    assert!(text(&out.stderr).contains("nkd login"), "{}", text(&out.stderr));
    let _service = place.start().await;
    place.import().await;
    for (args, words) in [
        (&["machine", "show", "nobody"][..], "nkd machine list"),
        (&["machine", "assign", "nobody", "--image", "lab-1"], "nkd machine list"),
        (&["machine", "declare", "n1", "--mac", "52:54:00:0e:00:02", "--image", "none"], "nkd image list"),
        (&["image", "show", "none"], "no image"),
        (&["image", "import", "/nonexistent"], "/nonexistent"),
        (&["rule", "remove", "none"], "no rule"),
        (&["user", "remove", "none"], "no user"),
        (&["channel", "show", "none"], "nkd channel list"),
        (&["channel", "unknown", "none"], "nkd channel list"),
        (&["channel", "mark", "none", "1", "--barrier", "true"], "nkd channel list"),
        (&["channel", "promote", "none", "--to", "other"], "nkd channel list"),
        (&["channel", "prune", "none", "--keep", "1"], "nkd channel list"),
        (&["channel", "mirror", "none"], "nkd channel "),
        (&["channel", "mirror", "none", "--now"], "nkd channel "),
        (&["channel", "mirror", "none", "--off"], "nkd channel "),
        (&["channel", "publish", "new", "--ostree", "/nonexistent"], "/nonexistent"),
        (&["channel", "explain", "none", "nobody"], "nkd machine list"),
        (&["registry", "tags", "none"], "nkd registry list"),
        (&["registry", "delete", "none"], "nkd registry list"),
        (&["registry", "delete", "none:1"], "nkd registry "),
        (&["lock", "release", "workers", "node1"], "nkd lock list"),
        (&["cluster", "status", "none"], "nkd cluster list"),
        (&["cluster", "snapshot", "list", "none"], "nkd cluster list"),
        (&["cluster", "snapshot", "take", "none"], "nkd cluster list"),
        (&["cluster", "snapshot", "get", "none", "01890000-0000-7000-8000-000000000000"], "nkd cluster list"),
        (&["upgrade", "start", "none"], "nkd cluster list"),
        (&["upgrade", "status", "none"], "nkd cluster list"),
        (&["upgrade", "history", "none"], "nkd cluster list"),
        (&["upgrade", "retry", "none"], "nkd cluster list"),
        (&["upgrade", "explain", "nobody"], "nkd machine list"),
    ] {
        let out = place.cli(args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains(words) && out.stdout.is_empty(), "{args:?}: {said}");
    }
    let file = place.settings_file().display().to_string();
    let said = text(&place.cli(&["machine", "list", "--ca", &file]).stderr);
    assert!(said.contains(&format!("{file}: no CA certificate can be read from it")), "{said}");
    let out = place.cli_as("wrong", &["machine", "list"]);
    assert!(text(&out.stderr).contains("nkd login"), "{}", text(&out.stderr));
    let mut other = place.client(&place.admin_token());
    let out = other.env("NKD_SERVER", format!("https://{}:1", place.ip)).args(["status"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cannot be reached"), "{}", text(&out.stderr));
}

#[tokio::test]
async fn login_is_remembered_in_private_and_forgotten() {
    let place = Place::new();
    let _service = place.start().await;
    let token_file = place.first_token_file();
    let login = |file: &std::path::Path| {
        let mut command = place.nkd();
        command.args(["login", "--server", &place.api_url(""), "--ca"]).arg(place.state().join("ca.pem"));
        command.arg("--token-file").arg(file).output().unwrap()
    };
    let wrong = place.dir.path().join("wrong");
    std::fs::write(&wrong, "wrong").unwrap();
    assert_eq!(login(&wrong).status.code(), Some(1), "a token that does not work is not remembered");
    for (token, words) in
        [("two\nlines", "it has 2 lines"), ("two words", "there are blanks in it"), ("\n", "is empty")]
    {
        std::fs::write(&wrong, token).unwrap();
        let said = text(&login(&wrong).stderr);
        let start = format!("error: {}: one line is expected, with the token alone", wrong.display());
        assert!(said.starts_with(&start) && said.contains(words) && !said.contains("two "), "{said}");
    }
    let remembered = place.dir.path().join("cli.json");
    assert!(!remembered.exists());
    let out = login(&token_file);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("you are admin"), "{}", text(&out.stdout));
    assert_eq!(mode(&remembered), 0o600);
    assert!(place.nkd().args(["status"]).output().unwrap().status.success());
    assert!(place.nkd().args(["logout"]).output().unwrap().status.success());
    assert!(!remembered.exists());
    assert_eq!(place.nkd().args(["status"]).output().unwrap().status.code(), Some(64));
    assert!(place.nkd().args(["logout"]).output().unwrap().status.success(), "twice is no error");
}

#[tokio::test]
async fn a_watch_shows_changes_and_survives_a_restart() {
    let place = Place::new();
    let service = place.start().await;
    let (lines, seen) = channel();
    let mut watches = Vec::new();
    for args in [&["machine", "list", "--watch"][..], &["machine", "events", "--watch", "-o", "json"]] {
        let mut child =
            place.client(&place.admin_token()).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (out, lines, first) = (child.stdout.take().unwrap(), lines.clone(), args[1].to_owned());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = lines.send((first.clone(), line));
            }
        });
        watches.push(super::harness::Running { child });
    }
    let wait_for = |which: &str, what: &str| {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let (from, line) = seen.recv_timeout(left).unwrap_or_else(|_| panic!("{which} never showed {what}"));
            if from == which && line.contains(what) {
                return;
            }
        }
    };
    // Both have said what there is: nothing. From now on they must show what changes.
    wait_for("list", "Nothing found");
    place.ok(&["machine", "declare", "n1", "--mac", "52:54:00:0e:01:01"]);
    wait_for("list", "n1");
    service.kill();
    let _service = place.start().await;
    place.ok(&["machine", "declare", "n2", "--mac", "52:54:00:0e:01:02"]);
    wait_for("list", "n2");
    place.ok(&["machine", "accept", "n2", "--set-label", "rack=last"]);
    wait_for("events", "rack=last");
}

#[tokio::test]
async fn strangers_are_forgotten_together_and_nobody_else() {
    let place = Place::new();
    let _service = place.start().await;
    for mac in ["52:54:00:0e:02:01", "52:54:00:0e:02:02", "52:54:00:0e:02:03"] {
        super::node::script(&place, mac).await;
    }
    place.ok(&["machine", "accept", "52:54:00:0e:02:01", "--name", "n1"]);
    place.ok(&["machine", "label", "52:54:00:0e:02:02", "rack=7"]);
    assert_eq!(place.ok(&["machine", "forget", "--unaccepted"]), "forgot 1 machines that nobody has accepted\n");
    let left = place.ok(&["machine", "list"]);
    assert!(left.contains("n1") && left.contains("m-5254000e0202") && !left.contains("0e0203"), "{left}");
    let both = place.cli(&["machine", "forget", "n1", "--unaccepted"]);
    assert!(!both.status.success() && !place.cli(&["machine", "forget"]).status.success());
}

#[tokio::test]
async fn the_token_never_travels_in_the_clear() {
    let place = Place::new();
    let _service = place.start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let out = place.cli(&["--server", &address, "status"]);
    assert!(!out.status.success() && text(&out.stderr).contains("no https address"), "{}", text(&out.stderr));
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody was asked");
}

#[tokio::test]
async fn a_backup_of_a_running_service_restores() {
    let place = Place::new();
    let service = place.start().await;
    place.import().await;
    let (config, _, _) = {
        place.ok(&["machine", "declare", "n1", "--mac", "52:54:00:0e:02:01", "--image", "lab-1"]);
        node::live(&place, "52:54:00:0e:02:01").await
    };
    let file = place.dir.path().join("backup");
    let run = |verb: &str, place: &Place| {
        place.nkd().arg(verb).arg(&file).arg("--state-dir").arg(place.state()).output().unwrap()
    };
    let out = run("backup", &place);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(mode(&file), 0o600);
    place.ok(&["machine", "declare", "later", "--mac", "52:54:00:0e:02:02"]);
    let out = run("restore", &place);
    assert_eq!(out.status.code(), Some(1), "a state is never overwritten");
    assert!(text(&out.stderr).contains("holds a state already"), "{}", text(&out.stderr));
    let token = place.admin_token();
    let (ca, other) = (place.ca(), Place::new());
    drop(service);
    let out = run("restore", &other);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let _restored = other.start().await;
    assert_eq!(other.ca(), ca, "the nodes trust it still");
    let api = other.user(&token);
    assert_eq!(api.machine("n1").await["id"], config.machine.to_string());
    assert_eq!(api.get("/api/v1/machines").await.as_array().unwrap().len(), 1);
    let thief = rcgen::KeyPair::generate().unwrap();
    let (status, _) = node::try_enroll(&other, config.machine, &config.token, &node::request(&thief)).await;
    assert_eq!(status, reqwest::StatusCode::FORBIDDEN, "a used token is used in the backup too");
    // A damaged file changes nothing.
    let bytes = std::fs::read(&file).unwrap();
    for damaged in [&bytes[..bytes.len() / 2], b"NKDBAK1\nnkd.db 99999999999999999999\n", b"", &bytes[1..]] {
        std::fs::write(&file, damaged).unwrap();
        let empty = Place::new();
        let out = run("restore", &empty);
        assert_eq!(out.status.code(), Some(64), "{}", text(&out.stdout));
        assert!(!empty.state().join("nkd.db").exists());
    }
    // Where there is no state, nothing is backed up, and nothing is made.
    let empty = Place::new();
    let said = text(&run("backup", &empty).stderr);
    let words = format!("error: there is no state of nkd in {}, for it has no nkd.db: ", empty.state().display());
    assert!(said.starts_with(&words) && said.contains("--state-dir"), "{said}");
    assert!(!empty.state().exists());
}
