//! What kubeadm is told: its configuration documents (kubeadm.k8s.io v1beta2, v1beta3 and v1beta4;
//! kubelet.config.k8s.io/v1beta1; kubeproxy.config.k8s.io/v1alpha1). Pure.
//!
//! No certificate key is ever used: the service puts the authorities' files on each control plane itself, before kubeadm
//! runs there.

mod document;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use nkd_api::cluster::{API_PORT, Cluster, Component, Role, Runtime};
use serde::Serialize;
use serde_json::{Map, Value};

use self::document::{
    ApiEndpoint, ApiServer, Arg, Args, BootstrapToken, BootstrapTokenDiscovery, ClusterConfiguration,
    ControlPlaneComponent, Discovery, Etcd, InitConfiguration, JoinConfiguration, JoinControlPlane, LocalEtcd,
    Networking, NodeRegistration, Timeouts,
};
use super::runtime::sandbox_image;
use super::taints;

/// A file for kubeadm or the runtime cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KubeadmError {
    /// The version is none, or not supported.
    #[error("`{0}` is not a supported version of Kubernetes: v1.15.0 or later, such as v1.31.4")]
    Version(String),
    /// The endpoint is none.
    #[error("`{0}` is not an endpoint: a host name or address, and a port after a colon if it is not {API_PORT}")]
    Endpoint(String),
    /// The taint is none.
    #[error("`{0}` is not a taint: key=value:NoSchedule (or PreferNoSchedule, NoExecute), the value may be missing")]
    Taint(String),
    /// The mirror is no address.
    #[error("`{0}` is not a mirror: [http://|https://]host[:port][/path]")]
    Mirror(String),
    /// The runtime cannot do that.
    #[error("{runtime} cannot use the mirrors of `{host}`: {reason}")]
    Unsupported {
        /// Runtime.
        runtime: &'static str,
        /// Registry.
        host: String,
        /// Why.
        reason: &'static str,
    },
    /// A text was not put into the cluster file.
    #[error("the CA of the mirrors of `{0}` is a path or address, not the text itself")]
    NotInline(String),
    /// Writing YAML failed.
    #[error("the configuration of kubeadm cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
    /// Writing TOML failed.
    #[error("the configuration of the runtime cannot be written as TOML")]
    Toml(#[from] toml::ser::Error),
    /// Writing JSON failed.
    #[error("the configuration of the runtime or the balancer cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// A node, as kubeadm and its kubelet see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Host name and node name.
    pub hostname: String,
    /// Address of its kubelet, and of its API server when it is a control plane.
    pub address: IpAddr,
    /// Role.
    pub role: Role,
    /// Pool.
    pub pool: String,
    /// Labels of pool and machine together.
    pub labels: BTreeMap<String, String>,
    /// Taints; none: kubeadm's own.
    pub taints: Option<Vec<String>>,
}

/// Host and port of a cluster's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = KubeadmError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || KubeadmError::Endpoint(text.to_owned());
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.to_owned(), port: API_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (text, API_PORT),
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None if host.is_empty() || host.contains([':', '/', '[', ']', ' ', '@']) => return Err(wrong()),
            None => host.to_owned(),
        };
        if port == 0 { Err(wrong()) } else { Ok(Self { host, port }) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What `kubeadm init` needs beside cluster and node.
#[derive(Debug, Clone, Copy)]
pub struct Init<'a> {
    /// Where clients and nodes reach the API.
    pub endpoint: &'a Endpoint,
    /// Every control plane that there is to be, for the API server's certificate.
    pub control_planes: &'a [Node],
}

/// What `kubeadm join` needs beside cluster and node.
#[derive(Debug, Clone, Copy)]
pub struct Join<'a> {
    /// Where the API is reached.
    pub endpoint: &'a Endpoint,
    /// Bootstrap token, `abcdef.0123456789abcdef`.
    pub token: &'a str,
    /// [`super::pki::ClusterPki::ca_hash`].
    pub ca_hash: &'a str,
}

