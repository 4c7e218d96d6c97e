//! The real kubeadm (1.20) and containerd read what the service writes for them.
//!
//! Every program runs in mount and host name spaces of its own, where `/etc` is a layer over the machine's.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that runs the real programs")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use nkd_api::cluster::{Certificates, Cluster, KeyPair, Role, Source};
use nkd_server::cluster::pki::{Access, ClusterPki, NamedEndpoint};
use nkd_server::cluster::{kubeadm, runtime};
use serde_json::Value;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

const VERSION: &str = "v1.20.2";
const HASH: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const NEEDED: &str = "needs root and the Kubernetes of `cargo xtask image kubernetes`";

fn kubernetes() -> PathBuf {
    let folder = std::env::var_os("NKD_KUBERNETES").map(PathBuf::from);
    let folder = folder.filter(|folder| folder.join("versions").join(VERSION).join("kubeadm").is_file());
    folder.expect("NKD_KUBERNETES is not a folder with Kubernetes: set it to what `cargo xtask image kubernetes` makes")
}

/// An `/etc` of its own.
struct Host {
    folder: TempDir,
}

struct Said {
    out: String,
    err: String,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["upper/kubernetes", "work"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where a file below `/etc` of this host is.
    fn etc(&self, name: &str) -> PathBuf {
        self.path("upper").join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn give(&self, pki: &ClusterPki) {
        for file in pki.control_plane_files() {
            let path = self.etc(file.path.strip_prefix("/etc/").unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &file.contents).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode)).unwrap();
        }
    }

