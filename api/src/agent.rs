//! The agent protocol: what `nkd-agent` and the service say to each other, all over TLS on port 8443.
//!
//! ```text
//! POST /agent/v1/enroll           EnrollRequest  -> EnrollResponse      bearer: none, single-use token in the body
//! POST /agent/v1/renew            RenewRequest   -> EnrollResponse      client certificate
//! GET  /agent/v1/task?seen=R&wait=S              -> TaskAnswer          client certificate; answers at once when the
//!                                                                       revision differs from R, else within S seconds (at most 60)
//! GET  /agent/v1/install-config?generation=G     -> Ignition document   client certificate of purpose `install`
//! GET  /agent/v1/kubeadm?operation=ID            -> KubeadmOrder        client certificate of purpose `node`
//! PUT  /agent/v1/etcd-snapshot/ID?SnapshotProof  bytes of the file      client certificate of purpose `node`, while that run is ordered
//! GET  /agent/v1/release?commit=C                -> ReleaseSource       client certificate of purpose `node`
//! POST /agent/v1/report           Report         -> ReportAnswer        client certificate
//! GET  /agent/v1/time                            -> ServerTime          nobody in particular
//! ```
//! Errors are [`crate::ErrorBody`]. 503 and transport errors are worth a retry, everything else is final.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Sha256Digest;
use crate::facts::Facts;

/// Where the agent finds this file on a node: `/etc/nkd/agent.json`, written by Ignition, mode 0600.
pub const AGENT_CONFIG_PATH: &str = "/etc/nkd/agent.json";

/// What Ignition leaves for the agent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// Base address of the service, `https://192.0.2.1:8443`.
    pub server: String,
    /// The only CA that the agent trusts, PEM.
    pub ca: String,
    /// Identity of the machine.
    pub machine: Uuid,
    /// What the token is for.
    pub purpose: Purpose,
    /// Install generation that the token belongs to.
    pub generation: u32,
    /// Single-use enrollment token.
    pub token: String,
}

/// What a token, and the certificate that it buys, is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A live system that only tells its facts and waits.
    Discovery,
    /// A live system that installs.
    Install,
    /// The installed system.
    Node,
}

impl Purpose {
    /// The word as it stands in certificates and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Install => "install",
            Self::Node => "node",
        }
    }
}

impl std::str::FromStr for Purpose {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "discovery" => Ok(Self::Discovery),
            "install" => Ok(Self::Install),
            "node" => Ok(Self::Node),
            _ => Err(()),
        }
    }
}

/// A token for a certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EnrollRequest {
    /// Identity of the machine.
    pub machine: Uuid,
    /// Single-use token.
    pub token: String,
    /// PKCS #10 request in PEM. Only its public key is used; the service sets every name.
    pub csr: String,
    /// What the machine says of itself.
    pub facts: Facts,
}

/// A new key for a certificate that still holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// PKCS #10 request in PEM.
    pub csr: String,
}

/// The client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EnrollResponse {
    /// Certificate and intermediates, PEM, leaf first.
    pub certificate: String,
    /// CA bundle to trust from now on, PEM.
    pub ca: String,
    /// Renew from this moment on: two thirds of the life.
    #[serde(with = "time::serde::rfc3339")]
    pub renew_after: OffsetDateTime,
    /// End of its life.
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
    /// The clock of the service.
    #[serde(with = "time::serde::rfc3339")]
    pub server_time: OffsetDateTime,
}

/// The clock of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServerTime {
    /// Now.
    #[serde(with = "time::serde::rfc3339")]
    pub server_time: OffsetDateTime,
}

/// What the agent is to do, with a revision to wait on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TaskAnswer {
    /// Opaque; changes whenever the task does.
    pub revision: String,
    /// The task.
    pub task: Task,
    /// The API servers of its cluster, for the balancer on the node; empty: nothing to be changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub api_servers: Vec<SocketAddr>,
}

/// The node's certificate and its key, PEM, in one file, mode 0600: what a container runtime shows to the service's registry. The
/// agent replaces it with each renewal.
pub const CLIENT_PEM_PATH: &str = "/var/lib/nkd-agent/client.pem";

/// Where the balancer finds this file on a node: `/etc/nkd/balancer.json`. Nothing in it is secret.
pub const BALANCER_CONFIG_PATH: &str = "/etc/nkd/balancer.json";
/// The unit of the balancer.
pub const BALANCER_UNIT: &str = "nkd-balancer.service";

