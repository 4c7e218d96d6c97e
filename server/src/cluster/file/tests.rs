//! Tests of reading a cluster file.

use nkd_api::update::MaxUnavailable;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cluster::template::{Platform, template};

/// A key of its own kind, as `ssh-keygen` prints it.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH me@here";

/// A file that uses every field.
pub(in crate::cluster) fn full() -> Value {
    let ca = ca();
    json!({
        "apiVersion": "nkd.io/v1alpha1",
        "kind": "Cluster",
        "metadata": {"name": "rack7", "labels": {"site": "lab"}},
        "spec": {
            "os": {"profile": "nestos", "image": "nestos-24.03", "channel": "stable"},
            "kubernetes": {
                "version": "v1.31.4",
                "podSubnet": "10.244.0.0/16",
                "serviceSubnet": "10.96.0.0/16",
                "dnsDomain": "cluster.local",
                "runtime": "cri-o",
                "cni": {"manifest": {"inline": "apiVersion: v1\nkind: Namespace\nmetadata: {name: cni}\n"}},
                "imageRepository": "registry.example/k8s",
                "pauseImage": "registry.example/k8s/pause:3.10",
                "registries": [{"host": "docker.io", "mirrors": ["https://mirror.example:5000"], "ca": {"inline": ca.0}}],
                "skipPhases": ["addon/coredns"],
                "featureGates": {"NodeSwap": true},
                "certSans": ["api.example", "10.0.0.10"],
                "apiServer": {"extraArgs": {"audit-log-maxage": "30"}},
                "controllerManager": {"extraArgs": {"v": "2"}},
                "scheduler": {"extraArgs": {"v": "2"}},
                "etcd": {"extraArgs": {"quota-backend-bytes": "8589934592"}},
                "kubelet": {"extraArgs": {"v": "2"}},
                "kubeletConfiguration": {"maxPods": 200},
                "kubeProxyConfiguration": {"mode": "ipvs"},
            },
            "endpoint": "api.rack7.example:6443",
            "ssh": {"authorizedKeys": [KEY]},
            "pools": [
                {
                    "name": "control-plane",
                    "role": "control-plane",
                    "labels": {"tier": "control"},
                    "taints": ["node-role.kubernetes.io/control-plane:NoSchedule"],
                    "installDisk": "/dev/sda",
                    "kernelArgs": ["console=ttyS0"],
                    "machines": [{
                        "mac": "52:54:00:00:00:01",
                        "uuid": "0a0b0c0d-0000-4000-8000-000000000001",
                        "serial": "SN-1",
                        "hostname": "cp1",
                        "ip": "10.0.0.11/24",
                        "gateway": "10.0.0.1",
                        "dns": ["10.0.0.1"],
                        "installDisk": "/dev/nvme0n1",
                        "labels": {"row": "1"},
                    }],
                },
                {
                    "name": "worker",
                    "role": "worker",
                    "count": 3,
                    "match": {
                        "memory": ">=8Gi", "cpus": ">=4", "architecture": "x86_64", "vendor": "Dell*", "product": "R740",
                        "labels": {"rack": "7"},
                    },
                    "machines": [{"mac": "52:54:00:00:00:02", "ip": "10.0.0.12/24", "gateway": "10.0.0.1"}],
                },
            ],
            "ntp": ["ntp.example", "10.0.0.1"],
            "proxy": {"http": "http://proxy.example:3128", "https": "http://proxy.example:3128", "noProxy": [".example", "10.0.0.0/8"]},
            "hooks": {
                "before": [{"inline": "#!/bin/sh\ntrue\n"}],
                "after": ["https://manifests.example/after.yaml"],
            },
            "housekeeper": {"enabled": true, "maxUnavailable": 1, "window": "sat,sun 22:30+4h"},
            "certificates": {
                "cluster": {"certificate": {"inline": ca.0}, "key": {"inline": ca.1}},
                "serviceAccount": {"certificate": {"inline": ca.2}, "key": {"inline": ca.1}},
            },
            "snippets": [{"inline": "variant: fcos\nversion: 1.4.0\n"}],
        },
    })
}

