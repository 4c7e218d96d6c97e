//! Clusters that change, as far as that goes without machines: files, refusals, and what is left.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::harness::{Place, eventually, text};

pub(super) fn file(workers: &[u8], more: &str) -> String {
    let workers: String = workers
        .iter()
        .map(|n| format!("    - {{mac: '52:54:00:00:01:0{n}', hostname: w{n}, ip: 192.0.2.2{n}/24}}\n"))
        .collect();
    format!(
        "apiVersion: nkd.io/v1alpha1\nkind: Cluster\nmetadata: {{name: rack7}}\nspec:\n  os: {{profile: lab}}\n  kubernetes: {{version: v1.20.2{more}}}\n  pools:\n  - name: cp\n    role: control-plane\n    machines:\n    - {{mac: '52:54:00:00:00:01', hostname: cp1, ip: 192.0.2.11/24}}\n  - name: w\n    role: worker\n    machines:\n{workers}"
    )
}

pub(super) fn write(place: &Place, text: &str) -> String {
    let path = place.dir.path().join("cluster.yaml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

pub(super) fn refused(place: &Place, args: &[&str]) -> String {
    let out = place.cli(args);
    assert!(!out.status.success(), "nkd {args:?} went well: {}", text(&out.stdout));
    text(&out.stderr)
}

async fn taken(place: &Place, nodes: usize) -> Value {
    let api = place.admin();
    eventually("every machine is taken", async || {
        let status = api.get("/api/v1/clusters/rack7").await;
        let members = status["members"].as_array()?.iter();
        (members.filter(|m| m["machine"].is_string()).count() == nodes).then_some(status)
    })
    .await
}

#[tokio::test]
async fn a_cluster_is_applied_changed_and_destroyed() {
    let place = Place::new();
    let _service = place.start().await;
    let path = write(&place, &file(&[1, 2], ""));
    // Without an image nothing can come of it, and that is said before a machine is powered on.
    let told = refused(&place, &["cluster", "apply", "-f", &path]);
    assert!(told.contains("spec.kubernetes.version: no image of the profile lab holds v1.20.2"), "{told}");
    place.import().await;
    assert_eq!(place.ok(&["cluster", "diff", "-f", &path]).trim(), "rack7 is new: 3 machines are wanted");
    assert!(place.ok(&["cluster", "apply", "-f", &path]).contains("3 machines are wanted"));
    taken(&place, 3).await;
    assert_eq!(place.ok(&["cluster", "apply", "-f", &path]).trim(), "rack7 is as it was");

    // What cannot change, all of it at once, and nothing is changed.
    write(&place, &file(&[1, 2], ", podSubnet: 10.9.0.0/16, runtime: cri-o"));
    let told = refused(&place, &["cluster", "apply", "-f", &path]);
    assert!(told.contains("spec.kubernetes.podSubnet") && told.contains("spec.kubernetes.runtime"), "{told}");

    // A node that would leave is not taken out by the way.
    write(&place, &file(&[2, 3], ""));
    let told = place.ok(&["cluster", "diff", "-f", &path]);
    assert!(told.contains("w3: to join") && told.contains("w1: to leave"), "{told}");
    let told = refused(&place, &["cluster", "apply", "-f", &path]);
    assert!(told.contains("w1 would leave rack7") && told.contains("--allow-removal"), "{told}");
    let told = place.ok(&["cluster", "apply", "-f", &path, "--allow-removal"]);
    assert!(told.contains("w3: to join") && told.contains("w1: to leave"), "{told}");
    let api = place.admin();
    let names = async || -> Vec<String> {
        let status = api.get("/api/v1/clusters/rack7").await;
        let members = status["members"].as_array().unwrap();
        members.iter().map(|m| m["hostname"].as_str().unwrap().to_owned()).collect()
    };
    eventually("w1 has left", async || (names().await == ["cp1", "w2", "w3"]).then_some(())).await;
    // Its machine is in the pool again, under its name.
    let machine = api.machine("w1").await;
    assert_eq!((machine["assignment"].clone(), machine["accepted"].clone()), (Value::Null, json!(true)), "{machine:#}");

    // Scaling a listed pool takes from its end; one that would need machines says so.
    assert!(place.ok(&["cluster", "scale", "rack7", "--pool", "w", "--count", "1"]).contains("w3: to leave"));
    eventually("w3 has left", async || (names().await == ["cp1", "w2"]).then_some(())).await;
    assert!(refused(&place, &["cluster", "scale", "rack7", "--pool", "x", "--count", "1"]).contains("cp, w"));
    assert!(refused(&place, &["cluster", "scale", "rack7", "--pool", "cp", "--count", "0"]).contains("control plane"));
    assert!(refused(&place, &["cluster", "remove", "rack7", "cp1"]).contains("cannot be without cp1"));
    assert!(refused(&place, &["cluster", "remove", "rack7", "w9"]).contains("has no node `w9`"));
    place.ok(&["cluster", "remove", "rack7", "w2", "--lost"]);
    eventually("w2 has left", async || (names().await == ["cp1"]).then_some(())).await;

    // Destroyed only by its name, and then nothing is left of it.
    assert!(refused(&place, &["cluster", "destroy", "rack7"]).contains("--confirm rack7"));
    assert!(refused(&place, &["cluster", "destroy", "rack7", "--confirm", "rack8"]).contains("nothing was changed"));
    place.ok(&["cluster", "destroy", "rack7", "--confirm", "rack7"]);
    eventually("the cluster is gone", async || {
        let (status, _) = api.call(reqwest::Method::GET, "/api/v1/clusters/rack7", None).await;
        (status == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    let audit = api.get("/api/v1/audit").await.to_string();
    for action in ["cluster.apply", "cluster.scale", "cluster.remove", "cluster.destroy"] {
        assert!(audit.contains(action), "{action} is not in the audit trail:\n{audit}");
    }
    // Its machines may be taken again.
    write(&place, &file(&[1], ""));
    place.ok(&["cluster", "apply", "-f", &path]);
    taken(&place, 2).await;
}

#[tokio::test]
async fn a_machine_that_a_leaving_node_still_holds_comes_to_the_new_one() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let path = write(&place, &file(&[1], ""));
    place.ok(&["cluster", "apply", "-f", &path]);
    taken(&place, 2).await;
    let members = async || -> Vec<String> {
        let status = place.admin().get("/api/v1/clusters/rack7").await;
        let members = status["members"].as_array().unwrap().iter();
        members.map(|m| format!("{} {}", m["hostname"].as_str().unwrap(), m["machine"].is_string())).collect()
    };
    place.ok(&["cluster", "scale", "rack7", "--pool", "w", "--count", "0"]);
    eventually("w1 has left", async || (members().await == ["cp1 true"]).then_some(())).await;
    // Any machine of the pool will do: w1's, under another name.
    place.ok(&["cluster", "scale", "rack7", "--pool", "w", "--count", "3"]);
    let held = "rack7-w-1 true";
    eventually("its machine is taken", async || members().await.contains(&held.to_owned()).then_some(())).await;
    let told = place.ok(&["cluster", "apply", "-f", &path, "--allow-removal"]);
    assert!(told.contains("w1: to join") && told.contains("rack7-w-3: to leave"), "{told}");
    let back = ["cp1 true", "w1 true"];
    eventually("w1 has its machine again", async || (members().await == back).then_some(())).await;
}

#[tokio::test]
async fn what_was_refused_or_failed_stands_in_the_audit_trail() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let path = write(&place, &file(&[1], ""));
    place.ok(&["cluster", "apply", "-f", &path]);
    refused(&place, &["cluster", "remove", "rack7", "cp1"]);
    refused(&place, &["image", "import", "/etc", "--name", "etc", "--profile", "lab"]);
    let made = place.ok(&["user", "create", "vera", "--role", "viewer", "-o", "json"]);
    let token = serde_json::from_str::<Value>(&made).unwrap()["token"].as_str().unwrap().to_owned();
    assert!(!place.cli_as(&token, &["cluster", "kubeconfig", "rack7"]).status.success());
    assert!(!place.cli_as("nobody", &["cluster", "kubeconfig", "rack7"]).status.success());
    let audit: Vec<Value> = serde_json::from_str(&place.ok(&["audit", "-o", "json"])).unwrap();
    let lines: Vec<String> = audit
        .iter()
        .filter(|entry| entry["action"] == "refused")
        .map(|entry| ["who", "target", "detail"].map(|field| entry[field].as_str().unwrap()).join(" "))
        .collect();
    let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["admin DELETE ", "/clusters/rack7/", "400: ", "cannot be without cp1"]), "{lines:#?}");
    assert!(has(&["admin etc image.import failed: "]), "{lines:#?}");
    assert!(has(&["vera POST /api/v1/clusters/rack7/kubeconfig 403: this takes the role"]), "{lines:#?}");
    assert_eq!(lines.len(), 3, "strangers write nothing: {lines:#?}");
}

#[tokio::test]
async fn a_viewer_sees_and_changes_nothing() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let path = write(&place, &file(&[1], ""));
    place.ok(&["cluster", "apply", "-f", &path]);
    let made = place.ok(&["user", "create", "vera", "--role", "viewer", "-o", "json"]);
    let token = serde_json::from_str::<Value>(&made).unwrap()["token"].as_str().unwrap().to_owned();
    let refused = |args: &[&str]| {
        let out = place.cli_as(&token, args);
        assert!(!out.status.success() && text(&out.stderr).contains("role"), "{args:?}: {}", text(&out.stderr));
    };
    refused(&["cluster", "apply", "-f", &path]);
    refused(&["cluster", "scale", "rack7", "--pool", "w", "--count", "0"]);
    refused(&["cluster", "remove", "rack7", "w1"]);
    refused(&["cluster", "destroy", "rack7", "--confirm", "rack7"]);
    assert!(place.cli_as(&token, &["cluster", "diff", "-f", &path]).status.success());
    assert!(place.cli_as(&token, &["cluster", "status", "rack7"]).status.success());
}
