//! Stories: an image that is named by its tag, which its registry says once, later, or never.

use super::*;

fn by_tag(tag: &str) -> UpdateSpec {
    UpdateSpec { release: image(tag), ..UpdateSpec::default() }
}

fn at(number: u32) -> Option<String> {
    Some(format!("registry.example/os@{}", digest(number)))
}

impl World {
    fn told_image(&self, node: &str) -> Option<String> {
        self.get(node).desired.as_ref()?.os.as_ref()?.image.clone()
    }

    fn progressing(&self, index: usize) -> (&str, &str, &str) {
        let condition = &self.wishes[index].status.conditions[0];
        (&condition.status, &condition.reason, &condition.message)
    }
}

#[test]
fn a_tag_is_looked_up_once_and_told_before_any_node_hears_of_it() {
    let mut world = World::of(&["cp1", "w1"]);
    world.push("24.03", 10);
    world.ask(by_tag("24.03"));
    world.look(usize::MAX);
    assert_eq!((world.phase(0), world.questions), (Phase::Pending, 1));
    let said = "0 of 2 nodes are done, 0 at work; looks up registry.example/os:24.03";
    assert_eq!(world.progressing(0), ("False", "LooksUpImage", said));
    assert_eq!(world.wishes[0].status.conditions[1].status, "False", "nothing is wrong");
    world.look(usize::MAX);
    assert_eq!(world.questions, 1, "it is under way");
    world.answer();
    world.look(usize::MAX);
    let found = world.wishes[0].status.image.clone().unwrap();
    assert_eq!((found.asked.as_str(), found.digest, found.at), ("registry.example/os:24.03", digest(10), world.now));
    assert!(world.written.is_empty(), "no node yet: {:?}", world.written);
    // From here on the tag may stand for anything, or be gone.
    world.push("24.03", 11);
    world.settle_until(|world| world.began() == ["cp1"]);
    world.registry = None;
    world.settle();
    assert_eq!((world.phase(0), world.questions), (Phase::Complete, 1));
    assert_eq!([world.told_image("cp1"), world.told_image("w1")], [at(10), at(10)]);
    assert_eq!(world.wishes[0].status.release.clone().unwrap().os.unwrap().image, at(10));
    assert_eq!((world.beneath["cp1"].runs, world.beneath["w1"].runs), (10, 10));
}

#[test]
fn nothing_happens_to_a_finished_update_when_its_tag_moves() {
    let mut world = World::of(&["w1", "w2"]);
    world.push("24.03", 10);
    world.ask(by_tag("24.03"));
    world.settle();
    let written = world.written.len();
    world.push("24.03", 11);
    world.lookups.clear();
    world.settle_for_good();
    assert_eq!((world.phase(0), world.written.len(), world.questions), (Phase::Complete, written, 1));
    // Nor when its owner changes something else of it.
    world.edit(0, |spec| spec.max_unavailable = MaxUnavailable::Count(2));
    world.edit(0, |spec| spec.retry += 1);
    world.settle_for_good();
    assert_eq!((world.phase(0), world.written.len(), world.questions), (Phase::Complete, written, 1));
    // A new update is another wish.
    world.ask(by_tag("24.03"));
    world.settle_for_good();
    assert_eq!((world.phase(1), world.questions), (Phase::Complete, 2));
    assert_eq!([world.told_image("w1"), world.told_image("w2")], [at(11), at(11)]);
}

#[test]
fn what_a_registry_refuses_is_said_and_asked_again_ever_more_seldom() {
    let mut world = World::of(&["cp1", "w1"]);
    world.ask(by_tag("24.03"));
    let began = world.now;
    let mut asked = Vec::new();
    while world.now < began + Duration::seconds(200) {
        let before = world.questions;
        world.look(usize::MAX);
        if world.questions > before {
            asked.push((world.now - began).whole_seconds());
        }
        world.answer();
        world.now += Duration::SECOND;
    }
    assert_eq!(asked, [0, 5, 15, 35, 75, 135, 195]);
    let (status, reason, message) = world.progressing(0);
    let said = "looks up registry.example/os:24.03, again 60 s after each failure: there is no such tag";
    assert_eq!((status, reason), ("False", "ImageUnknown"));
    assert!(message.ends_with(said), "{message}");
    let degraded = &world.wishes[0].status.conditions[1];
    assert_eq!(
        (degraded.status.as_str(), degraded.reason.as_str(), degraded.message.as_str()),
        ("True", "ImageUnknown", said)
    );
    assert_eq!((world.phase(0), world.written.len()), (Phase::Pending, 0));
    // Somebody pushes it.
    world.push("24.03", 10);
    world.now += Duration::MINUTE;
    world.settle_for_good();
    assert_eq!(world.phase(0), Phase::Complete);
    assert_eq!(world.wishes[0].status.conditions[1].status, "False");
}

