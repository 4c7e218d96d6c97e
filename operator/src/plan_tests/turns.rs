//! Stories: whose turn it is, and what a drain, a failure, an abort, a window and another update change of that.

use super::*;

#[test]
fn control_planes_go_first_one_by_one_and_the_own_node_last_of_its_role() {
    let mut world = World::of(&["w2", "w1", "cp1", "cp2", "cp3"]);
    world.own_node = Some("cp1".into());
    world.ask(spec(1, 3));
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert_eq!(world.began(), ["cp2", "cp3", "cp1", "w1", "w2"]);
    let first = |node: &NodeSeen| node.desired.as_ref().unwrap().first;
    let firsts: Vec<&str> = world.nodes.iter().filter(|n| first(n)).map(|n| n.name.as_str()).collect();
    assert_eq!(firsts, ["cp2"]);
    assert!(world.nodes.iter().all(|node| !node.unschedulable && node.cordoned_by.is_none()));
    let done = world.wishes[0].status.counts;
    assert_eq!((done.total, done.done, done.in_progress, done.unavailable), (5, 5, 0, 0));
    // It is finished: a node that joins later is not its business.
    world.join("w3");
    world.settle();
    assert!(world.get("w3").desired.is_none());
}

#[test]
fn a_budget_that_can_never_be_met_is_said_before_anything_is_cordoned() {
    let mut world = World::of(&["cp1", "w1", "w2"]);
    world.beneath.get_mut("w1").unwrap().obstacles.push("the disruption budget web never lets go".into());
    world.ask(spec(1, 1));
    world.settle();
    assert_eq!(world.began(), ["cp1", "w2"]);
    assert_eq!(world.told(0, "w1").state, NodeState::Blocked);
    assert!(world.told(0, "w1").reason.contains("budget web"));
    assert!(!world.get("w1").unschedulable);
    let degraded = &world.wishes[0].status.conditions[1];
    assert_eq!(
        (degraded.kind.as_str(), degraded.status.as_str(), degraded.reason.as_str()),
        ("Degraded", "True", "Blocked")
    );
    world.beneath.get_mut("w1").unwrap().obstacles.clear();
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn one_that_is_free_has_its_turn_behind_more_blocked_ones_than_a_look_asks_for() {
    let names: Vec<String> = (0..ROUNDS * 2 + 20).map(|number| format!("w{number:03}")).collect();
    let mut world = World::of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let (last, others) = names.split_last().unwrap();
    for name in others {
        world.beneath.get_mut(name).unwrap().obstacles.push("the disruption budget web never lets go".into());
    }
    world.ask(spec(1, 1));
    world.settle();
    assert_eq!(world.began(), [last.as_str()]);
    assert!(others.iter().all(|name| world.told(0, name).state == NodeState::Blocked));
    // Nobody is forgotten: that its pods may go is seen a few looks later.
    world.beneath.get_mut(&names[0]).unwrap().obstacles.clear();
    world.settle_until(|world| world.began() == [last.as_str(), names[0].as_str()]);
    world.settle();
    assert_eq!(world.told(0, &names[0]).state, NodeState::Done);
}

#[test]
fn a_drain_ends_within_its_limit_by_its_policy() {
    for policy in [DrainPolicy::Evict, DrainPolicy::Force] {
        let mut world = World::of(&["w1"]);
        let drain = Drain { timeout_seconds: 60, policy };
        world.ask(UpdateSpec { strategy: Care { drain, ..Care::default() }, ..spec(1, 1) });
        world.settle_until(|world| world.began() == ["w1"]);
        world.beneath.get_mut("w1").unwrap().obstacles.push("a budget that came later".into());
        world.settle_until(|world| world.now > START + Duration::seconds(300));
        world.settle();
        match policy {
            DrainPolicy::Evict => {
                assert_eq!(world.told(0, "w1").state, NodeState::Failed);
                assert!(world.told(0, "w1").reason.contains("default/w1 did not leave within 60 s"));
                assert!(!world.get("w1").unschedulable, "given back");
                assert_eq!(world.phase(0), Phase::Halted);
            }
            DrainPolicy::Force => assert_eq!(world.phase(0), Phase::Complete),
        }
    }
}

#[test]
fn after_too_many_failures_nothing_begins_until_somebody_says_so() {
    // One that went back is enough, unless its owner says more.
    for most in [1, 2] {
        let mut world = World::of(&["w1", "w2", "w3", "w4"]);
        world.ask(UpdateSpec { strategy: Care { halt_after_rollbacks: most, ..Care::default() }, ..spec(1, 1) });
        let fail = ["w1", "w2"].into_iter().take(most as usize).collect::<Vec<_>>();
        for name in &fail {
            world.settle_until(|world| world.get(name).report().is_some_and(|s| s.state == ReportedState::Rebooting));
            world.agent(name, 1);
        }
        world.settle();
        assert_eq!(world.began(), fail);
        assert_eq!(world.phase(0), Phase::Halted);
        let said = &world.wishes[0].status.conditions[0].message;
        let what = if most == 1 { "1 node has gone back from the release" } else { "2 nodes have failed" };
        assert!(said.contains(what) && said.ends_with("then raise spec.retry"), "{said}");
        assert!(world.told(0, "w1").reason.contains("rolled back"));
        assert!(!world.get("w1").unschedulable, "it runs what it ran before");
        world.edit(0, |spec| spec.retry = 1);
        world.settle();
        assert_eq!(world.phase(0), Phase::Complete);
        assert_eq!((world.told(0, "w1").attempt, world.told(0, "w3").attempt), (2, 1));
    }
}

#[test]
fn one_that_cannot_fetch_the_release_has_not_gone_back_from_it() {
    let mut world = World::of(&["w1", "w2", "w3"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Staging));
    world.agent("w1", 1);
    assert_eq!(world.get("w1").report().unwrap().state, ReportedState::RolledBack);
    world.settle();
    assert_eq!(world.began(), ["w2", "w3"]);
    assert_eq!((world.phase(0), world.told(0, "w1").state), (Phase::Halted, NodeState::Failed));
    world.edit(0, |spec| spec.retry = 1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn a_node_that_broke_stays_closed_and_is_tried_again_in_its_place() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.settle();
    assert!(world.get("w1").unschedulable);
    assert_eq!((world.began(), world.phase(0)), (vec!["w1"], Phase::Halted), "the one that may be away is away");
    world.edit(0, |spec| spec.retry = 1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(!world.get("w1").unschedulable);
}

#[test]
fn a_worker_that_broke_does_not_hold_up_a_control_plane_that_has_come_since() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.settle();
    world.join("cp1");
    world.settle();
    assert!(world.get("w1").unschedulable, "closed until somebody says that it is well again");
    world.edit(0, |spec| spec.retry = 1);
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["w1", "cp1", "w1", "w2"], Phase::Complete));
    assert!(!world.get("w1").unschedulable);
}

