//! The cluster file: what a cluster is to be, and what has become of it.
//!
//! An operator writes [`Cluster`] as YAML. The command line puts the files that it names into it (see [`Source`]) before it
//! leaves the operator's machine, so that the service never reads a path that somebody else wrote.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::MacAddr;
use crate::update::MaxUnavailable;

/// `apiVersion` of everything in this file.
pub const API_VERSION: &str = "nkd.io/v1alpha1";
/// Port of the Kubernetes API when an endpoint does not say.
pub const API_PORT: u16 = 6443;
/// Port of the balancer that every node of a cluster without an endpoint of its own has on its loopback address.
pub const BALANCER_PORT: u16 = 7443;

macro_rules! contract {
    ($(#[$meta:meta])* $vis:vis $kind:ident $name:ident $body:tt) => {
        $(#[$meta])*
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase")]
        $vis $kind $name $body
    };
}

contract! {
    /// A cluster file.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Cluster {
        /// `nkd.io/v1alpha1`.
        pub api_version: String,
        /// `Cluster`.
        pub kind: String,
        /// Name.
        pub metadata: Metadata,
        /// What it is to be.
        pub spec: ClusterSpec,
    }
}

contract! {
    /// Name of a cluster.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Metadata {
        /// Unique name, a host name label (RFC 1123).
        pub name: String,
        /// Free labels.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
    }
}

contract! {
    /// What a cluster is to be.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct ClusterSpec {
        /// Operating system of its nodes.
        #[serde(default)]
        pub os: Os,
        /// Kubernetes.
        pub kubernetes: Kubernetes,
        /// Where clients and nodes reach the Kubernetes API, `10.0.0.10:6443` or `api.rack7.example:6443`: a load balancer or
        /// address of the operator's. Not given: nodes reach it through a balancer of their own towards all control planes,
        /// clients at any control plane's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub endpoint: Option<String>,
        /// SSH access.
        #[serde(default)]
        pub ssh: Ssh,
        /// Machines by role.
        pub pools: Vec<Pool>,
        /// Time servers of the nodes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub ntp: Vec<String>,
        /// Proxies for runtime and kubelet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub proxy: Option<Proxy>,
        /// Scripts on the nodes before, and manifests after.
        #[serde(default)]
        pub hooks: Hooks,
        /// The operator that upgrades node by node.
        #[serde(default)]
        pub housekeeper: Housekeeper,
        /// The operator's own certificate authorities; made by the service when not given.
        #[serde(default)]
        pub certificates: Certificates,
        /// Butane-shaped snippets, merged over the configuration of every node.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub snippets: Vec<Source>,
    }
}

contract! {
    /// Operating system of the nodes.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Os {
        /// `nestos`, `fedora-coreos` or `lab`.
        pub profile: String,
        /// Image in the service's store. Not given: the newest one of the profile that holds this version of Kubernetes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub image: Option<String>,
        /// Channel that updates come from.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub channel: Option<String>,
    }
}

impl Default for Os {
    fn default() -> Self {
        Self { profile: "nestos".into(), image: None, channel: None }
    }
}

contract! {
    /// Kubernetes, as kubeadm sets it up.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Kubernetes {
        /// `v1.31.4`.
        pub version: String,
        /// Addresses of pods.
        #[serde(default = "pod_subnet")]
        pub pod_subnet: String,
        /// Addresses of services.
        #[serde(default = "service_subnet")]
        pub service_subnet: String,
        /// Domain of services.
        #[serde(default = "dns_domain")]
        pub dns_domain: String,
        /// Container runtime.
        #[serde(default)]
        pub runtime: Runtime,
        /// Manifest of the network plugin, applied when the first control plane answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cni: Option<Cni>,
        /// Where kubeadm's images come from, `registry.example/k8s`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub image_repository: Option<String>,
        /// Sandbox image of the runtime.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub pause_image: Option<String>,
        /// Registry mirrors and their CA.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub registries: Vec<Registry>,
        /// kubeadm phases that are left out, `addon/coredns`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub skip_phases: Vec<String>,
        /// Feature gates of all components.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub feature_gates: BTreeMap<String, bool>,
        /// Further names and addresses in the API server's certificate.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub cert_sans: Vec<String>,
        /// Further arguments.
        #[serde(default, skip_serializing_if = "Component::is_empty")]
        pub api_server: Component,
        /// Further arguments.
        #[serde(default, skip_serializing_if = "Component::is_empty")]
        pub controller_manager: Component,
        /// Further arguments.
        #[serde(default, skip_serializing_if = "Component::is_empty")]
        pub scheduler: Component,
        /// Further arguments of the local etcd.
        #[serde(default, skip_serializing_if = "Component::is_empty")]
        pub etcd: Component,
        /// Further arguments of every kubelet.
        #[serde(default, skip_serializing_if = "Component::is_empty")]
        pub kubelet: Component,
        /// Fields of the KubeletConfiguration, as they stand there.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub kubelet_configuration: BTreeMap<String, serde_json::Value>,
        /// Fields of the KubeProxyConfiguration, as they stand there.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub kube_proxy_configuration: BTreeMap<String, serde_json::Value>,
    }
}

