//! Tests of carrying foreign cluster files over.

use proptest::prelude::*;

use super::*;
use crate::cluster::file::{self, Paths, tests as files};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH me@here";

/// Every field that the deployer knows, each with a value that it takes.
fn full() -> Value {
    json!({
        "clusterID": "rack7",
        "architecture": "amd64",
        "platform": "libvirt",
        "infraPlatform": {"uri": "qemu:///system", "osPath": "/a.qcow2", "cidr": "192.168.132.0/24", "gateway": "192.168.132.1"},
        "osImage": {"type": "nestos"},
        "username": "root",
        "password": "$1$yoursalt$UGhjCXAJKpWWpeN8xsF.c/",
        "sshKey": "/root/.ssh/id_ed25519.pub",
        "master": [{"hostname": "k8s-master01", "hardwareinfo": {"cpu": 4, "ram": 8192, "disk": 50}, "ip": "192.168.132.11"}],
        "worker": [
            {"hostname": "k8s-worker01", "hardwareinfo": {"cpu": 4, "ram": 8192, "disk": 50}, "ip": ""},
            {"hostname": "k8s-worker02", "hardwareinfo": {"cpu": 2, "ram": 3000, "disk": 50}},
        ],
        "runtime": "isulad",
        "kubernetes": {
            "kubernetes-version": "v1.29.1",
            "kubernetes-apiversion": "v1beta3",
            "apiserver-endpoint": "192.168.132.11:6443",
            "image-registry": "registry.k8s.io",
            "registry-mirror": "https://mirror.example",
            "pause-image": "pause:3.9",
            "release-image-url": "hub.oepkgs.net/nestos/nestos:1",
            "token": "abcdef.0123456789abcdef",
            "adminkubeconfig": "/etc/nkd/cluster/admin.config",
            "certificatekey": "a301c9c55596c54c5d4c7173aa1e3b6fd304130b0c703bb23149c0c69f94b8e0",
            "network": {"service-subnet": "10.96.0.0/16", "pod-subnet": "10.244.0.0/16", "plugin": "https://a.example/calico.yaml"},
        },
        "housekeeper": {
            "deployhousekeeper": true,
            "operatorimageurl": "hub.oepkgs.net/nestos/housekeeper/{arch}/housekeeper-operator-manager:{tag}",
            "controllerimageurl": "hub.oepkgs.net/nestos/housekeeper/{arch}/housekeeper-controller-manager:{tag}",
        },
        "certAsset": {
            "rootCACertPath": "/pki/ca.crt", "rootCAKeyPath": "/pki/ca.key",
            "etcdCACertPath": "/pki/etcd.crt", "etcdCAKeyPath": "/pki/etcd.key",
            "frontProxyCACertPath": "/pki/fp.crt", "frontProxyCAKeyPath": "/pki/fp.key",
            "saPub": "/pki/sa.pub", "saKey": "/pki/sa.key",
        },
        "hooks": {"preHookScript": "/hooks/before.sh", "postHookYaml": "/hooks/after.yaml"},
    })
}

fn carry(document: &Value) -> Imported {
    import(document, &|path| match path {
        "/root/.ssh/id_ed25519.pub" => Ok(format!("{KEY}\n")),
        other => Err(format!("cannot read {other}")),
    })
}

fn paths(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|p| p.path.as_str()).collect()
}

#[test]
fn a_full_file_is_carried_over() {
    let imported = carry(&full());
    assert_eq!(imported.problems, []);
    let cluster = serde_json::to_value(imported.cluster.unwrap()).unwrap();
    let spec = &cluster["spec"];
    assert_eq!(cluster["metadata"]["name"], "rack7");
    assert_eq!(spec["kubernetes"]["version"], "v1.29.1");
    assert_eq!(spec["kubernetes"]["runtime"], "isulad");
    assert_eq!(spec["kubernetes"]["imageRepository"], "registry.k8s.io");
    assert_eq!(spec["kubernetes"]["pauseImage"], "registry.k8s.io/pause:3.9");
    assert_eq!(spec["kubernetes"]["cni"]["manifest"], "https://a.example/calico.yaml");
    assert_eq!(spec["endpoint"], "192.168.132.11:6443");
    assert_eq!(spec["ssh"]["authorizedKeys"], json!([KEY]));
    assert_eq!(spec["pools"][0]["machines"][0]["ip"], "192.168.132.11/24");
    assert_eq!(spec["pools"][0]["machines"][0]["gateway"], "192.168.132.1");
    assert_eq!(spec["pools"][1]["machines"][1]["hostname"], "k8s-worker02");
    assert_eq!(spec["pools"][1]["match"], json!({"cpus": ">=2", "memory": ">=3000Mi", "architecture": "x86_64"}));
    assert_eq!(spec["certificates"]["serviceAccount"], json!({"certificate": "/pki/sa.pub", "key": "/pki/sa.key"}));
    assert_eq!(spec["hooks"], json!({"before": ["/hooks/before.sh"], "after": ["/hooks/after.yaml"]}));
    assert_eq!(spec["housekeeper"]["enabled"], true);
    for path in [
        "password",
        "kubernetes.token",
        "kubernetes.release-image-url",
        "infraPlatform.uri",
        "master[0].hardwareinfo.disk",
    ] {
        assert!(paths(&imported.notes).contains(&path), "{path}: {:?}", imported.notes);
    }
    let text = format!("{:?}", imported.notes);
    assert!(!text.contains("$1$") && !text.contains("abcdef.") && !text.contains("a301c9"), "{text}");
}

