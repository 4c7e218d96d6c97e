//! Every reason, and that a cluster which flaps makes no storm.

use proptest::prelude::*;
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

fn node(name: &str) -> NodeSeen {
    NodeSeen { name: name.into(), ready: true, ..NodeSeen::default() }
}

fn member(id: u64, name: &str) -> EtcdSeen {
    EtcdSeen { member: MemberHealth { id, name: name.into(), healthy: true, learner: false }, cause: None }
}

/// Three control planes and a worker, and nothing wrong.
fn fine() -> Observed {
    let names = ["cp1", "cp2", "cp3", "w1"];
    let expected = |name: &&str| Expected {
        name: (*name).into(),
        role: if name.starts_with('c') { Role::ControlPlane } else { Role::Worker },
        address: None,
        since: None,
    };
    let pods = names[..3].iter().flat_map(|name| STATIC_PODS.map(|pod| format!("{pod}-{name}")));
    Observed {
        cluster: "rack7".into(),
        nodes: Ok(names.map(node).into()),
        known_cause: None,
        expected: names.iter().map(expected).collect(),
        known: names.map(str::to_owned).into(),
        pods: Some(pods.map(|name| PodSeen { name, ready: true, cause: None }).collect()),
        etcd: Some(vec![member(1, "cp1"), member(2, "cp2"), member(3, "cp3")]),
        not_ready: Vec::new(),
        silent: BTreeSet::new(),
        certificates: Vec::new(),
        operator: None,
        more: Vec::new(),
    }
}

fn reasons(observed: &Observed) -> Vec<String> {
    match judge(observed, &Health::Unknown, NOW) {
        Health::Healthy => Vec::new(),
        Health::Degraded { reasons } => reasons,
        other => panic!("{other:?}"),
    }
}

/// The reasons hold these words, one by one, and there are no others.
#[track_caller]
fn says(change: impl FnOnce(&mut Observed), words: &[&str]) {
    let mut observed = fine();
    change(&mut observed);
    let reasons = reasons(&observed);
    assert_eq!(reasons.len(), words.len(), "{reasons:#?}");
    for (reason, words) in reasons.iter().zip(words) {
        assert!(reason.contains(words), "{words}: {reasons:#?}");
    }
}

#[test]
fn a_cluster_without_a_flaw_is_healthy() {
    assert_eq!(judge(&fine(), &Health::Unknown, NOW), Health::Healthy);
}

#[test]
fn nodes_are_named() {
    let nodes = |o: &mut Observed| o.nodes.clone().unwrap();
    says(
        |o| {
            let mut all = nodes(o);
            (all[3].ready, all[3].cause) = (false, "NodeStatusUnknown".into());
            all[1].pressures = vec!["DiskPressure".into()];
            o.nodes = Ok(all);
        },
        &["the node w1 is not Ready, its kubelet has gone silent", "the node cp2 has DiskPressure"],
    );
    says(
        |o| {
            let mut all = nodes(o);
            (all[3].ready, all[3].cause) = (false, "KubeletNotReady".into());
            o.nodes = Ok(all);
        },
        &["the node w1 is not Ready (KubeletNotReady): `kubectl describe node w1`"],
    );
    says(|o| o.nodes = Ok(nodes(o)[..3].to_vec()), &["the node w1 is not in the cluster"]);
    // A node that nobody expects (yet) is no reason while it is Ready.
    says(|o| o.nodes.as_mut().unwrap().push(node("x")), &[]);
}

#[test]
fn pods_are_named_with_what_is_wrong() {
    let pod = |o: &mut Observed, name: &str| o.pods.as_mut().unwrap().iter().position(|pod| pod.name == name).unwrap();
    says(
        |o| {
            let at = pod(o, "kube-scheduler-cp2");
            o.pods.as_mut().unwrap()[at] =
                PodSeen { name: "kube-scheduler-cp2".into(), ready: false, cause: Some("CrashLoopBackOff".into()) };
        },
        &["the pod kube-scheduler-cp2 is not Ready (CrashLoopBackOff)"],
    );
    says(
        |o| {
            let at = pod(o, "etcd-cp1");
            o.pods.as_mut().unwrap().remove(at);
        },
        &["the pod etcd-cp1 is missing: is /etc/kubernetes/manifests/etcd.yaml on cp1?"],
    );
    // Its kubelet has not told them yet.
    let joined = |seconds: i64| {
        move |o: &mut Observed| {
            o.expected[2].since = Some(NOW - Duration::seconds(seconds));
            let at = pod(o, "etcd-cp3");
            o.pods.as_mut().unwrap().remove(at);
        }
    };
    says(joined(179), &[]);
    says(joined(180), &["the pod etcd-cp3 is missing"]);
    says(joined(-1), &["the pod etcd-cp3 is missing"]);
    let unready = |cause: Option<&str>| {
        let seen = PodSeen { name: "etcd-cp3".into(), ready: false, cause: cause.map(str::to_owned) };
        move |o: &mut Observed| {
            joined(60)(o);
            o.pods.as_mut().unwrap().push(seen);
        }
    };
    says(unready(None), &[]);
    says(unready(Some("CrashLoopBackOff")), &["the pod etcd-cp3 is not Ready (CrashLoopBackOff)"]);
    says(|o| o.pods = None, &["cannot be listed"]);
    says(|o| o.not_ready = vec!["cp3".into()], &["the API server of cp3 is not ready"]);
}

