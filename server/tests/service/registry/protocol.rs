//! The distribution specification, request by request.

use super::*;

#[tokio::test]
async fn blobs_come_whole_and_in_ranges() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let bytes = noise(1, 100_000);
    let path = format!("/v2/a/b/blobs/{}", hand.blob("a/b", &bytes).await);
    let whole = hand.get(&path).await;
    assert_eq!((whole.status.as_u16(), whole.body == bytes), (200, true));
    assert_eq!(whole.header("docker-content-digest"), digest(&bytes));
    assert_eq!(hand.get(&path.replace(':', "%3A")).await.body, bytes);
    let head = hand.send(Method::HEAD, &path).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "100000"));
    for (range, want) in [("bytes=0-0", 0..1), ("bytes=99990-", 99_990..100_000), ("bytes=-5", 99_995..100_000)] {
        let part = answer(hand.request(Method::GET, &path).header("range", range)).await;
        assert_eq!((part.status.as_u16(), &part.body[..]), (206, &bytes[want]), "{range}");
    }
    // What asks for none, and for several at once, is answered whole.
    for range in ["bytes=0-0,2-3", "bytes=5-2", "bytes=x"] {
        let whole = answer(hand.request(Method::GET, &path).header("range", range)).await;
        assert_eq!((whole.status.as_u16(), whole.body.len()), (200, bytes.len()), "{range}");
    }
    let known =
        answer(hand.request(Method::GET, &path).header("if-none-match", format!("\"{}\"", digest(&bytes)))).await;
    assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
    let beyond = answer(hand.request(Method::GET, &path).header("range", "bytes=100000-")).await;
    beyond.refuses(416, "RANGE_INVALID");
    assert_eq!(beyond.header("content-range"), "bytes */100000");
    hand.get(&format!("/v2/a/c/blobs/{}", digest(&bytes))).await.refuses(404, "BLOB_UNKNOWN");
    hand.get(&format!("/v2/a/b/blobs/{}", digest(b"none"))).await.refuses(404, "BLOB_UNKNOWN");
    hand.send(Method::DELETE, &path).await.refuses(405, "UNSUPPORTED");
}