/// What the foreign file does not say is what the check asks for, and nothing else.
#[test]
fn the_result_lacks_the_keys_of_the_machines_only() {
    let cluster = carry(&full()).cluster.unwrap();
    let mut document = serde_json::to_value(cluster).unwrap();
    let checked = file::check(document.clone(), Paths::Allowed);
    let expected = ["spec.pools[0].machines[0]", "spec.pools[1].machines[0]", "spec.pools[1].machines[1]"];
    assert_eq!(paths(&checked.problems), expected);
    for (pool, i) in [(0, 0), (1, 0), (1, 1)] {
        document["spec"]["pools"][pool]["machines"][i]["mac"] = json!(format!("52:54:00:00:0{pool}:0{i}"));
    }
    assert_eq!(file::check(document, Paths::Allowed).problems, []);
}

/// Leaving a field out or changing it changes the result, or its path stands in notes or problems: nothing is dropped.
#[test]
fn no_field_is_dropped_in_silence() {
    let whole = carry(&full());
    let spots: Vec<String> = files::spots(&full()).into_iter().filter(|s| !s.is_empty()).collect();
    for spot in spots {
        let mut document = full();
        let value = document.pointer_mut(&spot).unwrap();
        if value.is_object() || value.is_array() || *value == json!("") {
            continue;
        }
        *value = match &*value {
            Value::Number(n) => json!(n.as_u64().unwrap() - 1),
            Value::Bool(b) => json!(!*b),
            _ => json!("10.1.0.0/16"),
        };
        let changed = carry(&document);
        let path = spot[1..].replace('/', ".");
        let named = changed.notes.iter().chain(&changed.problems).any(|p| {
            let plain = p.path.replace('[', ".").replace(']', "");
            path == plain || path.starts_with(&format!("{plain}."))
        });
        assert!(named || changed.cluster != whole.cluster, "{spot}");
    }
}

#[test]
fn what_cannot_be_carried_over_is_refused_by_its_name() {
    for (field, value, path) in [
        ("platform", json!("openstack"), "platform"),
        ("platform", json!("vmware"), "platform"),
        ("architecture", json!("riscv64"), "architecture"),
        ("osImage", json!({"type": "generalos"}), "osImage.type"),
        ("runtime", json!("podman"), "runtime"),
        ("bootConfig", json!({"master": "x"}), "bootConfig"),
        ("kubernetes", json!({"packageList": ["vim"]}), "kubernetes.packageList"),
        ("kubernetes", json!({"rpmPackagePath": "/rpms"}), "kubernetes.rpmPackagePath"),
        ("kubernetes", json!({"network": {"vlan": 7}}), "kubernetes.network.vlan"),
        ("cluster_id", json!("twice"), "cluster_id"),
        ("sshKey", json!("/none.pub"), "sshKey"),
        ("certAsset", json!({"saPub": "/a"}), "certAsset.saPub"),
        ("master", json!([{"hardwareinfo": {"cpu": "many"}}]), "master[0].hardwareinfo.cpu"),
        ("master", json!("one"), "master"),
        ("colour", json!("red"), "colour"),
    ] {
        let mut document = full();
        document[field] = value;
        let imported = carry(&document);
        assert!(imported.cluster.is_none(), "{field}");
        assert_eq!(
            paths(&imported.problems)
                .iter()
                .map(|p| p.to_lowercase())
                .collect::<Vec<_>>()
                .iter()
                .filter(|p| **p == path.to_lowercase() || plain(p) == plain(path))
                .count(),
            1,
            "{field}: {:?}",
            imported.problems
        );
    }
}

#[test]
fn spellings_of_all_releases_are_read() {
    let mut document = full();
    let map = document.as_object_mut().unwrap();
    let id = map.remove("clusterID").unwrap();
    map.insert("cluster_id".into(), id);
    let assets = map.remove("certAsset").unwrap();
    map.insert("certasset".into(), assets);
    assert_eq!(carry(&document).cluster, carry(&full()).cluster);
}

proptest! {
    #[test]
    fn no_document_panics(spot in any::<prop::sample::Index>(), value in files::any_value()) {
        let mut document = full();
        let all = files::spots(&document);
        *document.pointer_mut(&all[spot.index(all.len())]).unwrap() = value;
        let imported = carry(&document);
        prop_assert_eq!(imported.cluster.is_some(), imported.problems.is_empty());
    }
}
