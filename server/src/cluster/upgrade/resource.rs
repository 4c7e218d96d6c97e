//! The Update resource in the cluster: what it is to say (pure), and how it is written and read.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use nkd_api::update::{
    self, Drain, DrainPolicy, MaxUnavailable, NodeStatus, OsRelease, Phase, Release, Strategy, UpdateSpec, UpdateStatus,
};
use nkd_api::upgrade::{Upgrade, UpgradeState};
use serde_json::{Value, json};

use super::budgets::{self, Budget, Stuck};
use crate::cluster::kubernetes::{Cluster, KubeError, request};

/// Who owns the fields that we write.
const MANAGER: &str = "nkd";

/// Its name in the cluster.
#[must_use]
pub fn name(upgrade: &Upgrade) -> String {
    format!("nkd-{}", upgrade.number)
}

/// What it says.
#[must_use]
pub fn spec(upgrade: &Upgrade) -> UpdateSpec {
    let order = &upgrade.order;
    let commit = upgrade.commit.clone();
    let os =
        commit.map(|commit| OsRelease { commit: Some(commit), image: None, version: Some(upgrade.version.clone()) });
    let policy = if order.force_drain { DrainPolicy::Force } else { DrainPolicy::Evict };
    let usual = Strategy::default();
    let number = order.release.map_or_else(String::new, |number| format!("{number} ({})", upgrade.version));
    UpdateSpec {
        channel: order.channel.clone(),
        release: Release { name: number, os, kubernetes: upgrade.kubernetes.clone() },
        max_unavailable: order.max_unavailable.unwrap_or(MaxUnavailable::Count(1)),
        window: order.window.clone(),
        strategy: Strategy {
            drain: Drain { timeout_seconds: order.drain_seconds.unwrap_or(600), policy },
            soak_seconds: order.soak_seconds,
            ignore_preflight_errors: order.ignore_preflight_errors.clone(),
            halt_after_failures: order.halt_after.unwrap_or(usual.halt_after_failures),
            halt_after_rollbacks: order.halt_after.unwrap_or(usual.halt_after_rollbacks),
            ..usual
        },
        paused: upgrade.paused,
        abort: upgrade.aborted,
        retry: upgrade.retry,
        ..UpdateSpec::default()
    }
}

/// The upgrade as the operator in the cluster says that it is.
#[must_use]
pub fn followed(upgrade: &Upgrade, status: &UpdateStatus) -> Upgrade {
    let state = match status.phase {
        // It is called off, and the operator has not looked yet.
        Phase::Pending | Phase::Progressing if upgrade.aborted => UpgradeState::Aborting,
        // It was over, and a retry has been asked for: the operator has not looked yet.
        Phase::Pending | Phase::Progressing => UpgradeState::Running,
        Phase::Paused => UpgradeState::Paused,
        Phase::Halted | Phase::Invalid => UpgradeState::Halted,
        Phase::Aborting => UpgradeState::Aborting,
        Phase::Aborted => UpgradeState::Aborted,
        Phase::Complete => UpgradeState::Complete,
    };
    let of = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind);
    let degraded = of("Degraded").filter(|condition| condition.status == "True");
    let detail = degraded.or_else(|| of("Progressing")).map(|condition| in_our_words(upgrade, &condition.message));
    let node = |node: &NodeStatus| NodeStatus { reason: in_our_words(upgrade, &node.reason), ..node.clone() };
    let nodes = status.nodes.iter().map(node).collect();
    Upgrade { state, detail: detail.unwrap_or_default(), nodes, ..upgrade.clone() }
}

/// What the operator says of an earlier wish is not said of this one: how far the nodes are is all that is left of it.
fn of_this(status: UpdateStatus, generation: Option<i64>) -> UpdateStatus {
    if generation == Some(status.observed_generation) {
        return status;
    }
    UpdateStatus { phase: Phase::Pending, conditions: Vec::new(), ..status }
}

/// An Update as the cluster has it.
pub struct Found {
    object: DynamicObject,
    /// What it says; else why it does not read.
    pub spec: Result<UpdateSpec, String>,
}

