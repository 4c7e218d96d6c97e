//! What the balancer on a node is told with an order of kubeadm. Pure.

use std::net::{IpAddr, SocketAddr};

use nkd_api::agent::{BALANCER_CONFIG_PATH, BalancerConfig, KubeadmAction, NodeFile};
use nkd_api::cluster::API_PORT;

use super::record::Record;

/// The file of a node's balancer; none where the cluster has an endpoint of its own. The first control plane has only
/// itself; whoever joins goes to those that are in.
pub(super) fn file(
    record: &Record,
    action: KubeadmAction,
    own: IpAddr,
    ca: &str,
) -> Result<Option<NodeFile>, serde_json::Error> {
    let backends = match action {
        _ if record.cluster.spec.endpoint.is_some() => return Ok(None),
        KubeadmAction::Reset | KubeadmAction::Renew | KubeadmAction::Recover | KubeadmAction::Snapshot => {
            return Ok(None);
        }
        KubeadmAction::Init => vec![SocketAddr::new(own, API_PORT)],
        KubeadmAction::Join => record.api_servers(),
    };
    let contents = serde_json::to_string_pretty(&BalancerConfig { ca: ca.to_owned(), backends })?;
    Ok(Some(NodeFile { path: BALANCER_CONFIG_PATH.into(), mode: 0o644, contents }))
}
