//! Health and certificates of a cluster on the real thing: one control plane with real kubeadm, kubelet and etcd.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{ClusterFile, ClusterLab, Error, Node, bridge_pods, within};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

const MADE: [&str; 10] = [
    "apiserver",
    "apiserver-kubelet-client",
    "apiserver-etcd-client",
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
    "front-proxy-client",
    "admin.conf",
    "controller-manager.conf",
    "scheduler.conf",
];

struct World {
    lab: ClusterLab,
    cp: Node,
}

impl World {
    fn json(&self, words: &[&str]) -> Result<Value> {
        self.lab.nkd.json(&self.lab.net, words)
    }

    fn wait_for(&self, what: &str, words: &[&str], limit: Duration, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + limit;
        loop {
            let seen = self.json(words)?;
            if fits(&seen) {
                return Ok(seen);
            }
            if Instant::now() >= end {
                let events = self.lab.nkd(&["cluster", "events", "rack7"])?;
                return Err(Error::Unexpected { what: what.into(), got: format!("{seen:#}\n{events}") });
            }
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    fn expect_health(&self, state: &str, words: &str, limit: Duration) -> Result<Value> {
        self.wait_for(&format!("{state}: {words}"), &["cluster", "status", "rack7"], limit, |status| {
            let health = &status["health"];
            health["state"] == state && health.to_string().contains(words)
        })
    }

    fn expect_event(&self, words: &str) -> Result {
        self.wait_for(&format!("the event {words}"), &["cluster", "events", "rack7"], within(60), |events| {
            events.as_array().unwrap().iter().any(|event| event["message"].as_str().unwrap().contains(words))
        })?;
        Ok(())
    }

    /// Waits for a line of the metrics.
    fn expect_metric(&self, line: &str) -> Result {
        let end = Instant::now() + within(30);
        loop {
            let mut command = Command::new("curl");
            command.args(["--silent", "--fail", "http://127.0.0.1:9090/metrics"]);
            let text = self.lab.net.run(command, within(20))?.success()?.text();
            if text.lines().any(|seen| seen == line) {
                return Ok(());
            }
            if Instant::now() >= end {
                let got = text.lines().filter(|l| l.contains("nkd_cluster")).collect::<Vec<_>>().join("\n");
                return Err(Error::Unexpected { what: format!("the metric {line}"), got });
            }
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    /// The certificate that the API server shows, by its serial number.
    fn served(&self) -> Result<String> {
        let line = "openssl s_client -connect 192.0.2.11:6443 </dev/null 2>/dev/null | openssl x509 -noout -serial";
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let text = self.lab.host.run(command, within(30))?.success()?.text();
        Ok(text.trim().trim_start_matches("serial=").trim_start_matches('0').to_lowercase())
    }
}

/// Serial and end by name.
fn on_node(certificates: &Value) -> BTreeMap<String, (String, String)> {
    let all = certificates["certificates"].as_array().unwrap().iter().filter(|c| c["node"] == "cp1");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|c| (text(&c["name"]), (text(&c["serial"]), text(&c["notAfter"])))).collect()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn health_names_what_is_wrong_and_certificates_are_shown_and_renewed() -> Result {
    let lab = ClusterLab::start("certificates")?;
    let file = ClusterFile::named("rack7");
    lab.apply(&file)?;
    let mut cp = lab.node(&file.members()[0])?;
    cp.shell("systemctl enable nkd-agent", within(20))?;
    bridge_pods(&mut [&mut cp])?;
    lab.wait_ready("rack7", within(400))?;
    let mut world = World { lab, cp };
    world.expect_event("healthy")?;

    certificates_are_shown_and_renewed(&world)?;
    one_that_ends_soon_is_renewed_with_no_hand_on_it(&world)?;
    health_names_what_is_wrong(&mut world)
}

fn certificates_are_shown_and_renewed(world: &World) -> Result {
    let certs = ["cluster", "certs", "rack7"];
    let all =
        world.wait_for("the node tells its certificates", &certs, within(120), |c| on_node(c).len() > MADE.len())?;
    let before = on_node(&all);
    for name in MADE.iter().chain(&["kubelet"]) {
        assert!(before.contains_key(*name), "{name}: {all:#}");
    }
    assert_eq!(all["unreadable"], serde_json::json!([]), "{all:#}");
    let held: Vec<&Value> = all["certificates"].as_array().unwrap().iter().filter(|c| c["node"].is_null()).collect();
    assert_eq!(held.len(), 3, "the service's own authorities: {all:#}");
    assert_eq!(world.served()?, before["apiserver"].0.trim_start_matches('0'));

    // What kubeadm says of the same certificates.
    let said = world.cp.shell("kubeadm certs check-expiration", within(60))?;
    let lines: Vec<&str> = said.lines().filter(|line| line.contains(" UTC ")).collect();
    // kubeadm writes `etcd-server` for etcd/server.
    for name in MADE.map(|name| name.replace('/', "-")) {
        let line = lines.iter().find(|line| line.split_whitespace().next() == Some(&name));
        let line = line.unwrap_or_else(|| panic!("{name}: {said}"));
        assert!(line.trim_end().ends_with("no"), "{name} is not externally managed: {said}");
    }

    let table = world.lab.nkd(&certs)?;
    for words in ["etcd/healthcheck-client", "O=system:masters, CN=kubernetes-admin", "by the kubelet", "DAYS LEFT"] {
        assert!(table.contains(words), "{words}: {table}");
    }

    let told = world.lab.nkd(&["cluster", "certs", "renew", "rack7", "--node", "cp1"])?;
    assert!(told.contains("cp1"), "{told}");
    let renewed = world.wait_for("cp1 is renewed", &certs, within(700), |c| {
        let state = &c["renewals"][0]["state"];
        assert_ne!(state, "failed", "{c:#}\n{}", world.cp.logs().unwrap_or_default());
        state == "done"
    })?;
    let after = on_node(&renewed);
    for name in MADE {
        let ((old, old_end), (new, new_end)) = (&before[name], &after[name]);
        assert_ne!(old, new, "{name} has a new serial number");
        assert!(new_end >= old_end, "{name}: {old_end} to {new_end}");
    }
    assert_eq!(world.served()?, after["apiserver"].0.trim_start_matches('0'), "the API server shows the new one");
    world.cp.shell("test ! -e /etc/kubernetes/nkd-renewal && kubeadm certs check-expiration", within(60))?;
    world.expect_health("healthy", "", within(120))?;
    world.expect_event("cp1: its certificates are renewed")?;
    let status = world.json(&["cluster", "status", "rack7"])?;
    assert_eq!(status["members"][0]["state"], "ready", "{status:#}");
    Ok(())
}

/// A certificate of a year is put in the place of another: it was made a year ago and ends in nine days.
fn one_that_ends_soon_is_renewed_with_no_hand_on_it(world: &World) -> Result {
    const NAME: &str = "apiserver-kubelet-client";
    let folder = world.lab.net.folder().join("ends-soon");
    std::fs::create_dir(&folder).unwrap();
    for name in ["ca.crt", "ca.key"] {
        std::fs::write(folder.join(name), world.cp.read_file(&format!("/etc/kubernetes/pki/{name}"))?).unwrap();
    }
    let config = "[ca]\ndefault_ca = one\n[one]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n\
        certificate = ca.crt\nprivate_key = ca.key\ndefault_md = sha256\npolicy = any\nx509_extensions = client\n\
        [any]\norganizationName = optional\ncommonName = supplied\n\
        [client]\nkeyUsage = digitalSignature\nextendedKeyUsage = clientAuth\n";
    std::fs::write(folder.join("ca.conf"), config).unwrap();
    let line = "set -e; touch index.txt; echo 4711 >serial
        openssl req -new -newkey rsa:2048 -nodes -keyout new.key -out new.csr \
            -subj /O=system:masters/CN=kube-apiserver-kubelet-client
        openssl ca -batch -notext -config ca.conf -in new.csr -out new.crt \
            -startdate $(date -u -d '-356 days' +%Y%m%d%H%M%SZ) -enddate $(date -u -d '+9 days' +%Y%m%d%H%M%SZ)";
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(&folder);
    world.lab.host.run(command, within(60))?.success()?;
    for (made, place, mode) in [("new.crt", "crt", 0o644), ("new.key", "key", 0o600)] {
        let bytes = std::fs::read(folder.join(made)).unwrap();
        world.cp.write_file(&format!("/etc/kubernetes/pki/{NAME}.{place}"), mode, &bytes)?;
    }
    // Its agent looks at them when it starts, and every minute.
    let place = format!("/etc/kubernetes/pki/{NAME}.crt");
    world.cp.shell(&format!("touch -d '356 days ago' {place}; systemctl restart nkd-agent"), within(60))?;
    let certs = ["cluster", "certs", "rack7"];
    let seen = world.wait_for("it is seen", &certs, within(120), |all| on_node(all)[NAME].0 == "4711")?;
    let soon = on_node(&seen)[NAME].1.clone();
    world.wait_for("it is renewed", &certs, within(700), |all| {
        let state = &all["renewals"][0]["state"];
        assert_ne!(state, "failed", "{all:#}\n{}", world.cp.logs().unwrap_or_default());
        let (serial, end) = &on_node(all)[NAME];
        state == "done" && serial != "4711" && *end > soon
    })?;
    let status = world.expect_health("healthy", "", within(120))?;
    assert!(!status["health"].to_string().contains(NAME), "{status:#}");
    Ok(())
}

fn health_names_what_is_wrong(world: &mut World) -> Result {
    let state = |state: &str, value: u8| format!("nkd_cluster_health{{cluster=\"rack7\",state=\"{state}\"}} {value}");
    world.expect_metric(&state("healthy", 1))?;
    world.expect_metric("nkd_cluster_nodes_ready{cluster=\"rack7\"} 1")?;

    world.cp.shell("mv /etc/kubernetes/manifests/kube-scheduler.yaml /root/", within(20))?;
    world.expect_health("degraded", "the pod kube-scheduler-cp1 is missing", within(180))?;
    world.expect_event("degraded: the pod kube-scheduler-cp1 is missing")?;
    world.cp.shell("mv /root/kube-scheduler.yaml /etc/kubernetes/manifests/", within(20))?;
    world.expect_health("healthy", "", within(240))?;

    world.cp.shell("systemctl stop kubelet", within(60))?;
    // By the node's condition, or by its lease when the controller manager has died as well.
    world.expect_health("degraded", "silent", within(240))?;
    world.expect_event("silent")?;
    world.expect_metric(&state("degraded", 1))?;
    world.expect_metric(&state("healthy", 0))?;
    world.cp.shell("systemctl start kubelet", within(60))?;
    world.expect_health("healthy", "", within(240))?;

    world.cp.power_cut()?;
    let away = world.expect_health("unreachable", "", within(120))?;
    let since = away["health"]["since"].as_str().unwrap().to_owned();
    world.expect_event("unreachable:")?;
    world.expect_metric(&state("unreachable", 1))?;
    let still = world.json(&["cluster", "status", "rack7"])?;
    assert_eq!(still["health"]["since"], since.as_str(), "since the first time");
    world.cp.power_on()?;
    world.expect_health("healthy", "", within(400))?;
    // One word for each thing that has held, and no storm.
    let events = world.json(&["cluster", "events", "rack7"])?;
    let spoken = |e: &&Value| {
        ["healthy", "degraded", "unreachable"].iter().any(|w| e["message"].as_str().unwrap().starts_with(w))
    };
    let spoken = events.as_array().unwrap().iter().filter(spoken).count();
    assert!(spoken <= 24, "{events:#}");
    Ok(())
}
