//! Strangers, and the ways to let them in and to forget them.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::harness::Place;
use super::node;

#[tokio::test]
async fn strangers_wait_and_are_let_in_one_by_one_by_label_and_by_rule() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let api = place.admin();
    let mac = |n: u8| format!("52:54:00:cc:00:{n:02x}");
    for n in 1..=4 {
        let script = node::script(&place, &mac(n)).await;
        assert!(script.status.is_success() && script.text.contains("sleep 10"), "{}", script.text);
        assert!(!script.text.contains("kernel ") && !script.text.contains("initrd"), "{}", script.text);
    }
    let list = place.ok(&["machine", "list"]);
    assert!((1..=4).all(|n| list.contains(&mac(n))), "{list}");
    place.ok(&["machine", "accept", &mac(1), "--name", "n1", "--set-label", "rack=7"]);
    place.ok(&["machine", "declare", "n5", "--mac", &mac(5), "--set-label", "rack=7"]);
    let out = place.ok(&["machine", "accept", "-l", "rack=7", "--image", "lab-1"]);
    assert!(out.contains("accepted n1") && out.contains("accepted n5"), "{out}");
    assert!(node::script(&place, &mac(1)).await.installs());
    assert!(node::script(&place, &mac(5)).await.installs());
    assert!(!node::script(&place, &mac(2)).await.installs());
    // A rule lets in who waits, and who comes later.
    let out = place.ok(&["rule", "set", "lab", "--mac", "52:54:00:cc:*", "--set-label", "by=rule", "--image", "lab-1"]);
    assert!(out.contains("let in 3 machines"), "{out}");
    assert!(node::script(&place, &mac(2)).await.installs());
    assert!(node::script(&place, &mac(9)).await.installs(), "let in by its first request");
    assert!(!node::script(&place, "52:54:00:dd:00:01").await.installs());
    assert_eq!(api.machine(&mac(9)).await["labels"]["by"], "rule");
    // Forgotten: a new record, a stranger again once the rule is gone.
    place.ok(&["rule", "remove", "lab"]);
    let before = api.machine(&mac(2)).await["id"].clone();
    place.ok(&["machine", "forget", &mac(2)]);
    assert_eq!(api.call(Method::GET, &format!("/api/v1/machines/{}", mac(2)), None).await.0, StatusCode::NOT_FOUND);
    assert!(!node::script(&place, &mac(2)).await.installs());
    assert_ne!(api.machine(&mac(2)).await["id"], before);
}

