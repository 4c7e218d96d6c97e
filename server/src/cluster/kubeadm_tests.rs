//! Golden documents by version and runtime, and properties of all of them.
#![allow(clippy::disallowed_methods, reason = "reads and writes golden files")]

use proptest::prelude::*;

use super::*;
use crate::cluster::runtime;

const VERSIONS: [&str; 3] = ["v1.20.2", "v1.29.4", "v1.31.4"];
const RUNTIMES: [&str; 4] = ["containerd", "cri-o", "isulad", "docker"];
const HASH: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

pub(crate) fn cluster(version: &str, runtime: &str) -> Cluster {
    let registries = match runtime {
        "containerd" | "cri-o" => {
            "[{host: docker.io, mirrors: ['https://mirror.example/hub', 'http://10.0.0.2:5000'], ca: {inline: PEM}}]"
        }
        _ => "[{host: docker.io, mirrors: ['https://mirror.example', 'http://10.0.0.2:5000'], ca: {inline: PEM}}]",
    };
    serde_saphyr::from_str(&format!(
        "
apiVersion: nkd.io/v1alpha1
kind: Cluster
metadata: {{name: rack7}}
spec:
  pools: []
  proxy: {{http: 'http://u:p%40ss@proxy:3128', noProxy: [.example]}}
  kubernetes:
    version: {version}
    runtime: {runtime}
    imageRepository: registry.example/k8s
    registries: {registries}
    skipPhases: [addon/coredns, control-plane-join/mark-control-plane, preflight]
    featureGates: {{GracefulNodeShutdown: true, CSIMigration: false}}
    certSans: [api.rack7.example]
    apiServer: {{extraArgs: {{audit-log-path: '-', v: '4'}}}}
    controllerManager: {{extraArgs: {{node-cidr-mask-size: '24'}}}}
    etcd: {{extraArgs: {{quota-backend-bytes: '8589934592'}}}}
    kubelet: {{extraArgs: {{v: '2'}}}}
    kubeletConfiguration: {{maxPods: 250, featureGates: {{CSIMigration: true}}, evictionHard: {{memory.available: 50Mi}}}}
    kubeProxyConfiguration: {{mode: ipvs}}
"
    ))
    .unwrap()
}