/// The second number of a version of Kubernetes; the first one is 1.
pub(super) fn minor(version: &str) -> Result<u32, KubeadmError> {
    let wrong = || KubeadmError::Version(version.to_owned());
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.');
    let (Some("1"), Some(minor), Some(_patch)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    minor.parse().ok().filter(|minor| *minor >= OLDEST).ok_or_else(wrong)
}

const OLDEST: u32 = 15;
/// kubeadm of 1.22 to 1.30 reads v1beta3, older ones v1beta2, newer ones v1beta4.
const FIRST_V1BETA3: u32 = 22;
const FIRST_V1BETA4: u32 = 31;
/// Kubelets up to here keep the sandbox image of `--pod-infra-container-image` when they collect garbage.
const LAST_POD_INFRA: u32 = 26;
/// Kubelets from here on speak to Docker through cri-dockerd.
pub(super) const FIRST_CRI_DOCKERD: u32 = 24;
/// Where plugins for volumes would be: kubeadm has the controller manager mount it and makes it on each control plane, and the
/// place that it would take is below `/usr`, which cannot be written.
const VOLUME_PLUGINS: &str = "/var/lib/kubelet/volumeplugins";
/// kubeadm waits 4 minutes for a control plane and 5 for discovery; disks and networks of machines are slower.
const PATIENCE: &str = "10m0s";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    V1Beta2,
    V1Beta3,
    V1Beta4,
}

impl Api {
    fn of(minor: u32) -> Self {
        match minor {
            FIRST_V1BETA4.. => Self::V1Beta4,
            FIRST_V1BETA3.. => Self::V1Beta3,
            _ => Self::V1Beta2,
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::V1Beta2 => "kubeadm.k8s.io/v1beta2",
            Self::V1Beta3 => "kubeadm.k8s.io/v1beta3",
            Self::V1Beta4 => "kubeadm.k8s.io/v1beta4",
        }
    }

    /// Arguments with what the operator says over ours, each name once; none when there are none.
    fn args(self, ours: &[(&str, String)], theirs: &Component) -> Option<Args> {
        let mut all: BTreeMap<String, String> =
            ours.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        all.extend(theirs.extra_args.clone());
        match self {
            _ if all.is_empty() => None,
            Self::V1Beta2 | Self::V1Beta3 => Some(Args::Map(all)),
            Self::V1Beta4 => Some(Args::List(all.into_iter().map(|(name, value)| Arg { name, value }).collect())),
        }
    }

    fn timeouts(self) -> Option<Timeouts> {
        (self == Self::V1Beta4).then_some(Timeouts {
            control_plane_component_health_check: PATIENCE,
            discovery: PATIENCE,
            tls_bootstrap: PATIENCE,
        })
    }

    fn older_timeout(self) -> Option<&'static str> {
        (self != Self::V1Beta4).then_some(PATIENCE)
    }
}

