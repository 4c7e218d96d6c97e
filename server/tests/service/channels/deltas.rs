//! Differences from what machines really run.

use serde_json::json;

use super::harness::{Place, eventually};
use super::{Builder, MAC, REF, good, node, noise, publish, run, system};

/// An agent fetches a difference as one, and applies it without a network.
#[tokio::test]
async fn a_difference_holds_large_files_too() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let two = builder.build("2", &noise(1, 6 << 20), &[]);
    publish(&place, &builder, &[]);
    let ours = place.state().join("ostree/lab");
    let node = format!("--repo={}", place.dir.path().join("node").display());
    good("ostree", &["init", &node, "--mode=bare-user"]);
    good("ostree", &["pull-local", &node, ours.to_str().unwrap(), &one]);
    let folders = good("find", &[ours.join("deltas").to_str().unwrap(), "-name", "superblock", "-printf", "%h\n"]);
    assert_eq!(folders.lines().count(), 1, "{folders}");
    good("ostree", &["static-delta", "apply-offline", &node, folders.trim()]);
    good("ostree", &["fsck", &node]);
    assert!(good("ostree", &["ls", &node, &two, "/usr/bin/system"]).contains(&(6 << 20).to_string()));
}

#[tokio::test]
async fn a_machine_that_is_far_behind_moves_few_bytes_too() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    place.import().await;
    place.admin().declare("n1", MAC).await;
    let (_, _, node) = node::install(&place, MAC).await;
    let mut content = noise(1, 1 << 18);
    let mut build = |version: &str| {
        content[..50].copy_from_slice(&noise(u64::from(version.as_bytes()[0]), 50));
        let commit = builder.build(version, &content, &[]);
        publish(&place, &builder, &[]);
        commit
    };
    let (one, two, three) = (build("1"), build("2"), build("3"));
    let repo = format!("--repo={}", place.state().join("ostree/lab").display());
    let deltas = || good("ostree", &["static-delta", "list", &repo]);
    assert!(deltas().contains(&format!("{two}-{three}")) && !deltas().contains(&format!("{one}-{three}")));

    let facts = json!({"architecture": "x86_64", "bootedDeployment": one});
    node.report(&place, json!({"kind": "facts", "facts": facts})).await;
    // It is there for nodes when the summary has it.
    let client = system(&place, "node");
    good("ostree", &["pull", &client, "nkd", &one]);
    good("ostree", &["refs", &client, &format!("--create=nkd:{REF}"), &one]);
    eventually("the difference is made", async || {
        deltas().contains(&format!("{one}-{three}")).then_some(())?;
        run("ostree", &["pull", &client, "--require-static-deltas", "nkd", REF]).status.success().then_some(())
    })
    .await;
    assert_eq!(good("ostree", &["rev-parse", &client, &format!("nkd:{REF}")]).trim(), three);

    let four = build("4");
    let there = deltas();
    assert!(there.contains(&format!("{one}-{four}")) && there.contains(&format!("{three}-{four}")), "{there}");
    assert!(!there.contains(&format!("{two}-{four}")), "nobody runs that: {there}");

    // A system that is no machine of ours asks for the graph.
    let http = place.https().build().unwrap();
    let graph = format!("/v1/graph?basearch=x86_64&stream=stable&os_checksum={two}&node_uuid=0a0b");
    assert_eq!(http.get(place.api_url(&graph)).send().await.unwrap().status(), 200);
    let five = build("5");
    let there = deltas();
    assert!(there.contains(&format!("{two}-{five}")) && there.contains(&format!("{one}-{five}")), "{there}");
}
