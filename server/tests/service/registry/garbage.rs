//! What is deleted frees its space, and nothing else goes.

use super::*;

fn blobs(place: &Place) -> Vec<u64> {
    files(&place.state().join("blobs/sha256")).iter().map(|(_, size)| *size).collect()
}

fn gc(place: &Place, more: &[&str]) -> Value {
    serde_json::from_str(&place.ok(&[&["registry", "gc", "-o", "json"], more].concat())).unwrap()
}

#[tokio::test]
async fn deleting_and_collecting_frees_space_and_keeps_what_is_shared() {
    let place = Place::new();
    let service = place.start().await;
    place.import().await;
    let image_blobs = blobs(&place);
    let hand = Hand::admin(&place);
    let (own, shared) = (noise(10, 5000), noise(11, 6000));
    hand.image("a", "1", &own).await;
    let [first, _, shared_name] = hand.image("a", "2", &shared).await;
    hand.image("b", "1", &shared).await;
    // Layers that an image has too: its kernel.
    let kernel = super::super::harness::image_files()[0].1.clone();
    hand.image("c", "1", &kernel).await;
    let held = blobs(&place).len();
    assert_eq!(held, image_blobs.len() + 2 + 3, "two layers and three configurations more");

    let list: Value = serde_json::from_str(&place.ok(&["registry", "list", "-o", "json"])).unwrap();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|r| (&r["name"], &r["tags"])).collect();
    assert_eq!(names, [(&json!("a"), &json!(2)), (&json!("b"), &json!(1)), (&json!("c"), &json!(1))]);
    let tags = place.ok(&["registry", "tags", "a"]);
    assert!(tags.contains(&first) && tags.lines().count() == 3, "{tags}");

    assert_eq!(gc(&place, &["--grace", "0m", "--untagged"])["blobs"], json!([]), "everything is in use");
    place.ok(&["registry", "delete", &format!("a@{first}")]);
    place.ok(&["registry", "delete", "c"]);
    let said = place.ok(&["registry", "delete", "a:1"]);
    assert!(said.contains("gc --untagged"), "{said}");
    // Both layers live on: one in b, one in the image. Configurations are another matter.
    let before = blobs(&place);
    assert_eq!(gc(&place, &[])["blobs"], json!([]), "all of it is younger than the grace");
    let dry = gc(&place, &["--grace", "0m", "--untagged", "--dry-run"]);
    assert_eq!((blobs(&place), &dry["manifests"]), (before, &json!(1)));
    let done = gc(&place, &["--grace", "0m", "--untagged"]);
    assert_eq!((&done["blobs"], &done["bytes"]), (&dry["blobs"], &dry["bytes"]));
    // The layer of a:1, its configuration, and that of c; b has the configuration of a:2 too.
    assert_eq!(done["blobs"].as_array().unwrap().len(), 3, "{done}");
    assert_eq!(blobs(&place).len(), held - 3);
    hand.get(&format!("/v2/a/blobs/{}", digest(&own))).await.refuses(404, "BLOB_UNKNOWN");
    hand.get(&format!("/v2/a/blobs/{shared_name}")).await.refuses(404, "BLOB_UNKNOWN");
    assert_eq!(hand.get(&format!("/v2/b/blobs/{shared_name}")).await.body, shared);
    assert_eq!(hand.get("/v2/b/manifests/1").await.status, 200);

    // The garbage of images leaves the registry alone.
    place.ok(&["image", "remove", "lab-1"]);
    place.ok(&["image", "gc"]);
    assert_eq!(blobs(&place).len(), 2, "b's layer and configuration");
    drop(service);
    let _service = place.start().await;
    assert_eq!(hand.get(&format!("/v2/b/blobs/{shared_name}")).await.body, shared);
    let out = place.cli(&["registry", "delete", "nowhere"]);
    assert!(text(&out.stderr).contains("there is no repository `nowhere`"), "{}", text(&out.stderr));
    let out = place.cli(&["registry", "tags", "nowhere"]);
    assert!(text(&out.stderr).contains("nkd registry list"), "{}", text(&out.stderr));
}

