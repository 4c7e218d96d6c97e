//! What is wrong with a cluster, in sentences (pure).
//!
//! ```text
//! Unknown ──▶ Healthy ◀──▶ Degraded(why) ◀──▶ Unreachable(since)      by what was seen last
//!                 └────── events: what has held for a while ──────┘
//! ```
//! A sentence names the thing and, where there is one, the next step. It holds nothing that changes from look to look
//! (numbers of restarts, causes of refused connections), because the same reason has to stay the same sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nkd_api::cluster::{Health, Role};
use time::{Duration, OffsetDateTime};

use super::plan::NodeView;
use super::quorum::{self, MemberHealth};

/// How long something has to hold before it is an event.
pub const STABLE: Duration = Duration::seconds(15);
/// A certificate with less than this left is a reason.
pub const SOON: Duration = Duration::days(30);
/// What kubeadm runs on every control plane.
pub const STATIC_PODS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Conditions of a node that are bad when they are true.
pub const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// A node as its cluster's API server has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// Name.
    pub name: String,
    /// Its condition Ready is true.
    pub ready: bool,
    /// Why not, in the one word of the condition; empty when the node has no such condition yet.
    pub cause: String,
    /// Which of [`PRESSURES`] are true.
    pub pressures: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Keys of the labels that we gave it.
    pub managed: BTreeSet<String>,
    /// Its taints, as [`super::taints`] writes them.
    pub taints: BTreeSet<String>,
    /// Those of them that are ours; none: nothing is said about that.
    pub own_taints: Option<BTreeSet<String>>,
}

/// A kubelet that has renewed nothing for so long is silent; it does every ten seconds, and has forty for it.
const SILENT: Duration = Duration::seconds(60);

/// Static pods run before the API has them: the kubelet of a new control plane shows them, and that they are ready, when
/// it has registered its node and looked at them.
const SHOWN: Duration = Duration::minutes(3);

/// A static pod of a control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Name, `kube-scheduler-cp1`.
    pub name: String,
    /// Its condition Ready is true.
    pub ready: bool,
    /// What its container waits for or ended with, `CrashLoopBackOff`.
    pub cause: Option<String>,
}

/// The deployment of the operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperatorSeen {
    /// Enough of its pods run.
    pub available: bool,
    /// Since when that is so.
    pub since: Option<OffsetDateTime>,
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSeen {
    /// Identity, name, health, vote.
    pub member: MemberHealth,
    /// Why it is not healthy.
    pub cause: Option<String>,
}

/// A certificate that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSeen {
    /// `apiserver`, `etcd/ca`.
    pub name: String,
    /// Node that it is on; none: the service holds it.
    pub node: Option<String>,
    /// When it was made, or begins to hold, whichever is later.
    pub since: OffsetDateTime,
    /// End of its life.
    pub not_after: OffsetDateTime,
}

/// A member that kubeadm has made part of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Node name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Address.
    pub address: Option<IpAddr>,
    /// When kubeadm was done with it.
    pub since: Option<OffsetDateTime>,
}

/// Everything that was seen in one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The cluster's name, for the next steps.
    pub cluster: String,
    /// Its nodes. Not: why the API did not answer.
    pub nodes: Result<Vec<NodeSeen>, String>,
    /// Why the API does not answer, where that is known, and what is done about it.
    pub known_cause: Option<String>,
    /// Who should be there.
    pub expected: Vec<Expected>,
    /// Names of all members, those on their way in or out as well.
    pub known: Vec<String>,
    /// Static pods of the control planes. None: they could not be listed.
    pub pods: Option<Vec<PodSeen>>,
    /// Members of etcd. None: nobody could list them.
    pub etcd: Option<Vec<EtcdSeen>>,
    /// Control planes whose own API server does not say that it is ready.
    pub not_ready: Vec<String>,
    /// Nodes whose kubelets are silent, see [`Pulses`].
    pub silent: BTreeSet<String>,
    /// Certificates.
    pub certificates: Vec<CertificateSeen>,
    /// The operator. None: the cluster has none, or nobody could look.
    pub operator: Option<OperatorSeen>,
    /// What else is wrong, said elsewhere: a renewal that failed.
    pub more: Vec<String>,
}

/// When a certificate is to be replaced: 30 days before its end, or a third of its life for short ones.
#[must_use]
pub fn due(since: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    not_after - SOON.min((not_after - since).max(Duration::ZERO) / 3)
}

