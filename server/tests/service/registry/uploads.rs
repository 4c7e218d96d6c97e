//! Uploads: in chunks, over restarts, two at once, with wrong digests, without room.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// A chunk from this byte on.
async fn chunk(hand: &Hand, at: &str, from: usize, bytes: &[u8]) -> Answer {
    let range = format!("{from}-{}", (from + bytes.len()).saturating_sub(1));
    answer(hand.request(Method::PATCH, at).header("content-range", range).body(bytes.to_vec())).await
}

#[tokio::test]
async fn an_upload_outlives_the_service() {
    let place = Place::new();
    let service = place.start().await;
    let bytes = noise(3, 3_000_000);
    let hand = Hand::admin(&place);
    let at = hand.begin("a/b").await;
    let first = chunk(&hand, &at, 0, &bytes[..1_000_000]).await;
    assert_eq!((first.status.as_u16(), first.header("range")), (202, "0-999999"));
    // A chunk whose sender goes away in the middle: what came of it stays.
    let half = bytes[1_000_000..2_500_000].to_vec();
    let stream = futures_util::stream::iter([Ok(half), Err(std::io::Error::other("the cable is out"))]);
    let broken = hand.request(Method::PATCH, &at).body(reqwest::Body::wrap_stream(stream)).send().await;
    assert!(broken.is_err(), "{broken:?}");
    service.kill();

    let _service = place.start().await;
    let status = hand.get(&at).await;
    assert_eq!(status.status, 204);
    let there: usize = status.header("range").strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    assert!((1_000_000..=2_500_000).contains(&there), "{there}");
    hand.get(&at.replace("a/b", "a/c")).await.refuses(404, "BLOB_UPLOAD_UNKNOWN");
    for wrong in [0, there - 1, there + 1] {
        let refused = chunk(&hand, &at, wrong, b"xyz").await;
        refused.refuses(416, "BLOB_UPLOAD_INVALID");
        assert_eq!((refused.header("location"), refused.header("range")), (at.as_str(), status.header("range")));
    }
    for wrong in ["1", "x-y", "bytes 0-1/2", "9-1"] {
        let request = hand.request(Method::PATCH, &at).header("content-range", wrong).body("x");
        answer(request).await.refuses(416, "BLOB_UPLOAD_INVALID");
    }
    let range = format!("{there}-{}", there + 9);
    let short = answer(hand.request(Method::PATCH, &at).header("content-range", range).body("12345")).await;
    short.refuses(400, "SIZE_INVALID");
    let last = chunk(&hand, &at, there, &bytes[there..2_900_000]).await;
    assert_eq!((last.status.as_u16(), last.header("range")), (202, "0-2899999"));
    let name = digest(&bytes);
    let request = hand.request(Method::PUT, &format!("{at}?digest={name}"));
    let done = answer(request.header("content-range", "2900000-2999999").body(bytes[2_900_000..].to_vec())).await;
    assert_eq!(done.status, 201, "{done:?}");
    assert_eq!(done.header("location"), format!("/v2/a/b/blobs/{name}"));
    assert!(hand.get(done.header("location")).await.body == bytes);
    hand.get(&at).await.refuses(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_wrong_digest_is_refused_and_nothing_is_visible() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let name = digest(b"what was promised");
    let at = hand.begin("a").await;
    assert_eq!(chunk(&hand, &at, 0, b"what came").await.status, 202);
    hand.send(Method::PUT, &at).await.refuses(400, "DIGEST_INVALID");
    hand.send(Method::PUT, &format!("{at}?digest={name}")).await.refuses(400, "DIGEST_INVALID");
    let whole = hand.request(Method::POST, &format!("/v2/a/blobs/uploads/?digest={name}")).body("what came");
    answer(whole).await.refuses(400, "DIGEST_INVALID");
    for came in [&name, &digest(b"what came")] {
        hand.get(&format!("/v2/a/blobs/{came}")).await.refuses(404, "BLOB_UNKNOWN");
    }
    hand.get(&at).await.refuses(404, "BLOB_UPLOAD_UNKNOWN");
    let at = hand.begin("a").await;
    assert_eq!(chunk(&hand, &at, 0, b"what came").await.status, 202);
    assert_eq!(hand.send(Method::DELETE, &at).await.status, 204);
    hand.send(Method::PUT, &format!("{at}?digest={}", digest(b"what came"))).await.refuses(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(stored(&place), [], "nothing is left");
}

#[tokio::test]
async fn two_pushes_of_one_blob_meet() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let bytes = noise(4, 2_000_000);
    let (one, two, three) = tokio::join!(hand.blob("a", &bytes), hand.blob("a", &bytes), hand.blob("b", &bytes));
    assert!(one == two && two == three);
    for name in ["a", "b"] {
        assert!(hand.get(&format!("/v2/{name}/blobs/{one}")).await.body == bytes);
    }
    let files = stored(&place);
    assert_eq!(files.iter().map(|(_, size)| size).collect::<Vec<_>>(), [&2_000_000], "once on the disk: {files:?}");
    // An upload that one request writes to is no other's.
    let at = hand.begin("a").await;
    let (sender, body) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = futures_util::stream::unfold(body, async |mut body| body.recv().await.map(|item| (item, body)));
    let request = hand.request(Method::PATCH, &at).body(reqwest::Body::wrap_stream(body));
    let long = tokio::spawn(answer(request));
    sender.send(Ok(noise(12, 2 << 20))).await.unwrap();
    super::super::harness::eventually("the first one writes", async || {
        (hand.get(&at).await.header("range") != "0-0").then_some(())
    })
    .await;
    hand.send(Method::DELETE, &at).await.refuses(409, "BLOB_UPLOAD_INVALID");
    chunk(&hand, &at, 0, b"x").await.refuses(409, "BLOB_UPLOAD_INVALID");
    drop(sender);
    assert_eq!(long.await.unwrap().status, 202);
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository() {
    let place = Place::new();
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let name = hand.blob("a", b"shared").await;
    let mount = async |to: &str, more: &str| {
        hand.send(Method::POST, &format!("/v2/{to}/blobs/uploads/?mount={name}{more}")).await
    };
    let mounted = mount("b", "&from=a").await;
    assert_eq!((mounted.status.as_u16(), mounted.header("location")), (201, &*format!("/v2/b/blobs/{name}")));
    assert_eq!(hand.get(&format!("/v2/b/blobs/{name}")).await.body, b"shared");
    assert_eq!(mount("c", "").await.status, 201, "from whichever has it");
    let not_there = mount("d", "&from=nowhere").await;
    assert_eq!(not_there.status, 202, "an upload is begun instead");
    hand.get(&format!("/v2/d/blobs/{name}")).await.refuses(404, "BLOB_UNKNOWN");
    assert_eq!(hand.get(not_there.header("location")).await.status, 204);
}

/// The most memory that a process ever had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_large_layer_goes_to_the_disk_and_not_into_memory() {
    let place = Place::new();
    let service = place.start().await;
    let hand = Hand::admin(&place);
    let (piece, pieces) = (noise(5, 1 << 20), 300);
    let mut hash = Sha256::new();
    (0..pieces).for_each(|_| hash.update(&piece));
    let name = format!("sha256:{}", hex::encode(hash.finalize()));
    let before = peak(service.child.id());
    let at = hand.begin("large").await;
    let body = futures_util::stream::iter((0..pieces).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let patch = answer(hand.request(Method::PATCH, &at).body(reqwest::Body::wrap_stream(body))).await;
    assert_eq!(patch.status, 202, "{patch:?}");
    assert_eq!(hand.send(Method::PUT, &format!("{at}?digest={name}")).await.status, 201);
    let mut pulled = hand.request(Method::GET, &format!("/v2/large/blobs/{name}")).send().await.unwrap();
    let mut length = 0;
    while let Some(bytes) = pulled.chunk().await.unwrap() {
        length += bytes.len();
    }
    assert_eq!(length, 300 << 20);
    let grown = peak(service.child.id()) - before;
    assert!(grown < 64 << 20, "300 MiB took {} MiB of memory", grown >> 20);
}

/// A small file system; gone when dropped.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn a_full_disk_is_said_and_half_a_blob_does_not_stay() {
    let place = Place::new();
    std::fs::create_dir_all(place.state()).unwrap();
    mount(Some("nkd-test"), &place.state(), Some("tmpfs"), MsFlags::empty(), Some("size=32m")).expect("needs root");
    let _small = Small(place.state());
    let _service = place.start().await;
    let hand = Hand::admin(&place);
    let there = hand.blob("a", &noise(6, 1 << 20)).await;
    let bytes = noise(7, 40 << 20);
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&bytes));
    let refused = answer(hand.request(Method::POST, &path).body(bytes.clone())).await;
    refused.refuses(507, "DENIED");
    let why = refused.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    assert!(why.contains("no space left") && why.contains("nkd registry gc"), "{why}");
    // Without a length that could be looked at before.
    let at = hand.begin("a").await;
    let pieces: Vec<_> = bytes.chunks(1 << 20).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    answer(hand.request(Method::PATCH, &at).body(body)).await.refuses(507, "DENIED");
    assert_eq!(stored(&place).len(), 1, "{:?}", stored(&place));
    assert_eq!(hand.get(&format!("/v2/a/blobs/{there}")).await.status, 200);
    // The service itself has room left to write down what it must.
    place.ok(&["user", "create", "eve", "--role", "viewer"]);
    hand.blob("a", &noise(8, 1 << 20)).await;
}
