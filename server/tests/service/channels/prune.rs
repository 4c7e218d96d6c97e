//! Old releases go, and nobody who needs them notices.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::harness::{self, Place, eventually};
use super::{Builder, MAC, good, node, publish, pull, refused, run, system};

fn prune(place: &Place, words: &[&str]) -> Value {
    serde_json::from_str(&place.ok(&[&["channel", "prune", "stable", "-o", "json"], words].concat())).unwrap()
}

fn numbers(list: &Value) -> Vec<u64> {
    let number = |one: &Value| one["number"].as_u64().or_else(|| one["release"].as_u64()).unwrap();
    list.as_array().unwrap().iter().map(number).collect()
}

fn served(place: &Place) -> PathBuf {
    place.state().join("ostree/lab")
}

pub(super) fn has(place: &Place, commit: &str) -> bool {
    served(place).join(format!("objects/{}/{}.commit", &commit[..2], &commit[2..])).exists()
}

pub(super) fn repo(place: &Place) -> String {
    format!("--repo={}", served(place).display())
}

/// Nothing is in the repository but what its commits need, and all of that is.
fn is_clean(place: &Place, commits: &[&str]) {
    good("ostree", &["fsck", &repo(place)]);
    let said = good("ostree", &["prune", &repo(place), "--refs-only", "--no-prune"]);
    assert!(said.contains("Would delete: 0 objects") || said.contains("No unreachable objects"), "{said}");
    let deltas = good("ostree", &["static-delta", "list", &repo(place)]);
    let known = |end: &str| commits.contains(&end) || end.starts_with('(');
    let stale: Vec<&str> = deltas.lines().filter(|line| !line.split('-').all(known)).collect();
    assert!(stale.is_empty() || deltas.contains("No static deltas"), "{deltas}");
}

/// Between a client and the service; what the service says stops after so many bytes, until it may go on.
struct Relay {
    port: u16,
    passed: Arc<AtomicUsize>,
    open: Arc<(AtomicBool, Notify)>,
}

const HELD: usize = 1 << 20;