impl Found {
    fn new(object: DynamicObject) -> Self {
        let spec = serde_json::from_value(object.data["spec"].clone()).map_err(|error| error.to_string());
        Self { object, spec }
    }

    /// What the operator says of it.
    pub fn status(&self) -> Result<UpdateStatus, KubeError> {
        let status = match &self.object.data["status"] {
            Value::Null => UpdateStatus::default(),
            status => serde_json::from_value(status.clone()).map_err(|source| KubeError::Unreadable {
                what: format!("the status of the update {}", self.object.metadata.name.as_deref().unwrap_or_default()),
                source,
            })?,
        };
        Ok(of_this(status, self.object.metadata.generation))
    }
}

/// In what an Update is not as it is to be; none: it is.
#[must_use]
pub fn unlike(found: Option<&Found>, wanted: &UpdateSpec) -> Option<String> {
    let spec = match found.map(|found| &found.spec) {
        None => return Some("it is gone".to_owned()),
        Some(Err(why)) => return Some(format!("it does not read: {why}")),
        Some(Ok(spec)) if spec == wanted => return None,
        Some(Ok(spec)) => spec,
    };
    let fields = |spec: &UpdateSpec| serde_json::to_value(spec).unwrap_or_default();
    let (is, to_be) = (fields(spec), fields(wanted));
    let names: BTreeSet<&String> =
        [&is, &to_be].into_iter().filter_map(Value::as_object).flat_map(|m| m.keys()).collect();
    let other: Vec<String> =
        names.into_iter().filter(|name| is.get(name) != to_be.get(name)).map(|name| format!("spec.{name}")).collect();
    Some(format!("other than asked for: {}", other.join(", ")))
}

/// It was written for this very upgrade, whatever was asked of that since.
#[must_use]
pub fn is_of_this(found: &Found, wanted: &UpdateSpec) -> bool {
    let UpdateSpec { paused, abort, retry, .. } = *wanted;
    found.spec.as_ref().is_ok_and(|spec| UpdateSpec { paused, abort, retry, ..spec.clone() } == *wanted)
}

/// The operator tells its reader to edit the resource. Here that is undone: what the service wrote is written again. So who
/// reads it through the service reads the command that does the same.
fn in_our_words(upgrade: &Upgrade, said: &str) -> String {
    let cluster = &upgrade.cluster;
    said.replace(update::RAISE_RETRY, &format!("run `nkd upgrade retry {cluster}`"))
        .replace(update::IS_PAUSED, &format!("it is paused until `nkd upgrade resume {cluster}`"))
        .replace(update::IS_CALLED_OFF, "it was called off")
}

impl Cluster {
    fn updates(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(update::GROUP, update::VERSION, update::KIND);
        Api::all_with(self.client(), &ApiResource::from_gvk_with_plural(&kind, update::PLURAL))
    }