#[tokio::test]
async fn a_forgotten_machine_has_no_tokens_and_no_certificate() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    place.admin().declare("n1", "52:54:00:cc:01:01").await;
    let stage = node::first_stage(&place, &node::script(&place, "52:54:00:cc:01:01").await).await;
    let (config, key, live) = node::live(&place, "52:54:00:cc:01:01").await;
    place.ok(&["machine", "forget", "n1"]);
    assert_eq!(node::fetch(&stage).await.unwrap_err().0, StatusCode::FORBIDDEN);
    let (status, _) = node::try_enroll(&place, config.machine, &config.token, &node::request(&key)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(live.call(&place, Method::GET, "/agent/v1/task", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(live.report(&place, json!({"kind": "heartbeat", "uptime": 1})).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn two_boards_with_one_uuid_are_two_machines() {
    let place = Place::new();
    let _service = place.start().await;
    let uuid = "4c4c4544-0042-3510-8052-b4c04f4e4d32";
    for n in 1..=2 {
        node::script_with(&place, &format!("mac=52:54:00:ee:00:0{n}&uuid={uuid}&serial=S{n}")).await;
    }
    let api = place.admin();
    let machines = api.get("/api/v1/machines").await;
    assert_eq!(machines.as_array().unwrap().len(), 2);
    let kinds = api.kinds("m-525400ee0002").await;
    assert!(kinds.contains(&"clash".to_owned()), "{kinds:?}");
    let (status, body) = api.call(Method::GET, &format!("/api/v1/machines/{uuid}"), None).await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    assert!(body["message"].as_str().unwrap().contains("2 machines"), "{body}");
}

#[tokio::test]
async fn a_declaration_that_is_refused_leaves_nothing() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let api = place.admin();
    let declare = async |body: serde_json::Value| {
        let (status, answer) = api.call(Method::POST, "/api/v1/machines", Some(&body)).await;
        assert!(status.is_client_error() && answer["message"].is_string(), "{body}: {status} {answer}");
        answer
    };
    let mac = json!({"macs": ["52:54:00:ff:00:01"]});
    let answer = declare(json!({"name": "n1", "identity": mac, "assignment": {"image": "lab-1", "template": "none", "kernelArgs": ["a b"], "installDisk": "vda"}})).await;
    assert_eq!(answer["problems"].as_array().unwrap().len(), 3, "{answer}");
    for disk in ["/dev/../etc/passwd", "/dev//sda", "/dev/s da", "/dev/sda\n"] {
        let answer =
            declare(json!({"name": "n1", "identity": mac, "assignment": {"image": "lab-1", "installDisk": disk}}))
                .await;
        assert_eq!(answer["problems"][0]["path"], "installDisk", "{answer}");
        assert!(answer["problems"][0]["message"].as_str().unwrap().contains("/dev/disk/by-id/"), "{answer}");
    }
    declare(json!({"name": "n1", "identity": mac, "assignment": {"image": "none"}})).await;
    declare(json!({"name": "n1", "identity": {}})).await;
    declare(json!({"name": "N 1", "identity": mac})).await;
    declare(json!({"name": "n1", "identity": {"macs": ["ff:ff:ff:ff:ff:ff"]}})).await;
    declare(json!({"name": "n1", "identity": {"uuid": "03000200-0400-0500-0006-000700080009"}})).await;
    declare(json!({"name": "n1", "identity": mac, "labels": {"a=b": "c"}})).await;
    assert_eq!(api.get("/api/v1/machines").await, json!([]));
    // A UUID is the same in capitals.
    let order = json!({"name": "n1", "identity": {"uuid": "4C4C4544-0042-3510-8052-B4C04F4E4D32"}, "assignment": {"image": "lab-1"}});
    api.post("/api/v1/machines", &order).await;
    let script = node::script_with(&place, "mac=52:54:00:ff:00:02&uuid=4c4c4544-0042-3510-8052-b4c04f4e4d32").await;
    assert!(script.installs(), "{}", script.text);
    let answer = declare(json!({"name": "n1", "identity": mac})).await;
    assert!(answer["message"].as_str().unwrap().contains("taken"), "{answer}");
}

/// Two records of one machine would never become one, so that whoever declares it too late is sent to the first.
#[tokio::test]
async fn who_declares_a_machine_that_waits_is_sent_to_accept_it() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let (mac, uuid) = ("52:54:00:ff:01:01", "4c4c4544-0042-3510-8052-b4c04f4e4d33");
    node::script_with(&place, &format!("mac={mac}&uuid={uuid}&serial=S77")).await;
    for key in [["--mac", mac], ["--uuid", "4C4C4544-0042-3510-8052-B4C04F4E4D33"], ["--serial", "S77"]] {
        let out = place.cli(&[&["machine", "declare", "cp1", "--image", "lab-1"], &key[..]].concat());
        let said = super::harness::text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{key:?}: {said}");
        assert!(said.contains("nkd machine accept m-525400ff0101 --name cp1"), "{said}");
    }
    place.ok(&["machine", "accept", "m-525400ff0101", "--name", "cp1", "--image", "lab-1"]);
    assert!(node::script(&place, mac).await.installs());
    // Boards share UUIDs: one that is accepted keeps no other from being declared.
    place.ok(&["machine", "declare", "cp2", "--mac", "52:54:00:ff:01:02", "--uuid", uuid]);
    assert_eq!(place.admin().get("/api/v1/machines").await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_installation_that_breaks_off_is_told_when_the_machine_comes_back() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let (api, mac) = (place.admin(), "52:54:00:cc:02:01");
    api.declare("n1", mac).await;
    let (_, _, live) = node::live(&place, mac).await;
    let progress = json!({"kind": "install-progress", "generation": 1, "step": "write", "percent": 36});
    assert_eq!(live.report(&place, progress).await.0, StatusCode::OK);
    // Its power was cut: it asks for a script again.
    assert!(node::script(&place, mac).await.installs());
    let message = "install broke off at write 36% (generation 1)";
    let events = api.get("/api/v1/machines/n1/events?limit=1000").await;
    let told: Vec<_> = events.as_array().unwrap().iter().filter(|e| e["kind"] == "broke-off").collect();
    assert_eq!(told.len(), 1, "{events}");
    assert_eq!(told[0]["message"], message);
    let machine = api.machine("n1").await;
    let first = &machine["steps"][0];
    assert_eq!(
        (&first["name"], &first["state"], &first["detail"]),
        (&json!("install"), &json!("failed"), &json!(message))
    );
    assert!(first["endedAt"].is_string(), "{first}");
    assert_eq!(machine["steps"][1]["name"], "boot");
    assert!(place.ok(&["machine", "show", "n1"]).contains(message));
    // It comes through in the end, and what broke off is still told.
    node::install(&place, mac).await;
    let steps = api.machine("n1").await["steps"].clone();
    let states: Vec<_> = steps.as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect();
    assert_eq!(steps[0]["detail"], message, "{steps}");
    assert!(states[0] == "failed" && states[1..].iter().all(|state| *state == "done"), "{steps}");
}