/// The file for `kubeadm init` on the first control plane: InitConfiguration, ClusterConfiguration,
/// KubeletConfiguration and KubeProxyConfiguration, as YAML.
pub fn init(cluster: &Cluster, node: &Node, init: &Init<'_>) -> Result<String, KubeadmError> {
    let kubernetes = &cluster.spec.kubernetes;
    let minor = minor(&kubernetes.version)?;
    let api = Api::of(minor);
    let gates = feature_gates(cluster);
    let mut managers = vec![("flex-volume-plugin-dir", VOLUME_PLUGINS.to_owned())];
    managers.extend(gates.iter().cloned());
    let component = |gates: &[(&'static str, String)], theirs| {
        api.args(gates, theirs).map(|extra_args| ControlPlaneComponent { extra_args })
    };
    let first = InitConfiguration {
        api_version: api.version(),
        kind: "InitConfiguration",
        bootstrap_tokens: [BootstrapToken { description: "of kubeadm init, not used", ttl: "1m0s" }],
        node_registration: node_registration(cluster, node, minor)?,
        local_api_endpoint: local(node),
        timeouts: api.timeouts(),
    };
    let second = ClusterConfiguration {
        api_version: api.version(),
        kind: "ClusterConfiguration",
        cluster_name: &cluster.metadata.name,
        kubernetes_version: &kubernetes.version,
        control_plane_endpoint: init.endpoint.to_string(),
        networking: Networking {
            service_subnet: &kubernetes.service_subnet,
            pod_subnet: &kubernetes.pod_subnet,
            dns_domain: &kubernetes.dns_domain,
        },
        api_server: ApiServer {
            extra_args: api.args(&gates, &kubernetes.api_server),
            cert_sans: cert_sans(cluster, init),
            timeout_for_control_plane: api.older_timeout(),
        },
        controller_manager: component(&managers, &kubernetes.controller_manager),
        scheduler: component(&gates, &kubernetes.scheduler),
        etcd: api
            .args(&[], &kubernetes.etcd)
            .map(|extra_args| Etcd { local: LocalEtcd { data_dir: "/var/lib/etcd", extra_args } }),
        image_repository: kubernetes.image_repository.as_deref(),
    };
    let kubelet = component_configuration(
        ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration"),
        &[("cgroupDriver", Value::from(cgroup_driver(cluster)))],
        cluster,
        &kubernetes.kubelet_configuration,
    );
    let proxy = component_configuration(
        ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"),
        &[],
        cluster,
        &kubernetes.kube_proxy_configuration,
    );
    Ok([yaml(&first)?, yaml(&second)?, yaml(&kubelet)?, yaml(&proxy)?].join("---\n"))
}

/// The file for `kubeadm join` on every other node: JoinConfiguration, as YAML. It holds a bootstrap token.
pub fn join(cluster: &Cluster, node: &Node, join: &Join<'_>) -> Result<String, KubeadmError> {
    let minor = minor(&cluster.spec.kubernetes.version)?;
    let api = Api::of(minor);
    yaml(&JoinConfiguration {
        api_version: api.version(),
        kind: "JoinConfiguration",
        node_registration: node_registration(cluster, node, minor)?,
        discovery: Discovery {
            bootstrap_token: BootstrapTokenDiscovery {
                token: join.token,
                api_server_endpoint: join.endpoint.to_string(),
                ca_cert_hashes: [join.ca_hash],
            },
            timeout: api.older_timeout(),
        },
        control_plane: (node.role == Role::ControlPlane).then(|| JoinControlPlane { local_api_endpoint: local(node) }),
        timeouts: api.timeouts(),
    })
}

/// The cluster's phases to leave out of `kubeadm init`.
#[must_use]
pub fn init_skip_phases(cluster: &Cluster) -> Vec<String> {
    phases(cluster, |phase| !JOIN_ONLY.contains(&phase))
}

/// The cluster's phases to leave out of `kubeadm join`, which refuses the names of phases that only `init` has.
#[must_use]
pub fn join_skip_phases(cluster: &Cluster) -> Vec<String> {
    phases(cluster, |phase| JOIN_ONLY.contains(&phase) || BOTH.contains(&phase))
}

const JOIN_ONLY: [&str; 4] = ["control-plane-prepare", "control-plane-join", "etcd-join", "kubelet-wait-bootstrap"];
const BOTH: [&str; 2] = ["preflight", "kubelet-start"];

fn phases(cluster: &Cluster, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let first = |phase: &str| phase.split('/').next().is_some_and(&wanted);
    cluster.spec.kubernetes.skip_phases.iter().filter(|phase| first(phase)).cloned().collect()
}

/// Whether a kubelet may give its own node this label (`NodeRestriction`, and the kubelet's check of `--node-labels`). Every
/// label is set through the API once the node has joined; those that it may set are there from its first moment.
fn kubelet_may_set(key: &str) -> bool {
    const OWN: [&str; 12] = [
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let below = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    let reserved = below("kubernetes.io") || below("k8s.io");
    !reserved || OWN.contains(&key) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

/// `systemd`, or `cgroupfs` for iSulad, whose default that is; the operator's `kubeletConfiguration.cgroupDriver` wins,
/// and the runtime follows it.
pub(super) fn cgroup_driver(cluster: &Cluster) -> &str {
    let kubernetes = &cluster.spec.kubernetes;
    match kubernetes.kubelet_configuration.get("cgroupDriver").and_then(Value::as_str) {
        Some(given) => given,
        None if kubernetes.runtime == Runtime::Isulad => "cgroupfs",
        None => "systemd",
    }
}

fn cri_socket(runtime: Runtime, minor: u32) -> &'static str {
    match runtime {
        Runtime::Containerd => "unix:///var/run/containerd/containerd.sock",
        Runtime::Crio => "unix:///var/run/crio/crio.sock",
        Runtime::Isulad => "unix:///var/run/isulad.sock",
        Runtime::Docker if minor < FIRST_CRI_DOCKERD => "/var/run/dockershim.sock",
        Runtime::Docker => "unix:///var/run/cri-dockerd.sock",
    }
}

fn node_registration<'a>(cluster: &Cluster, node: &'a Node, minor: u32) -> Result<NodeRegistration<'a>, KubeadmError> {
    let kubernetes = &cluster.spec.kubernetes;
    let mut args = vec![("node-ip", node.address.to_string()), ("volume-plugin-dir", VOLUME_PLUGINS.to_owned())];
    let own = node.labels.iter().filter(|(key, _)| kubelet_may_set(key));
    let labels: Vec<String> = own.map(|(key, value)| format!("{key}={value}")).collect();
    if !labels.is_empty() {
        args.push(("node-labels", labels.join(",")));
    }
    if minor <= LAST_POD_INFRA {
        args.push(("pod-infra-container-image", sandbox_image(cluster)?));
    }
    let taints = node.taints.as_ref().map(|taints| taints.iter().map(|taint| taints::parse(taint)).collect());
    Ok(NodeRegistration {
        name: &node.hostname,
        cri_socket: cri_socket(kubernetes.runtime, minor),
        taints: taints.transpose()?,
        kubelet_extra_args: Api::of(minor).args(&args, &kubernetes.kubelet),
    })
}

