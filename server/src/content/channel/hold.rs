//! Who needs a whole channel (pure).
//!
//! What always holds: a channel stays as long as the file of a cluster names it, an upgrade that has not ended goes to one
//! of its releases, or it follows an upstream.

use nkd_api::upgrade::{Upgrade, UpgradeState};

use super::mirror;
use crate::cluster::record::Record;

/// Why a channel stays, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    /// The file of a cluster names it.
    #[error("the file of {0} names it (spec.os.channel): apply one that names another channel, or none")]
    Cluster(String),
    /// An upgrade goes to one of its releases.
    #[error(
        "upgrade {number} of {cluster} goes to a release of it and is {}: wait for its end, or `nkd upgrade abort {cluster}`",
        state.as_str()
    )]
    Upgrade {
        /// The cluster.
        cluster: String,
        /// Its number there.
        number: u32,
        /// How far it is.
        state: UpgradeState,
    },
    /// It follows an upstream, whose next commit would make it anew.
    #[error("it follows {from}: `nkd channel mirror {channel} --off` ends that")]
    Mirror {
        /// The channel.
        channel: String,
        /// Address of the upstream's repository.
        from: String,
    },
}

/// Everything that holds a channel.
#[must_use]
pub fn holds<'a>(
    channel: &str,
    clusters: impl IntoIterator<Item = &'a Record>,
    upgrades: &[Upgrade],
    mirror: Option<&mirror::Record>,
) -> Vec<Hold> {
    let names = clusters.into_iter().filter(|record| record.cluster.spec.os.channel.as_deref() == Some(channel));
    let named = names.map(|record| Hold::Cluster(record.name().to_owned()));
    let goes = |upgrade: &&Upgrade| !upgrade.state.is_end() && upgrade.order.channel.as_deref() == Some(channel);
    let upgraded = upgrades.iter().filter(goes).map(|upgrade| {
        let Upgrade { cluster, number, state, .. } = upgrade.clone();
        Hold::Upgrade { cluster, number, state }
    });
    let follows = mirror.map(|record| Hold::Mirror { channel: channel.to_owned(), from: record.mirror.from.clone() });
    named.chain(upgraded).chain(follows).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn who_needs_a_channel_is_named_with_what_to_do() {
        let cluster = |name: &str, channel: Option<&str>| {
            let document = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name},
                "spec": {"os": {"channel": channel}, "kubernetes": {"version": "v1.20.2"}, "pools": []}});
            Record::new(Uuid::nil(), serde_json::from_value(document).unwrap(), OffsetDateTime::UNIX_EPOCH)
        };
        let upgrade = |cluster: &str, channel: &str, state: &str| -> Upgrade {
            let document = json!({"cluster": cluster, "number": 3, "order": {"channel": channel}, "version": "1",
                "fromKubernetes": "v1.20.2", "state": state, "paused": false, "aborted": false, "retry": 0, "by": "ada",
                "startedAt": "2026-01-01T00:00:00Z", "nodes": []});
            serde_json::from_value(document).unwrap()
        };
        let mirror = json!({"mirror": {"channel": "stable", "profile": "lab", "architecture": "x86_64",
            "from": "https://up.example/repo", "reference": "lab", "everyMinutes": 1, "nextLookAt": "2026-01-01T00:00:00Z"}});
        let mirror: mirror::Record = serde_json::from_value(mirror).unwrap();

        let clusters = [cluster("a", None), cluster("b", Some("edge")), cluster("c", Some("stable"))];
        let states = ["preparing", "running", "paused", "halted", "aborting", "aborted", "complete"];
        let mut upgrades: Vec<Upgrade> = states.iter().map(|state| upgrade(state, "stable", state)).collect();
        upgrades.push(upgrade("d", "edge", "running"));
        let found = holds("stable", &clusters, &upgrades, Some(&mirror));
        let goes = |state: &str| {
            let goes = format!("upgrade 3 of {state} goes to a release of it and is {state}");
            format!("{goes}: wait for its end, or `nkd upgrade abort {state}`")
        };
        let mut expected =
            vec!["the file of c names it (spec.os.channel): apply one that names another channel, or none".to_owned()];
        expected.extend(states[..5].iter().map(|state| goes(state)));
        expected.push("it follows https://up.example/repo: `nkd channel mirror stable --off` ends that".to_owned());
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        assert_eq!(holds("other", &clusters, &upgrades, None), []);
    }
}
