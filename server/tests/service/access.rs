//! Who may do what, and the audit trail.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::harness::Place;

#[tokio::test]
async fn each_role_can_do_its_own_and_no_more() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let admin = place.admin();
    admin.declare("n1", "52:54:00:aa:02:01").await;
    let mut users = Vec::new();
    for role in ["viewer", "operator"] {
        let made = admin.post("/api/v1/users", &json!({"name": role, "role": role})).await;
        users.push(place.user(made["token"].as_str().unwrap()));
    }
    let [viewer, operator] = &users[..] else { unreachable!() };
    let reads = [
        "machines",
        "machines/n1",
        "machines/n1/events",
        "machines/n1/explain",
        "events",
        "rules",
        "images",
        "images/lab-1",
        "profiles",
        "status",
    ];
    for path in reads {
        assert!(viewer.get(&format!("/api/v1/{path}")).await.is_object() || path.ends_with('s'), "{path}");
    }
    let rule = json!({"name": "r", "matches": {"mac": "52:54:00:*"}});
    let changes = [
        (Method::POST, "machines", json!({"name": "n2", "identity": {"macs": ["52:54:00:aa:02:02"]}})),
        (Method::POST, "machines/n1/accept", json!({})),
        (Method::POST, "machines/n1/assign", json!({"image": "lab-1"})),
        (Method::POST, "machines/n1/reinstall", json!({})),
        (Method::POST, "machines/n1/release", json!({})),
        (Method::PUT, "rules", rule),
        (Method::DELETE, "rules/r", json!({})),
        (Method::POST, "garbage", json!({})),
        (Method::DELETE, "machines/n2", json!({})),
    ];
    for (method, path, body) in &changes {
        let path = format!("/api/v1/{path}");
        let (status, said) = viewer.call(method.clone(), &path, Some(body)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
        assert!(said["message"].as_str().unwrap().contains("takes the role operator"), "{said}");
        assert_eq!(place.user("nonsense").call(method.clone(), &path, Some(body)).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(admin.machine("n1").await["generation"], 1, "nothing was changed");
    for (method, path, body) in &changes {
        let (status, said) = operator.call(method.clone(), &format!("/api/v1/{path}"), Some(body)).await;
        assert!(status.is_success(), "{method} {path}: {status} {said}");
    }
    let manage = [
        (Method::GET, "users", json!({})),
        (Method::POST, "users", json!({"name": "eve", "role": "admin"})),
        (Method::DELETE, "users/viewer", json!({})),
        (Method::POST, "users/admin/token", json!({})),
        (Method::GET, "audit", json!({})),
    ];
    for (method, path, body) in &manage {
        for user in &users {
            let (status, _) = user.call(method.clone(), &format!("/api/v1/{path}"), Some(body)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
        }
    }
    // Everybody may take a new token for themselves; the old one is worthless at once.
    let made = viewer.post("/api/v1/users/viewer/token", &json!({})).await;
    assert_eq!(viewer.call(Method::GET, "/api/v1/status", None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(place.user(made["token"].as_str().unwrap()).get("/api/v1/status").await["role"], "viewer");
    admin.call(Method::DELETE, "/api/v1/users/operator", None).await;
    assert_eq!(operator.call(Method::GET, "/api/v1/status", None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(admin.call(Method::DELETE, "/api/v1/users/admin", None).await.0, StatusCode::CONFLICT);

    let trail = admin.get("/api/v1/audit?limit=1000").await;
    let said =
        |who: &str, action: &str| trail.as_array().unwrap().iter().any(|e| e["who"] == who && e["action"] == action);
    for action in [
        "machine.declare",
        "machine.accept",
        "machine.assign",
        "machine.reinstall",
        "machine.release",
        "rule.save",
        "rule.remove",
        "machine.forget",
    ] {
        assert!(said("operator", action), "{action} by operator is not in the audit trail");
    }
    assert!(said("admin", "user.create") && said("admin", "user.remove") && said("viewer", "user.token"));
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_told() {
    let place = Place::new();
    let _service = place.start().await;
    let http = place.https().build().unwrap();
    for path in ["machines", "events", "images", "rules", "users", "audit", "status", "machines/n1"] {
        let url = place.api_url(&format!("/api/v1/{path}"));
        for header in [None, Some("Bearer"), Some("Bearer "), Some("Bearer x"), Some("Basic YWRtaW46YWRtaW4=")] {
            let mut request = http.get(&url);
            if let Some(header) = header {
                request = request.header("Authorization", header);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path} {header:?}");
            let body: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(body["code"], "unauthenticated");
            assert!(body["hint"].as_str().unwrap().contains("nkd login"));
        }
    }
}

/// A snippet may hold a password: only those who may write it read it, wherever it shows.
#[tokio::test]
async fn viewers_read_no_snippets() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let admin = place.admin();
    let snippet = "storage:\n  files:\n    - path: /etc/secret\n      contents: {inline: PASSWORD-OF-THE-RACK}\n";
    let assignment = json!({"image": "lab-1", "snippets": [snippet], "sshAuthorizedKeys": ["ssh-ed25519 AAAA me"]});
    let order = json!({"name": "n1", "identity": {"macs": ["52:54:00:aa:02:03"]}, "assignment": assignment});
    admin.post("/api/v1/machines", &order).await;
    let rule = json!({"name": "r", "matches": {"mac": "52:54:00:*"}, "assignment": assignment});
    assert_eq!(admin.call(Method::PUT, "/api/v1/rules", Some(&rule)).await.0, StatusCode::OK);
    let reads = ["machines", "machines?phase=assigned", "machines/n1", "machines/n1/explain", "events", "rules"];
    for role in ["viewer", "operator"] {
        let made = admin.post("/api/v1/users", &json!({"name": role, "role": role})).await;
        let user = place.user(made["token"].as_str().unwrap());
        for path in reads {
            let (status, text) = user.text(Method::GET, &format!("/api/v1/{path}"), None).await;
            assert_eq!(status, StatusCode::OK);
            let tells_of_snippets = path.starts_with("machines") && !path.ends_with("explain") || path == "rules";
            let told = role == "operator" && tells_of_snippets;
            assert_eq!(text.contains("PASSWORD-OF-THE-RACK"), told, "{role} {path}: {text}");
            assert_eq!(text.contains("takes the role operator"), tells_of_snippets && !told, "{role} {path}: {text}");
            assert!(text.contains("lab-1"), "the rest is shown: {path}: {text}");
        }
    }
    for file in std::fs::read_dir(place.state()).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(20).any(|window| window == b"PASSWORD-OF-THE-RACK");
        assert!(!found, "{} holds it in the open", file.display());
    }
}