#[test]
fn an_operator_that_does_not_run_is_told_after_a_while() {
    let seen = |available, seconds: Option<i64>| {
        let since = seconds.map(|seconds| NOW - Duration::seconds(seconds));
        move |o: &mut Observed| o.operator = Some(OperatorSeen { available, since })
    };
    says(seen(true, Some(9_999)), &[]);
    says(seen(false, None), &[]);
    says(seen(false, Some(179)), &[]);
    says(seen(false, Some(180)), &["the housekeeper does not run"]);
}

#[test]
fn a_node_that_is_away_is_one_reason_and_not_six() {
    says(
        |o| {
            o.nodes.as_mut().unwrap()[0].ready = false;
            o.pods.as_mut().unwrap().retain(|pod| !pod.name.ends_with("cp1"));
            o.not_ready = vec!["cp1".into()];
        },
        &["the node cp1 is not Ready"],
    );
}

#[test]
fn etcd_tells_its_members_and_its_majority() {
    let down = |o: &mut Observed, at: usize| {
        let seen = &mut o.etcd.as_mut().unwrap()[at];
        (seen.member.healthy, seen.cause) = (false, Some("it has no leader".into()));
    };
    says(|o| down(o, 0), &["etcd of cp1: it has no leader", "etcd can lose no further member"]);
    says(
        |o| {
            down(o, 0);
            down(o, 1);
        },
        &["etcd of cp1", "etcd of cp2", "etcd has lost its majority"],
    );
    says(|o| drop(o.etcd.as_mut().unwrap().remove(2)), &["etcd has no member cp3"]);
    says(|o| o.etcd.as_mut().unwrap().push(member(9, "old")), &["a member old that is no node of this cluster"]);
    says(|o| o.etcd = None, &["cannot be listed from any control plane"]);
}

#[test]
fn certificates_are_named_a_month_before_their_end_and_short_ones_later() {
    let seen = |name: &str, node: Option<&str>, made: i64, left: i64| CertificateSeen {
        name: name.into(),
        node: node.map(str::to_owned),
        since: NOW - Duration::days(made),
        not_after: NOW + Duration::days(left),
    };
    says(
        |o| {
            o.certificates = vec![
                seen("apiserver", Some("cp1"), 336, 29),
                seen("etcd/peer", Some("cp1"), 330, 35),
                seen("etcd/server", Some("cp2"), 366, -1),
                seen("etcd/ca", None, 7000, 10),
                seen("short", Some("cp1"), 1, 9),
                seen("short-over", Some("cp1"), 7, 3),
                seen(crate::cluster::renewal::KUBELET, Some("w1"), 360, 5),
            ];
        },
        &[
            "the certificate apiserver of cp1 ends on 2026-03-30: `nkd cluster certs renew rack7 --node cp1`",
            "the certificate etcd/server of cp2 ended on 2026-02-28",
            "the certificate authority etcd/ca ends on 2026-03-11",
            "the certificate short-over of cp1 ends",
            "the kubelet's certificate of w1 ends on 2026-03-06",
        ],
    );
}

#[test]
fn a_cluster_that_does_not_answer_has_been_away_since_the_first_time() {
    let mut observed = fine();
    observed.nodes = Err("refused".into());
    let first = judge(&observed, &Health::Healthy, NOW);
    assert_eq!(first, Health::Unreachable { since: NOW, reason: "refused".into() });
    observed.nodes = Err("no route".into());
    assert_eq!(judge(&observed, &first, NOW + Duration::HOUR), first);
    observed.known_cause = Some("etcd has no majority".into());
    let known = Health::Unreachable { since: NOW, reason: "etcd has no majority".into() };
    assert_eq!(judge(&observed, &first, NOW + Duration::HOUR), known, "as soon as somebody knows why");
}

fn degraded(reasons: &[&str]) -> Health {
    match reasons {
        [] => Health::Healthy,
        reasons => Health::Degraded { reasons: reasons.iter().map(|r| (*r).to_owned()).collect() },
    }
}