fn local(node: &Node) -> ApiEndpoint {
    ApiEndpoint { advertise_address: node.address, bind_port: API_PORT }
}

/// kubeadm adds the node's own name and address, the service address and the names of the service.
fn cert_sans(cluster: &Cluster, init: &Init<'_>) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = cluster.spec.kubernetes.cert_sans.iter().cloned().collect();
    names.extend(["127.0.0.1".to_owned(), "localhost".to_owned(), init.endpoint.host.clone()]);
    for node in init.control_planes {
        names.extend([node.address.to_string(), node.hostname.clone()]);
    }
    names
}

fn feature_gates(cluster: &Cluster) -> Vec<(&'static str, String)> {
    let gates: Vec<String> =
        cluster.spec.kubernetes.feature_gates.iter().map(|(name, on)| format!("{name}={on}")).collect();
    if gates.is_empty() { Vec::new() } else { vec![("feature-gates", gates.join(","))] }
}

fn component_configuration(
    (api_version, kind): (&str, &str),
    ours: &[(&str, Value)],
    cluster: &Cluster,
    theirs: &BTreeMap<String, Value>,
) -> Value {
    let mut all: Map<String, Value> = ours.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let gates = &cluster.spec.kubernetes.feature_gates;
    if !gates.is_empty() {
        all.insert("featureGates".into(), gates.iter().map(|(name, on)| (name.clone(), Value::from(*on))).collect());
    }
    for (name, value) in theirs {
        merge(all.entry(name.clone()).or_insert(Value::Null), value);
    }
    all.insert("apiVersion".into(), api_version.into());
    all.insert("kind".into(), kind.into());
    Value::Object(all)
}

/// Maps are merged field by field; everything else is replaced.
fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (name, value) in over {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, over) => *into = over.clone(),
    }
}

fn yaml(document: &impl Serialize) -> Result<String, KubeadmError> {
    // Plain scalars in one line: what Go's YAML 1.1 would read as something else than a string is quoted.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let mut text = serde_saphyr::to_string_with_options(document, options)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
#[path = "kubeadm_tests.rs"]
pub(super) mod tests;