/// How the cluster is, by what was seen now.
#[must_use]
pub fn judge(observed: &Observed, before: &Health, now: OffsetDateTime) -> Health {
    let nodes = match (&observed.nodes, before) {
        (Ok(nodes), _) => nodes,
        (Err(reason), before) => {
            let (since, last) = match before {
                Health::Unreachable { since, reason } => (*since, reason),
                _ => (now, reason),
            };
            let reason = observed.known_cause.as_ref().unwrap_or(last).clone();
            return Health::Unreachable { since, reason };
        }
    };
    let mut reasons = Vec::new();
    let mut away = BTreeSet::new();
    for node in nodes.iter().filter(|node| !node.ready) {
        away.insert(node.name.as_str());
        reasons.push(not_ready(node));
    }
    // With a dead controller manager nobody marks a node whose kubelet is dead, and its pods stay as they were.
    for node in nodes.iter().filter(|node| node.ready && observed.silent.contains(&node.name)) {
        away.insert(node.name.as_str());
        let name = &node.name;
        reasons.push(format!(
            "the kubelet of {name} is silent, and nobody has marked the node: is the machine up? `systemctl status kubelet` there says more"
        ));
    }
    for node in nodes {
        let pressure =
            |p: &String| format!("the node {} has {p}: free some, or move pods away (`kubectl drain`)", node.name);
        reasons.extend(node.pressures.iter().map(pressure));
    }
    for expected in observed.expected.iter().filter(|e| !nodes.iter().any(|node| node.name == e.name)) {
        away.insert(&expected.name);
        reasons.push(format!(
            "the node {} is not in the cluster, and it has joined before: `systemctl restart kubelet` there registers it again, and `journalctl -u kubelet` says why if it does not",
            expected.name
        ));
    }
    let up = || observed.expected.iter().filter(|e| e.role == Role::ControlPlane && !away.contains(e.name.as_str()));
    match &observed.pods {
        Some(pods) => reasons.extend(up().flat_map(|node| static_pods(node, pods, now))),
        None => reasons.push("the pods of the control planes cannot be listed".into()),
    }
    for node in up().filter(|node| observed.not_ready.contains(&node.name)) {
        reasons.push(format!(
            "the API server of {} is not ready: `kubectl get --raw /readyz?verbose` towards it says what fails",
            node.name
        ));
    }
    reasons.extend(etcd(observed));
    reasons.extend(observed.certificates.iter().filter_map(|c| certificate(c, &observed.cluster, now)));
    reasons.extend(observed.operator.and_then(|seen| operator(seen, now)));
    reasons.extend(observed.more.iter().cloned());
    if reasons.is_empty() { Health::Healthy } else { Health::Degraded { reasons } }
}

/// What the plan needs of the nodes.
#[must_use]
pub fn views(nodes: &[NodeSeen]) -> Vec<NodeView> {
    let view = |node: &NodeSeen| NodeView {
        name: node.name.clone(),
        ready: node.ready,
        labels: node.labels.clone(),
        managed: node.managed.clone(),
        taints: node.taints.clone(),
        own_taints: node.own_taints.clone(),
    };
    nodes.iter().map(view).collect()
}

fn not_ready(node: &NodeSeen) -> String {
    let name = &node.name;
    match node.cause.as_str() {
        "NodeStatusUnknown" => format!(
            "the node {name} is not Ready, its kubelet has gone silent: is the machine up? `systemctl status kubelet` there says more"
        ),
        "" => format!("the node {name} is not Ready"),
        cause => format!("the node {name} is not Ready ({cause}): `kubectl describe node {name}` says more"),
    }
}

fn static_pods<'a>(node: &'a Expected, pods: &'a [PodSeen], now: OffsetDateTime) -> impl Iterator<Item = String> + 'a {
    let is_new = node.since.is_some_and(|since| since <= now && now - since < SHOWN);
    let node = &node.name;
    STATIC_PODS.into_iter().filter_map(move |component| {
        let name = format!("{component}-{node}");
        let hint = format!("`journalctl -u kubelet` and /var/log/pods on {node} say more");
        match pods.iter().find(|pod| pod.name == name) {
            Some(pod) if pod.ready => None,
            Some(PodSeen { cause: Some(cause), .. }) => Some(format!("the pod {name} is not Ready ({cause}): {hint}")),
            _ if is_new => None,
            Some(_) => Some(format!("the pod {name} is not Ready: {hint}")),
            None => {
                Some(format!("the pod {name} is missing: is /etc/kubernetes/manifests/{component}.yaml on {node}?"))
            }
        }
    })
}

/// Why nothing is upgraded, once its operator has not run for a while.
pub(super) fn operator(seen: OperatorSeen, now: OffsetDateTime) -> Option<String> {
    // Its image is fetched, a node restarts: it has as long as a static pod.
    let is_new = seen.since.is_none_or(|since| since <= now && now - since < SHOWN);
    (!seen.available && !is_new).then(|| {
        "the housekeeper does not run, and nothing is upgraded: `kubectl -n nkd-system describe pods` says why"
            .to_owned()
    })
}