#[test]
fn an_event_is_what_has_held_for_a_while() {
    let mut told = Told::of(&Health::Healthy);
    let mut at = NOW;
    let mut hear = |told: &mut Told, health: &Health| {
        at += Duration::seconds(10);
        told.hear(health, at)
    };
    assert_eq!(hear(&mut told, &degraded(&["a"])), None);
    assert_eq!(hear(&mut told, &degraded(&["a"])), None);
    assert_eq!(hear(&mut told, &degraded(&["a"])), Some("degraded: a".into()));
    // Beside one that flaps, another is told in its own time.
    let mut said = Vec::new();
    for round in 0..20 {
        said.extend(hear(&mut told, &degraded(if round % 2 == 0 { &["a", "b", "flaps"] } else { &["a", "b"] })));
    }
    assert_eq!(said, ["degraded: a; b"]);
    // While nothing answers, nothing is known of the rest.
    let away = Health::Unreachable { since: NOW, reason: "refused".into() };
    let said: Vec<_> = (0..5).filter_map(|_| hear(&mut told, &away)).collect();
    assert_eq!(said, ["unreachable: refused"]);
    let said: Vec<_> = (0..5).filter_map(|_| hear(&mut told, &degraded(&["a", "b"]))).collect();
    assert_eq!(said, ["degraded: a; b"]);
    let said: Vec<_> = (0..5).filter_map(|_| hear(&mut told, &Health::Healthy)).collect();
    assert_eq!(said, ["healthy"]);
}

#[test]
fn the_first_word_is_said_once_and_not_again_after_a_restart() {
    let mut told = Told::of(&Health::Unknown);
    let said: Vec<_> = (0..5).filter_map(|n| told.hear(&Health::Healthy, NOW + Duration::seconds(n * 10))).collect();
    assert_eq!(said, ["healthy"]);
    let mut told = Told::of(&Health::Healthy);
    assert_eq!((0..5).find_map(|n| told.hear(&Health::Healthy, NOW + Duration::seconds(n * 10))), None);
}

proptest! {
    /// No storm: between two events about one thing lies at least the time that it has to hold.
    #[test]
    fn events_keep_their_distance(looks in proptest::collection::vec(0u8..5, 1..200)) {
        let mut told = Told::default();
        let mut events = 0u32;
        for (n, look) in looks.iter().enumerate() {
            let health = match look {
                0 => Health::Healthy,
                1 => degraded(&["a"]),
                2 => degraded(&["a", "b"]),
                3 => degraded(&["b"]),
                _ => Health::Unreachable { since: NOW, reason: "r".into() },
            };
            let at = NOW + Duration::seconds(10 * i64::try_from(n).unwrap());
            events += u32::from(told.hear(&health, at).is_some());
        }
        // Three things can change, each at most every second look and a half.
        prop_assert!(events as usize <= 3 * (looks.len() / 2 + 1));
        // What stays is told, and then there is silence.
        let end = NOW + Duration::days(1);
        let _ = told.hear(&degraded(&["a"]), end);
        let _ = told.hear(&degraded(&["a"]), end + STABLE);
        prop_assert_eq!(told.hear(&degraded(&["a"]), end + STABLE * 2), None);
        prop_assert_eq!(&told.reasons, &BTreeSet::from(["a".to_owned()]));
        prop_assert!(!told.unreachable);
    }
}

#[test]
fn a_kubelet_that_dies_unseen_is_found_by_its_lease() {
    let mut pulses = Pulses::default();
    let beats = |w1: &str| BTreeMap::from([("cp1".to_owned(), format!("{w1}-cp")), ("w1".to_owned(), w1.to_owned())]);
    let silent = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(pulses.hear(&beats("a"), NOW), silent(&[]), "nobody knows since when");
    assert_eq!(pulses.hear(&beats("a"), NOW + Duration::seconds(59)), silent(&[]));
    let mut next = beats("a");
    next.insert("cp1".into(), "b".into());
    assert_eq!(pulses.hear(&next, NOW + Duration::seconds(60)), silent(&["w1"]));
    next.insert("w1".into(), "0".into());
    assert_eq!(pulses.hear(&next, NOW + Duration::seconds(70)), silent(&[]), "a clock that was put back beats too");
    next.remove("w1");
    assert_eq!(pulses.hear(&next, NOW + Duration::seconds(300)), silent(&["cp1"]), "who has left is not missed");

    let mut seen = fine();
    seen.silent = silent(&["w1"]);
    let Health::Degraded { reasons } = judge(&seen, &Health::Healthy, NOW) else { panic!("w1 is silent") };
    assert!(reasons.len() == 1 && reasons[0].contains("the kubelet of w1 is silent"), "{reasons:?}");
}