    fn run(&self, words: &[&str]) -> Said {
        let script = "mount --make-rprivate / && mount -t overlay overlay -o \"$1\" /etc && shift && exec \"$@\"";
        let [upper, work] = ["upper", "work"].map(|name| self.path(name).display().to_string());
        let out = Command::new("unshare")
            .args(["--mount", "--uts", "--", "sh", "-c", script, "sh"])
            .arg(format!("lowerdir=/etc,upperdir={upper},workdir={work}"))
            .args(words)
            .output()
            .unwrap();
        let [stdout, stderr] = [out.stdout, out.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(out.status.success(), "{words:?} ({NEEDED}): {}\n{stdout}\n{stderr}", out.status);
        Said { out: stdout, err: stderr }
    }

    fn kubeadm(&self, words: &[&str]) -> Said {
        let program = kubernetes().join("versions").join(VERSION).join("kubeadm");
        self.run(&[&[program.to_str().unwrap()], words].concat())
    }

    fn openssl(&self, words: &str) -> String {
        let out = Command::new("openssl").args(words.split_whitespace()).current_dir(&self.folder).output().unwrap();
        assert!(out.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}

fn cluster(runtime: &str) -> Cluster {
    serde_saphyr::from_str(&format!(
        "
apiVersion: nkd.io/v1alpha1
kind: Cluster
metadata: {{name: rack7}}
spec:
  pools: []
  kubernetes:
    version: {VERSION}
    runtime: {runtime}
    podSubnet: 10.200.0.0/16
    serviceSubnet: 10.201.0.0/16
    dnsDomain: k8s.example
    registries: [{{host: docker.io, mirrors: ['https://mirror.example']}}]
    featureGates: {{GracefulNodeShutdown: true}}
    certSans: [api.rack7.example]
    # As Go's YAML has it, half of these are no strings unless they are quoted.
    apiServer: {{extraArgs: {{a: 'off', b: '0777', c: '1:30', d: '1_000', e: 'null', f: '', g: '#x', h: '=', i: \"a\\nb\"}}}}
    controllerManager: {{extraArgs: {{node-cidr-mask-size: '24'}}}}
    scheduler: {{extraArgs: {{v: '3'}}}}
    etcd: {{extraArgs: {{quota-backend-bytes: '8589934592'}}}}
    kubelet: {{extraArgs: {{v: '2'}}}}
    kubeletConfiguration: {{maxPods: 250, evictionHard: {{memory.available: 50Mi}}}}
    kubeProxyConfiguration: {{mode: ipvs, conntrack: {{maxPerCore: 0}}}}
"
    ))
    .unwrap()
}

fn node(hostname: &str, address: &str, role: Role) -> kubeadm::Node {
    kubeadm::Node {
        hostname: hostname.into(),
        address: address.parse().unwrap(),
        role,
        pool: "p".into(),
        labels: BTreeMap::from([("rack".into(), "7".into()), ("node-role.kubernetes.io/x".into(), String::new())]),
        taints: None,
    }
}

fn init(cluster: &Cluster) -> String {
    let nodes = [node("cp1", "10.0.0.11", Role::ControlPlane), node("cp2", "10.0.0.12", Role::ControlPlane)];
    let endpoint = "api.rack7.example".parse().unwrap();
    kubeadm::init(cluster, &nodes[0], &kubeadm::Init { endpoint: &endpoint, control_planes: &nodes }).unwrap()
}

fn join(cluster: &Cluster, node: &kubeadm::Node) -> String {
    let endpoint = "[fd00::10]:6443".parse().unwrap();
    let join = kubeadm::Join { endpoint: &endpoint, token: "abcdef.0123456789abcdef", ca_hash: HASH };
    kubeadm::join(cluster, node, &join).unwrap()
}

fn documents(text: &str) -> BTreeMap<String, Value> {
    let read = |text| serde_saphyr::from_str::<Value>(text).unwrap();
    let named = |document: Value| (document["kind"].as_str().unwrap().to_owned(), document);
    text.split("\n---\n").map(read).map(named).collect()
}

/// Every field of ours stands in theirs, with the same value.
#[track_caller]
fn within(ours: &Value, theirs: &Value, path: &str) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in ours {
                within(value, theirs.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"));
            }
        }
        (ours, theirs) => assert_eq!(ours, theirs, "{path}"),
    }
}

#[track_caller]
fn unwarned(said: &Said) {
    let both = format!("{}{}", said.out, said.err);
    for word in ["unknown field", "strict decoding", "WARNING"] {
        assert!(!both.contains(word), "{word}: {both}");
    }
}

/// kubeadm writes back what it has understood.
#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn kubeadm_understands_every_field() {
    let host = Host::new();
    let worker = kubeadm::Node {
        taints: Some(vec!["dedicated=gpu:NoSchedule".into(), "spot:NoExecute".into()]),
        ..node("w1", "fd00::21", Role::Worker)
    };
    for runtime in ["containerd", "cri-o", "isulad", "docker"] {
        let cluster = cluster(runtime);
        for text in
            [init(&cluster), join(&cluster, &worker), join(&cluster, &node("cp2", "10.0.0.12", Role::ControlPlane))]
        {
            let path = host.write("config.yaml", &text);
            let said = host.kubeadm(&["config", "migrate", "--old-config", &path]);
            unwarned(&said);
            let theirs = documents(&said.out);
            let ours = documents(&text);
            for (kind, mut ours) in ours {
                if kind == "KubeletConfiguration" || kind == "KubeProxyConfiguration" {
                    continue;
                }
                // kubeadm adds the token to the entry.
                let tokens = ours.as_object_mut().unwrap().remove("bootstrapTokens");
                if let Some(tokens) = tokens {
                    within(&tokens[0], &theirs[&kind]["bootstrapTokens"][0], "bootstrapTokens");
                }
                within(&ours, &theirs[&kind], &kind);
            }
        }
    }
}

/// The check above sees a field that kubeadm does not know.
#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn an_unknown_field_is_seen() {
    let host = Host::new();
    let text = init(&cluster("containerd")).replace("clusterName: rack7", "clusterName: rack7\ncluserName: x");
    let path = host.write("config.yaml", &text);
    let said = host.kubeadm(&["config", "migrate", "--old-config", &path]);
    assert!(said.err.contains("unknown field"), "{}", said.err);
}

/// A dry run goes through all phases, and prints what kubelet, kube-proxy and the static pods would be told.
#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn a_dry_run_of_init_goes_through() {
    let host = Host::new();
    let mut cluster = cluster("containerd");
    cluster.spec.kubernetes.api_server.extra_args.clear();
    let path = host.write("config.yaml", &init(&cluster));
    let said = host.kubeadm(&[
        "init",
        "--dry-run",
        "--config",
        &path,
        "--ignore-preflight-errors=all",
        "--skip-phases=preflight,addon/coredns",
    ]);
    unwarned(&said);
    for wanted in [
        "--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock",
        "--node-ip=10.0.0.11 --node-labels=rack=7 --pod-infra-container-image=k8s.gcr.io/pause:3.2 --v=2",
        "quota-backend-bytes: \"8589934592\"",
        "--feature-gates=GracefulNodeShutdown=true",
        "--cluster-cidr=10.200.0.0/16",
        "--service-cluster-ip-range=10.201.0.0/16",
        "clusterDomain: k8s.example",
        "cgroupDriver: systemd",
        "maxPods: 250",
        "memory.available: 50Mi",
        "mode: ipvs",
        "maxPerCore: 0",
    ] {
        assert!(said.out.contains(wanted), "{wanted}: {}", said.out);
    }
}

/// kubeadm and the runtime agree on the sandbox image, so that it is there when nodes have no network.
#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn kubeadm_pulls_the_sandbox_image_of_the_runtime() {
    let host = Host::new();
    for repository in [None, Some("registry.example/k8s".to_owned())] {
        let mut cluster = cluster("containerd");
        cluster.spec.kubernetes.image_repository = repository;
        let path = host.write("config.yaml", &init(&cluster));
        let said = host.kubeadm(&["config", "images", "list", "--config", &path]);
        let image = runtime::sandbox_image(&cluster).unwrap();
        assert!(said.out.lines().any(|line| line == image), "{image}: {}", said.out);
    }
}

#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn kubeadm_makes_its_certificates_of_our_authorities() {
    let host = Host::new();
    signs_everything(&host, &Certificates::default());
}

