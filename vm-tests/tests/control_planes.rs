//! Three control planes: the cluster goes on without any one of them. Nodes reach the API through their own balancer.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which waits")]

use std::time::{Duration, Instant};

use nkd_vm_tests::{ClusterFile, ClusterLab, Error, Node, bridge_pods, within};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

const CLUSTER: &str = "rack7";
const KUBECONFIG: &str = "/root/kubeconfig";

/// Tries until it succeeds or the limit is over; how long it took.
fn until<T>(limit: Duration, mut work: impl FnMut() -> Result<T>) -> Result<(T, Duration)> {
    let begin = Instant::now();
    loop {
        match work() {
            Ok(done) => return Ok((done, begin.elapsed())),
            Err(error) if begin.elapsed() >= limit => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

fn expect(what: &str, fits: bool, got: impl std::fmt::Display) -> Result {
    match fits {
        true => Ok(()),
        false => Err(Error::Unexpected { what: what.to_owned(), got: got.to_string() }),
    }
}

/// kubectl on a node, through the balancer of that node.
fn kubectl(node: &Node, words: &str) -> Result<String> {
    let server = "--server https://127.0.0.1:7443 --request-timeout 15s";
    node.shell(&format!("kubectl --kubeconfig {KUBECONFIG} {server} {words}"), within(30))
}

/// Names of the nodes that are Ready, in order.
fn ready_nodes(node: &Node) -> Result<String> {
    let nodes = kubectl(node, "get nodes --no-headers")?;
    let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready"));
    Ok(ready.filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>().join(" "))
}

fn expect_balancer(node: &Node, backends: &[&str]) -> Result {
    let text = node.read_file("/etc/nkd/balancer.json")?;
    let config: Value = serde_json::from_slice(&text).unwrap();
    expect(
        &format!("the balancer of {} knows {backends:?}", node.name()),
        config["backends"] == serde_json::json!(backends),
        config,
    )
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn any_one_of_three_control_planes_may_lose_its_power() -> Result {
    let lab = ClusterLab::start("control-planes")?;
    let file = ClusterFile::named(CLUSTER).control_planes(3).workers(1);
    lab.apply(&file)?;
    let mut nodes = file.members().iter().map(|member| lab.node(member)).collect::<Result<Vec<Node>>>()?;
    bridge_pods(&mut nodes.iter_mut().collect::<Vec<_>>())?;
    lab.wait_ready(CLUSTER, within(1200))?;
    let mut worker = nodes.pop().unwrap();
    let mut planes = nodes;

    // Every node has heard of all of them, the worker that joined when there was one too.
    let backends = ["192.0.2.11:6443", "192.0.2.12:6443", "192.0.2.13:6443"];
    for node in planes.iter().chain([&worker]) {
        until(within(120), || expect_balancer(node, &backends))?;
        node.expect_unit_active("nkd-balancer", within(20))?;
    }
    let status = lab.nkd.json(&lab.net, &["cluster", "status", CLUSTER])?;
    assert_eq!(status["endpoints"], serde_json::json!(backends));

    let config = lab.nkd(&["cluster", "kubeconfig", CLUSTER])?;
    worker.write_file(KUBECONFIG, 0o600, config.as_bytes())?;
    assert_eq!(ready_nodes(&worker)?, "cp1 cp2 cp3 w1");
    for plane in &mut planes {
        let name = plane.name().to_owned();
        plane.power_cut()?;
        // Nobody has closed the connections that led there. The API answers and writes all the same.
        let write = || kubectl(&worker, &format!("create configmap while-{name}-is-off --from-literal a=b"));
        let (_, took) = until(within(90), write)?;
        eprintln!("{name} is off: a write went through after {} s", took.as_secs());
        let others: Vec<&str> = ["cp1", "cp2", "cp3", "w1"].into_iter().filter(|other| **other != name).collect();
        let left =
            || expect("all other nodes are Ready", ready_nodes(&worker)? == others.join(" "), ready_nodes(&worker)?);
        let ((), took) = until(within(300), left)?;
        eprintln!("{name} is off: it is not Ready and all others are, after {} s", took.as_secs());
        // And so they stay: kubelets renew their leases elsewhere now.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_secs(2));
            left()?;
        }
        // From outside too.
        let status =
            lab.wait_for(CLUSTER, "the cluster is degraded", within(90), |s| s["health"]["state"] == "degraded")?;
        assert!(status["health"]["reasons"].to_string().contains(&name), "{status:#}");
        let config = lab.nkd(&["cluster", "kubeconfig", CLUSTER])?;
        let current = config.lines().find(|line| line.starts_with("current-context:")).unwrap();
        assert!(!current.contains(&name), "{current}");
        assert_eq!(config.matches("server: ").count(), 3, "an operator can choose another one");
        // No disk of the two that are left may go now.
        for other in others.iter().filter(|other| **other != "w1") {
            let refused = lab.nkd(&["machine", "reinstall", other]).expect_err("etcd would lose its majority");
            let why = format!("without {other}, 1 of 2 members of etcd would be healthy, and 2 are needed");
            assert!(refused.to_string().contains(&why), "{refused}");
        }

        plane.power_on()?;
        lab.wait_ready(CLUSTER, within(400))?;
        let url = format!("https://{}:6443/readyz", plane.address());
        let answers = || {
            let answer = lab.host.curl(&["-k", &url], within(20))?;
            expect(&format!("{name} serves the API again"), answer.status == 200, answer.text())
        };
        let ((), took) = until(within(300), answers)?;
        eprintln!("{name} is on and serves the API again after {} s", took.as_secs());
    }
    assert_eq!(ready_nodes(&worker)?, "cp1 cp2 cp3 w1");
    // No agent, and a balancer all the same; also after a start with nobody there to tell it anything.
    worker.shell("systemctl disable --now nkd-agent", within(30))?;
    worker.power_cut()?;
    worker.power_on()?;
    until(within(120), || expect("all are Ready", ready_nodes(&worker)? == "cp1 cp2 cp3 w1", ""))?;
    Ok(())
}