fn etcd(observed: &Observed) -> Vec<String> {
    let Some(members) = &observed.etcd else {
        return vec!["the members of etcd cannot be listed from any control plane".into()];
    };
    let mut reasons = Vec::new();
    for EtcdSeen { member, cause } in members.iter().filter(|seen| !seen.member.healthy) {
        let cause = cause.as_deref().unwrap_or("it is not healthy");
        reasons.push(format!("etcd of {}: {cause}", named(member)));
    }
    for expected in observed.expected.iter().filter(|e| e.role == Role::ControlPlane) {
        if !members.iter().any(|seen| seen.member.name == expected.name) {
            reasons.push(format!("etcd has no member {}, which is a control plane", expected.name));
        }
    }
    for EtcdSeen { member, .. } in members {
        if !member.name.is_empty() && !observed.known.contains(&member.name) {
            reasons.push(format!("etcd has a member {} that is no node of this cluster", member.name));
        }
    }
    let all: Vec<MemberHealth> = members.iter().map(|seen| seen.member.clone()).collect();
    if all.iter().any(|member| !member.healthy) {
        match quorum::spare(&all) {
            None => reasons.push("etcd has lost its majority: nothing can be changed until members are back".into()),
            Some(0) => reasons.push("etcd can lose no further member: bring those back that are down".into()),
            Some(_) => {}
        }
    }
    reasons
}

fn named(member: &MemberHealth) -> String {
    if member.name.is_empty() { format!("member {:x}", member.id) } else { member.name.clone() }
}

fn certificate(seen: &CertificateSeen, cluster: &str, now: OffsetDateTime) -> Option<String> {
    if now < due(seen.since, seen.not_after) {
        return None;
    }
    let CertificateSeen { name, node, not_after, .. } = seen;
    let verb = if now >= *not_after { "ended" } else { "ends" };
    let date = not_after.date();
    Some(match node {
        None => format!(
            "the certificate authority {name} {verb} on {date}: everything that it signed ends with it; plan a new cluster"
        ),
        Some(node) if name == super::renewal::KUBELET => format!(
            "the kubelet's certificate of {node} {verb} on {date}: it renews it by itself; `journalctl -u kubelet` there says why not"
        ),
        Some(node) => format!(
            "the certificate {name} of {node} {verb} on {date}: `nkd cluster certs renew {cluster} --node {node}` renews it"
        ),
    })
}

/// When the kubelets of a cluster were heard, by the clock of who listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulses(BTreeMap<String, (String, OffsetDateTime)>);

impl Pulses {
    /// Hears the beat of every node, whatever its clock says; those whose beat has not changed for [`SILENT`].
    pub fn hear(&mut self, beats: &BTreeMap<String, String>, now: OffsetDateTime) -> BTreeSet<String> {
        self.0.retain(|name, _| beats.contains_key(name));
        for (name, beat) in beats {
            match self.0.get_mut(name) {
                Some((last, _)) if last == beat => {}
                _ => drop(self.0.insert(name.clone(), (beat.clone(), now))),
            }
        }
        let silent = self.0.iter().filter(|(_, (_, since))| now - *since >= SILENT);
        silent.map(|(name, _)| name.clone()).collect()
    }
}

/// What was said of a cluster's health as events, and what may be said next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Something was said at all.
    begun: bool,
    unreachable: bool,
    reasons: BTreeSet<String>,
    /// What differs from what was said, and since when. None: whether it answers.
    changing: BTreeMap<Option<String>, OffsetDateTime>,
}

impl Told {
    /// As after a restart of the service: what is known was told.
    #[must_use]
    pub fn of(health: &Health) -> Self {
        let reasons = match health {
            Health::Degraded { reasons } => reasons.iter().cloned().collect(),
            _ => BTreeSet::new(),
        };
        let unreachable = matches!(health, Health::Unreachable { .. });
        Self { begun: *health != Health::Unknown, unreachable, reasons, changing: BTreeMap::new() }
    }

    /// Hears how it is now; an event when something else has held for [`STABLE`].
    pub fn hear(&mut self, health: &Health, now: OffsetDateTime) -> Option<String> {
        let mut differs: BTreeSet<Option<String>> = BTreeSet::new();
        match health {
            Health::Unknown => return None,
            // What is wrong behind it cannot be seen, and is as it was.
            Health::Unreachable { .. } => differs.extend((!self.unreachable).then_some(None)),
            Health::Healthy | Health::Degraded { .. } => {
                let seen = match health {
                    Health::Degraded { reasons } => reasons.iter().cloned().collect(),
                    _ => BTreeSet::new(),
                };
                differs.extend(seen.symmetric_difference(&self.reasons).cloned().map(Some));
                differs.extend((self.unreachable || !self.begun).then_some(None));
            }
        }
        self.changing.retain(|what, _| differs.contains(what));
        for what in differs {
            self.changing.entry(what).or_insert(now);
        }
        let old: Vec<_> =
            self.changing.iter().filter(|(_, since)| now >= **since + STABLE).map(|(w, _)| w.clone()).collect();
        if old.is_empty() {
            return None;
        }
        for what in old {
            self.changing.remove(&what);
            match what {
                None => self.unreachable = matches!(health, Health::Unreachable { .. }),
                Some(reason) if !self.reasons.remove(&reason) => drop(self.reasons.insert(reason)),
                Some(_) => {}
            }
        }
        self.begun = true;
        Some(match health {
            Health::Unreachable { reason, .. } => format!("unreachable: {reason}"),
            _ if self.reasons.is_empty() => "healthy".to_owned(),
            _ => format!("degraded: {}", self.reasons.iter().cloned().collect::<Vec<_>>().join("; ")),
        })
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