#[tokio::test]
async fn a_manifest_needs_everything_that_it_is_made_of() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let (config, layer) = (b"{}".to_vec(), noise(2, 1000));
    let document = image(&config, &[&layer]);
    hand.blob("a", &config).await;
    hand.manifest("a", "1", IMAGE, &document).await.refuses(400, "MANIFEST_BLOB_UNKNOWN");
    hand.blob("b", &layer).await;
    hand.manifest("a", "1", IMAGE, &document).await.refuses(400, "MANIFEST_BLOB_UNKNOWN");
    hand.get("/v2/a/manifests/1").await.refuses(404, "MANIFEST_UNKNOWN");
    hand.get("/v2/nothing/tags/list").await.refuses(404, "NAME_UNKNOWN");
    assert_eq!(hand.get("/v2/a/tags/list").await.json(), json!({"name": "a", "tags": []}));
    hand.blob("a", &layer).await;
    let mut wrong = document.clone();
    wrong["layers"][0]["size"] = 999.into();
    hand.manifest("a", "1", IMAGE, &wrong).await.refuses(400, "SIZE_INVALID");
    hand.manifest("a", &digest(b"x"), IMAGE, &document).await.refuses(400, "DIGEST_INVALID");
    hand.manifest("a", "1", INDEX, &document).await.refuses(400, "MANIFEST_INVALID");
    hand.manifest("a", "1", "text/plain", &json!({"schemaVersion": 2})).await.refuses(400, "MANIFEST_INVALID");
    let huge = json!({"schemaVersion": 2, "annotations": {"x": "y".repeat(4 << 20)}});
    hand.manifest("a", "1", IMAGE, &huge).await.refuses(413, "MANIFEST_INVALID");

    let pushed = hand.manifest("a", "1", IMAGE, &document).await;
    let name = digest(document.to_string().as_bytes());
    assert_eq!((pushed.status.as_u16(), pushed.header("docker-content-digest")), (201, name.as_str()));
    assert_eq!(pushed.header("location"), format!("/v2/a/manifests/{name}"));
    for reference in ["1", &name] {
        let got = hand.get(&format!("/v2/a/manifests/{reference}")).await;
        assert_eq!((text(&got.body), got.header("content-type")), (document.to_string(), IMAGE));
        let head = hand.send(Method::HEAD, &format!("/v2/a/manifests/{reference}")).await;
        assert_eq!((head.status.as_u16(), head.header("docker-content-digest")), (200, name.as_str()));
        assert_eq!(head.header("content-length"), document.to_string().len().to_string());
    }
    let child = json!({"mediaType": IMAGE, "digest": name, "size": document.to_string().len()});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]});
    hand.manifest("b", "all", INDEX, &index).await.refuses(400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(hand.manifest("a", "all", INDEX, &index).await.status, 201);
    // A part of another manifest stays.
    hand.send(Method::DELETE, &format!("/v2/a/manifests/{name}")).await.refuses(409, "DENIED");
    assert_eq!(hand.send(Method::DELETE, "/v2/a/manifests/all").await.status, 202);
    assert_eq!(hand.get("/v2/a/tags/list").await.json()["tags"], json!(["1"]));
    hand.send(Method::DELETE, "/v2/a/manifests/all").await.refuses(404, "MANIFEST_UNKNOWN");
    let index_name = digest(index.to_string().as_bytes());
    assert_eq!(hand.send(Method::DELETE, &format!("/v2/a/manifests/{index_name}")).await.status, 202);
    assert_eq!(hand.send(Method::DELETE, &format!("/v2/a/manifests/{name}")).await.status, 202);
    hand.get("/v2/a/manifests/1").await.refuses(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn what_is_malformed_is_told_with_the_codes_of_the_specification() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let none = digest(b"none");
    for (method, path, status, code) in [
        (Method::GET, "/v2/A/tags/list", 400, "NAME_INVALID"),
        (Method::GET, "/v2/a%5c..%5cb/tags/list", 400, "NAME_INVALID"),
        (Method::GET, "/v2/a%00/tags/list", 400, "NAME_INVALID"),
        (Method::POST, "/v2/a..b/blobs/uploads/", 400, "NAME_INVALID"),
        (Method::GET, "/v2/a/blobs/sha256:12", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/blobs/md5:12", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/referrers/latest", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/manifests/.x", 404, "MANIFEST_UNKNOWN"),
        (Method::PUT, "/v2/a/manifests/.x", 400, "MANIFEST_INVALID"),
        (Method::GET, "/v2/a/manifests/sha256:1", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/manifests/none", 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/a/tags/list?n=many", 400, "PAGINATION_NUMBER_INVALID"),
        (Method::GET, "/v2/_catalog?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
        (Method::GET, "/v2/nothing", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/%ff", 404, "NAME_UNKNOWN"),
        (Method::POST, "/v2/a/tags/list", 405, "UNSUPPORTED"),
        (Method::PATCH, "/v2/a/blobs/uploads/1", 404, "BLOB_UPLOAD_UNKNOWN"),
        (Method::GET, "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000", 404, "BLOB_UPLOAD_UNKNOWN"),
        (Method::POST, "/v2/a/blobs/uploads/?digest=sha256:0", 400, "DIGEST_INVALID"),
        (Method::POST, &format!("/v2/a/blobs/uploads/?mount={none}&from=A"), 400, "NAME_INVALID"),
    ] {
        let refused = hand.send(method.clone(), path).await;
        assert!(!refused.body.is_empty(), "{method} {path}");
        assert_eq!(refused.header("docker-distribution-api-version"), "registry/2.0");
        refused.refuses(status, code);
    }
    assert_eq!(stored(&place), [], "nothing was begun");
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let document = image(b"{}", &[]);
    for name in ["z", "m/n", "a"] {
        hand.blob(name, b"{}").await;
        for tag in ["3", "1", "latest", "2"] {
            assert_eq!(hand.manifest(name, tag, IMAGE, &document).await.status, 201);
        }
    }
    let mut path = "/v2/m/n/tags/list?n=3".to_owned();
    let first = hand.get(&path).await;
    assert_eq!(first.json(), json!({"name": "m/n", "tags": ["1", "2", "3"]}));
    path = first.header("link").strip_prefix('<').unwrap().split_once(">; rel=\"next\"").unwrap().0.to_owned();
    let second = hand.get(&path).await;
    assert_eq!((&second.json()["tags"], second.headers.get("link")), (&json!(["latest"]), None));
    assert_eq!(hand.get("/v2/a/tags/list?n=0").await.json()["tags"], json!([]));
    assert_eq!(hand.get("/v2/a/tags/list?last=2").await.json()["tags"], json!(["3", "latest"]));
    let catalog = hand.get("/v2/_catalog?n=2").await;
    assert_eq!(catalog.json(), json!({"repositories": ["a", "m/n"]}));
    assert_eq!(catalog.header("link"), "</v2/_catalog?n=2&last=m%2Fn>; rel=\"next\"");
    assert_eq!(hand.get("/v2/_catalog").await.json()["repositories"], json!(["a", "m/n", "z"]));
}

#[tokio::test]
async fn referrers_are_found_by_their_subject_and_kind() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let [subject, ..] = hand.image("a", "1", b"layer").await;
    let size = hand.get("/v2/a/manifests/1").await.body.len();
    hand.blob("a", b"{}").await;
    let mut names = Vec::new();
    for (kind, note) in [("example/sbom", "one"), ("example/signature", "two"), ("example/sbom", "three")] {
        let mut document = image(b"{}", &[]);
        document["artifactType"] = kind.into();
        document["annotations"] = json!({ "note": note });
        document["subject"] = json!({"mediaType": IMAGE, "digest": subject, "size": size});
        let by = digest(document.to_string().as_bytes());
        let pushed = hand.manifest("a", &by, IMAGE, &document).await;
        assert_eq!((pushed.status.as_u16(), pushed.header("oci-subject")), (201, subject.as_str()));
        names.push((by, kind, note));
    }
    let path = format!("/v2/a/referrers/{subject}");
    let all = hand.get(&path).await;
    assert_eq!((all.header("content-type"), &all.json()["mediaType"]), (INDEX, &json!(INDEX)));
    let found = all.json()["manifests"].as_array().unwrap().clone();
    assert_eq!(found.len(), 3);
    for (by, kind, note) in &names {
        let it = found.iter().find(|descriptor| descriptor["digest"] == by.as_str()).unwrap();
        assert_eq!((&it["artifactType"], &it["annotations"]["note"]), (&json!(kind), &json!(note)));
        assert_eq!(it["size"], hand.get(&format!("/v2/a/manifests/{by}")).await.body.len());
    }
    let some = hand.get(&format!("{path}?artifactType=example/signature")).await;
    assert_eq!(some.header("oci-filters-applied"), "artifactType");
    assert_eq!(some.json()["manifests"].as_array().unwrap().len(), 1);
    let none = hand.get(&format!("/v2/nowhere/referrers/{subject}")).await;
    assert_eq!((none.status.as_u16(), &none.json()["manifests"]), (200, &json!([])));
}
