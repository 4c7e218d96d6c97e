//! The operator in a real cluster: its image, its manifests, its rights, real nodes, pods and budgets. The agents of the nodes
//! are played by the test, which writes what they would report.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which writes files and waits")]

use std::time::{Duration, Instant};

use nkd_vm_tests::{ClusterLab, Error, budgeted_pods, within};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Error>;

const CLUSTER: &str = "rack7";
const OWN: &[&str] = &["-n", "nkd-system"];
/// What an agent says next: node, what is desired of it, what it said about that last.
type Agent = fn(&str, &Value, &str) -> Option<&'static str>;

/// An agent that does what it is told.
fn good(_: &str, desired: &Value, said: &str) -> Option<&'static str> {
    match (said, desired["go"].as_bool()) {
        ("", _) => Some("staging"),
        ("staging", Some(false)) => Some("staged"),
        ("staged" | "staging", Some(true)) => Some("upgrading"),
        ("upgrading", _) => Some("rebooting"),
        ("rebooting", _) => Some("healthy"),
        _ => None,
    }
}

/// The release does not boot on w1 the first time.
fn rolls_back_on_w1(node: &str, desired: &Value, said: &str) -> Option<&'static str> {
    match said {
        "rebooting" if node == "w1" && desired["attempt"] == 1 => Some("rolled-back"),
        _ => good(node, desired, said),
    }
}

/// It takes its time to upgrade.
fn slow(node: &str, desired: &Value, said: &str) -> Option<&'static str> {
    good(node, desired, said).filter(|_| said != "upgrading")
}

struct Scene {
    lab: ClusterLab,
    /// Nodes in the order in which they were closed.
    closed: Vec<String>,
    /// The most that were closed by the operator at once.
    most: usize,
}

