//! Stream documents.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// In the words of a Fedora CoreOS stream.
fn document() -> Value {
    let file = |name: &str| {
        let location = format!("https://builds.example.org/prod/{name}");
        json!({"location": location, "signature": format!("{location}.sig"), "sha256": SHA})
    };
    let mut disk = file("fedora-coreos-40.20240808.3.0-metal.x86_64.raw.xz");
    disk["uncompressed-sha256"] = SHA.into();
    json!({
        "stream": "stable",
        "metadata": {"last-modified": "2024-08-20T00:00:00Z"},
        "architectures": {
            "x86_64": {"artifacts": {
                "aws": {"release": "40.20240808.3.0", "formats": {}},
                "metal": {"release": "40.20240808.3.0", "formats": {
                    "4k.raw.xz": {"disk": file("fedora-coreos-40.20240808.3.0-metal4k.x86_64.raw.xz")},
                    "iso": {"disk": file("fedora-coreos-40.20240808.3.0-live.x86_64.iso")},
                    "pxe": {
                        "kernel": file("fedora-coreos-40.20240808.3.0-live-kernel-x86_64"),
                        "initramfs": file("fedora-coreos-40.20240808.3.0-live-initramfs.x86_64.img"),
                        "rootfs": file("fedora-coreos-40.20240808.3.0-live-rootfs.x86_64.img"),
                    },
                    "raw.xz": {"disk": disk},
                }},
            }},
            "s390x": {"artifacts": {"qemu": {}}},
        },
    })
}

fn paths(document: &Value, base: Base<'_>) -> Vec<String> {
    let problems = read(&document.to_string(), base, Some("x86_64")).unwrap_err();
    problems.into_iter().map(|p| p.path.replace("architectures.x86_64.artifacts.metal.", "")).collect()
}

#[test]
fn a_stream_of_fedora_coreos_is_read() {
    let build = read(&document().to_string(), Base::Folder, None).unwrap();
    assert_eq!(build.profile.as_deref(), Some("fedora-coreos"));
    assert_eq!((build.version.as_str(), build.architecture.as_str()), ("40.20240808.3.0", "x86_64"));
    let kinds: Vec<_> = build.artifacts.iter().map(|a| a.kind).collect();
    assert_eq!(kinds, [ArtifactKind::Kernel, ArtifactKind::Initramfs, ArtifactKind::Rootfs, ArtifactKind::Disk]);
    let disk = &build.artifacts[3];
    assert_eq!(disk.location.file_name(), "fedora-coreos-40.20240808.3.0-metal.x86_64.raw.xz");
    assert_eq!((disk.packing, disk.uncompressed_sha256), (Some(Packing::Xz), Some(SHA.parse().unwrap())));
    assert!(matches!(&disk.signature, Some(Location::Url(u)) if u.path().ends_with(".raw.xz.sig")));
}

#[test]
fn every_problem_is_told_with_its_place() {
    let mut doc = document();
    let metal = doc.pointer_mut("/architectures/x86_64/artifacts/metal").unwrap();
    metal["release"] = "../1".into();
    metal["formats"]["pxe"]["kernel"] = json!({"sha256": "x"});
    metal["formats"]["pxe"]["initramfs"]["signature"] = 5.into();
    metal["formats"]["pxe"].as_object_mut().unwrap().remove("rootfs");
    metal["formats"]["raw.xz"]["disk"]["sha256"] = Value::Null;
    metal["formats"]["raw.xz"]["disk"]["uncompressed-sha256"] = "abc".into();
    let found = paths(&doc, Base::Folder);
    for path in [
        "formats.pxe.kernel.location",
        "formats.pxe.kernel.sha256",
        "formats.pxe.initramfs.signature",
        "formats.pxe.rootfs",
        "formats.\"raw.xz\".disk.sha256",
        "formats.\"raw.xz\".disk.uncompressed-sha256",
        "release",
    ] {
        assert!(found.contains(&path.to_owned()), "{path} in {found:?}");
    }
}