#[test]
fn what_an_update_that_was_called_off_left_closed_does_not_hold_up_the_next_one() {
    let mut world = World::of(&["cp1", "w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.edit(0, |spec| spec.abort = true);
    world.settle();
    assert!(world.phase(0) == Phase::Aborted && world.get("w1").unschedulable);
    world.ask(spec(2, 1));
    world.settle();
    assert_eq!((world.began(), world.phase(1)), (vec!["cp1", "w1", "cp1", "w1", "w2"], Phase::Complete));
    assert!(world.nodes.iter().all(|node| !node.unschedulable));
}

#[test]
fn the_first_control_plane_has_to_end_what_it_began() {
    let mut world = World::of(&["cp1", "cp2", "cp3", "w1"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("cp1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.agent("cp1", 1);
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["cp1"], Phase::Halted));
    // Its machine is gone: another one is the first.
    world.nodes.retain(|node| node.name != "cp1");
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(world.get("cp2").desired.as_ref().unwrap().first);
    assert!(!world.get("cp3").desired.as_ref().unwrap().first);
}

#[test]
fn abort_gives_back_what_was_only_drained_and_lets_the_rest_end() {
    let mut world = World::of(&["w1", "w2", "w3"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("w1").desired.as_ref().is_some_and(|desired| desired.go));
    let node = world.get_mut("w2").unwrap();
    node.desired.as_mut().unwrap().go = false;
    assert!(node.unschedulable);
    world.edit(0, |spec| spec.abort = true);
    world.look(usize::MAX);
    assert_eq!(world.phase(0), Phase::Aborting);
    assert!(!world.get("w2").unschedulable && world.get("w2").desired.is_none());
    assert!(world.get("w1").unschedulable);
    world.settle();
    assert_eq!(world.phase(0), Phase::Aborted);
    assert_eq!(world.beneath["w1"].runs, 1);
    assert!(world.nodes.iter().all(|node| !node.unschedulable) && world.get("w3").desired.is_none());
    // It may be taken up again.
    world.edit(0, |spec| spec.abort = false);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn an_update_that_nobody_understands_may_be_called_off() {
    let mut world = World::of(&["w1"]);
    world.ask(spec(1, 1));
    world.wishes[0].problem = Some("spec.maxUnavailable is 0".into());
    world.settle();
    assert_eq!(world.phase(0), Phase::Invalid);
    world.edit(0, |spec| spec.abort = true);
    world.settle();
    assert_eq!((world.phase(0), world.began().len()), (Phase::Aborted, 0));
}

#[test]
fn the_younger_update_waits_and_says_so() {
    let mut world = World::of(&["cp1", "w1"]);
    world.ask(UpdateSpec { paused: true, ..spec(1, 1) });
    world.ask(spec(2, 1));
    world.settle();
    assert_eq!((world.phase(0), world.phase(1)), (Phase::Paused, Phase::Pending));
    assert!(world.wishes[1].status.conditions[0].message.contains("update-1 is older"));
    world.edit(0, |spec| spec.paused = false);
    world.settle();
    assert_eq!((world.phase(0), world.phase(1)), (Phase::Complete, Phase::Complete));
    assert_eq!(world.beneath["w1"].runs, 2);
}

#[test]
fn a_deleted_update_leaves_no_node_closed() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("w1").desired.as_ref().is_some_and(|desired| desired.go));
    world.wishes.clear();
    world.settle();
    assert!(world.nodes.iter().all(|node| !node.unschedulable && node.desired.is_none() && node.note.is_none()));
    assert_eq!(world.beneath["w1"].runs, 1, "what was upgrading came to its end");
}

#[test]
fn nothing_begins_while_the_window_is_closed_and_everything_is_staged_by_then() {
    let mut world = World::of(&["w1"]);
    let window = Window { days: vec![], start: "22:00".into(), length: "1h".into(), time_zone: "UTC".into() };
    world.now += Duration::hours(2);
    world.ask(UpdateSpec { window: Some(window), ..spec(1, 1) });
    world.settle();
    assert_eq!((world.told(0, "w1").state, world.phase(0)), (NodeState::Staged, Phase::Pending));
    assert!(world.wishes[0].status.conditions[0].message.contains("opens at 2026-01-03 22:00"));
    world.now = START + Duration::days(1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn a_worker_is_never_newer_than_a_control_plane_that_stays() {
    let mut world = World::of(&["cp1", "w1"]);
    let node_selector = BTreeMap::from([("pool".to_owned(), "w".to_owned())]);
    world.ask(UpdateSpec { node_selector, ..spec(1, 1) });
    world.settle();
    assert!(world.began().is_empty());
    assert!(world.wishes[0].status.conditions[0].message.contains("cp1 runs v1.20.0"));
    world.get_mut("cp1").unwrap().kubelet = "v1.21.0".into();
    world.settle();
    assert_eq!((world.phase(0), world.began()), (Phase::Complete, vec!["w1"]));
}

#[test]
fn an_agent_that_runs_something_else_is_not_healthy() {
    let mut world = World::of(&["w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.agent("w1", 9);
    world.get_mut("w1").unwrap().reported.as_mut().unwrap().os = Some("commit-7".into());
    world.settle();
    assert_eq!(world.phase(0), Phase::Halted);
    assert!(world.told(0, "w1").reason.contains("runs commit-7, not commit-1"));
}

#[test]
fn five_thousand_nodes_are_one_plan() {
    let mut world = World::of(&["cp1", "cp2", "cp3"]);
    for number in 0..5000 {
        world.nodes.push(node(&format!("w{number}")));
    }
    world.ask(spec(1, 50));
    let seen = Seen { nodes: world.nodes.clone(), ..Seen::default() };
    let steps = plan(&world.wishes[0], &seen, START);
    assert_eq!(steps.len(), 5003 + 1);
}

#[test]
fn a_node_that_an_administrator_has_opened_is_no_longer_the_operators() {
    let mut world = World::of(&["w1", "w2", "w3"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.settle();
    assert_eq!((world.phase(0), world.get("w1").unschedulable), (Phase::Halted, true));
    // Repaired by hand, and opened: it is not away, and others may go, whether it is meant any more or not.
    world.get_mut("w1").unwrap().unschedulable = false;
    world.settle();
    assert!(world.get("w1").cordoned_by.is_none() && !world.get("w1").held());
    world.edit(0, |spec| spec.strategy.halt_after_failures = 2);
    world.settle();
    assert_eq!(world.began(), ["w1", "w2", "w3"]);
    // Closed later, by the same hand.
    world.get_mut("w1").unwrap().unschedulable = true;
    world.beneath.get_mut("w1").unwrap().cordoned_by_hand = true;
    world.edit(0, |spec| spec.retry += 1);
    world.settle();
    assert_eq!((world.phase(0), world.get("w1").unschedulable), (Phase::Complete, true));
}

#[test]
fn what_was_said_of_an_attempt_that_was_called_off_is_not_said_of_the_next_one() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w2").report().is_some_and(|s| s.state == ReportedState::Staged));
    world.edit(0, |spec| spec.abort = true);
    world.look(usize::MAX);
    assert!(world.get("w2").desired.is_none() && world.get("w2").reported.is_some());
    world.edit(0, |spec| spec.abort = false);
    world.look(usize::MAX);
    world.look(usize::MAX);
    let node = world.get("w2");
    let desired = node.desired.as_ref().unwrap();
    assert_eq!((desired.attempt, desired.retry, desired.go), (2, Some(0), false), "{desired:?}");
    assert!(node.report().is_none(), "nothing is staged");
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn a_control_plane_that_is_at_work_on_an_earlier_attempt_may_move() {
    let mut node = node("cp2");
    let desired = |attempt, go| {
        serde_json::from_value(
            serde_json::json!({"update": "u", "uid": "1", "attempt": attempt, "first": false, "go": go}),
        )
    };
    let said = |state: &str| {
        serde_json::from_value(
            serde_json::json!({"uid": "1", "attempt": 1, "state": state, "detail": "", "os": null, "kubernetes": null}),
        )
    };
    node.desired = desired(2, false).unwrap();
    for (state, moves) in [
        ("staging", false),
        ("staged", false),
        ("upgrading", true),
        ("rebooting", true),
        ("healthy", false),
        ("failed", false),
    ] {
        node.reported = said(state).unwrap();
        assert_eq!((node.held(), node.may_move()), (moves, moves), "{state}");
    }
}

#[test]
fn a_node_that_was_told_to_go_on_with_what_it_does_not_know_is_given_back_and_tried_again() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(UpdateSpec { strategy: Care { halt_after_failures: 1, ..Care::default() }, ..spec(1, 1) });
    world.settle_until(|world| world.get("w1").report().is_some_and(|said| said.state == ReportedState::Upgrading));
    // Its disk is another one, and its node is the same: it was told to go on, and has laid out nothing.
    world.get_mut("w1").unwrap().reported = None;
    world.settle();
    assert_eq!((world.phase(0), world.told(0, "w1").state), (Phase::Halted, NodeState::Failed));
    assert!(!world.get("w1").unschedulable && world.beneath["w1"].runs == 0);
    world.edit(0, |spec| spec.retry += 1);
    world.look(usize::MAX);
    let desired = world.get("w1").desired.clone().unwrap();
    assert_eq!((desired.attempt, desired.go), (2, false), "it is drained before");
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn a_drain_by_force_takes_no_pods_time_while_its_kubelet_answers() {
    let pods = |ends: Option<OffsetDateTime>| {
        Some(PodsSeen { leaving: vec![PodSeen { ends, ..pod("web") }], obstacles: vec![] })
    };
    let mut world = World::of(&["w1"]);
    let drain = Drain { timeout_seconds: 60, policy: DrainPolicy::Force };
    world.ask(UpdateSpec { strategy: Care { drain, ..Care::default() }, ..spec(1, 1) });
    world.settle_until(|world| world.began() == ["w1"]);
    let deletes = |ready: bool, seconds: i64, ends: Option<OffsetDateTime>| {
        let since = world.get("w1").note.as_ref().unwrap().since;
        let mut node = world.get("w1").clone();
        (node.ready, node.waited, node.pods) = (ready, Duration::seconds(seconds), pods(ends));
        let seen = Seen { nodes: vec![node], ..Seen::default() };
        let steps = plan(&world.wishes[0], &seen, since + Duration::seconds(seconds));
        steps
            .into_iter()
            .filter_map(|step| if let Step::Delete { at_once, .. } = step { Some(at_once) } else { None })
            .collect::<Vec<_>>()
    };
    let since = world.get("w1").note.as_ref().unwrap().since;
    assert_eq!(deletes(true, 59, None), [false; 0]);
    assert_eq!(deletes(true, 60, None), [false]);
    assert_eq!(deletes(true, 3600, None), [false], "its kubelet gives it its time");
    assert_eq!(deletes(false, 119, None), [false]);
    assert_eq!(deletes(false, 120, None), [true]);
    assert_eq!(deletes(true, 120, Some(since + Duration::seconds(90))), [false; 0], "it ends");
    assert_eq!(deletes(true, 700, Some(since + Duration::seconds(90))), [true], "it should have ended long ago");
}

#[test]
fn a_pod_that_comes_to_closed_nodes_is_asked_once_and_holds_up_no_drain() {
    let mut world = World::of(&["w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.began() == ["w1"]);
    let since = world.get("w1").note.as_ref().unwrap().since;
    let there = |world: &mut World, made: OffsetDateTime, comes_back: bool| {
        world.beneath.get_mut("w1").unwrap().pods = vec![PodSeen { made: Some(made), comes_back, ..pod("agent") }];
        let mut node = world.get("w1").clone();
        node.pods = Some(PodsSeen { leaving: world.beneath["w1"].pods.clone(), obstacles: vec![] });
        let steps = plan(&world.wishes[0], &Seen { nodes: vec![node], ..Seen::default() }, since + Duration::MINUTE);
        steps.iter().any(|step| matches!(step, Step::Evict { .. }))
    };
    assert!(there(&mut world, since - Duration::HOUR, true), "it was there before");
    assert!(there(&mut world, since, true));
    assert!(there(&mut world, since + Duration::SECOND, false), "somebody has put it there by hand");
    assert!(!there(&mut world, since + Duration::SECOND, true));
}

#[test]
fn a_control_plane_waits_while_the_etcd_of_another_one_does_not_hold() {
    let mut world = World::of(&["cp1", "cp2", "cp3", "w1"]);
    world.get_mut("cp3").unwrap().ill = Some("etcd-cp3 is not Ready".into());
    world.ask(spec(1, 1));
    world.settle();
    // Its own is no reason: an upgrade may be what it needs. It is ready, so that nothing else holds anybody.
    assert_eq!(world.began(), ["cp3"]);
    world.settle_until(|world| world.told(0, "cp3").state == NodeState::Done);
    let reason = &world.told(0, "cp1").reason;
    assert!(reason.contains("cp3 does not hold (etcd-cp3 is not Ready)"), "{reason}");
    world.get_mut("cp3").unwrap().ill = None;
    world.settle_until(|world| world.told(0, "cp1").state == NodeState::Draining);
    // Another one breaks while the pods of this one leave: it does not go.
    world.get_mut("cp2").unwrap().ill = Some("kube-apiserver-cp2 is missing".into());
    world.settle();
    let cp1 = world.told(0, "cp1");
    assert!(cp1.state == NodeState::Draining && cp1.reason.contains("kube-apiserver-cp2"), "{cp1:?}");
    assert!(!world.get("cp1").desired.as_ref().unwrap().go);
    world.get_mut("cp2").unwrap().ill = None;
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn static_pods_are_looked_at_while_a_control_plane_may_begin_or_go() {
    let mut world = World::of(&["cp1", "cp2", "w1"]);
    world.ask(spec(1, 1));
    let asks =
        |world: &World| asks_for_planes(&world.wishes[0], &Seen { nodes: world.nodes.clone(), ..Seen::default() });
    assert!(!asks(&world), "nothing was staged");
    world.settle_until(|world| world.began() == ["cp1"]);
    assert!(asks(&world));
    world.settle();
    assert!(!asks(&world), "all have gone");
    let mut world = World::of(&["cp1", "w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.began() == ["cp1"]);
    assert!(!asks(&world), "there are no others");
}

#[test]
fn a_node_that_was_deleted_on_its_way_and_registers_again_is_still_away() {
    for state in [ReportedState::Upgrading, ReportedState::Rebooting] {
        let mut world = World::of(&["cp1", "cp2", "cp3"]);
        world.ask(spec(1, 1));
        world.settle_until(|world| world.get("cp1").report().is_some_and(|said| said.state == state));
        let said = world.get("cp1").report().cloned();
        world.vanish("cp1");
        world.join("cp1");
        // It is told to stage before its agent, which is at work, says anything.
        world.look(usize::MAX);
        assert!(world.get("cp1").desired.as_ref().is_some_and(|desired| desired.attempt == 1 && !desired.go));
        world.agent("cp1", 9);
        assert_eq!(world.get("cp1").reported, said);
        assert!(world.get("cp1").held() && world.get("cp1").may_move());
        for name in ["cp2", "cp3"] {
            (0..3).for_each(|_| world.agent(name, 9));
        }
        world.look(usize::MAX);
        assert_eq!(world.began(), ["cp1"], "etcd would be without its majority");
        world.settle();
        assert_eq!(world.phase(0), Phase::Complete);
    }
}

#[test]
fn no_other_one_goes_while_the_node_of_a_control_plane_on_its_way_is_not_there() {
    let mut world = World::of(&["cp1", "cp2", "cp3", "w1"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("cp1").report().is_some_and(|said| said.state == ReportedState::Upgrading));
    assert!(world.get("cp1").desired.as_ref().unwrap().first);
    world.vanish("cp1");
    world.settle();
    assert_eq!(world.began(), ["cp1"]);
    let told = world.told(0, "cp1");
    assert!(told.state == NodeState::Failed && told.reason.contains("systemctl restart kubelet"), "{told:?}");
    assert!(world.told(0, "cp2").reason.contains("cp1 was on its way when its Node was deleted"));
    assert_eq!(world.phase(0), Phase::Halted);
    // It is back, without the labels that kubeadm had given it, and still the one that began.
    world.join("cp1");
    for _ in 0..5 {
        world.look(usize::MAX);
        world.pods_end();
        assert!(!world.get("cp1").control_plane && world.get("cp1").desired.as_ref().unwrap().first);
        assert_eq!(world.began(), ["cp1"]);
    }
    // The service may be away all the while.
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    world.label("cp1");
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    let firsts = world.nodes.iter().filter(|node| node.desired.as_ref().unwrap().first);
    assert_eq!(firsts.map(|node| node.name.as_str()).collect::<Vec<_>>(), ["cp1"]);
}

#[test]
fn a_retry_goes_on_without_a_control_plane_that_was_lost_on_its_way() {
    let mut world = World::of(&["cp1", "cp2", "cp3", "w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("cp1").desired.as_ref().is_some_and(|desired| desired.go));
    world.vanish("cp1");
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["cp1"], Phase::Halted));
    world.edit(0, |spec| spec.retry += 1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(world.get("cp2").desired.as_ref().unwrap().first, "somebody has to run kubeadm upgrade apply");
}

#[test]
fn a_control_plane_that_is_back_without_the_labels_that_choose_it_is_waited_for() {
    let begun = || {
        let mut world = World::of(&["cp1", "cp2", "cp3"]);
        let node_selector = BTreeMap::from([("pool".to_owned(), "c".to_owned())]);
        world.ask(UpdateSpec { node_selector, ..spec(1, 3) });
        world.settle_until(|world| world.get("cp1").desired.as_ref().is_some_and(|desired| desired.go));
        world.vanish("cp1");
        world.join("cp1");
        world.get_mut("cp1").unwrap().labels.clear();
        world.settle();
        assert_eq!((world.began(), world.phase(0)), (vec!["cp1"], Phase::Halted));
        assert!(world.told(0, "cp1").reason.contains("`kubectl label node cp1 pool=c`"));
        world
    };
    let mut world = begun();
    // The service gives back what kubeadm had given; what chooses it was somebody's own.
    world.label("cp1");
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["cp1"], Phase::Halted));
    world.get_mut("cp1").unwrap().labels.insert("pool".into(), "c".into());
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    let firsts = world.nodes.iter().filter(|node| node.desired.as_ref().unwrap().first);
    assert_eq!(firsts.map(|node| node.name.as_str()).collect::<Vec<_>>(), ["cp1"]);
    // Or the others go on without it.
    let mut world = begun();
    world.edit(0, |spec| spec.retry += 1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(world.get("cp2").desired.as_ref().unwrap().first, "somebody has to run kubeadm upgrade apply");
    assert!(world.get("cp1").desired.is_none());
}

#[test]
fn a_worker_with_the_name_of_a_control_plane_that_was_lost_is_a_worker() {
    let mut world = World::of(&["cp1", "cp2", "cp3"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("cp1").desired.as_ref().is_some_and(|desired| desired.go));
    world.vanish("cp1");
    world.settle();
    let mut nodes = vec![NodeSeen { control_plane: false, ..node("cp1") }];
    remember_roles(&world.wishes, &mut nodes);
    assert!(nodes[0].control_plane && nodes[0].unlabelled);
    nodes[0] = NodeSeen { control_plane: false, ..node("cp1") };
    nodes[0].labels.insert("node-role.kubernetes.io/worker".into(), String::new());
    remember_roles(&world.wishes, &mut nodes);
    assert!(!nodes[0].control_plane && !nodes[0].unlabelled);
}

#[test]
fn workers_wait_for_the_only_control_plane_though_its_node_was_deleted() {
    let mut world = World::of(&["cp1", "w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("cp1").desired.as_ref().is_some_and(|desired| desired.go));
    world.vanish("cp1");
    world.settle();
    assert_eq!(world.began(), ["cp1"]);
}

#[test]
fn what_is_refused_on_a_node_is_told() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    let mut seen = Seen { nodes: world.nodes.clone(), ..Seen::default() };
    seen.nodes[0].refused = "denied by a policy".into();
    let steps = plan(&world.wishes[0], &seen, START);
    let Some(Step::Tell(status)) = steps.last() else { panic!("{steps:?}") };
    assert!(status.nodes[0].reason.contains("denied by a policy") && status.nodes[1].reason.is_empty(), "{status:#?}");
    let degraded = status.conditions.iter().find(|one| one.kind == "Degraded").unwrap();
    assert!(degraded.status == "True" && degraded.message.contains("w1: its Node cannot be written"), "{degraded:?}");
    // It could be written since.
    world.settle();
    let seen = Seen { nodes: world.nodes.clone(), ..Seen::default() };
    assert_eq!(plan(&world.wishes[0], &seen, world.now), []);
}

#[test]
fn a_node_that_is_healthy_by_its_agent_and_never_ready_has_failed_in_the_end() {
    for soak in [0, 60] {
        let mut world = World::of(&["w1", "w2"]);
        world.ask(UpdateSpec { strategy: Care { soak_seconds: soak, ..Care::default() }, ..spec(1, 1) });
        world.settle_until(|world| world.get("w1").report().is_some_and(|said| said.state == ReportedState::Rebooting));
        world.agent("w1", 9);
        if soak > 0 {
            world.look(usize::MAX);
        }
        world.get_mut("w1").unwrap().ready = false;
        world.settle();
        world.now += Duration::minutes(40);
        world.edit(0, |spec| spec.abort = true);
        world.settle();
        assert_eq!(world.phase(0), Phase::Aborting, "it may come yet");
        world.now += Duration::minutes(10);
        world.settle();
        let w1 = world.told(0, "w1");
        assert!(w1.state == NodeState::Failed && w1.reason.contains("not Ready for 45 minutes"), "{w1:?}");
        assert!(
            world.phase(0) == Phase::Aborted && world.get("w1").unschedulable,
            "nobody knows what is wrong with it"
        );
    }
    // There was nothing to do for it.
    let mut world = World::of(&["w1"]);
    world.beneath.get_mut("w1").unwrap().runs = 1;
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|said| said.state == ReportedState::Staging));
    world.agent("w1", 9);
    world.get_mut("w1").unwrap().ready = false;
    world.settle();
    assert_eq!(world.told(0, "w1").state, NodeState::Staged);
    world.now += Duration::minutes(46);
    world.settle();
    assert_eq!(world.told(0, "w1").state, NodeState::Failed);
}

#[test]
fn the_own_node_waits_for_others_of_its_role_that_are_not_staged_yet() {
    let mut world = World::of(&["cp1", "cp2", "cp3"]);
    world.own_node = Some("cp1".into());
    world.ask(spec(1, 1));
    world.look(usize::MAX);
    world.agent("cp3", 9);
    world.silence("cp3", true);
    world.settle();
    assert_eq!(world.began(), ["cp2"]);
    let reason = &world.told(0, "cp1").reason;
    assert!(reason.contains("the operator runs on cp1: cp3 comes first"), "{reason}");
    world.silence("cp3", false);
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["cp2", "cp3", "cp1"], Phase::Complete));
}