pub(crate) fn node(hostname: &str, address: &str, role: Role) -> Node {
    Node {
        hostname: hostname.into(),
        address: address.parse().unwrap(),
        role,
        pool: "p".into(),
        labels: [
            ("rack", "7"),
            ("node-role.kubernetes.io/storage", ""),
            ("topology.kubernetes.io/zone", "a"),
            ("example.com/disk", "nvme"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
        taints: None,
    }
}

fn planes() -> [Node; 2] {
    [node("cp1", "10.0.0.11", Role::ControlPlane), node("cp2", "10.0.0.12", Role::ControlPlane)]
}

fn worker() -> Node {
    Node {
        taints: Some(vec!["dedicated=gpu:NoSchedule".into(), "spot:NoExecute".into()]),
        ..node("w1", "fd00::21", Role::Worker)
    }
}

fn endpoint() -> Endpoint {
    "api.rack7.example:443".parse().unwrap()
}

fn init_text(cluster: &Cluster) -> String {
    let planes = planes();
    init(cluster, &planes[0], &Init { endpoint: &endpoint(), control_planes: &planes }).unwrap()
}

fn join_text(cluster: &Cluster, node: &Node) -> String {
    let endpoint = endpoint();
    join(cluster, node, &Join { endpoint: &endpoint, token: "abcdef.0123456789abcdef", ca_hash: HASH }).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// A change of what kubeadm and the runtime are told shows in review.
#[test]
fn versions_and_runtimes_give_their_golden_documents() {
    for version in VERSIONS {
        for runtime in RUNTIMES {
            let cluster = cluster(version, runtime);
            let mut text = format!("# init\n{}", init_text(&cluster));
            text += &format!("# join, control plane\n{}", join_text(&cluster, &planes()[1]));
            text += &format!("# join, worker\n{}", join_text(&cluster, &worker()));
            text += &format!("# --skip-phases\n{:?}\n{:?}\n", init_skip_phases(&cluster), join_skip_phases(&cluster));
            let mut files = runtime::files(&cluster, false, None).unwrap();
            files.extend(runtime::proxy_drop_ins(&cluster, &["10.0.0.11".into()]));
            for file in files {
                text += &format!("# {} {:04o}\n{}\n", file.path, file.mode, file.contents.trim_end());
            }
            let path = format!("{}/src/cluster/golden/{version}-{runtime}.txt", env!("CARGO_MANIFEST_DIR"));
            if std::env::var("NKD_UPDATE_GOLDEN").is_ok() {
                std::fs::write(&path, &text).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(text, golden, "{path}: run with NKD_UPDATE_GOLDEN=1 and read the difference");
        }
    }
}

#[test]
fn the_certificate_names_every_way_to_the_api() {
    let sans = documents(&init_text(&cluster("v1.31.4", "containerd")))[1]["apiServer"]["certSANs"].clone();
    let want = ["10.0.0.11", "10.0.0.12", "127.0.0.1", "api.rack7.example", "cp1", "cp2", "localhost"];
    assert_eq!(sans, serde_json::json!(want));
}

/// A kubelet with a label that it may not give itself does not start.
#[test]
fn reserved_labels_go_through_the_api() {
    let text = join_text(&cluster("v1.20.2", "containerd"), &worker());
    let labels = documents(&text)[0]["nodeRegistration"]["kubeletExtraArgs"]["node-labels"].clone();
    assert_eq!(labels, "example.com/disk=nvme,rack=7,topology.kubernetes.io/zone=a");
    assert!(worker().labels.contains_key("node-role.kubernetes.io/storage"), "which a kubelet may not set");
    for (key, may) in [
        ("node.kubernetes.io/any", true),
        ("x.node.kubernetes.io/any", true),
        ("kubelet.kubernetes.io/any", true),
        ("kubernetes.io/any", false),
        ("x.k8s.io/any", false),
        ("notkubernetes.io/any", true),
        ("kubernetes.io/hostname", true),
        ("plain", true),
    ] {
        assert_eq!(kubelet_may_set(key), may, "{key}");
    }
}

#[test]
fn no_taints_are_not_kubeadms_taints() {
    let mut node = worker();
    let registration =
        |node: &Node| documents(&join_text(&cluster("v1.31.4", "containerd"), node))[0]["nodeRegistration"].clone();
    node.taints = None;
    assert!(registration(&node).get("taints").is_none());
    node.taints = Some(Vec::new());
    assert_eq!(registration(&node)["taints"], serde_json::json!([]));
    for wrong in ["a", "a:Never", ":NoSchedule", "=b:NoSchedule"] {
        assert!(matches!(taints::parse(wrong), Err(KubeadmError::Taint(_))), "{wrong}");
    }
}

#[test]
fn the_operators_fields_win_but_not_over_the_kind() {
    let mut cluster = cluster("v1.29.4", "containerd");
    let fields = &mut cluster.spec.kubernetes.kubelet_configuration;
    fields.insert("cgroupDriver".into(), "cgroupfs".into());
    fields.insert("kind".into(), "Other".into());
    cluster.spec.kubernetes.kubelet.extra_args.insert("node-ip".into(), "10.9.9.9".into());
    let documents = documents(&init_text(&cluster));
    assert_eq!(documents[2]["kind"], "KubeletConfiguration");
    assert_eq!(documents[2]["cgroupDriver"], "cgroupfs");
    assert_eq!(documents[2]["featureGates"], serde_json::json!({"CSIMigration": true, "GracefulNodeShutdown": true}));
    assert_eq!(documents[0]["nodeRegistration"]["kubeletExtraArgs"]["node-ip"], "10.9.9.9");
    let runtime = runtime::containerd_config(&cluster, false).unwrap();
    assert!(runtime.contains("SystemdCgroup = false"), "the runtime follows the kubelet: {runtime}");
}

#[test]
fn endpoints_are_read_and_written_as_urls_want_them() {
    for (text, host, port) in [
        ("10.0.0.10", "10.0.0.10", 6443),
        ("10.0.0.10:443", "10.0.0.10", 443),
        ("api.example:6443", "api.example", 6443),
        ("fd00::1", "fd00::1", 6443),
        ("[fd00::1]", "fd00::1", 6443),
        ("[fd00::1]:443", "fd00::1", 443),
    ] {
        let endpoint: Endpoint = text.parse().unwrap();
        assert_eq!(endpoint, Endpoint { host: host.into(), port }, "{text}");
        assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
    }
    for wrong in ["", ":1", "a:0", "a:65536", "https://a:1", "a:b", "[a]:1", "a b:1", "[fd00::1", "fd00::1]:4"] {
        assert!(matches!(wrong.parse::<Endpoint>(), Err(KubeadmError::Endpoint(_))), "{wrong}");
    }
}

#[test]
fn versions_choose_the_api() {
    for (version, want) in [
        ("v1.15.0", Api::V1Beta2),
        ("v1.21.14", Api::V1Beta2),
        ("v1.22.0", Api::V1Beta3),
        ("1.30.9", Api::V1Beta3),
        ("v1.31.0-rc.1", Api::V1Beta4),
        ("v1.40.0", Api::V1Beta4),
    ] {
        assert_eq!(Api::of(minor(version).unwrap()), want, "{version}");
    }
    for wrong in ["v1.14.9", "v2.0.0", "v1.31", "latest", "", "v1.x.1"] {
        assert!(matches!(minor(wrong), Err(KubeadmError::Version(_))), "{wrong}");
    }
}

/// Values that a YAML 1.1 reader, as Go's is, takes for something else than a string when they are not quoted.
fn value() -> impl Strategy<Value = String> {
    let tricky =
        ["off", "y", "NO", "0777", "0o17", "1:30", "1_000", "~", "null", "1e3", ".5", "2020-01-01", "=", "<<", ""];
    prop_oneof![
        proptest::sample::select(tricky.to_vec()).prop_map(str::to_owned),
        "[ -~]{0,90}",
        "\\PC{0,12}",
        "[a-z:#&*!|>'\"%@`,\\[\\]{} \n\t-]{1,24}",
    ]
}

fn arguments(value: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    match value {
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        Value::Array(list) => list.iter().map(|arg| (text(&arg["name"]), text(&arg["value"]))).collect(),
        other => panic!("{other}"),
    }
}

proptest! {
    /// Every document parses back, and every argument is there once, with the operator's value, as a string.
    #[test]
    fn arguments_arrive_once_and_unchanged(
        version in proptest::sample::select(VERSIONS.to_vec()),
        runtime in proptest::sample::select(RUNTIMES.to_vec()),
        names in proptest::collection::btree_map("node-ip|node-labels|feature-gates|v|[a-z][a-z-]{0,20}", value(), 0..6),
    ) {
        let mut cluster = cluster(version, runtime);
        let kubernetes = &mut cluster.spec.kubernetes;
        for component in [
            &mut kubernetes.api_server, &mut kubernetes.controller_manager, &mut kubernetes.scheduler,
            &mut kubernetes.etcd, &mut kubernetes.kubelet,
        ] {
            component.extra_args = names.clone();
        }
        let first = documents(&init_text(&cluster));
        prop_assert_eq!(first.len(), 4);
        let joined = documents(&join_text(&cluster, &planes()[1]));
        prop_assert_eq!(joined.len(), 1);
        for place in [
            &first[1]["apiServer"]["extraArgs"], &first[1]["controllerManager"]["extraArgs"],
            &first[1]["scheduler"]["extraArgs"], &first[1]["etcd"]["local"]["extraArgs"],
            &first[0]["nodeRegistration"]["kubeletExtraArgs"], &joined[0]["nodeRegistration"]["kubeletExtraArgs"],
        ] {
            if names.is_empty() && place.is_null() {
                continue;
            }
            let found = arguments(place);
            let unique: BTreeSet<&String> = found.iter().map(|(name, _)| name).collect();
            prop_assert_eq!(unique.len(), found.len());
            for (name, value) in &names {
                prop_assert!(found.contains(&(name.clone(), value.clone())), "{} in {:?}", name, found);
            }
        }
    }
}