fn pod_subnet() -> String {
    "10.244.0.0/16".into()
}
fn service_subnet() -> String {
    "10.96.0.0/16".into()
}
fn dns_domain() -> String {
    "cluster.local".into()
}

contract! {
    /// Container runtime.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum Runtime {
        /// containerd.
        #[default]
        Containerd,
        /// CRI-O.
        #[serde(rename = "cri-o")]
        Crio,
        /// iSulad.
        Isulad,
        /// Docker through cri-dockerd.
        Docker,
    }
}

contract! {
    /// Network plugin.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Cni {
        /// Its manifest.
        pub manifest: Source,
    }
}

contract! {
    /// Text that is written elsewhere: a path beside the cluster file, an http(s) address, or the text itself.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(untagged, deny_unknown_fields)]
    pub enum Source {
        /// A path (relative to the cluster file) or an http(s) address. The command line replaces a path by its text.
        Location(String),
        /// The text.
        Inline {
            /// The text.
            inline: String,
        },
    }
}

contract! {
    /// A registry's mirrors.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Registry {
        /// Host as it stands in image names, `docker.io`; `*` for all.
        pub host: String,
        /// Where to pull from instead, in this order.
        #[serde(default)]
        pub mirrors: Vec<String>,
        /// CA of the mirrors, PEM.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ca: Option<Source>,
    }
}

contract! {
    /// Further arguments of a component, without the dashes.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Component {
        /// Name and value.
        pub extra_args: BTreeMap<String, String>,
    }
}

impl Component {
    /// True when nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extra_args.is_empty()
    }
}

contract! {
    /// SSH access to the nodes.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Ssh {
        /// Public keys of the default user.
        pub authorized_keys: Vec<String>,
    }
}

contract! {
    /// Machines with one role.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Pool {
        /// Unique name.
        pub name: String,
        /// Role.
        pub role: Role,
        /// How many machines; not given: those that are listed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub count: Option<u32>,
        /// Which accepted machines without an assignment may be taken when `count` asks for more than are listed.
        #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
        pub matches: Option<MachineMatch>,
        /// Machines by name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub machines: Vec<PoolMachine>,
        /// Node labels.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
        /// Node taints, `key=value:NoSchedule`. Not given: kubeadm's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub taints: Option<Vec<String>>,
        /// Disk to install to, unless a machine says otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub install_disk: Option<String>,
        /// Further kernel arguments.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub kernel_args: Vec<String>,
    }
}

contract! {
    /// Role of a node.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    pub enum Role {
        /// etcd, API server, controller manager, scheduler.
        #[serde(rename = "control-plane")]
        ControlPlane,
        /// Everything else.
        Worker,
    }
}

contract! {
    /// What a machine must be like to be taken; every given field must fit.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct MachineMatch {
        /// `>=8Gi`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory: Option<String>,
        /// `>=4`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cpus: Option<String>,
        /// `x86_64` or `aarch64`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub architecture: Option<String>,
        /// Manufacturer; may end in `*`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub vendor: Option<String>,
        /// Product; may end in `*`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub product: Option<String>,
        /// Labels that it carries.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
    }
}

