//! Who may pull and who may push, and what of it is written down.

use base64::Engine as _;

use super::super::node;
use super::*;

fn new_user(place: &Place, name: &str, role: &str) -> String {
    let made: Value = serde_json::from_str(&place.ok(&["user", "create", name, "--role", role, "-o", "json"])).unwrap();
    made["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn anybody_pulls_and_operators_push() {
    let place = Place::new();
    let _service = place.start().await;
    let admin = Hand::admin(&place);
    let [name, _, layer] = admin.image("a", "1", b"layer").await;
    let (viewer, operator) = (new_user(&place, "eve", "viewer"), new_user(&place, "olaf", "operator"));
    let stranger = Hand::new(&place, None);
    // Here clients learn how to log in, so it is 401 although pulling is open.
    let base = stranger.get("/v2/").await;
    base.refuses(401, "UNAUTHORIZED");
    assert_eq!(base.header("www-authenticate"), "Basic realm=\"nkd\"");
    assert_eq!(admin.get("/v2/").await.status, 200);
    let pulls = ["/v2/a/manifests/1", "/v2/a/tags/list", "/v2/_catalog", &format!("/v2/a/blobs/{layer}")];
    for path in pulls {
        assert_eq!(stranger.get(path).await.status, 200, "{path}");
        assert_eq!(Hand::new(&place, Some(&viewer)).get(path).await.status, 200, "{path}");
        Hand::new(&place, Some("wrong")).get(path).await.refuses(401, "UNAUTHORIZED");
    }
    let by_name = format!("/v2/a/manifests/{name}");
    let changes = [
        (Method::POST, "/v2/a/blobs/uploads/"),
        (Method::PUT, "/v2/a/manifests/2"),
        (Method::DELETE, "/v2/a/manifests/1"),
        (Method::DELETE, &by_name),
        (Method::GET, "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000"),
        (Method::PATCH, "/v2/A/no-such-address"),
    ];
    for (method, path) in changes {
        let refused = stranger.send(method.clone(), path).await;
        refused.refuses(401, "UNAUTHORIZED");
        assert_eq!(refused.header("www-authenticate"), "Basic realm=\"nkd\"", "{path}");
        Hand::new(&place, Some(&viewer)).send(method, path).await.refuses(403, "DENIED");
    }
    let begin = async |password: &str| {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("any name:{password}"));
        let request = stranger.request(Method::POST, "/v2/a/blobs/uploads/");
        answer(request.header("authorization", format!("Basic {basic}"))).await
    };
    assert_eq!(begin(&operator).await.status, 202);
    begin(&viewer).await.refuses(403, "DENIED");
    begin("wrong").await.refuses(401, "UNAUTHORIZED");
    begin("").await.refuses(401, "UNAUTHORIZED");
    let garbled = stranger.request(Method::GET, "/v2/a/tags/list").header("authorization", "Basic ????");
    answer(garbled).await.refuses(401, "UNAUTHORIZED");

    assert_eq!(Hand::new(&place, Some(&operator)).send(Method::DELETE, "/v2/a/manifests/1").await.status, 202);
    let trail = place.ok(&["audit"]);
    let line = |words: &[&str]| trail.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(line(&["admin", "registry.push", "a:1", &name]), "{trail}");
    assert!(line(&["olaf", "registry.delete", "a:1"]), "{trail}");
    assert!(line(&["eve", "refused", "DELETE /v2/a/manifests/1", "403"]), "{trail}");
    let out = place.cli_as(&viewer, &["registry", "delete", "a"]);
    assert!(text(&out.stderr).contains("this takes the role operator"), "{}", text(&out.stderr));
    assert!(!place.log_text().contains(&operator), "no token in the log");
}

#[tokio::test]
async fn a_closed_registry_knows_nodes_by_their_certificates() {
    let place = Place::new().with("registry.anonymous_pull=false");
    let service = place.start().await;
    place.import().await;
    let admin = Hand::admin(&place);
    let [_, _, layer] = admin.image("a", "1", b"layer").await;
    let stranger = Hand::new(&place, None);
    let paths = ["/v2/a/manifests/1".to_owned(), format!("/v2/a/blobs/{layer}")];
    for path in &paths {
        stranger.get(path).await.refuses(401, "UNAUTHORIZED");
        let viewer = new_user(&place, &format!("v{}", path.len()), "viewer");
        assert_eq!(Hand::new(&place, Some(&viewer)).get(path).await.status, 200);
    }
    let mac = "52:54:00:aa:0d:01";
    place.admin().declare("n1", mac).await;
    let (config, key, live) = node::live(&place, mac).await;
    let pull = async |node: &node::Enrolled, path: &str| answer(node.http.get(place.api_url(path))).await;
    pull(&live, &paths[0]).await.refuses(403, "DENIED");
    drop((config, key));
    let mac = "52:54:00:aa:0d:02";
    place.admin().declare("n2", mac).await;
    let (_, _, node) = node::install(&place, mac).await;
    for path in &paths {
        assert_eq!(pull(&node, path).await.status, 200);
    }
    let push = answer(node.http.post(place.api_url("/v2/a/blobs/uploads/"))).await;
    push.refuses(401, "UNAUTHORIZED");
    place.ok(&["machine", "reinstall", "n2"]);
    pull(&node, &paths[0]).await.refuses(403, "DENIED");
    drop(service);
}