/// What the balancer on a node is told. It comes with an order of kubeadm; the agent keeps `backends` as the service says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalancerConfig {
    /// The authority of the cluster, PEM: a backend that cannot show a certificate of it for its own address is not used.
    pub ca: String,
    /// The API servers, `192.0.2.11:6443`.
    pub backends: Vec<SocketAddr>,
}

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Task {
    /// Nothing for now, and why.
    Wait {
        /// Shown on the console.
        reason: String,
    },
    /// Write the disk, then restart.
    Install(InstallTask),
    /// Restart and boot from the network again.
    Reboot {
        /// Shown on the console.
        reason: String,
    },
    /// Make the node part of its cluster, or take it out.
    Kubeadm(KubeadmTask),
    /// Make the disk that this system runs from unbootable, tell it, and restart.
    Wipe {
        /// Generation of this system.
        generation: u32,
    },
    /// The node is as it should be.
    Run,
    /// Stop asking: the service refuses this node until an operator acts.
    Stop {
        /// Shown on the console.
        reason: String,
    },
}

/// An installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct InstallTask {
    /// Generation that this installation makes.
    pub generation: u32,
    /// Disk image over plain HTTP with Range; trusted only by its digest.
    pub image_url: String,
    /// Digest of the bytes at `image_url`.
    pub image_sha256: Sha256Digest,
    /// Their number.
    pub image_size: u64,
    /// Disk to write; none: the only one.
    pub disk: Option<String>,
    /// Installer program: `coreos-installer` or `nestos-installer`.
    pub installer: String,
    /// `--append-karg` values.
    pub append_kargs: Vec<String>,
    /// `--firstboot-args` value; empty: not given.
    pub firstboot_args: String,
}

/// One run of kubeadm. What it needs is fetched apart, because it holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KubeadmTask {
    /// Identity of this run: the same one is not run twice, another one is another try.
    pub operation: Uuid,
    /// What is done.
    pub action: KubeadmAction,
}

/// What kubeadm is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KubeadmAction {
    /// Make the first control plane.
    Init,
    /// Join as control plane or worker.
    Join,
    /// Leave, and remove everything that kubeadm made.
    Reset,
    /// Renew the certificates that kubeadm made on a control plane, and restart what uses them.
    Renew,
    /// Bring back an etcd that lost its majority to a member which was added and never started: the only other member goes
    /// on alone, with its data. An agent of before this action cannot read a task that has it, and asks again until it is
    /// upgraded: images of nodes are upgraded with the service.
    Recover,
    /// Take a snapshot of etcd on a control plane, prove it by a restore, and bring it to the service. Only ordered of an agent
    /// whose facts say that it can ([`crate::facts::Facts::can`]): one of before this action could not read its task.
    Snapshot,
}

/// Everything that a run of kubeadm needs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KubeadmOrder {
    /// Identity of this run.
    pub operation: Uuid,
    /// What is done.
    pub action: KubeadmAction,
    /// The service's clock when it gave this out: a node whose own clock is far from it makes certificates of no use.
    #[serde(with = "time::serde::rfc3339")]
    pub issued_at: OffsetDateTime,
    /// kubeadm's configuration, YAML; empty for `reset`.
    pub config: String,
    /// `--skip-phases`.
    pub skip_phases: Vec<String>,
    /// `--ignore-preflight-errors`.
    pub ignore_preflight_errors: Vec<String>,
    /// Files to write before: certificates and keys of a control plane, the runtime's configuration.
    pub files: Vec<NodeFile>,
    /// Units to enable and restart once the files are there, `containerd.service`.
    pub restart: Vec<String>,
    /// Scripts to run before, in this order.
    pub before: Vec<String>,
}

/// A file on a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// Absolute path.
    pub path: String,
    /// Permissions, `0o600`.
    pub mode: u32,
    /// Text.
    pub contents: String,
}

/// Where a release comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReleaseSource {
    /// Path of the ostree repository on this service, `/ostree/nestos`.
    pub repository: String,
    /// The OpenPGP key that its commits and its summary are signed with, armored.
    pub key: String,
    /// The ed25519 key that they are signed with too, in base64. None: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ed25519_key: Option<String>,
}

