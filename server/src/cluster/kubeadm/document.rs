//! kubeadm's documents as types, for every version of its API: a field that a version does not know is none there.
//!
//! Field names by the reference of kubeadm.k8s.io/v1beta2, v1beta3 and v1beta4.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use crate::cluster::taints::Taint;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InitConfiguration<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) bootstrap_tokens: [BootstrapToken; 1],
    pub(super) node_registration: NodeRegistration<'a>,
    #[serde(rename = "localAPIEndpoint")]
    pub(super) local_api_endpoint: ApiEndpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeouts: Option<Timeouts>,
}

/// kubeadm always makes one, and prints it. Without a token of ours it is a random one; it ends at once, because each
/// node gets its own later.
#[derive(Serialize)]
pub(super) struct BootstrapToken {
    pub(super) description: &'static str,
    pub(super) ttl: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterConfiguration<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) cluster_name: &'a str,
    pub(super) kubernetes_version: &'a str,
    pub(super) control_plane_endpoint: String,
    pub(super) networking: Networking<'a>,
    pub(super) api_server: ApiServer,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) controller_manager: Option<ControlPlaneComponent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scheduler: Option<ControlPlaneComponent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) etcd: Option<Etcd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_repository: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Networking<'a> {
    pub(super) service_subnet: &'a str,
    pub(super) pod_subnet: &'a str,
    pub(super) dns_domain: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiServer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) extra_args: Option<Args>,
    #[serde(rename = "certSANs")]
    pub(super) cert_sans: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout_for_control_plane: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ControlPlaneComponent {
    pub(super) extra_args: Args,
}

#[derive(Serialize)]
pub(super) struct Etcd {
    pub(super) local: LocalEtcd,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LocalEtcd {
    pub(super) data_dir: &'static str,
    pub(super) extra_args: Args,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JoinConfiguration<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) node_registration: NodeRegistration<'a>,
    pub(super) discovery: Discovery<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) control_plane: Option<JoinControlPlane>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeouts: Option<Timeouts>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Discovery<'a> {
    pub(super) bootstrap_token: BootstrapTokenDiscovery<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BootstrapTokenDiscovery<'a> {
    pub(super) token: &'a str,
    pub(super) api_server_endpoint: String,
    pub(super) ca_cert_hashes: [&'a str; 1],
}

#[derive(Serialize)]
pub(super) struct JoinControlPlane {
    #[serde(rename = "localAPIEndpoint")]
    pub(super) local_api_endpoint: ApiEndpoint,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiEndpoint {
    pub(super) advertise_address: IpAddr,
    pub(super) bind_port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeRegistration<'a> {
    pub(super) name: &'a str,
    pub(super) cri_socket: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) taints: Option<Vec<Taint<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kubelet_extra_args: Option<Args>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Timeouts {
    pub(super) control_plane_component_health_check: &'static str,
    pub(super) discovery: &'static str,
    pub(super) tls_bootstrap: &'static str,
}

/// A map up to v1beta3, a list from v1beta4 on.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Args {
    Map(BTreeMap<String, String>),
    List(Vec<Arg>),
}

#[derive(Serialize)]
pub(super) struct Arg {
    pub(super) name: String,
    pub(super) value: String,
}