/// Certificate, key and public key of a CA.
fn ca() -> (String, String, String) {
    static CA: std::sync::OnceLock<(String, String, String)> = std::sync::OnceLock::new();
    CA.get_or_init(|| pair(rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained))).clone()
}

fn pair(is_ca: rcgen::IsCa) -> (String, String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = is_ca;
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem(), key.public_key_pem())
}

/// The JSON pointers of all values.
pub(in crate::cluster) fn spots(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut below = |name: &str, inner: &Value| {
        let name = name.replace('~', "~0").replace('/', "~1");
        found.extend(spots(inner).into_iter().map(|spot| format!("/{name}{spot}")));
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| below(&i.to_string(), item)),
        Value::Object(map) => map.iter().for_each(|(name, inner)| below(name, inner)),
        _ => {}
    }
    found
}

/// Values of every type, and texts that are nearly right somewhere.
pub(in crate::cluster) fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[a-zA-Z0-9:./=>*@ -]{0,20}".prop_map(Value::from),
        prop::sample::select(vec![
            "containerd",
            "worker",
            "52:54:00:00:00:01",
            "10.0.0.11/24",
            "fd00::/48",
            "v1.31.4",
            "inline"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,6}|inline|name|key|mac", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn checked(document: Value) -> Checked {
    check(document, Paths::Refused)
}

fn said(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect()
}

fn paths(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|p| p.path.as_str()).collect()
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*|[a-z:{}\\[\\]\\n \"'&*!|>-]{0,80}") {
        let _ = read(&text);
    }

    #[test]
    fn no_document_panics(document in any_value()) {
        let _ = checked(document);
    }

    /// One place changed to anything: no panic, and a result that is a cluster or says why not.
    #[test]
    fn no_change_of_a_full_file_panics(spot in any::<prop::sample::Index>(), new in any_value()) {
        let mut document = full();
        let all = spots(&document);
        *document.pointer_mut(&all[spot.index(all.len())]).unwrap() = new;
        let found = checked(document);
        prop_assert_eq!(found.cluster.is_some(), found.problems.is_empty());
        for problem in found.problems.iter().chain(&found.warnings) {
            prop_assert!(!problem.message.is_empty() && !problem.message.contains('\n'), "{:?}", problem);
        }
    }

    /// Every message stands at the changed place, around it, or where a second value meets it.
    #[test]
    fn what_one_wrong_type_brings_about_stands_at_its_place(spot in any::<prop::sample::Index>()) {
        let mut document = full();
        let all: Vec<String> = spots(&document).into_iter().filter(|s| !s.is_empty()).collect();
        let place = &all[spot.index(all.len())];
        let free = place.contains("Configuration/");
        let value = document.pointer_mut(place).unwrap();
        *value = if value.is_array() { json!(7) } else { json!([7]) };
        let found = checked(document);
        if !free {
            prop_assert_eq!(found.problems.len(), 1, "{}: {:?}", place, said(&found.problems));
            let last = place.rsplit('/').next().unwrap();
            prop_assert!(found.problems[0].path.ends_with(last) || found.problems[0].path.ends_with(&format!("[{last}]")) , "{}: {:?}", place, found.problems);
        }
    }
}

#[test]
fn a_full_file_is_read_without_a_word() {
    let found = checked(full());
    assert_eq!(said(&found.problems), [""; 0]);
    assert_eq!(said(&found.warnings), [""; 0]);
    let again = serde_json::to_value(found.cluster.unwrap()).unwrap();
    assert_eq!(again, full());
    let yaml = serde_saphyr::to_string(&full()).unwrap();
    assert_eq!(serde_json::to_value(read(&yaml).cluster.unwrap()).unwrap(), full(), "{yaml}");
}