#[test]
fn builds_are_not_mixed() {
    let mut doc = document();
    let rootfs = doc.pointer_mut("/architectures/x86_64/artifacts/metal/formats/pxe/rootfs").unwrap();
    for name in [
        "fedora-coreos-39.20240808.3.0-live-rootfs.x86_64.img",
        "fedora-coreos-40.20240808.3.0-live-rootfs.aarch64.img",
        "nestos-40.20240808.3.0-live-rootfs.x86_64.img",
        "fedora-coreos-40.20240808.3.0-live-kernel-x86_64",
    ] {
        rootfs["location"] = format!("https://x/{name}").into();
        let doc = json!({"architectures": {"x86_64": {"artifacts": {"metal": {"release": "40.20240808.3.0", "formats": {
            "pxe": {"kernel": document()["architectures"]["x86_64"]["artifacts"]["metal"]["formats"]["pxe"]["kernel"],
                    "initramfs": document()["architectures"]["x86_64"]["artifacts"]["metal"]["formats"]["pxe"]["initramfs"],
                    "rootfs": rootfs}}}}}}});
        assert_eq!(paths(&doc, Base::Folder), [format!("formats: {name}")]);
    }
}

#[test]
fn an_architecture_is_chosen() {
    let mut doc = document();
    doc["architectures"]["aarch64"] = doc["architectures"]["x86_64"].clone();
    let problems = read(&doc.to_string(), Base::Folder, None).unwrap_err();
    assert!(problems[0].message.contains("aarch64, x86_64: choose one"), "{problems:?}");
    read(&doc.to_string(), Base::Folder, Some("x86_64")).unwrap();
    let problems = read(&doc.to_string(), Base::Folder, Some("s390x")).unwrap_err();
    assert_eq!(problems[0].path, "architectures.s390x.artifacts.metal");
    for text in ["", "{}", "[]", "{\"architectures\": {}}"] {
        assert_eq!(read(text, Base::Folder, None).unwrap_err().len(), 1, "{text}");
    }
}

#[test]
fn relative_locations_stay_below_an_address() {
    let url = Url::parse("https://example.org/streams/stable.json").unwrap();
    let at = |text| parse_location(text, Base::Url(&url));
    assert_eq!(at("a/b.img"), Ok(Location::Url(Url::parse("https://example.org/streams/a/b.img").unwrap())));
    for text in
        ["/a", "//host/a", "..", "a/../../b", "a/%2e%2e/b", "a\\b", "a b", "", "ftp://x/y", "file:///x", "data:x"]
    {
        assert!(at(text).is_err(), "{text}");
        assert!(parse_location(text, Base::Folder).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn no_document_panics(text in "\\PC*") {
        let _ = read(&text, Base::Folder, None);
    }

    /// Whatever part is taken away or replaced: no panic, and either a whole build or at least one problem.
    #[test]
    fn broken_documents_have_problems(path in prop::sample::select(pointers()), with in 0..4usize) {
        let mut doc = document();
        let with = [Value::Null, json!(7), json!("text"), json!({})][with].clone();
        *doc.pointer_mut(&path).unwrap() = with;
        match read(&doc.to_string(), Base::Folder, None) {
            Ok(build) => prop_assert!(build.artifacts.len() >= 3),
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }

    #[test]
    fn no_relative_location_leaves_its_folder(text in "[a./%\\\\:-]{0,12}") {
        if let Ok(Location::Relative(path)) = parse_location(&text, Base::Folder) {
            prop_assert!(!path.starts_with('/') && path.split('/').all(|p| p != ".." && !p.is_empty()));
        }
    }
}

/// Every place in the document.
fn pointers() -> Vec<String> {
    fn walk(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        for (key, value) in value.as_object().into_iter().flatten() {
            walk(value, &format!("{at}/{key}"), found);
        }
    }
    let mut found = Vec::new();
    walk(&document(), "", &mut found);
    found
}
