//! One trace for each machine in every log line about it, and no secret in any.

use serde_json::{Value, json};

use super::harness::{Place, TFTP, eventually};
use super::node;

const MAC: &str = "52:54:00:aa:01:01";

/// Every machine goes its whole way with the log wide open; then the log is read.
async fn run(format: &str) -> (Place, Vec<String>) {
    let place = Place::new().with(&format!("log.format={format}")).with("log.filter=debug");
    let service = place.start().await;
    place.import().await;
    place.admin().declare("n1", MAC).await;
    let mut secrets = vec![place.admin_token()];
    let out = place.ok(&["user", "create", "eve", "--role", "viewer", "-o", "json"]);
    let user: Value = serde_json::from_str(&out).unwrap();
    secrets.push(user["token"].as_str().unwrap().to_owned());
    let stage = node::first_stage(&place, &node::script(&place, MAC).await).await;
    secrets.push(stage.token());
    secrets.push(node::agent_config(&node::fetch(&stage).await.unwrap()).token);
    let (config, key, node) = node::install(&place, MAC).await;
    secrets.push(config.token.clone());
    let pem = key.serialize_pem();
    secrets.push(pem.lines().nth(1).unwrap().to_owned());
    node.report(&place, json!({"kind": "heartbeat", "uptime": 1})).await;
    node::try_enroll(&place, config.machine, &config.token, "rubbish").await;
    for shown in [
        place.ok(&["machine", "show", "n1", "-o", "json"]),
        place.ok(&["machine", "events", "-o", "json", "--limit", "1000"]),
        place.ok(&["machine", "explain", "n1", "-o", "yaml"]),
        place.ok(&["audit", "-o", "json"]),
        place.ok(&["user", "list", "-o", "json"]),
    ] {
        assert!(secrets.iter().all(|s| !shown.contains(s.as_str())), "a secret in {shown}");
    }
    drop(service);
    let log = place.log_text();
    for secret in &secrets {
        assert!(!log.contains(secret.as_str()), "a secret is in the log");
    }
    assert!(!log.contains("PRIVATE KEY"));
    (place, log.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn every_line_about_a_machine_carries_its_trace() {
    let (_place, lines) = run("json").await;
    let lines: Vec<Value> =
        lines.iter().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    let traces: std::collections::BTreeSet<&str> = lines.iter().filter_map(|l| l["trace"].as_str()).collect();
    assert_eq!(traces.len(), 1, "one machine, one trace: {traces:?}");
    for (what, about) in [
        ("boot decision", "message"),
        ("boot-script", "kind"),
        ("config", "kind"),
        ("enrolled", "kind"),
        ("installed", "kind"),
        ("heartbeat", "kind"),
        ("enrollment refused", "message"),
        ("boot plane answered", "message"),
    ] {
        let found: Vec<&Value> = lines.iter().filter(|l| l[about] == what).collect();
        assert!(!found.is_empty(), "nothing says {what}");
        assert!(found.iter().all(|l| l["trace"].is_string()), "{what}: {found:?}");
    }
    let (place, text) = run("text").await;
    let trace = format!("trace={}", traces.first().unwrap());
    assert!(text.iter().filter(|l| l.contains(&trace)).count() > 10, "{}", text.join("\n"));
    drop(place);
}

#[tokio::test]
async fn tftp_is_traced_by_the_address_of_the_machine() {
    let place = Place::new();
    let _service = place.start().await;
    node::script(&place, MAC).await;
    // The request of a firmware, and its refusal of the answer: enough for a transfer in the log.
    let socket = tokio::net::UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    socket.send_to(b"\x00\x01autoexec.ipxe\x00octet\x00", (place.ip.as_str(), TFTP)).await.unwrap();
    let mut packet = [0; 600];
    let (n, peer) = socket.recv_from(&mut packet).await.unwrap();
    assert_eq!(&packet[..4], [0, 3, 0, 1], "{:?}", String::from_utf8_lossy(&packet[..n]));
    socket.send_to(&[0, 4, 0, 1], peer).await.unwrap();
    while n == 516 && socket.recv_from(&mut packet).await.unwrap().0 == 516 {
        socket.send_to(&[0, 4, packet[2], packet[3]], peer).await.unwrap();
    }
    socket.send_to(&[0, 4, packet[2], packet[3]], peer).await.unwrap();
    eventually("the transfer stands in the log with its trace", async || {
        place.log_text().lines().find(|l| l.contains("TFTP transfer") && l.contains("trace=")).map(str::to_owned)
    })
    .await;
}
