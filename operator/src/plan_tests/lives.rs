//! Whole lives of updates, in any order of events: no promise is broken, and every life ends well.

use super::*;

#[derive(Debug, Clone)]
enum Happens {
    Look(usize),
    Agent(usize, u8),
    PodsEnd,
    Later(u16),
    Cordon(usize, bool),
    Ready(usize, bool),
    Vanish(usize),
    /// A node on its way is deleted, and its kubelet registers it anew.
    Anew(usize),
    Join(usize),
    Label(usize),
    Obstacle(usize, bool),
    Silence(usize, bool),
    Pause(usize, bool),
    Abort(usize, bool),
    Retry(usize),
    Ask(u32),
    Delete(usize),
    Release(usize, u32),
    OwnNode(usize),
    MaxUnavailable(usize, u32),
    Image(usize, usize),
    Push(usize, u32),
    Registry(bool),
    Answer,
}

const TAGS: [&str; 2] = ["24.03", "24.09"];

const NAMES: [&str; 7] = ["cp1", "cp2", "cp3", "w1", "w2", "w3", "w4"];

fn happens() -> impl Strategy<Value = Happens> {
    let node = 0..NAMES.len();
    prop_oneof![
        12 => (0usize..6).prop_map(Happens::Look),
        8 => Just(Happens::Look(usize::MAX)),
        24 => (node.clone(), 0u8..8).prop_map(|(node, luck)| Happens::Agent(node, luck)),
        4 => Just(Happens::PodsEnd),
        3 => (1u16..900).prop_map(Happens::Later),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Cordon(node, on)),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Ready(node, on)),
        1 => node.clone().prop_map(Happens::Vanish),
        3 => node.clone().prop_map(Happens::Anew),
        1 => node.clone().prop_map(Happens::Join),
        2 => node.clone().prop_map(Happens::Label),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Obstacle(node, on)),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Silence(node, on)),
        1 => (0usize..3, any::<bool>()).prop_map(|(wish, on)| Happens::Pause(wish, on)),
        1 => (0usize..3, any::<bool>()).prop_map(|(wish, on)| Happens::Abort(wish, on)),
        1 => (0usize..3).prop_map(Happens::Retry),
        1 => (1u32..4).prop_map(Happens::Ask),
        1 => (0usize..3).prop_map(Happens::Delete),
        1 => (0usize..3, 1u32..4).prop_map(|(wish, number)| Happens::Release(wish, number)),
        1 => node.prop_map(Happens::OwnNode),
        1 => (0usize..3, 1u32..4).prop_map(|(wish, max)| Happens::MaxUnavailable(wish, max)),
        1 => (0usize..3, 0usize..2).prop_map(|(wish, tag)| Happens::Image(wish, tag)),
        1 => (0usize..2, 10u32..14).prop_map(|(tag, number)| Happens::Push(tag, number)),
        1 => any::<bool>().prop_map(Happens::Registry),
        6 => Just(Happens::Answer),
    ]
}

impl World {
    /// Until time changes nothing any more either.
    pub(super) fn settle_for_good(&mut self) {
        for _ in 0..100 {
            let before = (self.nodes.clone(), self.wishes.clone());
            self.settle();
            self.now += Duration::hours(1);
            if before == (self.nodes.clone(), self.wishes.clone()) {
                return;
            }
        }
        panic!("it never ends: {self:#?}");
    }

