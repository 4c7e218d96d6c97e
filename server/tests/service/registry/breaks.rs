//! What was told as done is there: after kills, beside garbage that is being collected, after a restored backup.

use super::*;

fn layer(n: u64) -> Vec<u8> {
    noise(n, 100_000 + n as usize)
}

#[tokio::test]
async fn what_was_acknowledged_outlives_kills() {
    let place = Place::new();
    let mut done = Vec::new();
    for round in 0..4_u64 {
        let service = place.start().await;
        let hand = Hand::admin(&place);
        for n in &done {
            hand.has_image("a", &format!("t{n}"), &layer(*n)).await;
        }
        // Each round is killed at another point: while an image is being pushed, whatever of it is there by then.
        let pushing = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in round * 100.. {
                match hand.try_image("a", &format!("t{n}"), &layer(n)).await {
                    Some(Ok(())) => acknowledged.push(n),
                    Some(Err(answer)) => panic!("{answer:?}"),
                    None => return acknowledged,
                }
            }
            acknowledged
        });
        let tags = Hand::admin(&place);
        let wanted = done.len() + 3 + round as usize;
        super::super::harness::eventually("some were pushed", async || {
            let list = tags.get("/v2/a/tags/list").await;
            let count = (list.status == 200).then(|| list.json()["tags"].as_array().unwrap().len());
            count.filter(|count| *count >= wanted)
        })
        .await;
        service.kill();
        done.extend(pushing.await.unwrap());
    }
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    for n in &done {
        hand.has_image("a", &format!("t{n}"), &layer(*n)).await;
    }
    for (path, _) in files(&place.state().join("blobs/sha256")) {
        let name: String = path.iter().skip(path.iter().count() - 2).map(|part| part.to_str().unwrap()).collect();
        assert_eq!(digest(&std::fs::read(&path).unwrap()), format!("sha256:{name}"), "no half blob has a name");
    }
    // Whatever a kill left, something knows of it.
    place.ok(&["registry", "delete", "a"]);
    place.ok(&["registry", "gc", "--grace", "0m"]);
    assert_eq!(files(&place.state().join("blobs/sha256")), []);
}

/// Collecting without a grace may cost a push its blobs before the manifest; it is told so, and nothing is half there.
#[tokio::test]
async fn an_image_that_was_taken_is_whole_whatever_is_collected_meanwhile() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let api = place.admin();
    let collecting = tokio::spawn(async move {
        for _ in 0..60 {
            let (status, body) = api.text(Method::POST, "/api/v1/registry/garbage?graceMinutes=0", None).await;
            assert_eq!(status, 200, "{body}");
        }
    });
    let (mut taken, mut n) = (Vec::new(), 0);
    while !collecting.is_finished() || taken.is_empty() {
        n += 1;
        match hand.try_image("a", &format!("t{n}"), &layer(n)).await.unwrap() {
            Ok(()) => taken.push(n),
            Err(answer) => answer.refuses(400, "MANIFEST_BLOB_UNKNOWN"),
        }
    }
    collecting.await.unwrap();
    for n in taken {
        hand.has_image("a", &format!("t{n}"), &layer(n)).await;
    }
}

/// A backup holds what the registry had, and no layers.
#[tokio::test]
async fn a_blob_that_is_not_on_the_disk_is_pushed_again() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let [_, _, name] = hand.image("a", "1", &layer(1)).await;
    std::fs::remove_dir_all(place.state().join("blobs/sha256")).unwrap();
    std::fs::create_dir(place.state().join("blobs/sha256")).unwrap();
    let path = format!("/v2/a/blobs/{name}");
    hand.get(&path).await.refuses(404, "BLOB_UNKNOWN");
    assert_eq!(hand.send(Method::HEAD, &path).await.status, 404);
    let config = json!({"of": name}).to_string();
    let document = image(config.as_bytes(), &[&layer(1)]);
    hand.manifest("a", "2", IMAGE, &document).await.refuses(400, "MANIFEST_BLOB_UNKNOWN");
    let mount = hand.send(Method::POST, &format!("/v2/b/blobs/uploads/?mount={name}&from=a")).await;
    assert_eq!(mount.status, 202);
    hand.image("a", "1", &layer(1)).await;
    hand.has_image("a", "1", &layer(1)).await;
}