#[test]
fn another_name_is_looked_up_and_nothing_is_known_of_it_by_the_one_before() {
    let mut world = World::of(&["cp1", "w1"]);
    world.push("24.03", 10);
    world.ask(by_tag("24.03"));
    world.settle_until(|world| world.began() == ["cp1"]);
    world.edit(0, |spec| spec.release = image("24.09"));
    world.settle();
    // The node that had not begun in earnest is given back, and the status says nothing of the image before.
    assert_eq!(world.began(), ["cp1"]);
    assert!(!world.get("cp1").unschedulable);
    assert_eq!((world.phase(0), world.wishes[0].status.image.clone()), (Phase::Pending, None));
    // And back again: the tag may have moved.
    world.push("24.03", 12);
    world.edit(0, |spec| spec.release = image("24.03"));
    world.settle_for_good();
    assert_eq!(world.phase(0), Phase::Complete);
    assert_eq!([world.told_image("cp1"), world.told_image("w1")], [at(12), at(12)]);
    // By a commit there is nothing to look up, and nothing that was.
    world.edit(0, |spec| spec.release = release(3));
    world.settle_for_good();
    assert_eq!((world.phase(0), world.wishes[0].status.image.clone()), (Phase::Complete, None));
}

#[test]
fn an_operator_that_is_killed_between_the_answer_and_its_writing_asks_again() {
    let mut world = World::of(&["w1", "w2"]);
    world.push("24.03", 10);
    world.ask(by_tag("24.03"));
    world.look(usize::MAX);
    world.answer();
    // Before the first step of its next look.
    world.look(0);
    assert_eq!(world.wishes[0].status.image, None);
    world.push("24.03", 11);
    world.settle();
    assert_eq!((world.phase(0), world.questions), (Phase::Complete, 2));
    assert_eq!([world.told_image("w1"), world.told_image("w2")], [at(11), at(11)]);
}

#[test]
fn it_is_looked_up_out_of_turn_and_out_of_hours_and_not_for_what_was_called_off() {
    let mut world = World::of(&["w1"]);
    world.push("24.03", 10);
    world.ask(UpdateSpec { paused: true, ..spec(1, 1) });
    let (start, length) = ("03:00".into(), "1h".into());
    let window = Some(Window { days: vec![], start, length, time_zone: "UTC".into() });
    world.ask(UpdateSpec { window, ..by_tag("24.03") });
    world.ask(UpdateSpec { abort: true, ..by_tag("24.03") });
    world.settle();
    assert_eq!(world.questions, 1);
    assert_eq!((world.phase(0), world.phase(1), world.phase(2)), (Phase::Paused, Phase::Pending, Phase::Aborted));
    assert_eq!(world.wishes[1].status.image.clone().unwrap().digest, digest(10));
    assert_eq!(world.progressing(1).1, "AnotherUpdate");
    assert_eq!(world.wishes[2].status.image, None);
}

#[test]
fn two_updates_of_one_tag_know_it_each_for_itself() {
    let mut world = World::of(&["w1"]);
    world.push("24.03", 10);
    world.ask(by_tag("24.03"));
    world.settle_until(|world| world.wishes[0].status.image.is_some());
    world.push("24.03", 11);
    world.ask(by_tag("24.03"));
    world.settle_for_good();
    let known = |index: usize| world.wishes[index].status.image.clone().unwrap().digest;
    assert_eq!((known(0), known(1), world.questions), (digest(10), digest(11), 2));
    assert_eq!(world.told_image("w1"), at(11), "the newer one came last");
}