/// How a run of kubeadm goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum KubeadmState {
    /// It runs.
    Running {
        /// `files`, `hooks`, `reset`, or kubeadm's own phase: `preflight`, `certs`, `kubelet-start`, ...
        step: String,
    },
    /// It ended well.
    Done,
    /// It ended badly.
    Failed {
        /// The step.
        step: String,
        /// One sentence.
        reason: String,
        /// Last lines of its log, at most 4 KiB, no secrets.
        log_tail: String,
    },
}

/// A certificate on a node, without its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeCertificate {
    /// `apiserver`, `etcd/peer`, `admin.conf`, `kubelet`.
    pub name: String,
    /// `O=system:masters, CN=kubernetes-admin`.
    pub subject: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// When it was written to the node, or begins to hold, whichever is later.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// End of its life.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// What the agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Random identity of this report: the same report sent twice counts once.
    pub id: Uuid,
    /// Kernel boot id of the running system.
    pub boot_id: String,
    /// What happened.
    pub event: ReportEvent,
}

/// What happened on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ReportEvent {
    /// It lives; sent every 30 seconds or so.
    Heartbeat {
        /// Seconds since the kernel started.
        uptime: u64,
    },
    /// Its facts changed.
    Facts {
        /// All of them.
        facts: Box<Facts>,
    },
    /// An installation goes on.
    InstallProgress {
        /// Generation.
        generation: u32,
        /// `fetch`, `write`, `verify`, `finish`.
        step: String,
        /// 0 to 100.
        percent: u8,
    },
    /// The disk holds the image, the digest was right and the installer ended well. Sent before the restart.
    Installed {
        /// Generation.
        generation: u32,
    },
    /// The disk that the system runs from boots no more. Sent before the restart.
    Wiped {
        /// Generation.
        generation: u32,
    },
    /// A step ended badly.
    Failed {
        /// Generation.
        generation: u32,
        /// The step.
        step: String,
        /// One sentence.
        reason: String,
        /// Last lines of its log, at most 4 KiB, no secrets.
        log_tail: String,
    },
    /// A run of kubeadm goes on or has ended.
    Kubeadm {
        /// Which run.
        operation: Uuid,
        /// How it goes.
        progress: KubeadmState,
    },
    /// The certificates of Kubernetes on the node have changed.
    Certificates {
        /// All of them.
        certificates: Vec<NodeCertificate>,
        /// Those that are there and do not read, by their names.
        unreadable: Vec<String>,
    },
}

impl ReportEvent {
    /// The word for it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Heartbeat { .. } => "heartbeat",
            Self::Facts { .. } => "facts",
            Self::InstallProgress { .. } => "install-progress",
            Self::Installed { .. } => "installed",
            Self::Wiped { .. } => "wiped",
            Self::Failed { .. } => "failed",
            Self::Kubeadm { .. } => "kubeadm",
            Self::Certificates { .. } => "certificates",
        }
    }

    /// The generation that it is about, if it is about one.
    #[must_use]
    pub fn generation(&self) -> Option<u32> {
        match self {
            Self::Heartbeat { .. } | Self::Facts { .. } | Self::Kubeadm { .. } | Self::Certificates { .. } => None,
            Self::InstallProgress { generation, .. }
            | Self::Installed { generation }
            | Self::Wiped { generation }
            | Self::Failed { generation, .. } => Some(*generation),
        }
    }
}

/// Answer to a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReportAnswer {
    /// Revision of the task now.
    pub revision: String,
    /// The clock of the service.
    #[serde(with = "time::serde::rfc3339")]
    pub server_time: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_release_comes_from_reads_from_older_and_newer_services() {
        let text = |more: &str| format!(r#"{{"repository": "/ostree/lab", "key": "armored"{more}}}"#);
        let read = |more: &str| serde_json::from_str::<ReleaseSource>(&text(more)).unwrap();
        assert_eq!(read("").ed25519_key, None);
        assert_eq!(read(r#", "ed25519Key": "AAAA""#).ed25519_key.as_deref(), Some("AAAA"));
        assert_eq!(read(r#", "somethingLater": {}"#), read(""), "what an agent does not know is no error to it");
        let written = serde_json::to_value(read("")).unwrap();
        assert!(written.get("ed25519Key").is_none(), "{written}");
    }
}