#[test]
fn a_name_a_version_and_one_control_plane_are_enough() {
    let found = read(
        "apiVersion: nkd.io/v1alpha1\nkind: Cluster\nmetadata: {name: c1}\nspec:\n  kubernetes: {version: v1.31.4}\n  \
         pools: [{name: cp, role: control-plane, machines: [{mac: '52:54:00:00:00:01'}]}]\n",
    );
    assert_eq!(said(&found.problems), [""; 0]);
    let cluster = found.cluster.unwrap();
    assert_eq!(cluster.spec.kubernetes.pod_subnet, "10.244.0.0/16");
    assert_eq!(cluster.spec.os.profile, "nestos");
    assert_eq!(pool_size(&cluster.spec.pools[0]), 1);
    assert_eq!(hostname("c1", &cluster.spec.pools[0], 0), "c1-cp-1");
    assert_eq!(hostname("c1", &cluster.spec.pools[0], 4), "c1-cp-5");
}

/// Changes of one place with the one path that must be named.
fn mutations() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/apiVersion", json!("nkd.io/v1"), "apiVersion"),
        ("/kind", json!("Machine"), "kind"),
        ("/metadata/name", json!("Rack_7"), "metadata.name"),
        ("/metadata/labels", json!({"a b": "c"}), "metadata.labels[\"a b\"]"),
        ("/spec/os/profile", json!("debian"), "spec.os.profile"),
        ("/spec/os/image", json!("../x"), "spec.os.image"),
        ("/spec/os/channel", json!("Stable_1.X"), "spec.os.channel"),
        ("/spec/os/chanel", json!("x"), "spec.os.chanel"),
        ("/spec/kubernetes/version", json!("1.31.4"), "spec.kubernetes.version"),
        ("/spec/kubernetes/version", json!("v1.19.16"), "spec.kubernetes.version"),
        ("/spec/kubernetes/version", json!(1.31), "spec.kubernetes.version"),
        ("/spec/kubernetes/podSubnet", json!("10.244.0.0"), "spec.kubernetes.podSubnet"),
        ("/spec/kubernetes/podSubnet", json!("10.244.0.0/30"), "spec.kubernetes.podSubnet"),
        ("/spec/kubernetes/podSubnet", json!("10.96.0.0/14"), "spec.kubernetes.serviceSubnet"),
        ("/spec/kubernetes/podSubnet", json!("fd00::/56"), "spec.kubernetes.serviceSubnet"),
        ("/spec/kubernetes/serviceSubnet", json!("10.244.128.0/20"), "spec.kubernetes.serviceSubnet"),
        ("/spec/kubernetes/dnsDomain", json!("cluster_local"), "spec.kubernetes.dnsDomain"),
        ("/spec/kubernetes/runtime", json!("podman"), "spec.kubernetes.runtime"),
        ("/spec/kubernetes/cni", json!({}), "spec.kubernetes.cni.manifest"),
        ("/spec/kubernetes/cni/manifest", json!("./cni.yaml"), "spec.kubernetes.cni.manifest"),
        ("/spec/kubernetes/cni/manifest", json!("ftp://a.example/b"), "spec.kubernetes.cni.manifest"),
        ("/spec/kubernetes/cni/manifest/inline", json!("{"), "spec.kubernetes.cni.manifest"),
        ("/spec/kubernetes/cni/manifest/inline", json!("kind: X"), "spec.kubernetes.cni.manifest"),
        ("/spec/kubernetes/cni/manifest/sha256", json!("x"), "spec.kubernetes.cni.manifest.sha256"),
        ("/spec/kubernetes/imageRepository", json!("https://a.example"), "spec.kubernetes.imageRepository"),
        ("/spec/kubernetes/pauseImage", json!("pause"), "spec.kubernetes.pauseImage"),
        ("/spec/kubernetes/registries/0/host", json!("https://docker.io"), "spec.kubernetes.registries[0].host"),
        ("/spec/kubernetes/registries/0/mirrors/0", json!("ftp://a"), "spec.kubernetes.registries[0].mirrors[0]"),
        ("/spec/kubernetes/registries/0/ca/inline", json!("x"), "spec.kubernetes.registries[0].ca"),
        ("/spec/kubernetes/skipPhases/0", json!("Addon"), "spec.kubernetes.skipPhases[0]"),
        ("/spec/kubernetes/featureGates/nodeSwap", json!(true), "spec.kubernetes.featureGates.nodeSwap"),
        ("/spec/kubernetes/featureGates/NodeSwap", json!("true"), "spec.kubernetes.featureGates.NodeSwap"),
        ("/spec/kubernetes/certSans/0", json!("a b"), "spec.kubernetes.certSans[0]"),
        ("/spec/kubernetes/certSans/1", json!("api.example"), "spec.kubernetes.certSans[1]"),
        ("/spec/kubernetes/apiServer/extraArgs/--v", json!("2"), "spec.kubernetes.apiServer.extraArgs.--v"),
        ("/spec/kubernetes/etcd/extraArgs/a", json!("b\nc"), "spec.kubernetes.etcd.extraArgs.a"),
        ("/spec/kubernetes/scheduler/extraArgs/v", json!(2), "spec.kubernetes.scheduler.extraArgs.v"),
        ("/spec/kubernetes/kubeletConfiguration/kind", json!("x"), "spec.kubernetes.kubeletConfiguration.kind"),
        ("/spec/kubernetes/kubeletConfiguration/MaxPods", json!(1), "spec.kubernetes.kubeletConfiguration.MaxPods"),
        ("/spec/endpoint", json!("https://api.example"), "spec.endpoint"),
        ("/spec/endpoint", json!("10.96.0.1"), "spec.endpoint"),
        ("/spec/endpoint", json!("10.0.0.12:6443"), "spec.endpoint"),
        ("/spec/endpoint", json!("10.0.0.11:1"), "spec.endpoint"),
        ("/spec/ssh/authorizedKeys/0", json!("-----BEGIN OPENSSH PRIVATE KEY-----"), "spec.ssh.authorizedKeys[0]"),
        ("/spec/ssh/authorizedKeys/0", json!("/root/.ssh/id_rsa.pub"), "spec.ssh.authorizedKeys[0]"),
        ("/spec/pools", json!([]), "spec.pools"),
        ("/spec/pools/0/role", json!("worker"), "spec.pools"),
        ("/spec/pools/0/role", json!("master"), "spec.pools[0].role"),
        ("/spec/pools/1/name", json!("control-plane"), "spec.pools[1].name"),
        ("/spec/pools/1/name", json!("a.b"), "spec.pools[1].name"),
        ("/spec/pools/1/count", json!(0), "spec.pools[1].count"),
        ("/spec/pools/1/count", json!(-1), "spec.pools[1].count"),
        ("/spec/pools/1/count", json!(4_000_000), "spec.pools"),
        ("/spec/pools/1/match/memory", json!("8Gi"), "spec.pools[1].match.memory"),
        ("/spec/pools/1/match/cpus", json!("4"), "spec.pools[1].match.cpus"),
        ("/spec/pools/1/match/architecture", json!("amd64"), "spec.pools[1].match.architecture"),
        ("/spec/pools/1/match/vendor", json!("*ell*"), "spec.pools[1].match.vendor"),
        ("/spec/pools/0/labels", json!({"a": "b c"}), "spec.pools[0].labels.a"),
        ("/spec/pools/0/taints/0", json!("a=b"), "spec.pools[0].taints[0]"),
        ("/spec/pools/0/installDisk", json!("sda"), "spec.pools[0].installDisk"),
        ("/spec/pools/0/kernelArgs/0", json!("a b"), "spec.pools[0].kernelArgs[0]"),
        ("/spec/pools/0/machines/0", json!({"hostname": "cp1"}), "spec.pools[0].machines[0]"),
        ("/spec/pools/0/machines/0/mac", json!("52:54:00:00:00"), "spec.pools[0].machines[0].mac"),
        ("/spec/pools/1/machines/0/mac", json!("52-54-00-00-00-01"), "spec.pools[1].machines[0].mac"),
        ("/spec/pools/1/machines/0/mac", json!("ff:ff:ff:ff:ff:ff"), "spec.pools[1].machines[0].mac"),
        (
            "/spec/pools/1/machines/0/uuid",
            json!("0A0B0C0D-0000-4000-8000-000000000001"),
            "spec.pools[1].machines[0].uuid",
        ),
        (
            "/spec/pools/1/machines/0/uuid",
            json!("00000000-0000-0000-0000-000000000000"),
            "spec.pools[1].machines[0].uuid",
        ),
        ("/spec/pools/1/machines/0/serial", json!("SN-1"), "spec.pools[1].machines[0].serial"),
        ("/spec/pools/1/machines/0/serial", json!("To be filled by O.E.M."), "spec.pools[1].machines[0].serial"),
        ("/spec/pools/1/machines/0/hostname", json!("cp1"), "spec.pools[1].machines[0].hostname"),
        ("/spec/pools/1/machines/0/hostname", json!("CP 1"), "spec.pools[1].machines[0].hostname"),
        ("/spec/pools/0/machines/0/hostname", json!("rack7-worker-2"), "spec.pools[1].count"),
        ("/spec/pools/1/machines/0/ip", json!("10.0.0.12"), "spec.pools[1].machines[0].ip"),
        ("/spec/pools/1/machines/0/ip", json!("10.0.0.11/24"), "spec.pools[1].machines[0].ip"),
        ("/spec/pools/1/machines/0/ip", json!("10.0.0.255/24"), "spec.pools[1].machines[0].ip"),
        ("/spec/pools/1/machines/0/gateway", json!("10.0.1.1"), "spec.pools[1].machines[0].gateway"),
        ("/spec/pools/1/machines/0/gateway", json!("10.0.0.12"), "spec.pools[1].machines[0].gateway"),
        ("/spec/pools/0/machines/0/dns/0", json!("10.96.0.10"), "spec.pools[0].machines[0].dns[0]"),
        ("/spec/pools/0/machines/0/dns/0", json!("dns.example"), "spec.pools[0].machines[0].dns[0]"),
        ("/spec/pools/0/machines/0/installDisk", json!("/dev/../x"), "spec.pools[0].machines[0].installDisk"),
        ("/spec/ntp/0", json!("ntp.example:123"), "spec.ntp[0]"),
        ("/spec/proxy/http", json!("proxy.example:3128"), "spec.proxy.http"),
        ("/spec/proxy/noProxy/0", json!("a b"), "spec.proxy.noProxy[0]"),
        ("/spec/hooks/before/0/inline", json!("true\n"), "spec.hooks.before[0]"),
        ("/spec/hooks/before/0", json!("./before.sh"), "spec.hooks.before[0]"),
        ("/spec/hooks/after/0", json!({"inline": " "}), "spec.hooks.after[0]"),
        ("/spec/housekeeper/maxUnavailable", json!(0), "spec.housekeeper.maxUnavailable"),
        ("/spec/housekeeper/maxUnavailable", json!("0%"), "spec.housekeeper.maxUnavailable"),
        ("/spec/housekeeper/maxUnavailable", json!("101%"), "spec.housekeeper.maxUnavailable"),
        ("/spec/housekeeper/maxUnavailable", json!("some"), "spec.housekeeper.maxUnavailable"),
        ("/spec/housekeeper/maxUnavailable", json!(1.5), "spec.housekeeper.maxUnavailable"),
        ("/spec/housekeeper/window", json!("22:30"), "spec.housekeeper.window"),
        ("/spec/housekeeper/window", json!("caturday 22:30+4h"), "spec.housekeeper.window"),
        ("/spec/certificates/cluster", json!({"certificate": {"inline": ca().0}}), "spec.certificates.cluster.key"),
        ("/spec/certificates/cluster/key/inline", json!(pair(rcgen::IsCa::NoCa).1), "spec.certificates.cluster.key"),
        ("/spec/certificates/cluster/key/inline", json!("x"), "spec.certificates.cluster.key"),
        (
            "/spec/certificates/serviceAccount/certificate/inline",
            json!(ca().0),
            "spec.certificates.serviceAccount.certificate",
        ),
        ("/spec/snippets/0/inline", json!("- a\n: b"), "spec.snippets[0]"),
        ("/spec/snippets/0/inline", json!("storage: {files: [{path: relative}]}"), "spec.snippets[0]"),
    ]
}