#[tokio::test]
async fn what_lost_its_blobs_is_told_from_what_is_whole() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let [child, _, layer] = hand.image("a", "part", b"layer").await;
    let size = hand.get("/v2/a/manifests/part").await.body.len();
    let part = json!({"mediaType": IMAGE, "digest": child, "size": size});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [part]});
    assert_eq!(hand.manifest("a", "index", INDEX, &index).await.status, 201);
    hand.image("a", "other", b"another layer").await;
    hand.image("b", "1", b"a third layer").await;
    let lost = |words: &[&str]| {
        let list: Value = serde_json::from_str(&place.ok(&[words, &["-o", "json"]].concat())).unwrap();
        let row = |row: &Value| (row["name"].as_str().unwrap().to_owned(), row["lost"].as_u64().unwrap());
        list.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    let named = |all: &[(&str, u64)]| all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(lost(&["registry", "list"]), named(&[("a", 0), ("b", 0)]));

    // What a backup does not hold.
    let hex = layer.strip_prefix("sha256:").unwrap();
    std::fs::remove_file(place.state().join("blobs/sha256").join(&hex[..2]).join(&hex[2..])).unwrap();
    assert_eq!(lost(&["registry", "list"]), named(&[("a", 1), ("b", 0)]));
    assert_eq!(lost(&["registry", "tags", "a"]), named(&[("index", 1), ("other", 0), ("part", 1)]));
    let shown = place.ok(&["registry", "tags", "a"]);
    assert!(shown.lines().filter(|line| line.contains("lost 1 blob: push it again")).count() == 2, "{shown}");
    hand.image("a", "part", b"layer").await;
    assert_eq!(lost(&["registry", "tags", "a"]), named(&[("index", 0), ("other", 0), ("part", 0)]));
}

#[tokio::test]
async fn what_leads_to_a_manifest_keeps_it() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let [child, ..] = hand.image("a", "child", b"layer").await;
    let size = hand.get("/v2/a/manifests/child").await.body.len();
    let part = json!({"mediaType": IMAGE, "digest": child, "size": size});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [part]});
    assert_eq!(hand.manifest("a", "all", INDEX, &index).await.status, 201);
    hand.blob("a", b"{}").await;
    let mut note = image(b"{}", &[]);
    note["subject"] = part.clone();
    let note_name = digest(note.to_string().as_bytes());
    assert_eq!(hand.manifest("a", &note_name, IMAGE, &note).await.status, 201);
    place.ok(&["registry", "delete", "a:child"]);
    assert_eq!(gc(&place, &["--grace", "0m", "--untagged"])["manifests"], 0);
    place.ok(&["registry", "delete", "a:all"]);
    assert_eq!(gc(&place, &["--grace", "0m"])["manifests"], 0, "only when it is asked for");
    assert_eq!(gc(&place, &["--grace", "0m", "--untagged"])["manifests"], 3, "the index, its child, and its note");
    assert_eq!(blobs(&place), Vec::<u64>::new());
    assert_eq!(place.ok(&["registry", "list", "-o", "json"]).trim(), "[]");
}

/// A push that takes its time loses nothing to the service's own collecting.
#[tokio::test]
async fn a_blob_without_a_manifest_stays_for_the_grace() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    hand.blob("a", b"{}").await;
    assert_eq!(gc(&place, &[])["blobs"], json!([]));
    assert_eq!(hand.manifest("a", "1", IMAGE, &image(b"{}", &[])).await.status, 201);
    hand.blob("a", b"forgotten").await;
    assert_eq!(gc(&place, &["--grace", "0m"])["blobs"], json!([digest(b"forgotten")]));
    let mut late = image(b"{}", &[b"forgotten"]);
    hand.manifest("a", "2", IMAGE, &late).await.refuses(400, "MANIFEST_BLOB_UNKNOWN");
    hand.blob("a", b"forgotten").await;
    late["annotations"] = json!({});
    assert_eq!(hand.manifest("a", "2", IMAGE, &late).await.status, 201);
}

/// What breaks off stays for whoever goes on with it.
#[tokio::test]
async fn an_upload_that_was_sent_a_moment_ago_stays() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let begun = answer(hand.request(Method::POST, "/v2/a/blobs/uploads/")).await;
    let at = begun.header("location").to_owned();
    assert_eq!(answer(hand.request(Method::PATCH, &at).body(b"half".to_vec())).await.status, 202);
    assert_eq!(gc(&place, &["--grace", "0m"])["uploads"], 0);
    assert_eq!(answer(hand.request(Method::PATCH, &at).body(b"rest".to_vec())).await.status, 202);
}