impl Scene {
    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.kubectl(CLUSTER, words)
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|_| Error::Unexpected { what: "JSON".into(), got: text })
    }

    fn apply(&self, name: &str, text: &str) -> Result {
        let path = self.lab.net.folder().join(name);
        std::fs::write(&path, text).unwrap();
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    fn ask(&mut self, name: &str, more: Value) -> Result {
        let mut spec = json!({"release": {"name": name, "os": {"commit": name}, "kubernetes": "v1.21.0"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let update =
            json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": name}, "spec": spec});
        (self.closed, self.most) = (Vec::new(), 0);
        self.apply(&format!("update-{name}.json"), &update.to_string())
    }

    fn patch(&self, name: &str, spec: Value) -> Result {
        let patch = json!({"spec": spec}).to_string();
        self.kubectl(&["patch", "nkdupdate", name, "--type=merge", "-p", &patch]).map(drop)
    }

    fn status(&self, name: &str) -> Result<Value> {
        Ok(self.json(&["get", "nkdupdate", name])?["status"].clone())
    }

    fn node(&self, name: &str) -> Result<Value> {
        self.json(&["get", "node", name])
    }

    /// Every agent moves once; what happened to the nodes since is written down.
    fn play(&mut self, agent: Agent) -> Result {
        let nodes = self.json(&["get", "nodes"])?;
        let mut closed = 0;
        for node in nodes["items"].as_array().unwrap() {
            let name = node["metadata"]["name"].as_str().unwrap();
            let annotations = &node["metadata"]["annotations"];
            let read =
                |key: &str| -> Value { serde_json::from_str(annotations[key].as_str().unwrap_or("null")).unwrap() };
            if annotations["nkd.io/cordoned-by"].is_string() {
                closed += 1;
                assert_eq!(node["spec"]["unschedulable"], true, "{node:#}");
                if self.closed.last().is_none_or(|last| last != name) {
                    self.closed.push(name.to_owned());
                }
            }
            let (desired, reported) = (read("nkd.io/desired"), read("nkd.io/reported"));
            if desired.is_null() {
                continue;
            }
            let current = reported["uid"] == desired["uid"] && reported["attempt"] == desired["attempt"];
            let said = if current { reported["state"].as_str().unwrap() } else { "" };
            if let Some(state) = agent(name, &desired, said) {
                let report = json!({
                    "uid": desired["uid"], "attempt": desired["attempt"], "state": state, "detail": "as played",
                    "os": if state == "healthy" { desired["os"]["commit"].clone() } else { Value::Null }, "kubernetes": null,
                });
                self.kubectl(&["annotate", "--overwrite", "node", name, &format!("nkd.io/reported={report}")])?;
            }
        }
        self.most = self.most.max(closed);
        Ok(())
    }

    /// Plays until the update is as it should be.
    fn until(
        &mut self,
        update: &str,
        what: &str,
        agent: Agent,
        mut fits: impl FnMut(&Self, &Value) -> Result<bool>,
    ) -> Result {
        let end = Instant::now() + within(300);
        loop {
            self.play(agent)?;
            let status = self.status(update)?;
            if fits(self, &status)? {
                println!("== {what}: {}", status["conditions"][0]["message"]);
                return Ok(());
            }
            if Instant::now() >= end {
                let log = self
                    .kubectl(&[OWN, &["logs", "-l", "app.kubernetes.io/name=nkd-housekeeper", "--tail=60"]].concat());
                let pods = self.kubectl(&["get", "pods", "-A", "-o", "wide"]);
                let got = format!("{status:#}\n{}\n{}", pods.unwrap_or_default(), log.unwrap_or_default());
                return Err(Error::Unexpected { what: what.into(), got });
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

fn is(phase: &'static str) -> impl FnMut(&Scene, &Value) -> Result<bool> {
    move |_, status| Ok(status["phase"] == phase)
}

fn state(status: &Value, name: &str) -> Value {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    nodes.into_iter().find(|node| node["name"] == name).map(|node| node["state"].clone()).unwrap_or_default()
}

fn leader(scene: &Scene) -> Result<String> {
    let lease = scene.json(&[OWN, &["get", "lease", "housekeeper"]].concat())?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn nodes_are_upgraded_one_by_one_with_real_pods_budgets_and_rights() -> Result {
    let (lab, _nodes) = ClusterLab::with_housekeeper("housekeeper", CLUSTER, 2)?;
    let mut scene = Scene { lab, closed: Vec::new(), most: 0 };

    // The service has deployed it, because the cluster file asks for it.
    scene.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=50s",
        "crd/updates.nkd.io",
        "crd/updates.housekeeper.io",
    ])?;
    // Two pods that may be one.
    scene.apply("pods.yaml", &budgeted_pods("web", 2, None))?;
    scene.kubectl(&["rollout", "status", "deployment/web", "--timeout=55s"])?;
    scene.kubectl(&[OWN, &["rollout", "status", "deployment/housekeeper", "--timeout=55s"]].concat())?;

    order_budgets_and_a_leader_that_is_killed(&mut scene)?;
    budgets_that_can_never_be_met_and_cordons_of_others(&mut scene)?;
    too_many_failures(&mut scene)?;
    abort(&mut scene)?;
    upstreams_resource(&mut scene)?;
    upstreams_image_by_a_tag_that_moves(&mut scene)?;
    events(&scene)
}

fn order_budgets_and_a_leader_that_is_killed(scene: &mut Scene) -> Result {
    scene.ask("a", json!({}))?;
    let mut killed = None;
    scene.until("a", "all nodes are upgraded while the leader is killed", good, |scene, status| {
        // The budget of `web` holds in every moment.
        let web = scene.json(&["get", "deployment", "web"])?;
        assert!(web["status"]["availableReplicas"].as_u64() >= Some(1), "{web:#}");
        if killed.is_none() && state(status, "w1") == "Draining" {
            let leader = leader(scene)?;
            scene
                .kubectl(&[OWN, &["delete", "pod", &leader, "--grace-period=0", "--force", "--wait=false"]].concat())?;
            killed = Some(leader);
        }
        Ok(status["phase"] == "Complete")
    })?;
    assert_ne!(Some(leader(scene)?), killed, "another one leads");
    assert!(killed.is_some());
    assert_eq!((scene.closed.join(" "), scene.most), ("cp1 w1 w2".into(), 1));
    for (name, first) in [("cp1", true), ("w1", false), ("w2", false)] {
        let node = scene.node(name)?;
        let desired = node["metadata"]["annotations"]["nkd.io/desired"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(desired).unwrap()["first"], first, "{name}");
        assert!(node["spec"]["unschedulable"].is_null(), "{node:#}");
    }
    Ok(())
}

fn events(scene: &Scene) -> Result {
    let events = scene.kubectl(&["get", "events", "-A", "--no-headers"])?;
    for (about, reason) in [("update/a", "Complete"), ("node/w1", "Draining"), ("update/c", "Failed")] {
        let said = events.lines().any(|line| line.contains(about) && line.contains(reason));
        let log = || scene.kubectl(&[OWN, &["logs", "-l", "app.kubernetes.io/name=nkd-housekeeper"]].concat());
        assert!(said, "no event {reason} about {about}: {events}\n{}", log().unwrap_or_default());
    }
    Ok(())
}

fn budgets_that_can_never_be_met_and_cordons_of_others(scene: &mut Scene) -> Result {
    // One that may never be none.
    scene.apply("stuck.yaml", &budgeted_pods("stuck", 1, Some("w1")))?;
    scene.kubectl(&["rollout", "status", "deployment/stuck", "--timeout=55s"])?;
    scene.kubectl(&["cordon", "w2"])?;
    scene.ask("b", json!({}))?;
    scene.until("b", "w1 is held by a budget, w2 is done", good, |_, status| {
        Ok(state(status, "w1") == "Blocked" && state(status, "w2") == "Done")
    })?;
    assert_eq!(scene.closed, ["cp1"], "w1 was not closed, and w2 was closed already");
    let status = scene.status("b")?;
    let why = status["conditions"][1].to_string();
    assert!(why.contains("the disruption budget stuck never lets default/stuck-"), "{why}");
    assert_eq!(scene.node("w2")?["spec"]["unschedulable"], true, "an administrator's cordon stays");
    scene.kubectl(&["uncordon", "w2"])?;
    scene.kubectl(&["delete", "poddisruptionbudget", "stuck"])?;
    scene.until("b", "w1 goes on without the budget", good, is("Complete"))?;
    scene.kubectl(&["delete", "deployment", "stuck"]).map(drop)
}

fn too_many_failures(scene: &mut Scene) -> Result {
    scene.ask("c", json!({"strategy": {"haltAfterFailures": 1}}))?;
    scene.until("c", "w1 rolled back, and nothing begins", rolls_back_on_w1, is("Halted"))?;
    for _ in 0..10 {
        scene.play(rolls_back_on_w1)?;
    }
    assert_eq!(scene.closed.join(" "), "cp1 w1");
    let status = scene.status("c")?;
    assert!(status["conditions"].to_string().contains("w1: rolled back: as played"), "{status:#}");
    assert!(scene.node("w1")?["spec"]["unschedulable"].is_null(), "it runs what it ran before");
    scene.patch("c", json!({"retry": 1}))?;
    scene.until("c", "w1 is tried again", rolls_back_on_w1, is("Complete"))
}

fn abort(scene: &mut Scene) -> Result {
    scene.ask("d", json!({}))?;
    scene.until("d", "cp1 upgrades", slow, |_, status| Ok(state(status, "cp1") == "Upgrading"))?;
    scene.until("d", "the others wait", slow, |_, status| Ok(state(status, "w2") == "Staged"))?;
    scene.patch("d", json!({"abort": true}))?;
    scene.until("d", "the others are told nothing any more", slow, |scene, status| {
        let told = scene.node("w2")?["metadata"]["annotations"]["nkd.io/desired"].is_string();
        Ok(status["phase"] == "Aborting" && !told)
    })?;
    assert_eq!(scene.node("cp1")?["spec"]["unschedulable"], true, "it upgrades still");
    scene.until("d", "cp1 comes to its end", good, is("Aborted"))?;
    assert!(scene.node("cp1")?["spec"]["unschedulable"].is_null());
    assert_eq!(scene.closed, ["cp1"]);
    Ok(())
}

fn upstreams_resource(scene: &mut Scene) -> Result {
    let update = json!({
        "apiVersion": "housekeeper.io/v1alpha1", "kind": "Update", "metadata": {"name": "e", "namespace": "default"},
        "spec": {"osImageURL": "", "kubeVersion": "v1.21.0", "evictPodForce": true, "maxUnavailable": 1},
    });
    scene.apply("upstream.json", &update.to_string())?;
    let end = Instant::now() + within(300);
    loop {
        scene.play(good)?;
        let status = scene.json(&["get", "updates.housekeeper.io", "e"])?["status"].clone();
        if status["phase"] == "Complete" {
            return Ok(());
        }
        assert!(Instant::now() < end, "{status:#}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The tag is not there at first, and stands for another image when the first node has begun.
fn upstreams_image_by_a_tag_that_moves(scene: &mut Scene) -> Result {
    let (name, tagged) = ("os:24.03", "192.0.2.1:8443/os:24.03");
    let push = |scene: &Scene, image: &str| {
        scene.lab.nkd.push_image(&scene.lab.net, &scene.lab.kubernetes().join("images").join(image), name)
    };
    let stands_for = |scene: &Scene, digest: &str| -> Result<bool> {
        let tags = scene.lab.nkd.json(&scene.lab.net, &["registry", "tags", "os"])?;
        Ok(tags.to_string().contains(digest))
    };
    let update = json!({
        "apiVersion": "housekeeper.io/v1alpha1", "kind": "Update", "metadata": {"name": "f", "namespace": "default"},
        "spec": {"osImageURL": tagged, "evictPodForce": true, "maxUnavailable": 1},
    });
    scene.apply("by-tag.json", &update.to_string())?;
    (scene.closed, scene.most) = (Vec::new(), 0);
    let (mut refused, mut moved) = (false, false);
    let end = Instant::now() + within(400);
    let digest = loop {
        scene.play(good)?;
        let status = scene.json(&["get", "updates.housekeeper.io", "f"])?["status"].clone();
        let digest = status["image"]["digest"].as_str().map(str::to_owned);
        match &digest {
            None => {
                assert!(scene.closed.is_empty(), "a node has begun, and nobody knows with what: {status:#}");
                let why = &status["conditions"][0];
                if !refused && why["reason"] == "ImageUnknown" {
                    let said = why["message"].as_str().unwrap();
                    assert!(said.contains(tagged) && said.contains("404"), "{said}");
                    refused = true;
                    push(scene, "pause.tar")?;
                }
            }
            Some(digest) if !moved && !scene.closed.is_empty() => {
                assert!(stands_for(scene, digest)?);
                push(scene, "busybox.tar")?;
                assert!(!stands_for(scene, digest)?, "the tag has moved");
                moved = true;
            }
            Some(digest) if status["phase"] == "Complete" => break digest.clone(),
            Some(_) => {}
        }
        assert!(Instant::now() < end, "{status:#}");
        std::thread::sleep(Duration::from_millis(500));
    };
    assert!(refused && moved);
    assert_eq!((scene.closed.join(" "), scene.most), ("cp1 w1 w2".into(), 1));
    for name in ["cp1", "w1", "w2"] {
        let node = scene.node(name)?;
        let desired = node["metadata"]["annotations"]["nkd.io/desired"].as_str().unwrap();
        let desired: Value = serde_json::from_str(desired).unwrap();
        assert_eq!(desired["os"]["image"], format!("192.0.2.1:8443/os@{digest}"), "{name}");
    }
    Ok(())
}
