//! Runs of kubeadm that failed: what is said of them, and a new beginning when an operator asks for one. Pure.

use nkd_api::cluster::MemberState;
use time::OffsetDateTime;

use super::plan::{self, TRIES};
use super::record::{MemberRecord, Record};

/// No such node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster `{cluster}` has no node `{node}`: `nkd cluster status {cluster}` shows all")]
pub struct NoSuchNode {
    /// Cluster.
    pub cluster: String,
    /// Host name.
    pub node: String,
}

/// What failed on this node, or on all of them, is tried again now, and as often as if it were the first time. Says what
/// will be tried; nothing when nothing has failed.
///
/// # Errors
/// When there is no node of that name.
pub fn retry(record: &mut Record, node: Option<&str>) -> Result<Vec<String>, NoSuchNode> {
    if let Some(node) = node
        && !record.members.iter().any(|m| m.hostname == node)
    {
        return Err(NoSuchNode { cluster: record.name().to_owned(), node: node.to_owned() });
    }
    let asked = |m: &&mut MemberRecord| node.is_none_or(|node| m.hostname == node) && m.state == MemberState::Failed;
    let again = |m: &mut MemberRecord| {
        m.failures = 0;
        format!("{}: to be tried again", m.hostname)
    };
    Ok(record.members.iter_mut().filter(asked).map(again).collect())
}

/// A member's detail, with what comes next when its run of kubeadm has failed.
#[must_use]
pub fn detail(cluster: &str, member: &MemberRecord) -> Option<String> {
    let detail = member.detail.as_deref().filter(|_| member.state == MemberState::Failed);
    let Some(detail) = detail else { return member.detail.clone() };
    let next = match (member.failures, member.run.and_then(|run| run.ended_at)) {
        (TRIES.., _) => format!(
            "tried {} times; put it right, then `nkd cluster retry {cluster} {}`",
            member.failures, member.hostname
        ),
        (1.., Some(ended)) => {
            let at = ended + plan::wait(member.failures);
            format!("try {} of {TRIES}, the next one at {}", member.failures, second(at))
        }
        _ => "tried again now".to_owned(),
    };
    Some(format!("{detail} ({next})"))
}

fn second(at: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[hour]:[minute]:[second] UTC");
    at.to_offset(time::UtcOffset::UTC).format(&format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use nkd_api::agent::KubeadmAction;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::super::file::{self, Paths};
    use super::super::record::Run;
    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 10:00 UTC);

    fn record(failures: [u32; 2]) -> Record {
        let document = serde_json::json!({
            "apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"},
            "spec": {"os": {"profile": "lab"}, "kubernetes": {"version": "v1.20.2"}, "pools": [
                {"name": "cp", "role": "control-plane", "machines": [
                    {"mac": "52:54:00:00:00:01", "hostname": "cp1", "ip": "192.0.2.11/24"}]},
                {"name": "w", "role": "worker", "machines": [
                    {"mac": "52:54:00:00:01:01", "hostname": "w1", "ip": "192.0.2.21/24"}]},
            ]},
        });
        let checked = file::check(document, Paths::Refused);
        let mut record = Record::new(Uuid::nil(), checked.cluster.expect("a good file"), NOW);
        for (member, failures) in record.members.iter_mut().zip(failures) {
            let run = Run { operation: Uuid::nil(), action: KubeadmAction::Join, ordered_at: NOW, ended_at: Some(NOW) };
            let state = if failures == 0 { MemberState::Joining } else { MemberState::Failed };
            (member.run, member.failures, member.state) = (Some(run), failures, state);
            member.detail = Some("preflight: no image".to_owned());
        }
        record
    }

    #[test]
    fn what_failed_is_tried_again_and_nothing_else() {
        let mut one = record([5, 2]);
        assert_eq!(retry(&mut one, Some("w1")), Ok(vec!["w1: to be tried again".to_owned()]));
        assert_eq!((one.members[0].failures, one.members[1].failures), (5, 0));
        let mut all = record([5, 2]);
        assert_eq!(retry(&mut all, None).unwrap().len(), 2);
        let mut none = record([0, 0]);
        assert_eq!(retry(&mut none, Some("w1")), Ok(Vec::new()));
        assert_eq!(none, record([0, 0]));
        let told = retry(&mut none, Some("w9")).unwrap_err().to_string();
        assert!(told.contains("`w9`") && told.contains("nkd cluster status rack7"), "{told}");
    }

    #[test]
    fn the_next_step_stands_beside_the_reason() {
        let told = |failures| detail("rack7", &record([0, failures]).members[1]).unwrap();
        assert_eq!(told(0), "preflight: no image");
        assert_eq!(told(2), "preflight: no image (try 2 of 5, the next one at 10:00:20 UTC)");
        assert!(told(5).ends_with("(tried 5 times; put it right, then `nkd cluster retry rack7 w1`)"), "{}", told(5));
    }
}