#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn kubeadm_makes_its_certificates_of_an_operators_rsa_authority() {
    let host = Host::new();
    host.openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /O=Example/CN=root -addext keyUsage=critical,keyCertSign \
         -keyout rsa8.key -out rsa.crt",
    );
    host.openssl("rsa -traditional -in rsa8.key -out rsa.key");
    let inline = |name| Source::Inline { inline: std::fs::read_to_string(host.path(name)).unwrap() };
    let cluster = Some(KeyPair { certificate: inline("rsa.crt"), key: inline("rsa.key") });
    signs_everything(&host, &Certificates { cluster, ..Certificates::default() });
}

fn signs_everything(host: &Host, given: &Certificates) {
    let now = OffsetDateTime::now_utc();
    let pki = ClusterPki::create(given, now).unwrap();
    host.give(&pki);
    let path = host.write("config.yaml", &init(&cluster("containerd")));

    let said = host.kubeadm(&["init", "phase", "certs", "all", "--config", &path]);
    unwarned(&said);
    for name in ["ca", "front-proxy-ca", "etcd/ca"] {
        assert!(said.out.contains(&format!("Using existing {name} certificate authority")), "{}", said.out);
    }
    assert!(said.out.contains("Using the existing \"sa\" key"), "{}", said.out);
    let same = pki.control_plane_files().iter().all(|file| {
        std::fs::read_to_string(host.etc(file.path.strip_prefix("/etc/").unwrap())).unwrap() == file.contents
    });
    assert!(same, "kubeadm leaves our files alone");

    for (ca, names) in [
        ("ca", ["apiserver", "apiserver-kubelet-client"].as_slice()),
        ("front-proxy-ca", &["front-proxy-client"]),
        ("etcd/ca", &["apiserver-etcd-client", "etcd/server", "etcd/peer", "etcd/healthcheck-client"]),
    ] {
        for name in names {
            let pki = host.etc("kubernetes/pki").display().to_string();
            host.openssl(&format!("verify -x509_strict -CAfile {pki}/{ca}.crt {pki}/{name}.crt"));
        }
    }
    let api = host.etc("kubernetes/pki/apiserver.crt").display().to_string();
    let names = host.openssl(&format!("x509 -in {api} -noout -ext subjectAltName -startdate"));
    for name in ["DNS:api.rack7.example", "DNS:cp2", "DNS:localhost", "Address:10.0.0.12", "Address:127.0.0.1"] {
        assert!(names.contains(name), "{name}: {names}");
    }
    assert!(names.contains("Address:10.201.0.1"), "the service address is kubeadm's own: {names}");
    if *given == Certificates::default() {
        assert!(names.contains("notBefore=Jan  1 00:00:00 2000"), "a clock that is behind: {names}");
    }

    unwarned(&host.kubeadm(&["init", "phase", "kubeconfig", "all", "--config", &path]));
    let said = host.kubeadm(&["certs", "check-expiration", "--config", &path]);
    for expiry in pki.expiries(now).unwrap() {
        let name = if expiry.name == "etcd/ca" { "etcd-ca" } else { expiry.name };
        let year = expiry.not_after.year().to_string();
        let line = said.out.lines().find(|line| line.split_whitespace().next() == Some(name));
        assert!(line.is_some_and(|line| line.contains(&year)), "{name} {year}: {}", said.out);
    }

    let endpoints = [endpoint("rack7", "api.rack7.example:6443")];
    let access = Access {
        cluster: "rack7",
        endpoints: &endpoints,
        current: 0,
        user: "ada",
        group: "system:masters",
        lifetime: Duration::days(1),
    };
    let config: Value = serde_saphyr::from_str(&pki.kubeconfig(&access, now).unwrap()).unwrap();
    let certificate = config["users"][0]["user"]["client-certificate-data"].as_str().unwrap();
    let certificate = base64::engine::general_purpose::STANDARD.decode(certificate).unwrap();
    host.write("client.crt", std::str::from_utf8(&certificate).unwrap());
    let ca = host.etc("kubernetes/pki/ca.crt").display().to_string();
    host.openssl(&format!("verify -x509_strict -purpose sslclient -CAfile {ca} client.crt"));
}