impl Relay {
    async fn start(place: &Place) -> Self {
        let listener = tokio::net::TcpListener::bind((place.ip.as_str(), 0)).await.unwrap();
        let (port, passed) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let open = Arc::new((AtomicBool::new(false), Notify::new()));
        let service: std::net::SocketAddr = format!("{}:{}", place.ip, harness::API).parse().unwrap();
        let relay = Self { port, passed: Arc::clone(&passed), open: Arc::clone(&open) };
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // Little fits between the two, so that the service cannot be done before its client is.
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(1 << 16).unwrap();
                let service = socket.connect(service).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_service, mut to_service) = service.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_service).await });
                let (passed, open) = (Arc::clone(&passed), Arc::clone(&open));
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 14];
                    loop {
                        while passed.load(Ordering::SeqCst) >= HELD && !open.0.load(Ordering::SeqCst) {
                            open.1.notified().await;
                        }
                        match from_service.read(&mut buffer).await {
                            Ok(0) | Err(_) => return,
                            Ok(got) => {
                                passed.fetch_add(got, Ordering::SeqCst);
                                if to_client.write_all(&buffer[..got]).await.is_err() {
                                    return;
                                }
                            }
                        }
                    }
                });
            }
        });
        relay
    }

    fn go_on(&self) {
        self.open.0.store(true, Ordering::SeqCst);
        for _ in 0..100 {
            self.open.1.notify_one();
            self.open.1.notify_waiters();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_the_middle_of_a_pull_ends_well_and_then_the_objects_go() {
    let place = Place::new().with("channels.grace=2");
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let big = |name: &str| PathBuf::from(builder.path("tree")).join(name);
    for name in ["a", "b", "c", "d"] {
        good("dd", &["if=/dev/urandom", &format!("of={}", big(name).display()), "bs=1M", "count=12", "status=none"]);
    }
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    for name in ["a", "b", "c", "d"] {
        std::fs::remove_file(big(name)).unwrap();
    }
    let two = builder.build("2", b"two", &[]);
    publish(&place, &builder, &[]);
    let three = builder.build("3", b"three", &[]);
    publish(&place, &builder, &[]);

    let relay = Relay::start(&place).await;
    let slow = system(&place, "slow");
    let url = format!("https://{}:{}/ostree/lab", place.ip, relay.port);
    let config = PathBuf::from(slow.trim_start_matches("--repo=")).join("config");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&place.api_url("/ostree/lab"), &url)).unwrap();
    let mut words = Command::new("ostree");
    words.args(["pull", &slow, "--disable-static-deltas", "nkd", &one]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let client = words.spawn().unwrap();
    let passed = Arc::clone(&relay.passed);
    eventually("the client is in the middle of it", async || (passed.load(Ordering::SeqCst) >= HELD).then_some(()))
        .await;

    let pruned = prune(&place, &["--keep", "1"]);
    assert_eq!(numbers(&pruned["retired"]), [1, 2]);
    let refs = good("ostree", &["refs", &repo(&place)]);
    assert!(!refs.contains("nkd/stable/1") && refs.contains("nkd/stable/3"), "{refs}");
    // What nobody reads goes when its time has come; what is being read does not.
    eventually("release 2 is gone", async || (!has(&place, &two)).then_some(())).await;
    assert!(has(&place, &one), "a client reads it");
    relay.go_on();
    let output = tokio::task::spawn_blocking(move || client.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    good("ostree", &["fsck", &slow]);
    assert_eq!(good("ostree", &["cat", &slow, &one, "/usr/bin/system"]), "one");

    eventually("release 1 is gone", async || (!has(&place, &one)).then_some(())).await;
    // The summary is written after the objects have gone.
    eventually("the retired are forgotten", async || {
        let summary = good("ostree", &["summary", &repo(&place), "-v"]);
        (!summary.contains(&one) && !summary.contains(&two)).then_some(())
    })
    .await;
    is_clean(&place, &[&three]);
    assert!(pull(&system(&place, "late"), &three).status.success());
    refused(&pull(&system(&place, "later"), &one), "404");

    // Numbers never come twice, and the trail knows what went.
    builder.build("4", b"four", &[]);
    assert_eq!(publish(&place, &builder, &[])["number"], 4);
    let trail = place.ok(&["audit"]);
    assert!(trail.contains("channel.prune") && trail.contains("channel.retire"), "{trail}");
    assert!(trail.contains("stable 1") && trail.contains(&one), "{trail}");
}

#[tokio::test]
async fn what_somebody_needs_stays_and_says_why() {
    let place = Place::new().with("channels.grace=10");
    let _service = place.start().await;
    let builder = Builder::new(&place);
    place.import().await;
    place.admin().declare("n1", MAC).await;
    let (_, _, node) = node::install(&place, MAC).await;
    let runs = async |commit: &str| {
        let facts = json!({"architecture": "x86_64", "bootedDeployment": commit});
        node.report(&place, json!({"kind": "facts", "facts": facts})).await;
    };
    let mut commits = Vec::new();
    for (version, more) in [("1", &[][..]), ("2", &["--barrier"]), ("3", &[]), ("4", &[]), ("5", &[])] {
        commits.push(builder.build(version, version.as_bytes(), &[]));
        publish(&place, &builder, more);
    }
    place.ok(&["channel", "promote", "stable", "3", "--to", "slow"]);
    runs(&commits[0]).await;
    refused(&place.cli(&["channel", "prune", "stable", "--keep", "0"]), "at least the newest release stays");
    refused(&place.cli(&["channel", "prune", "none", "--keep", "1"]), "there is no channel `none`");
    let said = place.ok(&["channel", "prune", "stable", "--keep", "1", "--dry-run"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "stable: release 1, 1: stays: n1 runs it",
            "stable: release 2, 2: stays: it is a barrier, and n1 runs release 1, which is older",
            "stable: release 3, 3: stays: the channel slow has it as release 1: prune that one first",
            "stable: release 4, 4: would be retired",
        ]
    );
    assert_eq!(place.ok(&["channel", "show", "stable"]).lines().count(), 6, "nothing has changed");
    let pruned = prune(&place, &["--keep", "1"]);
    assert_eq!((numbers(&pruned["retired"]), numbers(&pruned["kept"])), (vec![4], vec![1, 2, 3]));
    let explained = place.ok(&["channel", "explain", "stable", "n1"]);
    assert!(explained.starts_with("n1: from release 1 to release 2"), "{explained}");

    // The machine has gone on, but runs what is on no list any more: its objects stay as long as it does.
    runs(&commits[3]).await;
    let pruned = prune(&place, &["--keep", "1"]);
    assert_eq!((numbers(&pruned["retired"]), numbers(&pruned["kept"])), (vec![1, 2], vec![3]));
    eventually("release 2 is gone", async || (!has(&place, &commits[1])).then_some(())).await;
    assert!(has(&place, &commits[3]) && has(&place, &commits[2]));
    runs(&commits[4]).await;
    eventually("release 4 is gone", async || (!has(&place, &commits[3])).then_some(())).await;
    eventually("it is all done", async || {
        let deltas = good("ostree", &["static-delta", "list", &repo(&place)]);
        (!deltas.contains(&commits[3])).then_some(())
    })
    .await;
    is_clean(&place, &[&commits[2], &commits[4]]);
}

/// A system that only asks for the graph, as stock zincati does, is no machine of the service: its release stays all the same,
/// though the service was killed since.
#[tokio::test]
async fn what_a_stranger_runs_who_asks_for_the_graph_stays() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let mut commits = Vec::new();
    for version in ["1", "2", "3"] {
        commits.push(builder.build(version, version.as_bytes(), &[]));
        publish(&place, &builder, &[]);
    }
    let http = place.https().build().unwrap();
    let query = format!("/v1/graph?basearch=x86_64&stream=stable&node_uuid=0a0b&os_checksum={}", commits[0]);
    let edges = async || {
        let graph: Value = http.get(place.api_url(&query)).send().await.unwrap().json().await.unwrap();
        graph["edges"].clone()
    };
    let before = edges().await;
    assert!(before.as_array().is_some_and(|edges| edges.iter().any(|edge| edge[0] == 0)), "{before}");
    service.kill();
    let _service = place.start().await;
    let said = place.ok(&["channel", "prune", "stable", "--keep", "1", "--dry-run"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("stable: release 1, 1: stays: a system that asks for the graph (0a0b) ran it on "),
        "{said}"
    );
    assert_eq!(lines[1..], ["stable: release 2, 2: would be retired"]);
    let pruned = prune(&place, &["--keep", "1"]);
    assert_eq!((numbers(&pruned["retired"]), numbers(&pruned["kept"])), (vec![2], vec![1]));
    assert_eq!(edges().await, json!([[0, 1]]), "it is led on");
}

#[tokio::test]
async fn a_service_that_is_killed_goes_on_with_it() {
    let place = Place::new().with("channels.grace=1");
    let service = place.start().await;
    let builder = Builder::new(&place);
    let mut commits = Vec::new();
    for version in ["1", "2", "3"] {
        commits.push(builder.build(version, version.as_bytes(), &[]));
        publish(&place, &builder, &[]);
    }
    prune(&place, &["--keep", "1"]);
    service.kill();
    // Killed before the refs went, after one commit went and before what was in it did.
    for (number, commit) in [("1", &commits[0]), ("2", &commits[1])] {
        if has(&place, commit) {
            good("ostree", &["refs", &repo(&place), "--force", &format!("--create=nkd/stable/{number}"), commit]);
        }
    }
    let first = served(&place).join(format!("objects/{}/{}.commit", &commits[0][..2], &commits[0][2..]));
    if first.exists() {
        std::fs::remove_file(served(&place).join("refs/heads/nkd/stable/1")).unwrap();
        std::fs::remove_file(first).unwrap();
    }
    let _service = place.start().await;
    eventually("release 2 is gone", async || (!has(&place, &commits[1])).then_some(())).await;
    eventually("so is what was in release 1", async || {
        let said = run("ostree", &["prune", &repo(&place), "--refs-only", "--no-prune"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let refs = good("ostree", &["refs", &repo(&place)]);
        let is_done = said.contains("Would delete: 0 objects") || said.contains("No unreachable objects");
        (is_done && !refs.contains("nkd/stable/1")).then_some(())
    })
    .await;
    is_clean(&place, &[&commits[2]]);
    assert!(pull(&system(&place, "node"), &commits[2]).status.success());
}
