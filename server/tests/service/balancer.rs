//! What a service tells the nodes of a cluster, to simulated nodes: no Kubernetes.

use nkd_api::cluster::ClusterStatus;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, eventually};
use super::node;

const MACS: [&str; 2] = ["52:54:00:aa:0c:01", "52:54:00:aa:0c:02"];

fn document(endpoint: Option<&str>) -> Value {
    let machine =
        |n: usize| json!({"mac": MACS[n], "hostname": format!("cp{}", n + 1), "ip": format!("192.0.2.{}/24", 11 + n)});
    let mut spec = json!({
        "os": {"profile": "lab", "image": "lab-1"},
        "kubernetes": {"version": "v1.20.2"},
        "pools": [{"name": "cp", "role": "control-plane", "machines": [machine(0), machine(1)]}],
    });
    if let Some(endpoint) = endpoint {
        spec["endpoint"] = json!(endpoint);
    }
    json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"}, "spec": spec})
}

/// The order of the first control plane's init, and both nodes.
async fn ordered(place: &Place, endpoint: Option<&str>) -> (Value, [node::Enrolled; 2]) {
    place.import().await;
    let (status, body) = place.admin().call(Method::PUT, "/api/v1/clusters", Some(&document(endpoint))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    eventually("machines are taken", async || {
        let status: ClusterStatus = serde_json::from_value(place.admin().get("/api/v1/clusters/rack7").await).unwrap();
        status.members.iter().all(|member| member.machine.is_some()).then_some(())
    })
    .await;
    let second = node::enroll_installed(place, MACS[1]).await.2;
    let first = node::enroll_installed(place, MACS[0]).await.2;
    let operation = eventually("init is ordered", async || {
        let task = first.task(place).await;
        task["operation"].as_str().map(str::to_owned)
    })
    .await;
    let path = format!("/agent/v1/kubeadm?operation={operation}");
    let (status, order) = first.call(place, Method::GET, &path, None).await;
    assert_eq!(status, StatusCode::OK, "{order}");
    (order, [first, second])
}

fn balancer(order: &Value) -> Option<Value> {
    let files = order["files"].as_array().unwrap();
    let file = files.iter().find(|file| file["path"] == "/etc/nkd/balancer.json")?;
    assert_eq!(file["mode"], 0o644, "a user without rights reads it");
    Some(serde_json::from_str(file["contents"].as_str().unwrap()).unwrap())
}

#[tokio::test]
async fn the_balancer_comes_with_the_order_and_nodes_that_wait_hear_of_control_planes() {
    let place = Place::new();
    let _service = place.start().await;
    let (order, [first, second]) = ordered(&place, None).await;
    let balancer = balancer(&order).unwrap();
    assert_eq!(balancer["backends"], json!(["192.0.2.11:6443"]), "before there is a cluster, only itself");
    let ca = order["files"].as_array().unwrap().iter().find(|f| f["path"] == "/etc/kubernetes/pki/ca.crt").unwrap();
    assert_eq!(balancer["ca"], ca["contents"]);
    assert!(
        order["config"].as_str().unwrap().contains("controlPlaneEndpoint: 127.0.0.1:7443\n"),
        "{}",
        order["config"]
    );
    assert_eq!(order["restart"], json!(["containerd", "nkd-balancer.service"]));

    // The other node's question is held while the first one becomes the cluster's first API server.
    let (_, task) = second.call(&place, Method::GET, "/agent/v1/task", None).await;
    assert!(task.get("apiServers").is_none(), "{task}");
    let held = format!("/agent/v1/task?wait=60&seen={}", task["revision"].as_str().unwrap());
    let done = json!({"kind": "kubeadm", "operation": order["operation"], "progress": {"state": "done"}});
    let (held, told) = tokio::join!(second.call(&place, Method::GET, &held, None), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        first.report(&place, done).await
    });
    assert_eq!(told.0, StatusCode::OK, "{}", told.1);
    assert_eq!(held.1["apiServers"], json!(["192.0.2.11:6443"]), "{held:?}");
    assert_eq!(held.1["task"]["do"], "run");
    let status = place.admin().get("/api/v1/clusters/rack7").await;
    assert_eq!(status["endpoints"], json!(["192.0.2.11:6443"]), "from outside there is no balancer");
}

#[tokio::test]
async fn a_cluster_with_an_endpoint_of_its_own_has_no_balancer() {
    let place = Place::new();
    let _service = place.start().await;
    let (order, [first, _]) = ordered(&place, Some("api.rack7.example")).await;
    assert_eq!(balancer(&order), None);
    assert_eq!(order["restart"], json!(["containerd"]));
    assert!(order["config"].as_str().unwrap().contains("controlPlaneEndpoint: api.rack7.example:6443\n"));
    let done = json!({"kind": "kubeadm", "operation": order["operation"], "progress": {"state": "done"}});
    assert_eq!(first.report(&place, done).await.0, StatusCode::OK);
    let (_, task) = first.call(&place, Method::GET, "/agent/v1/task", None).await;
    assert!(task.get("apiServers").is_none(), "{task}");
    let status = place.admin().get("/api/v1/clusters/rack7").await;
    assert_eq!(status["endpoints"], json!(["api.rack7.example:6443"]));
}