    /// Makes the resource, or replaces its spec as a whole: an apply would leave what somebody else has added. False: it
    /// was written in this very moment, or is gone.
    pub async fn write_update(&self, name: &str, found: Option<Found>, spec: &UpdateSpec) -> Result<bool, KubeError> {
        let Some(Found { mut object, .. }) = found else {
            let object = json!({
                "apiVersion": format!("{}/{}", update::GROUP, update::VERSION), "kind": update::KIND,
                "metadata": {"name": name}, "spec": spec,
            });
            let apply = PatchParams::apply(MANAGER).force();
            let done = self.updates().patch(name, &apply, &Patch::Apply(&object)).await;
            return done.map(|_| true).map_err(request(format!("apply the update {name}")));
        };
        object.data["spec"] = json!(spec);
        object.metadata.managed_fields = None;
        // With the version that was read: a write in between is looked at first.
        let manager = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match self.updates().replace(name, &manager, &object).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            done => done.map(|_| true).map_err(request(format!("replace the update {name}"))),
        }
    }

    /// The resource. None: it is not there.
    pub async fn update(&self, name: &str) -> Result<Option<Found>, KubeError> {
        let found = self.updates().get_opt(name).await;
        Ok(found.map_err(request(format!("look at the update {name}")))?.map(Found::new))
    }

    /// The pods of the cluster that no drain could ever move.
    pub async fn stuck_pods(&self) -> Result<Vec<Stuck>, KubeError> {
        let pods: Api<Pod> = Api::all(self.client());
        let pods = pods.list(&ListParams::default()).await.map_err(request("list pods"))?;
        let mut budgets = Vec::new();
        // The older one is all that Kubernetes before 1.21 has.
        for (version, v1) in [("v1", true), ("v1beta1", false)] {
            let kind = GroupVersionKind::gvk("policy", version, "PodDisruptionBudget");
            let api: Api<DynamicObject> = Api::all_with(self.client(), &ApiResource::from_gvk(&kind));
            match api.list(&ListParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                list => {
                    let list = list.map_err(request("list disruption budgets"))?;
                    let objects = list.items.iter().filter_map(|object| serde_json::to_value(object).ok());
                    budgets = objects.filter_map(|object| Budget::read(&object, v1)).collect();
                    break;
                }
            }
        }
        Ok(budgets::stuck(&pods.items, &budgets))
    }

    /// The API server's metrics, in the text format of Prometheus.
    pub async fn metrics(&self) -> Result<String, KubeError> {
        let question = http::Request::get("/metrics").body(Vec::new()).map_err(|e| KubeError::Config(e.into()))?;
        self.client().request_text(question).await.map_err(request("read its metrics"))
    }
}

#[cfg(test)]
mod tests {
    use nkd_api::update::{Condition, NodeState};
    use nkd_api::upgrade::UpgradeOrder;
    use time::OffsetDateTime;

    use super::*;

    fn upgrade() -> Upgrade {
        Upgrade {
            cluster: "rack7".into(),
            number: 3,
            order: UpgradeOrder {
                channel: Some("stable".into()),
                release: Some(2),
                max_unavailable: Some(MaxUnavailable::Percent(10)),
                force_drain: true,
                soak_seconds: 30,
                halt_after: Some(3),
                ignore_preflight_errors: vec!["ImagePull".into()],
                ..UpgradeOrder::default()
            },
            version: "2.0".into(),
            commit: Some("c".into()),
            kubernetes: None,
            from_kubernetes: "v1.20.2".into(),
            state: UpgradeState::Preparing,
            detail: String::new(),
            paused: true,
            aborted: false,
            retry: 1,
            snapshot: None,
            by: "a".into(),
            started_at: OffsetDateTime::UNIX_EPOCH,
            ended_at: None,
            nodes: Vec::new(),
            restored: false,
        }
    }

    fn found(data: Value) -> Found {
        let object =
            json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": "nkd-3", "generation": 4}});
        let mut object: DynamicObject = serde_json::from_value(object).unwrap();
        object.data = data;
        Found::new(object)
    }

    #[test]
    fn what_somebody_else_has_written_is_told_from_what_was_asked_for() {
        let wanted = spec(&upgrade());
        let other = |change: &dyn Fn(&mut Value)| {
            let mut spec = json!(wanted);
            change(&mut spec);
            found(json!({"spec": spec}))
        };
        let why = |found: &Found| unlike(Some(found), &wanted);
        assert_eq!(why(&other(&|_| {})), None);
        // What is left out says the same as what stands there.
        assert_eq!(why(&other(&|spec| spec["window"] = Value::Null)), None);
        let added = other(&|spec| {
            spec["nodeSelector"] = json!({"a": "b"});
            spec["release"]["kubernetes"] = "v1.21.0".into();
        });
        assert_eq!(why(&added).unwrap(), "other than asked for: spec.nodeSelector, spec.release");
        assert!(!is_of_this(&added, &wanted));
        let paused = other(&|spec| spec["paused"] = false.into());
        assert_eq!(why(&paused).unwrap(), "other than asked for: spec.paused");
        assert!(is_of_this(&paused, &wanted));
        let broken = other(&|spec| spec["maxUnavailable"] = "lots".into());
        assert!(why(&broken).unwrap().starts_with("it does not read: "));
        assert!(!is_of_this(&broken, &wanted));
        assert_eq!(unlike(None, &wanted).unwrap(), "it is gone");
    }

