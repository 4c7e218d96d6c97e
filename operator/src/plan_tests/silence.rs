//! Stories of agents that do not answer, from the beginning or any more.

use super::*;

#[test]
fn a_node_that_never_answers_is_given_up_and_others_go_on() {
    let mut world = World::of(&["cp1", "w1", "w2"]);
    world.silence("w1", true);
    world.ask(spec(1, 1));
    world.settle();
    assert_eq!((world.began(), world.told(0, "w1").state), (vec!["cp1", "w2"], NodeState::Staging));
    assert_eq!(world.told(0, "w1").reason, "its agent has not answered");
    world.now += Duration::minutes(15);
    world.settle();
    assert_eq!((world.told(0, "w1").state, world.phase(0)), (NodeState::Failed, Phase::Halted));
    let said = &world.wishes[0].status.conditions[1].message;
    assert!(said.contains("w1: its agent has not answered for 15 minutes"), "{said}");
    assert!(said.contains("`systemctl status nkd-updater` on it"), "{said}");
    assert!(!world.get("w1").unschedulable);
    // It is heard of: nobody has to ask for a retry.
    world.silence("w1", false);
    world.settle();
    assert_eq!((world.phase(0), world.told(0, "w1").attempt), (Phase::Complete, 1));
}

#[test]
fn nobody_is_given_up_where_that_is_not_wanted() {
    let mut world = World::of(&["w1"]);
    world.silence("w1", true);
    world.ask(UpdateSpec { strategy: Care { silent_seconds: 0, ..Care::default() }, ..spec(1, 1) });
    world.settle_for_good();
    assert_eq!(world.told(0, "w1").state, NodeState::Staging);
}

#[test]
fn one_that_takes_long_to_stage_is_told_and_waited_for() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.look(usize::MAX);
    world.agent("w1", 9);
    world.silence("w1", true);
    world.settle_for_good();
    assert_eq!((world.told(0, "w1").state, world.told(0, "w2").state), (NodeState::Staging, NodeState::Done));
    assert!(world.told(0, "w1").reason.contains("journalctl -u nkd-updater"), "{:?}", world.told(0, "w1"));
}

#[test]
fn one_that_cannot_stage_says_why_at_once_and_when_it_takes_long() {
    let mut world = World::of(&["w1"]);
    world.ask(spec(1, 1));
    world.look(usize::MAX);
    world.agent("w1", 9);
    let away = "fetching the release: the service does not say where the release is: connection refused";
    world.get_mut("w1").unwrap().reported.as_mut().unwrap().detail = away.into();
    world.silence("w1", true);
    world.look(usize::MAX);
    assert_eq!(world.told(0, "w1").reason, away);
    world.now += Duration::minutes(16);
    world.look(usize::MAX);
    let said = world.told(0, "w1");
    assert!(
        said.state == NodeState::Staging && said.reason.contains("takes long") && said.reason.ends_with(away),
        "{said:?}"
    );
}

#[test]
fn a_node_that_falls_silent_on_its_way_stays_closed_and_is_taken_at_its_word_later() {
    for (state, word) in
        [(ReportedState::Staged, "has not answered for 45 minutes"), (ReportedState::Rebooting, "said `rebooting`")]
    {
        let mut world = World::of(&["cp1", "cp2", "w1"]);
        world.ask(spec(1, 2));
        world.settle_until(|world| world.get("cp1").report().is_some_and(|said| said.state == state));
        world.silence("cp1", true);
        world.settle();
        world.now += Duration::minutes(44);
        world.look(usize::MAX);
        assert_ne!(world.told(0, "cp1").state, NodeState::Failed, "its gate may take so long");
        world.now += Duration::minutes(5);
        world.settle();
        assert_eq!((world.told(0, "cp1").state, world.phase(0)), (NodeState::Failed, Phase::Halted));
        assert!(world.told(0, "cp1").reason.contains(word), "{:?}", world.told(0, "cp1"));
        assert!(world.get("cp1").unschedulable && world.began() == ["cp1"]);
        world.silence("cp1", false);
        world.settle();
        assert_eq!((world.phase(0), world.told(0, "cp1").attempt), (Phase::Complete, 1));
        assert!(!world.get("cp1").unschedulable);
    }
}

#[test]
fn what_was_given_up_holds_up_no_later_update_and_its_end_is_cleared_away() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.silence("w1", true);
    world.settle_for_good();
    world.edit(0, |spec| spec.abort = true);
    world.settle();
    assert_eq!(world.phase(0), Phase::Aborted);
    let mut alone = World { wishes: world.wishes.clone(), nodes: world.nodes.clone(), ..World::of(&["w1", "w2"]) };
    alone.now = world.now;
    alone.settle();
    assert!(!alone.get("w1").unschedulable && alone.get("w1").note.is_none(), "{alone:#?}");
    world.ask(spec(2, 2));
    world.settle_for_good();
    assert_eq!((world.told(1, "w2").state, world.told(1, "w1").state), (NodeState::Done, NodeState::Failed));
    world.silence("w1", false);
    world.settle_for_good();
    assert_eq!(world.phase(1), Phase::Complete);
}

#[test]
fn a_silent_node_of_a_deleted_update_stays_closed_and_is_the_next_ones() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.silence("w1", true);
    world.look(usize::MAX);
    world.wishes.clear();
    world.ask(spec(2, 2));
    world.settle();
    assert!(world.get("w1").unschedulable && world.told(0, "w1").reason.contains("another update is at work"));
    world.now += Duration::minutes(45);
    world.settle();
    assert!(world.get("w1").unschedulable && world.told(0, "w1").state == NodeState::Staging);
    world.silence("w1", false);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(!world.get("w1").unschedulable);
}

#[test]
fn what_a_node_of_a_deleted_update_says_counts_from_when_it_says_it() {
    let mut world = World::of(&["w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|said| said.state == ReportedState::Upgrading));
    world.wishes.clear();
    world.now += Duration::minutes(40);
    world.agent("w1", 9);
    world.silence("w1", true);
    world.look(usize::MAX);
    assert_eq!(world.get("w1").note.as_ref().unwrap().heard, Some(ReportedState::Rebooting));
    world.now += Duration::minutes(40);
    world.look(usize::MAX);
    assert!(world.get("w1").desired.is_some() && world.get("w1").unschedulable, "its gate may take so long");
    world.now += Duration::minutes(10);
    world.look(usize::MAX);
    assert!(world.get("w1").desired.is_none() && world.get("w1").unschedulable);
}
