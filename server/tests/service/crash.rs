//! `kill -9` at any moment: what was acknowledged is there after the restart.

use std::process::Command;
use std::time::Duration;

use rcgen::KeyPair;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::harness::{Api, Place, text};
use super::node;

/// Kills in one test.
const KILLS: u32 = 20;

/// Acknowledged steps of one way.
const STEPS: u32 = 5;

/// What the service has acknowledged.
#[derive(Default)]
struct Acknowledged {
    steps: watch::Sender<u32>,
    machines: Vec<String>,
    assigned: Vec<String>,
    enrolled: Vec<Enrolled>,
    installed: Vec<String>,
    rules: Vec<String>,
}

impl Acknowledged {
    fn step(&self) {
        self.steps.send_modify(|n| *n += 1);
    }
}

struct Enrolled {
    name: String,
    machine: uuid::Uuid,
    token: String,
}

/// One machine's way; every step is noted when its answer is there. An error means that the service is gone.
async fn way(place: &Place, api: &Api, n: u32, noted: &mut Acknowledged) -> Result<(), reqwest::Error> {
    let (name, mac) = (format!("n{n}"), format!("52:54:00:0c:{:02x}:{:02x}", n >> 8, n & 255));
    let done = |status: StatusCode, body: &str| assert!(status.is_success(), "{status} {body}");
    let order = json!({"name": name, "identity": {"macs": [mac]}});
    let (status, body) = api.attempt(Method::POST, "/api/v1/machines", Some(&order)).await?;
    done(status, &body);
    noted.machines.push(name.clone());
    noted.step();
    let order = json!({"image": "lab-1", "hostname": name});
    let (status, body) = api.attempt(Method::POST, &format!("/api/v1/machines/{name}/assign"), Some(&order)).await?;
    done(status, &body);
    noted.assigned.push(name.clone());
    noted.step();
    let rule = json!({"name": format!("r{n}"), "matches": {"serial": format!("S{n}")}});
    let (status, body) = api.attempt(Method::PUT, "/api/v1/rules", Some(&rule)).await?;
    done(status, &body);
    noted.rules.push(format!("r{n}"));
    noted.step();
    let get = async |url: String| reqwest::get(url).await?.bytes().await;
    let script = get(place.boot_url(&format!("/boot.ipxe?mac={mac}&arch=x86_64"))).await?;
    let script = text(&script);
    let initrd = script.lines().find_map(|l| l.strip_prefix("initrd --name initrd ")).expect("an install script");
    let initrd = get(initrd.split(' ').next().unwrap().to_owned()).await?;
    let stage = text(&initrd[super::harness::image_files()[1].1.len()..]);
    let token = stage.split("Bearer ").nth(1).unwrap().split('"').next().unwrap();
    let answer = api.http.get(place.api_url("/ignition/v1/config")).bearer_auth(token).send().await?;
    let config = node::agent_config(&answer.bytes().await?);
    let key = KeyPair::generate().unwrap();
    let order = node::enroll_order(config.machine, &config.token, &node::request(&key));
    let (status, body) = api.attempt(Method::POST, "/agent/v1/enroll", Some(&order)).await?;
    done(status, &body);
    noted.enrolled.push(Enrolled { name: name.clone(), machine: config.machine, token: config.token });
    noted.step();
    let live = node::enrolled(place, &serde_json::from_str(&body).unwrap(), &key);
    let report = json!({"id": uuid::Uuid::new_v4(), "bootId": "b", "event": {"kind": "installed", "generation": 1}});
    let answer = live.http.post(place.api_url("/agent/v1/report")).json(&report).send().await?;
    assert_eq!(answer.status(), StatusCode::OK);
    noted.installed.push(name);
    noted.step();
    Ok(())
}

async fn check(place: &Place, api: &Api, noted: &Acknowledged) {
    let machines = api.get("/api/v1/machines").await;
    let find = |name: &String| -> &Value {
        let found = machines.as_array().unwrap().iter().find(|m| m["name"] == **name);
        found.unwrap_or_else(|| panic!("{name} was acknowledged and is lost"))
    };
    for name in &noted.machines {
        assert_eq!(find(name)["accepted"], true);
    }
    for name in &noted.assigned {
        assert_eq!((&find(name)["generation"], &find(name)["assignment"]["hostname"]), (&json!(1), &json!(name)));
    }
    for name in &noted.installed {
        assert_eq!(find(name)["installedGeneration"], 1, "{name}");
    }
    let rules = api.get("/api/v1/rules").await;
    for name in &noted.rules {
        assert!(rules.as_array().unwrap().iter().any(|r| r["name"] == **name), "{name}");
    }
    // A used token is used: another key does not get a certificate for it.
    if let Some(last) = noted.enrolled.last()
        && find(&last.name)["stopped"].is_null()
    {
        let thief = node::request(&KeyPair::generate().unwrap());
        let (status, body) = node::try_enroll(place, last.machine, &last.token, &thief).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
        assert!(api.machine(&last.name).await["stopped"].is_string());
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let place = Place::new();
    let mut service = place.start().await;
    place.import().await;
    let (mut noted, mut n) = (Acknowledged::default(), 0);
    for round in 0..KILLS {
        let api = place.admin();
        // A different moment in every round: after so many steps, and a little later, over two whole ways.
        let mut steps = noted.steps.subscribe();
        let wanted = *steps.borrow() + round * 3 % (2 * STEPS);
        let moment = async move {
            steps.wait_for(|n| *n >= wanted).await.unwrap();
            tokio::time::sleep(Duration::from_millis(u64::from(round * 7 % 23))).await;
        };
        {
            let work = async {
                while n < 10_000 {
                    n += 1;
                    way(&place, &api, n, &mut noted).await.unwrap();
                }
            };
            tokio::select! {
                () = moment => {}
                () = work => unreachable!(),
            }
        }
        service.kill();
        service = place.start().await;
        check(&place, &place.admin(), &noted).await;
    }
    // Whatever round it was cut off in, the next way goes to its end.
    way(&place, &place.admin(), n + 1, &mut noted).await.unwrap();
    check(&place, &place.admin(), &noted).await;
    assert!(noted.enrolled.len() > 5, "the moments were all too early to say anything");
    service.kill();
    let database = place.state().join("nkd.db");
    let out = Command::new("sqlite3").arg(&database).arg("PRAGMA integrity_check; PRAGMA foreign_key_check;").output();
    assert_eq!(text(&out.unwrap().stdout), "ok\n");
}