fn change(document: &mut Value, pointer: &str, new: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.insert(last.to_owned(), new)),
        Value::Array(items) => items[last.parse::<usize>().unwrap()] = new,
        other => panic!("{pointer}: {other}"),
    }
}

#[test]
fn every_wrong_value_is_named_by_its_path_and_nothing_else() {
    let mut wrong = Vec::new();
    for (pointer, new, path) in mutations() {
        let mut document = full();
        change(&mut document, pointer, new.clone());
        let found = checked(document);
        if paths(&found.problems) != [path] {
            wrong.push(format!("{pointer} = {new}: {:?}", said(&found.problems)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn how_many_nodes_may_be_away_is_a_number_or_a_share() {
    for (written, read) in [
        (json!(3), MaxUnavailable::Count(3)),
        (json!("3"), MaxUnavailable::Count(3)),
        (json!("10%"), MaxUnavailable::Percent(10)),
    ] {
        let mut document = full();
        change(&mut document, "/spec/housekeeper/maxUnavailable", written.clone());
        let found = checked(document);
        assert!(found.problems.is_empty(), "{written}: {:?}", said(&found.problems));
        assert_eq!(found.cluster.unwrap().spec.housekeeper.max_unavailable, read, "{written}");
    }
}

#[test]
fn a_machine_in_a_subnet_of_the_cluster_is_a_problem() {
    let mut document = full();
    let machine = json!({"mac": "52:54:00:00:00:02", "ip": "10.244.0.12/24", "gateway": "10.244.0.1"});
    change(&mut document, "/spec/pools/1/machines/0", machine);
    assert_eq!(paths(&checked(document).problems), ["spec.pools[1].machines[0].ip"]);
}

#[test]
fn a_machine_without_an_address_has_no_router() {
    let mut document = full();
    let machine = json!({"mac": "52:54:00:00:00:02", "gateway": "10.0.0.1", "dns": ["10.0.0.1"]});
    change(&mut document, "/spec/pools/1/machines/0", machine);
    let found = checked(document);
    assert_eq!(paths(&found.problems), ["spec.pools[1].machines[0].dns", "spec.pools[1].machines[0].gateway"]);
}

#[test]
fn what_works_and_is_hardly_meant_is_a_warning() {
    for (pointer, new, path) in [
        ("/spec/pools/0/count", json!(2), "spec.pools"),
        ("/spec/pools/1/count", json!(1), "spec.pools[1].match"),
        ("/spec/pools/1/match", Value::Null, "spec.pools[1].count"),
        ("/spec/hooks/after/0", json!("http://a.example/b"), "spec.hooks.after[0]"),
        ("/spec/kubernetes/skipPhases/0", json!("adddon"), "spec.kubernetes.skipPhases[0]"),
        ("/spec/kubernetes/kubeletConfiguration", json!({"maxPod": 5}), "spec.kubernetes.kubeletConfiguration.maxPod"),
        ("/spec/proxy", json!({"noProxy": ["a"]}), "spec.proxy"),
    ] {
        let mut document = full();
        change(&mut document, pointer, new);
        let found = checked(document);
        assert_eq!(said(&found.problems), [""; 0], "{pointer}");
        assert!(paths(&found.warnings).contains(&path), "{pointer}: {:?}", said(&found.warnings));
    }
}

#[test]
fn a_secret_is_never_repeated() {
    for (pointer, secret) in [
        ("/spec/ssh/authorizedKeys/0", "-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET"),
        ("/spec/proxy/http", "user:SECRET@proxy.example"),
        ("/spec/certificates/cluster/key/inline", "SECRET"),
        ("/spec/certificates/cluster/key", "SECRET://x"),
        ("/spec/snippets/0/inline", "- SECRET\n: b"),
        ("/spec/hooks/after/0", "SECRET://x"),
    ] {
        let mut document = full();
        change(&mut document, pointer, json!(secret));
        let found = checked(document);
        assert_eq!(found.problems.len(), 1, "{pointer}: {:?}", said(&found.problems));
        assert!(!said(&found.problems)[0].contains("SECRET"), "{pointer}: {:?}", said(&found.problems));
    }
}

#[test]
fn thirty_wrong_fields_give_thirty_messages() {
    let mut document = full();
    let mut expected = std::collections::BTreeSet::new();
    let mut touched: Vec<&str> = Vec::new();
    for (pointer, new, path) in mutations() {
        // One change a place, and none that hides another or stands for the whole.
        let alone = touched.iter().all(|t| !t.starts_with(pointer) && !pointer.starts_with(t));
        let whole = [
            "/spec/kubernetes/certSans/1",
            "/spec/pools",
            "/spec/pools/0/role",
            "/spec/pools/1/count",
            "/metadata/name",
            "/spec/pools/1/name",
            "/spec/pools/0/machines/0",
            "/spec/pools/0/machines/0/mac",
            "/spec/pools/1/machines/0/ip",
        ];
        let pair = path != "spec.kubernetes.serviceSubnet" && path != "spec.pools[1].count";
        if alone && pair && !whole.contains(&pointer) && expected.insert(path) {
            touched.push(pointer);
            change(&mut document, pointer, new);
        }
    }
    assert!(expected.len() >= 30, "{}", expected.len());
    let found = checked(document);
    let named: std::collections::BTreeSet<&str> = paths(&found.problems).into_iter().collect();
    assert_eq!(named, expected, "{:#?}", said(&found.problems));
    assert_eq!(found.problems.len(), expected.len(), "{:#?}", said(&found.problems));
}

#[test]
fn problems_stand_in_the_order_of_the_list() {
    let machines: Vec<Value> = (0..12).map(|_| json!({})).collect();
    let mut document = full();
    change(&mut document, "/spec/pools/1/machines", json!(machines));
    change(&mut document, "/spec/pools/1/count", json!(12));
    let found = checked(document);
    let expected: Vec<String> = (0..12).map(|i| format!("spec.pools[1].machines[{i}]")).collect();
    assert_eq!(paths(&found.problems), expected);
}

#[test]
fn text_that_is_no_document_says_where() {
    for text in ["spec: [", "a: 1\na: 2\n", "", "- 1", "a: b\n---\nc: d\n"] {
        let found = read(text);
        assert!(found.cluster.is_none() && !found.problems.is_empty(), "{text:?}");
    }
    assert!(read("a: 1\nb: [\n").problems[0].message.contains("line"), "{:?}", read("a: 1\nb: [\n").problems);
}

#[test]
fn the_schema_is_one_that_editors_take() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["$defs"]["Kubernetes"]["properties"]["version"]["description"].is_string());
    assert!(read(&template(Platform::Metal, "a")).cluster.is_some());
}
