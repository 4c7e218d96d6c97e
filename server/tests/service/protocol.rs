//! From the first script to the enrolled node, and what must not happen on the way.

use nkd_api::agent::EnrollResponse;
use rcgen::KeyPair;
use reqwest::{Method, StatusCode};
use serde_json::json;
use uuid::Uuid;

use super::harness::{Api, Place, Running};
use super::node::{self, Script};

const MAC: &str = "52:54:00:aa:00:01";

/// The service with its image, and its admin.
async fn started(place: Place) -> (Place, Running, Api) {
    let service = place.start().await;
    place.import().await;
    let api = place.admin();
    (place, service, api)
}

/// The same, with the machine n1 declared.
async fn with_n1() -> (Place, Running, Api) {
    let started = started(Place::new()).await;
    started.2.declare("n1", MAC).await;
    started
}

#[tokio::test]
async fn a_blank_disk_becomes_an_enrolled_node() {
    let (place, _service, api) = with_n1().await;
    let entry = reqwest::get(place.boot_url("/boot.ipxe")).await.unwrap().text().await.unwrap();
    assert!(entry.contains(&place.boot_url("/boot.ipxe?mac=")), "{entry}");
    assert_eq!(api.get(&format!("/api/v1/machines/{MAC}/explain")).await["answer"], "live-install");

    let (config, key, node) = node::install(&place, MAC).await;
    let machine = api.machine("n1").await;
    assert_eq!(machine["phase"]["name"], "enrolled");
    assert_eq!((&machine["generation"], &machine["installedGeneration"]), (&json!(1), &json!(1)));
    assert_eq!(machine["facts"]["cpus"], 2);
    assert!(machine["steps"].as_array().unwrap().iter().all(|s| s["state"] == "done"), "{}", machine["steps"]);

    // The answer was lost: the same key asks again, nothing is wrong.
    let (status, _) = node::try_enroll(&place, config.machine, &config.token, &node::request(&key)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(api.machine("n1").await["stopped"].is_null());

    // Renewal with a new key; the old certificate holds on.
    let new = KeyPair::generate().unwrap();
    let order = json!({"csr": node::request(&new)});
    let (status, body) = node.call(&place, Method::POST, "/agent/v1/renew", Some(&order)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let renewed = node::enrolled(&place, &serde_json::from_value::<EnrollResponse>(body).unwrap(), &new);
    assert_ne!(renewed.certificate, node.certificate);
    assert_eq!(renewed.task(&place).await["do"], "run");
    let (status, _) = node.call(&place, Method::POST, "/agent/v1/renew", Some(&json!({"csr": "garbage"}))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    // Two more power cycles install nothing.
    for _ in 0..2 {
        assert!(!node::script(&place, MAC).await.installs());
    }
    // Only `reinstall` raises the generation; then the old node's word counts no more.
    let again = api.post("/api/v1/machines/n1/reinstall", &json!({})).await;
    assert_eq!((&again["generation"], &again["installedGeneration"]), (&json!(2), &json!(1)));
    let order = json!({"csr": node::request(&new)});
    assert_eq!(renewed.call(&place, Method::POST, "/agent/v1/renew", Some(&order)).await.0, StatusCode::CONFLICT);
    assert_eq!(renewed.task(&place).await["do"], "wait");
    let (_, _, second) = node::install(&place, MAC).await;
    assert_eq!(second.task(&place).await["do"], "run");
    assert_eq!(api.machine("n1").await["installedGeneration"], 2);
}

#[tokio::test]
async fn a_second_fetch_stops_the_machine_until_it_is_released() {
    let (place, _service, api) = with_n1().await;
    let stage = node::first_stage(&place, &node::script(&place, MAC).await).await;
    let wrong = node::FirstStage { authorization: "Bearer nonsense".into(), ..stage.clone() };
    assert_eq!(node::fetch(&wrong).await.unwrap_err().0, StatusCode::FORBIDDEN);
    assert!(api.machine("n1").await["stopped"].is_null(), "a token that nobody issued accuses nobody");
    let script = node::script(&place, MAC).await;
    let stage = node::first_stage(&place, &script).await;
    let config = node::agent_config(&node::fetch(&stage).await.unwrap());
    // The overlay held its token: nobody needs it any more, and who reads the log does not learn where it was.
    let initrd = script.word_after("initrd --name initrd ").unwrap();
    assert_eq!(reqwest::get(&initrd).await.unwrap().status(), StatusCode::GONE);
    let boot = initrd.split('/').rev().nth(1).unwrap();
    assert!(place.log_text().contains(&boot[..8]) && !place.log_text().contains(boot), "{boot}");
    // The connection broke, or the service was killed before its answer: the machine asks again from its address.
    assert_eq!(node::agent_config(&node::fetch(&stage).await.unwrap()).token, config.token);
    assert!(api.machine("n1").await["stopped"].is_null());
    let elsewhere = node::fetch_from(&stage, "127.0.0.77").await;
    let (status, body) = elsewhere.unwrap_err();
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.contains("used before"), "{body}");

    let machine = api.machine("n1").await;
    assert!(machine["stopped"].as_str().unwrap().contains("asked for twice"), "{machine}");
    assert!(api.kinds("n1").await.contains(&"alarm".to_owned()));
    let stopped = node::script(&place, MAC).await;
    assert!(!stopped.installs() && stopped.text.contains("n1 is stopped"), "{}", stopped.text);
    // What was out there already is worthless while it is stopped, and after.
    let key = KeyPair::generate().unwrap();
    let enroll = async || node::try_enroll(&place, config.machine, &config.token, &node::request(&key)).await.0;
    assert_eq!(enroll().await, StatusCode::FORBIDDEN);
    place.ok(&["machine", "release", "n1"]);
    assert_eq!(enroll().await, StatusCode::FORBIDDEN);
    node::install(&place, MAC).await;
}

#[tokio::test]
async fn whoever_boots_as_a_machine_that_is_under_way_is_found_out() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let api = place.admin();
    api.declare("n1", MAC).await;
    let (_, _, ours) = node::live(&place, MAC).await;
    assert_eq!(ours.install_config(&place, 1).await.0, StatusCode::OK);
    // The thief comes second, with a MAC address that it read off the wire, and gets as far as a certificate.
    let (_, _, theirs) = node::live(&place, MAC).await;
    assert!(api.machine("n1").await["stopped"].is_null(), "so far it looks like a power cut");
    let progress = json!({"kind": "install-progress", "generation": 1, "step": "write", "percent": 10});
    assert_eq!(ours.report(&place, progress.clone()).await.0, StatusCode::FORBIDDEN);
    assert!(api.machine("n1").await["stopped"].as_str().unwrap().contains("two parties"));
    for node in [&ours, &theirs] {
        assert_eq!(node.task(&place).await["do"], "stop");
        assert_eq!(node.install_config(&place, 1).await.0, StatusCode::FORBIDDEN);
        assert_eq!(node.report(&place, progress.clone()).await.0, StatusCode::FORBIDDEN);
    }
    // Released: neither goes on, both start again; the certificates of before are worth nothing.
    place.ok(&["machine", "release", "n1"]);
    let request = json!({"csr": node::request(&KeyPair::generate().unwrap())});
    for node in [&ours, &theirs] {
        assert_eq!(node.task(&place).await["do"], "reboot");
        assert_eq!(node.install_config(&place, 1).await.0, StatusCode::CONFLICT);
        assert_eq!(node.report(&place, progress.clone()).await.0, StatusCode::FORBIDDEN);
        let renewed = node.call(&place, Method::POST, "/agent/v1/renew", Some(&request)).await;
        assert!(renewed.0.is_client_error(), "{renewed:?}");
    }
    assert!(api.machine("n1").await["stopped"].is_null(), "and accuse nobody");

    // A script taken before the installation ended, used after it.
    let early = node::first_stage(&place, &node::script(&place, MAC).await).await;
    let (_, _, node) = node::install(&place, MAC).await;
    assert_eq!(node::fetch(&early).await.unwrap_err().0, StatusCode::FORBIDDEN);
    assert!(api.machine("n1").await["stopped"].is_string());
    place.ok(&["machine", "release", "n1"]);
    assert_eq!(node.task(&place).await["do"], "run", "the system on the disk goes on");
}

#[tokio::test]
async fn a_request_that_outlives_its_machine_is_no_second_party() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let api = place.admin();
    api.declare("n1", MAC).await;
    let (_, _, before) = node::live(&place, MAC).await;
    let (_, task) = before.call(&place, Method::GET, "/agent/v1/task", None).await;
    let held = format!("/agent/v1/task?wait=30&seen={}", task["revision"].as_str().unwrap());
    let (held, ()) = tokio::join!(before.call(&place, Method::GET, &held, None), async {
        // Power is cut while the service holds the request, and the machine boots again.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        node::live(&place, MAC).await;
    });
    assert_eq!(held.1["task"]["do"], "reboot", "{held:?}");
    assert!(api.machine("n1").await["stopped"].is_null());
}