contract! {
    /// One machine: at least one of `mac`, `uuid` and `serial` names it.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct PoolMachine {
        /// Hardware address of the interface that it boots from.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mac: Option<MacAddr>,
        /// SMBIOS UUID.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub uuid: Option<String>,
        /// Serial number.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub serial: Option<String>,
        /// Host name and node name. Not given: made of cluster, pool and number.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub hostname: Option<String>,
        /// Address with prefix length, `10.0.0.11/24`. Not given: by DHCP.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ip: Option<String>,
        /// Default router, with `ip`.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        pub gateway: Option<IpAddr>,
        /// Name servers, with `ip`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        pub dns: Vec<IpAddr>,
        /// Disk to install to.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub install_disk: Option<String>,
        /// Node labels beside the pool's.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
    }
}

contract! {
    /// Proxies.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Proxy {
        /// `HTTP_PROXY`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub http: Option<String>,
        /// `HTTPS_PROXY`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub https: Option<String>,
        /// `NO_PROXY`, beside the cluster's own subnets and names.
        pub no_proxy: Vec<String>,
    }
}

contract! {
    /// What runs before and after.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Hooks {
        /// Scripts that run on every node, in this order, before kubeadm.
        pub before: Vec<Source>,
        /// Manifests that are applied, in this order, when every node is Ready.
        pub after: Vec<Source>,
    }
}

contract! {
    /// The operator in the cluster.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Housekeeper {
        /// Deploy it.
        pub enabled: bool,
        /// Where nodes get its image. Not given: `nkd.io/housekeeper:VERSION`, which the node image holds, or the service's
        /// own registry as `housekeeper:VERSION`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub image: Option<String>,
        /// Nodes that may be away at the same time, a number or a share such as `10%`.
        #[cfg_attr(feature = "schema", schemars(schema_with = "crate::update::count_or_share"))]
        pub max_unavailable: MaxUnavailable,
        /// When nodes may begin to upgrade, in UTC, `22:30+4h` or `sat,sun 22:30+4h`. Not given: at any time.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub window: Option<String>,
    }
}

impl Default for Housekeeper {
    fn default() -> Self {
        Self { enabled: false, image: None, max_unavailable: MaxUnavailable::Count(1), window: None }
    }
}

contract! {
    /// The operator's own certificate authorities.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Certificates {
        /// The cluster's.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cluster: Option<KeyPair>,
        /// etcd's.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub etcd: Option<KeyPair>,
        /// Of the aggregation layer.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub front_proxy: Option<KeyPair>,
        /// Key that signs service account tokens; its `certificate` is the public key.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub service_account: Option<KeyPair>,
    }
}

contract! {
    /// A certificate and its key, PEM.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct KeyPair {
        /// Certificate.
        pub certificate: Source,
        /// Key.
        pub key: Source,
    }
}

/// What has become of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Stable identity.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// Version of Kubernetes that is wanted.
    pub version: String,
    /// Where it stands.
    pub phase: ClusterPhase,
    /// Why it does not go on, when it waits.
    #[serde(default)]
    pub waiting: Option<String>,
    /// What its API server says.
    pub health: Health,
    /// Where its API is reached from outside: the endpoint of the file, or every control plane that is in.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Its nodes.
    pub members: Vec<Member>,
    /// When it was applied first.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Where a cluster stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ClusterPhase {
    /// It waits for machines.
    Pending,
    /// Control planes and workers are on their way.
    BringUp,
    /// Every node has joined, every add-on is applied.
    Ready,
    /// It was ready, and nodes come, go or change.
    Changing,
    /// It is being taken apart.
    Destroying,
}

/// What a cluster's API server says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Health {
    /// Nobody has asked yet.
    #[default]
    Unknown,
    /// All is well.
    Healthy,
    /// It answers, and something is wrong.
    Degraded {
        /// What, one sentence each.
        reasons: Vec<String>,
    },
    /// It does not answer.
    Unreachable {
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// Why.
        reason: String,
    },
}

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Machine; none until one was taken for it.
    #[serde(default)]
    pub machine: Option<Uuid>,
    /// Host name and node name.
    pub hostname: String,
    /// Pool.
    pub pool: String,
    /// Role.
    pub role: Role,
    /// Address that its kubelet and API server use.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<IpAddr>,
    /// Where it stands.
    pub state: MemberState,
    /// Why it waits or failed.
    #[serde(default)]
    pub detail: Option<String>,
}

