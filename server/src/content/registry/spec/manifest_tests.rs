//! Manifests as clients write them, and documents that are none.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const IMAGE: &str = IMAGES[0];
const INDEX: &str = INDEXES[0];
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(kind: &str, seed: u8, size: u64) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", Sha256Digest([seed; 32])), "size": size})
}

fn part(seed: u8, size: u64) -> Part {
    Part { digest: Sha256Digest([seed; 32]), size }
}

fn read(kind: &str, document: &Value) -> Result<Manifest, ManifestError> {
    Manifest::read(Some(kind), document.to_string().as_bytes())
}

fn image() -> Value {
    json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor("application/vnd.oci.image.config.v1+json", 1, 10),
           "layers": [descriptor(LAYER, 2, 20), descriptor(LAYER, 3, 30)]})
}

#[test]
fn an_image_is_made_of_its_configuration_and_layers() {
    let manifest = read(IMAGE, &image()).unwrap();
    assert_eq!(manifest.blobs, [part(1, 10), part(2, 20), part(3, 30)]);
    assert_eq!((manifest.manifests.len(), manifest.subject), (0, None));
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
    let mut foreign = image();
    foreign["layers"][1]["urls"] = json!(["https://elsewhere.example/layer"]);
    assert_eq!(read(IMAGE, &foreign).unwrap().blobs, [part(1, 10), part(2, 20)]);
    let plain = Manifest::read(None, image().to_string().as_bytes()).unwrap();
    assert_eq!(plain.media_type, IMAGE);
    assert_eq!(read(&format!("{IMAGE}; charset=utf-8"), &image()).unwrap().media_type, IMAGE);
}

#[test]
fn an_index_is_made_of_manifests_and_perhaps_blobs() {
    let children = json!([descriptor(IMAGE, 1, 10), descriptor(LAYER, 2, 20), descriptor(IMAGES[1], 3, 30)]);
    let index =
        json!({"schemaVersion": 2, "manifests": children, "subject": descriptor(IMAGE, 9, 1), "artifactType": "a/b"});
    let manifest = read(INDEX, &index).unwrap();
    assert_eq!((manifest.manifests, manifest.blobs), (vec![part(1, 10), part(3, 30)], vec![part(2, 20)]));
    assert_eq!((manifest.subject, manifest.artifact_type.as_deref()), (Some(Sha256Digest([9; 32])), Some("a/b")));
}

#[test]
fn what_is_no_manifest_is_refused() {
    let with = |name: &str, value: Value| {
        let mut document = image();
        document[name] = value;
        document
    };
    let wrong = [
        (INDEX, image()),
        (IMAGE, with("manifests", json!([]))),
        (IMAGE, with("config", Value::Null)),
        (IMAGE, with("layers", json!({}))),
        (IMAGE, with("schemaVersion", json!(1))),
        (IMAGE, with("mediaType", json!(INDEX))),
        (IMAGE, with("layers", json!([{"mediaType": LAYER, "digest": "sha256:0", "size": 1}]))),
        (IMAGE, with("layers", json!([descriptor(LAYER, 1, 1 << 50)]))),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", with("mediaType", Value::Null)),
        ("application/json", with("mediaType", Value::Null)),
    ];
    for (kind, document) in wrong {
        assert!(read(kind, &document).is_err(), "{kind}: {document}");
    }
    assert!(Manifest::read(None, b"{\"schemaVersion\":2,\"manifests\":[]}").is_err());
}

proptest! {
    #[test]
    fn no_bytes_break_it(bytes: Vec<u8>, text in "[{}\\[\\]\":,a-z0-9]{0,80}") {
        let _ = Manifest::read(Some(IMAGE), &bytes);
        let _ = Manifest::read(None, text.as_bytes());
    }
}