    fn happen(&mut self, what: Happens) {
        let there = |world: &Self, node: usize| world.nodes.iter().any(|seen| seen.name == NAMES[node]);
        match what {
            Happens::Look(steps) => self.look(steps),
            Happens::Agent(node, luck) if there(self, node) => self.agent(NAMES[node], luck),
            Happens::PodsEnd => self.pods_end(),
            Happens::Later(seconds) => self.now += Duration::seconds(seconds.into()),
            Happens::Cordon(node, on) if there(self, node) => {
                let seen = self.get_mut(NAMES[node]).unwrap();
                // Closing what is closed changes nothing, and nobody could tell.
                let by_hand = on && (!seen.unschedulable || seen.cordoned_by.is_none());
                seen.unschedulable = on;
                if by_hand && seen.cordoned_by.is_none() {
                    self.beneath.get_mut(NAMES[node]).unwrap().cordoned_by_hand = true;
                } else if !on {
                    self.beneath.get_mut(NAMES[node]).unwrap().cordoned_by_hand = false;
                }
            }
            Happens::Ready(node, on) if there(self, node) => self.get_mut(NAMES[node]).unwrap().ready = on,
            Happens::Vanish(node) => self.vanish(NAMES[node]),
            Happens::Anew(node) => {
                let on_its_way = |said: &Reported| said.state > ReportedState::Staged && !said.state.is_end();
                let moving = self.nodes.iter().filter(|node| node.report().is_some_and(on_its_way));
                let moving: Vec<String> = moving.map(|node| node.name.clone()).collect();
                if let Some(name) = moving.get(node % moving.len().max(1)) {
                    self.vanish(name);
                    self.join(name);
                }
            }
            Happens::Join(node) => self.join(NAMES[node]),
            Happens::Label(node) => self.label(NAMES[node]),
            Happens::Obstacle(node, on) if there(self, node) => {
                let obstacles = if on { vec!["a budget".to_owned()] } else { Vec::new() };
                self.beneath.get_mut(NAMES[node]).unwrap().obstacles = obstacles;
            }
            Happens::Silence(node, on) if there(self, node) => self.silence(NAMES[node], on),
            Happens::Pause(wish, on) => self.edit(wish, |spec| spec.paused = on),
            Happens::Abort(wish, on) => self.edit(wish, |spec| spec.abort = on),
            Happens::Retry(wish) => self.edit(wish, |spec| spec.retry += 1),
            Happens::Ask(number) if self.wishes.len() < 3 => self.ask(spec(number, 1 + number % 2)),
            Happens::Delete(wish) if wish < self.wishes.len() => {
                self.wishes.remove(wish);
                NAMES.iter().for_each(|name| self.label(name));
            }
            Happens::Release(wish, number) => self.edit(wish, |spec| spec.release = release(number)),
            Happens::OwnNode(node) => self.own_node = Some(NAMES[node].into()),
            Happens::MaxUnavailable(wish, max) => {
                self.edit(wish, |spec| spec.max_unavailable = MaxUnavailable::Count(max));
            }
            Happens::Image(wish, tag) => self.edit(wish, |spec| spec.release = image(TAGS[tag])),
            Happens::Push(tag, number) => self.push(TAGS[tag], number),
            Happens::Registry(there) => self.registry = there.then(BTreeMap::new),
            Happens::Answer => self.answer(),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_life_breaks_a_promise_and_every_life_ends_well(
        window in any::<bool>(),
        soak in 0u32..2,
        force in any::<bool>(),
        max in 1u32..3,
        life in proptest::collection::vec(happens(), 0..250),
    ) {
        let mut world = World::of(&NAMES);
        let mut first = spec(1, max);
        first.strategy.soak_seconds = soak * 60;
        first.strategy.drain.policy = if force { DrainPolicy::Force } else { DrainPolicy::Evict };
        if window {
            let (start, length) = ("22:00".into(), "30m".into());
            first.window = Some(Window { days: vec![], start, length, time_zone: "UTC".into() });
        }
        world.ask(first);
        for what in life {
            world.happen(what);
        }
        // In the end everything is put right.
        for node in &mut world.nodes {
            node.ready = true;
        }
        NAMES.iter().for_each(|name| world.label(name));
        world.beneath.values_mut().for_each(|beneath| beneath.obstacles.clear());
        for (number, tag) in (10..).zip(TAGS) {
            world.push(tag, number);
        }
        for index in 0..world.wishes.len() {
            world.edit(index, |spec| { spec.paused = false; spec.retry += 1; spec.window = None; });
        }
        world.settle_for_good();
        // Whoever is silent, what goes first has come to an end, or says which node is.
        if let Some(wish) = world.wishes.iter().find(|wish| !wish.is_finished(&world.wishes)) {
            let late = |node: &NodeStatus| node.state == NodeState::Staging && node.reason.contains("journalctl");
            let said = wish.status.nodes.iter().any(|node| late(node) || node.state == NodeState::Failed);
            let none = wish.status.nodes.is_empty() && world.nodes.is_empty();
            prop_assert!(said || none, "{:#?}", world);
        }
        world.beneath.values_mut().for_each(|beneath| beneath.silent = false);
        world.settle_for_good();
        for index in 0..world.wishes.len() {
            world.edit(index, |spec| spec.retry += 1);
        }
        world.settle_for_good();
        for wish in &world.wishes {
            let end = if wish.spec.abort { Phase::Aborted } else { Phase::Complete };
            let none = wish.status.nodes.is_empty() && world.nodes.is_empty();
            prop_assert!(wish.status.phase == end || none, "{:#?}", world);
        }
        for node in &world.nodes {
            let by_hand = world.beneath[&node.name].cordoned_by_hand;
            // One that has failed stays closed when its update is called off.
            let called_off = world.wishes.iter().all(|wish| wish.spec.abort);
            prop_assert!(called_off || node.unschedulable == by_hand, "{:#?}", world);
        }
    }
}