    #[test]
    fn a_status_that_does_not_read_is_told_as_that() {
        assert_eq!(found(json!({})).status().unwrap().phase, Phase::Pending);
        let error = found(json!({"status": {"phase": "Dancing"}})).status().unwrap_err();
        assert!(!error.is_silence());
        let told = crate::http::chain(&error);
        assert!(told.contains("the status of the update nkd-3") && told.contains("Dancing"), "{told}");
    }

    #[test]
    fn the_resource_says_what_was_asked_for() {
        let spec = spec(&upgrade());
        assert_eq!(spec.release.os.unwrap().commit.as_deref(), Some("c"));
        assert_eq!((spec.release.kubernetes, spec.paused, spec.retry), (None, true, 1));
        assert_eq!((spec.strategy.halt_after_failures, spec.strategy.halt_after_rollbacks), (3, 3));
        assert_eq!((spec.strategy.soak_seconds, spec.strategy.drain.policy), (30, DrainPolicy::Force));
        assert_eq!(spec.strategy.ignore_preflight_errors, ["ImagePull"]);
        assert_eq!(name(&upgrade()), "nkd-3");
    }

    #[test]
    fn what_the_operator_says_is_told() {
        let condition = |kind: &str, status: &str, message: &str| Condition {
            kind: kind.into(),
            status: status.into(),
            reason: "X".into(),
            message: message.into(),
            observed_generation: 1,
            last_transition_time: OffsetDateTime::UNIX_EPOCH,
        };
        let node = |name: &str, state: NodeState, reason: String| {
            let (name, since) = (name.to_owned(), OffsetDateTime::UNIX_EPOCH);
            NodeStatus { name, state, since, reason, attempt: 1 }
        };
        // As its plan says it: an edit of the resource would be undone here.
        let waits = format!("the control plane cp1 has failed: put it right, then {}", update::RAISE_RETRY);
        let mut status = UpdateStatus {
            phase: Phase::Halted,
            conditions: vec![condition("Progressing", "False", "halted"), condition("Degraded", "True", "cp1 failed")],
            nodes: vec![node("cp1", NodeState::Failed, "rolled back: x".into()), node("w1", NodeState::Staged, waits)],
            ..UpdateStatus::default()
        };
        let told = followed(&upgrade(), &status);
        assert_eq!((told.state, told.detail.as_str()), (UpgradeState::Halted, "cp1 failed"));
        assert_eq!(told.nodes[0].reason, "rolled back: x");
        let waits = "the control plane cp1 has failed: put it right, then run `nkd upgrade retry rack7`";
        assert_eq!(told.nodes[1].reason, waits);
        assert!(!told.state.is_end());
        // Somebody has asked for another attempt since, or has called it off.
        let old = UpdateStatus { observed_generation: 4, ..status.clone() };
        assert_eq!(followed(&upgrade(), &of_this(old.clone(), Some(4))).state, UpgradeState::Halted);
        let again = followed(&upgrade(), &of_this(old.clone(), Some(5)));
        assert_eq!((again.state, again.detail.as_str(), again.nodes.len()), (UpgradeState::Running, "", 2));
        let called_off = Upgrade { aborted: true, ..upgrade() };
        assert_eq!(followed(&called_off, &of_this(old, Some(5))).state, UpgradeState::Aborting);
        for (words, ours) in [(update::IS_PAUSED, "`nkd upgrade resume rack7`"), (update::IS_CALLED_OFF, "called off")]
        {
            let progressing = condition("Progressing", "False", &format!("0 of 2 nodes are done; {words}"));
            status.conditions = vec![progressing];
            let detail = followed(&upgrade(), &status).detail;
            assert!(detail.contains(ours) && !detail.contains("spec."), "{detail}");
        }
    }
}