fn endpoint(name: &str, address: &str) -> NamedEndpoint {
    NamedEndpoint { name: name.into(), address: address.into() }
}

/// The kubeconfig is one that the real client reads, with the context that was chosen.
#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn kubectl_reads_the_kubeconfig() {
    let host = Host::new();
    let now = OffsetDateTime::now_utc();
    let pki = ClusterPki::create(&Certificates::default(), now).unwrap();
    let endpoints = [endpoint("rack7-cp1", "10.0.0.11:6443"), endpoint("rack7-cp2", "10.0.0.12:6443")];
    let access = Access {
        cluster: "rack7",
        endpoints: &endpoints,
        current: 1,
        user: "ada",
        group: "system:masters",
        lifetime: Duration::days(1),
    };
    let path = host.write("kubeconfig", &pki.kubeconfig(&access, now).unwrap());
    let kubectl = kubernetes().join("versions").join(VERSION).join("kubectl");
    let said = host.run(&[
        kubectl.to_str().unwrap(),
        "--kubeconfig",
        &path,
        "config",
        "view",
        "--minify",
        "--output",
        "jsonpath={.clusters[0].cluster.server} {.contexts[0].context.cluster} {.users[0].name}",
    ]);
    assert_eq!(said.out, "https://10.0.0.12:6443 rack7-cp2 ada@rack7");
}

/// containerd prints the configuration that it would run with.
#[test]
#[ignore = "needs root and NKD_KUBERNETES"]
fn containerd_takes_its_configuration() {
    let host = Host::new();
    let program = kubernetes().join("sys/usr/bin/containerd");
    for lab in [false, true] {
        let cluster = cluster("containerd");
        let files = runtime::files(&cluster, lab, None).unwrap();
        let config = files.iter().find(|file| file.path == "/etc/containerd/config.toml").unwrap();
        let path = host.write("config.toml", &config.contents);
        let said = host.run(&[program.to_str().unwrap(), "--config", &path, "config", "dump"]);
        let whole: toml::Table = toml::from_str(&said.out).unwrap();
        let cri = &whole["plugins"]["io.containerd.grpc.v1.cri"];
        assert_eq!(cri["sandbox_image"].as_str(), Some("k8s.gcr.io/pause:3.2"));
        assert_eq!(cri["restrict_oom_score_adj"].as_bool(), Some(lab));
        assert_eq!(cri["cni"]["bin_dir"].as_str(), Some(if lab { "/usr/lib/cni" } else { "/opt/cni/bin" }));
        assert_eq!(cri["registry"]["config_path"].as_str(), Some("/etc/containerd/certs.d"));
        let runc = &cri["containerd"]["runtimes"]["runc"];
        assert_eq!(runc["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        assert_eq!(runc["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(cri["containerd"]["default_runtime_name"].as_str(), Some("runc"));
    }
}