#[tokio::test]
async fn power_fails_between_the_last_byte_on_the_disk_and_its_report() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let api = place.admin();
    api.declare("n1", MAC).await;
    let (_, _, live) = node::live(&place, MAC).await;
    let (status, config) = live.install_config(&place, 1).await;
    assert_eq!(status, StatusCode::OK);
    let config = node::agent_config(&serde_json::to_vec(&config).unwrap());
    let key = KeyPair::generate().unwrap();
    let node = node::enroll(&place, &config, &key).await;
    assert_eq!(node.task(&place).await["do"], "run");
    assert_eq!(api.machine("n1").await["installedGeneration"], 1);
    assert!(!node::script(&place, MAC).await.installs());
}

#[tokio::test]
async fn enrollment_refuses_without_costing_the_token() {
    let (place, _service, api) = with_n1().await;
    let config = node::fetched(&place, MAC).await;
    let (key, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (status, body) = node::try_enroll(&place, config.machine, &config.token, "-----BEGIN RUBBISH-----").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body["message"].as_str().unwrap().contains("certificate request"), "{body}");
    let (status, _) = node::try_enroll(&place, config.machine, "no such token", &node::request(&key)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    node::enroll(&place, &config, &key).await;
    // Two different keys for one token: one of them is a thief.
    let (status, _) = node::try_enroll(&place, config.machine, &config.token, &node::request(&thief)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(api.machine("n1").await["stopped"].as_str().unwrap().contains("used twice"));
    let (status, _) = node::try_enroll(&place, config.machine, &config.token, &node::request(&key)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "stopped is stopped");
}

#[tokio::test]
async fn a_token_of_another_machine_raises_the_alarm() {
    let (place, _service, api) = with_n1().await;
    let other = api.declare("n2", "52:54:00:aa:00:02").await;
    let config = node::fetched(&place, MAC).await;
    let other: Uuid = other["id"].as_str().unwrap().parse().unwrap();
    let key = KeyPair::generate().unwrap();
    let (status, _) = node::try_enroll(&place, other, &config.token, &node::request(&key)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(api.machine("n1").await["stopped"].is_string(), "the owner of the token is stopped");
    assert!(api.machine("n2").await["stopped"].is_null(), "whoever was named is not");
}

#[tokio::test]
async fn certificates_are_good_for_their_purpose_only() {
    let (place, _service, api) = started(Place::new().with("discovery_image=lab-1")).await;
    // A stranger gets the discovery image and nothing of a cluster.
    let (config, _, stranger) = node::live(&place, MAC).await;
    assert_eq!(config.purpose, nkd_api::agent::Purpose::Discovery);
    assert_eq!(stranger.task(&place).await["do"], "wait");
    let name = api.machine(MAC).await["name"].as_str().unwrap().to_owned();
    api.post(&format!("/api/v1/machines/{name}/accept"), &json!({"name": "n1", "assignment": {"image": "lab-1"}}))
        .await;
    assert_eq!(stranger.task(&place).await["do"], "reboot");
    for generation in [0, 1] {
        assert_eq!(stranger.install_config(&place, generation).await.0, StatusCode::FORBIDDEN);
        let event = json!({"kind": "installed", "generation": generation});
        assert_eq!(stranger.report(&place, event).await.0, StatusCode::FORBIDDEN);
    }
    assert!(api.machine("n1").await["installedGeneration"].is_null());

    let (_, _, live) = node::live(&place, MAC).await;
    assert_eq!(live.install_config(&place, 2).await.0, StatusCode::CONFLICT);
    api.post("/api/v1/machines/n1/reinstall", &json!({})).await;
    // Generation 2 is wanted now; a certificate of generation 1 must not be able to say that it is there.
    for generation in [1, 2] {
        let event = json!({"kind": "installed", "generation": generation});
        let (status, body) = live.report(&place, event).await;
        assert!(status.is_client_error(), "{generation}: {status} {body}");
        assert_ne!(live.install_config(&place, generation).await.0, StatusCode::OK);
    }
    assert!(api.machine("n1").await["installedGeneration"].is_null());
    assert_eq!(live.task(&place).await["do"], "reboot");

    // No certificate, no agent protocol; a certificate is no user.
    for path in ["/agent/v1/task", "/agent/v1/install-config?generation=1"] {
        assert_eq!(api.call(Method::GET, path, None).await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(live.call(&place, Method::GET, "/api/v1/machines", None).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn reports_count_once() {
    let (place, _service, api) = with_n1().await;
    let (_, _, live) = node::live(&place, MAC).await;
    let failed = json!({"kind": "failed", "generation": 1, "step": "write", "reason": "disk is too small", "log_tail": format!("{}\nlast line", "x".repeat(20_000))});
    let id = Uuid::new_v4();
    for _ in 0..3 {
        assert_eq!(live.report_as(&place, id, failed.clone()).await.0, StatusCode::OK);
    }
    let count = async |kind: &str| api.kinds("n1").await.iter().filter(|k| *k == kind).count();
    assert_eq!(count("failed").await, 1);
    let events = api.get("/api/v1/machines/n1/events").await;
    let message = events.as_array().unwrap().iter().find(|e| e["kind"] == "failed").unwrap()["message"].clone();
    assert!(message.as_str().unwrap().len() < 5000 && message.as_str().unwrap().ends_with("last line"));
    assert_eq!(api.machine("n1").await["phase"]["name"], "failed");
    // Heartbeats are seen and leave no history.
    let before = api.kinds("n1").await.len();
    let seen = api.machine("n1").await["lastSeen"].clone();
    for _ in 0..5 {
        assert_eq!(live.report(&place, json!({"kind": "heartbeat", "uptime": 30})).await.0, StatusCode::OK);
    }
    assert_eq!(api.kinds("n1").await.len(), before);
    assert_ne!(api.machine("n1").await["lastSeen"], seen);
    for _ in 0..2 {
        assert_eq!(live.report(&place, json!({"kind": "installed", "generation": 1})).await.0, StatusCode::OK);
    }
    assert_eq!(count("installed").await, 1);
    assert_eq!(live.install_config(&place, 1).await.0, StatusCode::CONFLICT, "installed is installed");
}

#[tokio::test]
async fn local_boot_is_said_as_the_machine_needs_it() {
    let (place, _service, api) = started(Place::new()).await;
    type Fits = fn(&Script) -> bool;
    let asks: [(&str, Fits); 3] = [
        ("exit", |s| s.status == StatusCode::OK && s.text.ends_with("exit 0\n")),
        ("sanboot", |s| s.text.contains("sanboot --no-describe") && s.text.contains("BOOTX64.EFI")),
        ("notfound", |s| s.status == StatusCode::NOT_FOUND),
    ];
    for (i, (how, fits)) in asks.into_iter().enumerate() {
        let (mac, name) = (format!("52:54:00:bb:00:0{i}"), format!("n{i}"));
        let order =
            json!({"name": name, "identity": {"macs": [mac]}, "assignment": {"image": "lab-1", "localBoot": how}});
        api.post("/api/v1/machines", &order).await;
        let (_, _, live) = node::live(&place, &mac).await;
        live.report(&place, json!({"kind": "installed", "generation": 1})).await;
        let script = node::script(&place, &mac).await;
        assert!(fits(&script), "{how}: {script:?}");
        // Our own entry script takes 404 as a reason to ask again: through it, such a machine is told to go on.
        let script = node::script_with(&place, &format!("mac={mac}&entry=1")).await;
        assert!(script.status.is_success() && script.text.contains("booting the local disk"), "{how}: {script:?}");
        assert_eq!(api.get(&format!("/api/v1/machines/{name}/explain")).await["answer"], "local-disk");
    }
}

#[tokio::test]
async fn images_are_served_by_head_range_and_tag() {
    let place = Place::new();
    let _service = place.start().await;
    let image = place.import().await;
    let http = reqwest::Client::new();
    let url = place.boot_url("/images/lab-1/rootfs");
    let head = http.head(&url).send().await.unwrap();
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"7000".parse().unwrap()));
    let tag = head.headers()["etag"].clone();
    let sha = image["artifacts"].as_array().unwrap().iter().find(|a| a["kind"] == "rootfs").unwrap()["sha256"].clone();
    assert!(tag.to_str().unwrap().contains(sha.as_str().unwrap()), "{tag:?} {sha}");
    let part = http.get(&url).header("Range", "bytes=100-199").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 100-199/7000");
    assert_eq!(part.bytes().await.unwrap(), super::harness::image_files()[2].1[100..200]);
    let beyond = http.get(&url).header("Range", "bytes=7000-").send().await.unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let same = http.get(&url).header("If-None-Match", &tag).send().await.unwrap();
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    // Asking for the head of a script is no boot.
    place.admin().declare("n1", MAC).await;
    let before = place.admin().kinds("n1").await.len();
    let script = place.boot_url(&format!("/boot.ipxe?mac={MAC}"));
    assert_eq!(http.head(&script).send().await.unwrap().status(), StatusCode::OK);
    let kinds = place.admin().kinds("n1").await;
    assert!(!kinds[before..].contains(&"boot-script".to_owned()), "{kinds:?}");
}