/// One place where two cluster files differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Where: `spec.pools[name=worker].count`.
    pub path: String,
    /// What stood there; none when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<serde_json::Value>,
    /// What stands there; none when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<serde_json::Value>,
}

/// What applying a cluster file does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// There was no cluster of this name.
    pub created: bool,
    /// What differs from the file that was applied last.
    pub changes: Vec<Change>,
    /// Nodes that come.
    pub joining: Vec<String>,
    /// Nodes that leave: they are drained, taken out and wiped.
    pub leaving: Vec<String>,
    /// What is good to know.
    pub warnings: Vec<crate::Problem>,
    /// The cluster; none when nothing was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ClusterStatus>,
}

/// How many machines a pool is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scale {
    /// Pool.
    pub pool: String,
    /// Machines.
    pub count: u32,
}

/// Where a node stands on its way into its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Its machine is not enrolled yet.
    Waiting,
    /// It is enrolled, and its turn has not come.
    Enrolled,
    /// kubeadm runs on it.
    Joining,
    /// kubeadm has done its part; the node is not Ready yet.
    Joined,
    /// Its node object says Ready.
    Ready,
    /// kubeadm failed on it.
    Failed,
    /// It is being taken out.
    Leaving,
}

/// The certificates of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterCertificates {
    /// All that is known, the service's own authorities first.
    pub certificates: Vec<ClusterCertificate>,
    /// Renewals on control planes that were asked for, run, or ended last.
    pub renewals: Vec<NodeRenewal>,
    /// Certificates that are on a node and do not read, `cp1: etcd/peer`.
    pub unreadable: Vec<String>,
}

/// A certificate of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterCertificate {
    /// Node that it is on; none: the service holds it.
    #[serde(default)]
    pub node: Option<String>,
    /// `ca`, `apiserver`, `etcd/peer`, `admin.conf`, `kubelet`.
    pub name: String,
    /// `CN=kube-apiserver`.
    pub subject: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// End of its life.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Whole days that are left; negative when it is over.
    pub days_left: i64,
    /// When it is renewed by itself: by the service, or by the kubelet at its own time. None: never.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub renewed_from: Option<OffsetDateTime>,
}

/// The renewal of the certificates of a control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeRenewal {
    /// Node.
    pub node: String,
    /// Where it stands.
    pub state: RenewalState,
    /// Where kubeadm is, why it waits, or why it failed.
    #[serde(default)]
    pub detail: Option<String>,
    /// When it came to stand there.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Where a renewal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RenewalState {
    /// Somebody asked for it, and its turn has not come.
    Wanted,
    /// kubeadm runs, or the static pods come back.
    Running,
    /// The run has ended well; the node has not shown its new certificates yet.
    Reporting,
    /// The node has shown them.
    Done,
    /// It failed; the old ones or some of them are in use.
    Failed,
}

/// One entry of a cluster's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterEvent {
    /// Rising number within the service.
    pub id: i64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What happened.
    pub message: String,
    /// Who or what caused it: a user, `agent`, `service`.
    pub cause: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_says_nothing_that_is_not_read() {
        let read = |text: &str| serde_json::from_str::<Source>(text);
        assert_eq!(read("\"./cni.yaml\"").unwrap(), Source::Location("./cni.yaml".into()));
        assert_eq!(read("{\"inline\": \"x\"}").unwrap(), Source::Inline { inline: "x".into() });
        assert!(read("{\"inline\": \"x\", \"sha256\": \"y\"}").is_err());
    }

    #[cfg(feature = "schema")]
    #[test]
    fn the_schema_knows_the_form_of_a_hardware_address() {
        let schema = serde_json::to_value(schemars::schema_for!(Cluster)).unwrap();
        let mac = &schema["$defs"]["PoolMachine"]["properties"]["mac"];
        assert_eq!(mac["format"], "mac", "{mac}");
        assert_eq!(mac["type"], serde_json::json!(["string", "null"]), "{mac}");
    }
}
