//! Stories: a state taken through events, one after the other, where the order of them is what matters.

use super::*;

/// Takes a state through events; what the last one gave.
fn through<const N: usize>(mut state: State, events: [Event; N], now: Now) -> (State, Vec<Action>) {
    let mut actions = Vec::new();
    for event in events {
        (state, actions) = state.step(event, now);
    }
    (state, actions)
}

/// The node after so many boots, on this deployment, with these failed units.
fn seen(boot: u32, booted: &str, failed: &[&str]) -> Event {
    let all = if booted == NEW { vec![NEW, OLD] } else { vec![OLD] };
    let deployment = |id: &str| Deployment { id: id.into(), booted: id == booted, staged: false };
    Event::Seen(Ok(System {
        boot_id: boot.to_string(),
        deployments: all.into_iter().map(deployment).collect(),
        finalize_failure: None,
        kubernetes: Some("v1".into()),
        plane: None,
        failed_units: failed.iter().map(|unit| (*unit).to_owned()).collect(),
        caution: None,
    }))
}

fn staged(restart: bool) -> Event {
    Event::Ended(Ok(Some(Tree { restart })))
}

/// A node that was told to begin and has: with this release, after `early.service` had failed.
fn begun(wanted: &Desired) -> (State, Vec<Action>) {
    let now = World::new(Release::Good, wanted.clone()).now();
    let asked = |go| Event::Desired(Some(Desired { go, ..wanted.clone() }), None);
    let early = || seen(1, OLD, &["early.service"]);
    through(
        State::new(Settings::default(), Journal::default()),
        [seen(1, OLD, &[]), asked(false), early(), staged(true), asked(true), early()],
        now,
    )
}

/// It runs what is asked for: there is nothing to touch, and so nothing to refuse.
#[test]
fn a_node_that_runs_the_release_already_is_looked_at_whatever_it_is_told() {
    for go in [false, true] {
        let mut world = World::new(Release::Good, Desired { go, ..desired(1) });
        (world.deployments, world.booted) = (vec![NEW, OLD], NEW);
        assert!(run(&mut world, &[], usize::MAX, 500));
        assert_eq!((world.reported.clone().unwrap().state, world.boot, world.kubeadm), (ReportedState::Healthy, 1, 0));
    }
}

/// The release did not come up, when this update was asked for so many times.
fn denied(update: &str, retry: u32) -> Denied {
    let (reason, at) = ("it did not come up".to_owned(), OffsetDateTime::UNIX_EPOCH);
    Denied { id: NEW.into(), reason, update: update.into(), uid: "u1".into(), retry, at }
}

/// Its `retry` is that of the object before: nobody has raised it since.
#[test]
fn an_update_that_was_deleted_and_made_anew_is_no_wish_of_a_person() {
    let now = World::new(Release::Good, desired(1)).now();
    let begins = |denied: Denied, asked: Desired| {
        // What an agent of before has kept reads too.
        let mut kept = serde_json::to_value(Journal { job: None, denied: vec![denied.clone()] }).unwrap();
        if denied.update.is_empty() {
            assert!(kept["denied"][0].as_object_mut().unwrap().remove("update").is_some());
        }
        let journal = serde_json::from_value(kept).unwrap();
        let state = State::new(Settings::default(), journal);
        let asked = Event::Desired(Some(asked), None);
        let (state, _) = through(state, [seen(1, OLD, &[]), asked, seen(1, OLD, &[])], now);
        state.journal().job.as_ref().unwrap().stage == Stage::Stage
    };
    let asks = |update: &str, uid: &str, retry| {
        let (update, uid) = (update.into(), uid.into());
        Desired { update, uid, retry: Some(retry), ..desired(2) }
    };
    assert!(!begins(denied("nkd-1", 1), asks("nkd-1", "u2", 1)), "the same object, made anew");
    assert!(begins(denied("nkd-1", 1), asks("nkd-1", "u2", 2)), "somebody has raised it");
    assert!(begins(denied("nkd-1", 1), asks("nkd-2", "u2", 1)), "another update, which somebody has asked again");
    assert!(!begins(denied("nkd-1", 1), asks("nkd-2", "u2", 0)));
    assert!(!begins(denied("", 1), asks("nkd-1", "u1", 1)) && begins(denied("", 1), asks("nkd-1", "u1", 2)));
}

/// Nothing was tried by it: a release that was refused stays refused.
#[test]
fn a_turn_that_is_refused_takes_no_refused_release_back() {
    let now = World::new(Release::Good, desired(1)).now();
    let denied = denied("u", 0);
    let journal = Journal { job: None, denied: vec![denied.clone()] };
    let asked = Event::Desired(Some(Desired { go: true, retry: Some(1), ..desired(2) }), None);
    let (state, actions) =
        through(State::new(Settings::default(), journal), [seen(1, OLD, &[]), asked, seen(1, OLD, &[])], now);
    assert!(actions.iter().all(|action| !matches!(action, Action::Stage(_) | Action::Check(_))), "{actions:?}");
    assert_eq!((state.report().unwrap().state, &state.journal().denied), (ReportedState::RolledBack, &vec![denied]));
}

/// Before the restart only kubeadm can have broken a unit. So whatever has failed when a release is begun once more is not its
/// doing, unless its kubeadm was begun, or it runs already.
#[test]
fn what_fails_between_two_begins_is_held_against_kubeadm_alone() {
    let now = World::new(Release::Good, desired(1)).now();
    let os_alone = Desired { kubernetes: None, go: true, ..desired(1) };
    let both = Desired { go: true, ..desired(1) };
    let before = |state: &State| state.journal().job.as_ref().unwrap().failed_before.clone();
    // The power is cut, and something fails on the system before.
    let again = |journal: Journal, booted: &str| {
        let late = || seen(2, booted, &["late.service"]);
        through(State::new(Settings::default(), journal), [late(), staged(booted == OLD), late()], now)
    };
    let (state, actions) = begun(&os_alone);
    assert_eq!((actions.last(), before(&state)), (Some(&Action::Arm(NEW.into())), vec!["early.service".to_owned()]));
    let (after, actions) = again(state.journal().clone(), OLD);
    assert_eq!((actions.last(), before(&after)), (Some(&Action::Arm(NEW.into())), vec!["late.service".to_owned()]));
    // It is fetched once more, and somebody restarts the node into it meanwhile.
    let mut journal = state.journal().clone();
    journal.job.as_mut().unwrap().stage = Stage::Stage;
    let (after, actions) = again(journal, NEW);
    assert!(matches!(actions.last(), Some(Action::Check(_))), "{actions:?}");
    assert_eq!(before(&after), ["early.service"]);

    let (state, actions) = begun(&both);
    assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
    assert!(state.journal().job.as_ref().unwrap().kubeadm_began, "it runs, and the journal does not say so");
    let (after, actions) = again(state.journal().clone(), OLD);
    assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
    assert_eq!(before(&after), ["early.service"]);
    // The journals of an older agent: in its kubeadm, and after it.
    let older = |change: &dyn Fn(&mut Job)| {
        let mut journal = state.journal().clone();
        let job = journal.job.as_mut().unwrap();
        job.kubeadm_began = false;
        change(job);
        let mut text = serde_json::to_value(&journal).unwrap();
        assert!(text["job"].as_object_mut().unwrap().remove("kubeadmBegan").is_some());
        serde_json::from_value::<Journal>(text).unwrap()
    };
    let in_kubeadm = older(&|_| {});
    let after_kubeadm = older(&|job| (job.stage, job.kubeadm) = (Stage::Arm, true));
    for journal in [in_kubeadm, after_kubeadm] {
        let (after, _) = again(journal, OLD);
        assert_eq!(before(&after), ["early.service"]);
    }
}

/// A node whose kubeadm was cut off fetches its release again, which touches nothing; what it has touched already stays. It goes on,
/// whatever is asked for. One that was only about to restart may be called off.
#[test]
fn a_kubeadm_that_was_cut_off_is_neither_called_off_nor_replaced() {
    let now = World::new(Release::Good, desired(1)).now();
    let both = Desired { go: true, ..desired(1) };
    let os_alone = Desired { kubernetes: None, ..both.clone() };
    let other = Desired { uid: "u2".into(), ..both.clone() };
    let changed = Desired { kubernetes: Some("v3".into()), ..both.clone() };
    let paused = Desired { go: false, ..both.clone() };
    let cut_off = |wanted: &Desired, boot: u32| {
        let journal = begun(wanted).0.journal().clone();
        through(State::new(Settings::default(), journal), [seen(boot, OLD, &[])], now)
    };
    let stage = |state: &State| state.journal().job.as_ref().unwrap().stage;
    let away = || Event::Ended(Err(Failure { retry: Retry::Patiently, reason: "the service is away".into() }));
    for asked in [None, Some(other), Some(changed), Some(paused.clone())] {
        let asked = || Event::Desired(asked.clone(), None);
        for boot in [1, 2] {
            let (state, actions) = cut_off(&both, boot);
            assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
            let (state, actions) = through(state, [asked(), staged(true), asked(), seen(boot, OLD, &[])], now);
            assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
            let job = state.journal().job.as_ref().unwrap();
            assert_eq!((&job.desired, job.kubeadm_began), (&both, true));
        }
        // Its release cannot be had any more: it fails as ever.
        let mut state = cut_off(&both, 2).0;
        let mut at = now;
        for _ in 0..STAGE_TRIES {
            assert_eq!(stage(&state), Stage::Stage);
            let failed = Event::Ended(Err(Failure { retry: Retry::Few, reason: "it is gone".into() }));
            (state, _) = through(state, [asked(), failed, asked()], at);
            at.uptime = state.deadline().unwrap_or(at.uptime);
            (state, _) = state.step(Event::Tick, at);
        }
        assert_eq!(stage(&state), Stage::Settle);
        // It was away and is not any more: what fails then is tried again.
        let (state, _) = through(cut_off(&both, 2).0, [away()], now);
        let later = Now { uptime: state.deadline().unwrap(), ..now };
        let fails = Event::Ended(Err(Failure { retry: Retry::Few, reason: "no room".into() }));
        let (state, _) = through(state, [Event::Tick, fails, asked()], later);
        assert_eq!(stage(&state), Stage::Stage);
        // The service is away, for ever perhaps: then it goes back, and the release may be tried again.
        let (state, _) = cut_off(&both, 2);
        let (state, actions) = through(state, [away(), asked()], now);
        let same = matches!(asked(), Event::Desired(Some(desired), _) if desired == paused);
        let expected = if same { Stage::Stage } else { Stage::Settle };
        assert_eq!(stage(&state), expected, "{actions:?}");
        if !same {
            let (state, _) = through(state, [Event::Ended(Ok(None))], now);
            let said = state.report().unwrap();
            assert_eq!((said.state, state.journal().denied.len()), (ReportedState::RolledBack, 0));
            assert!(said.detail.contains("the service is away"), "{}", said.detail);
        }
    }
    for boot in [1, 2] {
        let (state, _) = cut_off(&os_alone, boot);
        let (state, actions) = through(state, [staged(true), Event::Desired(None, None)], now);
        assert_eq!(stage(&state), Stage::CalledOff, "{actions:?}");
        let (state, _) = through(state, [seen(boot, OLD, &[]), Event::Ended(Ok(None))], now);
        assert!(state.journal().job.is_none());
    }
}

/// What a kubeadm left that was cut off, and would have put back itself, is put back when it does not come up in the gate's time and
/// nobody else is to blame. Who else is away is waited for, however long.
#[test]
fn static_pods_that_a_kubeadm_left_half_replaced_are_put_back() {
    let both = Desired { go: true, ..desired(1) };
    for (gate, limit) in [(900, 900), (60, 420)] {
        let settings = Settings { gate: Duration::from_secs(gate), ..Settings::default() };
        half_replaced(&both, settings, Duration::from_secs(limit));
    }
}

fn half_replaced(both: &Desired, settings: Settings, limit: Duration) {
    let mut now = World::new(Release::Good, both.clone()).now();
    let journal = begun(both).0.journal().clone();
    let state = State::new(settings, journal);
    let (mut state, actions) = through(state, [seen(2, OLD, &[]), staged(true), seen(2, OLD, &[])], now);
    assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
    let away = |retry| Event::Ended(Err(Failure { retry, reason: "its API does not answer".into() }));
    let mut wait = |mut state: State, retry: Retry, limit: Duration| {
        let since = now.uptime;
        while now.uptime < since + limit {
            let actions;
            (state, actions) = state.step(away(retry), now);
            let stage = state.journal().job.as_ref().unwrap().stage;
            if stage != Stage::Kubeadm {
                return (state, actions, now.uptime - since);
            }
            now.uptime = state.deadline().expect("it waits for ever");
            let (after, actions) = state.step(Event::Tick, now);
            assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
            state = after;
        }
        (state, Vec::new(), limit)
    };
    let ends = |state: &State| state.journal().job.as_ref().unwrap().put_back;
    for _ in 0..2 {
        // For a while its own, and then somebody else's for a day: the while begins anew.
        (state, _, _) = wait(state, Retry::ForAWhile, limit - Duration::from_secs(60));
        assert!(!ends(&state));
        (state, _, _) = wait(state, Retry::Patiently, Duration::from_secs(86_400));
        assert!(!ends(&state));
    }
    let (state, actions, took) = wait(state, Retry::ForAWhile, 2 * limit);
    assert!(took >= limit && ends(&state), "{took:?}");
    assert_eq!(actions.last(), Some(&Action::Settle));
    assert!(matches!(actions.first(), Some(Action::Remember(kept)) if kept.job.as_ref().unwrap().put_back));
    let (state, _) = through(state, [Event::Ended(Ok(None))], now);
    let told = state.report().unwrap();
    assert_eq!((told.state, state.journal().denied.len()), (ReportedState::RolledBack, 0));
    assert!(told.detail.contains("its API does not answer; they were put back"), "{}", told.detail);
}

/// The same where the release cannot be had any more: what was kept is not given up before.
#[test]
fn what_a_kubeadm_left_is_put_back_also_when_its_release_is_given_up() {
    let both = Desired { go: true, ..desired(1) };
    let mut now = World::new(Release::Good, both.clone()).now();
    let journal = begun(&both).0.journal().clone();
    let (mut state, _) = through(State::new(Settings::default(), journal), [seen(2, OLD, &[])], now);
    let fails = |retry, why: &str| Event::Ended(Err(Failure { retry, reason: why.into() }));
    let on = |state: State, event: Event, now: &mut Now| {
        let (state, actions) = state.step(event, *now);
        if !actions.is_empty() && !matches!(actions.last(), Some(Action::Say(_))) {
            return (state, actions);
        }
        now.uptime = state.deadline().expect("it waits for ever");
        state.step(Event::Tick, *now)
    };
    for _ in 0..STAGE_TRIES {
        (state, _) = on(state, fails(Retry::Few, "it is gone"), &mut now);
    }
    let job = |state: &State| state.journal().job.clone().unwrap();
    assert_eq!(job(&state).stage, Stage::Settle);
    // Others are away for a day, and then nobody is.
    for (retry, seconds) in [(Retry::Patiently, 86_400), (Retry::ForAWhile, 900)] {
        let since = now.uptime;
        while now.uptime < since + Duration::from_secs(seconds) {
            assert!(job(&state).stage == Stage::Settle && !job(&state).put_back);
            let actions;
            (state, actions) = on(state, fails(retry, "they do not come up"), &mut now);
            assert_eq!(actions.last(), Some(&Action::Settle));
        }
    }
    let told = state.report().unwrap().detail;
    assert!(told.contains("it is gone; it waits: they do not come up"), "{told}");
    (state, _) = on(state, fails(Retry::ForAWhile, "they do not come up"), &mut now);
    assert!(job(&state).put_back);
    (state, _) = through(state, [Event::Ended(Ok(None))], now);
    let told = state.report().unwrap();
    assert_eq!(told.state, ReportedState::RolledBack);
    assert!(told.detail.contains("it is gone") && told.detail.contains("they were put back"), "{}", told.detail);
}

/// It takes the agent with it, or the node, whenever it runs: that is not tried for ever.
#[test]
fn what_is_cut_off_each_time_is_given_up() {
    let both = Desired { go: true, ..desired(1) };
    let os_alone = Desired { kubernetes: None, ..both.clone() };
    // With the agent, and by the node's power.
    for boots in [false, true] {
        cut_off_each_time(&both, boots, |action| matches!(action, Action::Kubeadm(_)));
        cut_off_each_time(&os_alone, boots, |action| matches!(action, Action::Arm(_)));
    }
}

fn cut_off_each_time(wanted: &Desired, boots: bool, is_it: fn(&Action) -> bool) {
    let now = World::new(Release::Good, wanted.clone()).now();
    let mut state = begun(wanted).0;
    for cut in 1..=CUTS {
        let boot = if boots { 1 + cut } else { 1 };
        let (after, actions) =
            through(State::new(Settings::default(), state.journal().clone()), [seen(boot, OLD, &[])], now);
        if cut == CUTS {
            assert_eq!(actions.last(), Some(&Action::Settle));
            let (state, _) = through(after, [Event::Ended(Ok(None))], now);
            let told = state.report().unwrap();
            assert_eq!(told.state, ReportedState::RolledBack);
            assert!(told.detail.contains("that makes 10 times"), "{}", told.detail);
            assert!(state.journal().denied.is_empty(), "nobody knows that the release is to blame");
            return;
        }
        let (after, actions) = through(after, [staged(true), seen(boot, OLD, &[])], now);
        assert!(actions.last().is_some_and(is_it), "{cut}: {actions:?}");
        assert_eq!(after.journal().job.as_ref().unwrap().restaged, 0, "that says nothing of the release");
        state = after;
    }
}

/// While it was put away the boot loader has gone back to the release: it does not stay there.
#[test]
fn a_release_that_was_given_up_and_runs_after_all_is_left() {
    let now = World::new(Release::NoBoot, desired(1)).now();
    let job = Job { stage: Stage::Settle, condemned: true, reason: "it did not come up".into(), ..at_the_gate() };
    let journal = Journal { job: Some(job), denied: Vec::new() };
    let (state, actions) = through(State::new(Settings::default(), journal.clone()), [seen(2, NEW, &[])], now);
    assert_eq!(actions.last(), Some(&Action::Revert));
    assert_ne!(state.report().unwrap().state, ReportedState::RolledBack);
    let (_, actions) = through(State::new(Settings::default(), journal), [seen(2, OLD, &[])], now);
    assert_eq!(actions.last(), Some(&Action::Settle));
}

#[test]
fn a_turn_that_comes_while_the_node_is_looked_at_begins() {
    let world = World::new(Release::Good, desired(1));
    let seen = || Event::Seen(Ok(world.system()));
    let asked = |go| Event::Desired(Some(Desired { go, ..desired(1) }), None);
    let staged = Event::Ended(Ok(Some(Tree { restart: true })));
    let mut state = State::new(Settings::default(), Journal::default());
    for event in [asked(false), seen(), staged, asked(true), asked(true)] {
        (state, _) = state.step(event, world.now());
    }
    let (_, actions) = state.step(seen(), world.now());
    assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
}

/// Whoever gives a node its turn reads what it waits for.
#[test]
fn a_caution_is_told_while_a_node_that_will_restart_waits_for_its_turn() {
    let world = World::new(Release::Good, desired(1));
    let detail = |restart: bool, caution: Option<&'static str>| {
        let seen = || Event::Seen(Ok(System { caution, ..world.system() }));
        let state = State::new(Settings::default(), Journal::default());
        let asked = Event::Desired(Some(desired(1)), None);
        let (state, _) = through(state, [seen(), asked, seen(), staged(restart)], world.now());
        let said = state.report().unwrap();
        assert_eq!(said.state, ReportedState::Staged);
        said.detail
    };
    assert_eq!(detail(true, Some("beware")), "waiting for its turn: beware");
    assert_eq!([detail(true, None), detail(false, Some("beware"))], ["waiting for its turn"; 2]);
}

/// Nobody asks again for it: the cluster may be away by then.
#[test]
fn a_look_that_fails_is_taken_again() {
    let world = World::new(Release::Good, desired(1));
    let wanted = |go| Event::Desired(Some(Desired { go, ..desired(1) }), None);
    let fails = || Event::Seen(Err("systemctl does not answer".into()));
    let mut state = State::new(Settings::default(), Journal::default());
    let mut now = world.now();
    let waits = |(state, actions): (State, Vec<Action>), now: Now| {
        assert!(actions.iter().all(|action| matches!(action, Action::Say(_) | Action::Tell(_))), "{actions:?}");
        let later = Now { uptime: state.deadline().expect("it waits for ever"), ..now };
        assert!(later.uptime > now.uptime);
        let (state, actions) = state.step(Event::Tick, later);
        assert_eq!(actions.last(), Some(&Action::Look));
        (state, later)
    };
    // When the agent starts, when an update begins, and when its turn has come.
    (state, now) = waits(through(state, [Event::Tick, fails()], now), now);
    (state, now) = waits(through(state, [seen(1, OLD, &[]), wanted(false), fails()], now), now);
    (state, now) = waits(through(state, [seen(1, OLD, &[]), staged(true), wanted(true), fails()], now), now);
    let (_, actions) = through(state, [seen(1, OLD, &[])], now);
    assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
}

#[test]
fn what_runs_already_is_only_looked_at() {
    let mut world = World::new(Release::Good, desired(1));
    (world.deployments, world.booted) = (vec![NEW, OLD], NEW);
    assert!(run(&mut world, &[], usize::MAX, 500), "without its turn");
    assert_eq!((world.boot, world.kubeadm, world.passed), (1, 0, true));
    // The same again, by another update; then something else.
    world.desired = Some(Desired { uid: "u2".into(), ..desired(1) });
    assert!(run(&mut world, &[], usize::MAX, 500));
    world.desired = Some(Desired { uid: "u3".into(), kubernetes: Some("v3".into()), ..desired(1) });
    assert!(!run(&mut world, &[], usize::MAX, 500));
}

fn plane(server: &str, config: &str) -> Option<Plane> {
    Some(Plane { server: Some(server.into()), config: Ok(Some(config.into())) })
}

/// One that has joined with it.
#[test]
fn a_control_plane_that_kubeadm_made_of_the_release_is_only_looked_at() {
    let mut world = World::new(Release::Good, desired(1));
    (world.deployments, world.booted, world.plane) = (vec![NEW, OLD], NEW, plane("v2", "v2"));
    assert!(run(&mut world, &[], usize::MAX, 500), "without its turn");
    assert_eq!((world.boot, world.kubeadm, world.passed), (1, 0, true));
}

/// The release runs, and kubeadm has not: etcd came back from the snapshot before the upgrade, or somebody, or zincati, has
/// brought the node there. It is staged, and kubeadm runs in its turn, without a restart.
#[test]
fn a_control_plane_that_runs_the_release_without_its_kubeadm_is_upgraded() {
    for (healthy_before, of) in [(true, plane("v2", "v1")), (false, plane("v1", "v1")), (false, plane("v1", "v2"))] {
        let mut world = World::new(Release::Good, desired(1));
        (world.deployments, world.booted, world.plane) = (vec![NEW, OLD], NEW, plane("v2", "v2"));
        if healthy_before {
            assert!(run(&mut world, &[], usize::MAX, 500));
        }
        (world.plane, world.desired) = (of, Some(Desired { uid: "u2".into(), ..desired(1) }));
        assert!(!run(&mut world, &[], usize::MAX, 300));
        assert_eq!((world.reported.as_ref().unwrap().state, world.kubeadm), (ReportedState::Staged, 0));
        assert!(run(&mut world, &[], 0, 500));
        assert_eq!((world.reported.unwrap().state, world.boot, world.kubeadm), (ReportedState::Healthy, 1, 1));
        // Without Kubernetes it is none of its business.
        let world = World::new(Release::Good, Desired { kubernetes: None, ..desired(1) });
        let mut world = World { deployments: vec![NEW], booted: NEW, plane: plane("v1", "v1"), ..world };
        assert!(run(&mut world, &[], usize::MAX, 500), "without its turn");
    }
}

#[test]
fn an_api_that_does_not_say_how_far_its_cluster_is_is_asked_again() {
    let mut now = World::new(Release::Good, desired(1)).now();
    let look = |of: Option<Plane>| match seen(1, NEW, &[]) {
        Event::Seen(Ok(system)) => Event::Seen(Ok(System { kubernetes: Some("v2".into()), plane: of, ..system })),
        _ => unreachable!(),
    };
    let away = || look(Some(Plane { server: Some("v2".into()), config: Err("away".into()) }));
    let asked = || Event::Desired(Some(desired(1)), None);
    let (mut state, _) = through(State::new(Settings::default(), Journal::default()), [away(), asked()], now);
    for round in 0..3 {
        // Whether or not it is asked for once more meanwhile.
        let (mut after, mut actions) = through(state, [away()], now);
        if round > 0 {
            (after, actions) = through(after, [asked()], now);
        }
        assert!(after.journal().job.is_none(), "it was begun: {actions:?}");
        assert!(!actions.contains(&Action::Look), "it is looked at without a pause");
        now.uptime = after.deadline().expect("it waits for ever");
        let actions;
        (state, actions) = after.step(Event::Tick, now);
        assert_eq!(actions, [Action::Look], "{round}");
    }
    // It may be that it never says: what is wrong comes out when kubeadm runs.
    let late = Now { uptime: now.uptime + Duration::from_secs(600), ..now };
    let (_, actions) = through(state.clone(), [away()], late);
    assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
    let (there, actions) = through(state.clone(), [look(plane("v2", "v2"))], now);
    assert!(matches!(actions.last(), Some(Action::Check(_))), "{actions:?}");
    assert_eq!(there.journal().job.as_ref().unwrap().desired, desired(1));
    let (_, actions) = through(state, [look(plane("v2", "v1"))], now);
    assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
}

/// A release that runs and has not passed its gate yet.
fn at_the_gate() -> Job {
    Job {
        desired: Desired { go: true, ..desired(1) },
        stage: Stage::Check,
        boot_id: "1".into(),
        from: Some(OLD.into()),
        failed_before: Vec::new(),
        kubeadm_began: true,
        cuts: 0,
        kubeadm: true,
        restaged: 0,
        reason: String::new(),
        condemned: false,
        put_back: false,
    }
}

#[test]
fn another_update_waits_for_the_end_of_the_one_that_has_begun() {
    let settings = Settings::default();
    let world = World::new(Release::Good, desired(1));
    let job = at_the_gate();
    let mut system = world.system();
    system.deployments = vec![Deployment { id: NEW.into(), booted: true, staged: false }];
    let state = State::new(settings, Journal { job: Some(job), denied: Vec::new() });
    let (state, _) = state.step(Event::Seen(Ok(system.clone())), world.now());
    let other = Desired { uid: "u2".into(), ..desired(1) };
    let (state, _) = state.step(Event::Desired(Some(other.clone()), None), world.now());
    assert_eq!(state.journal().job.as_ref().unwrap().desired.uid, "u1");
    let (state, _) = state.step(Event::Checked(Ok(system.clone())), world.now());
    let later = Now { uptime: world.uptime + settings.steady, ..world.now() };
    let (state, actions) = state.step(Event::Tick, later);
    assert!(matches!(actions.last(), Some(Action::Check(_))), "{actions:?}");
    let (state, actions) = state.step(Event::Checked(Ok(system.clone())), later);
    assert_eq!(actions.last(), Some(&Action::Confirm));
    let (state, _) = state.step(Event::Ended(Ok(None)), later);
    assert_eq!(state.report().unwrap().state, ReportedState::Healthy);
    let (state, actions) = state.step(Event::Desired(Some(other), None), later);
    assert_eq!(actions.last(), Some(&Action::Look), "what is known of the node is old");
    let (state, _) = state.step(Event::Seen(Ok(system)), later);
    assert_eq!(state.journal().job.as_ref().unwrap().desired.uid, "u2");
}

/// A worker whose API is away for longer than its gate goes back: nobody knows whether it is well. The release is not to blame, and
/// may be tried again; an ill one is, and may not.
#[test]
fn a_release_is_not_to_blame_for_an_api_that_is_away() {
    let settings = Settings::default();
    for (ill, denied) in [(Ill::Unknown("away".into()), 0), (Ill::Node("ill".into()), 1)] {
        let world = World::new(Release::Good, desired(1));
        let job = at_the_gate();
        let mut system = world.system();
        let deployment = |id: &str, booted| Deployment { id: id.into(), booted, staged: false };
        system.deployments = vec![deployment(NEW, true), deployment(OLD, false)];
        let state = State::new(settings, Journal { job: Some(job), denied: Vec::new() });
        let (state, _) = state.step(Event::Seen(Ok(system.clone())), world.now());
        let (state, _) = state.step(Event::Checked(Err(ill.clone())), world.now());
        assert_eq!(state.journal().job.as_ref().unwrap().stage, Stage::Check);
        let later = Now { uptime: world.uptime + settings.gate, ..world.now() };
        let (state, _) = state.step(Event::Tick, later);
        let (state, actions) = state.step(Event::Checked(Err(ill)), later);
        assert_eq!(actions.last(), Some(&Action::Revert));
        let (state, _) = state.step(Event::Ended(Ok(None)), later);
        // The restart, and what was there before.
        system.boot_id = "2".into();
        system.deployments = vec![deployment(OLD, true), deployment(NEW, false)];
        let state = State::new(settings, state.journal().clone());
        let (state, actions) = state.step(Event::Seen(Ok(system)), world.now());
        assert_eq!(actions.last(), Some(&Action::Settle));
        let (state, _) = state.step(Event::Ended(Ok(None)), world.now());
        assert_eq!(state.report().unwrap().state, ReportedState::RolledBack);
        assert_eq!(state.journal().denied.len(), denied);
    }
}

/// The gate's time begins with its first look, not when that has come to its end.
#[test]
fn a_first_look_that_takes_as_long_as_the_gate_is_the_last() {
    let now = World::new(Release::Good, desired(1)).now();
    let journal = Journal { job: Some(at_the_gate()), denied: Vec::new() };
    let (state, actions) = through(State::new(Settings::default(), journal), [seen(1, NEW, &[])], now);
    assert!(matches!(actions.last(), Some(Action::Check(_))), "{actions:?}");
    let later = Now { uptime: now.uptime + Settings::default().gate, ..now };
    let (_, actions) = through(state, [Event::Checked(Err(Ill::Node("it hangs".into())))], later);
    assert_eq!(actions.last(), Some(&Action::Revert));
}

#[test]
fn an_image_is_known_by_its_digest() {
    let image = |text: &str| OsRelease { commit: None, image: Some(text.into()), version: None };
    assert_eq!(id_of(&image("registry.example/os@sha256:ab")), Some("sha256:ab"));
    assert_eq!(id_of(&image("sha256:ab")), Some("sha256:ab"));
    assert_eq!(id_of(&OsRelease::default()), None);
}

#[test]
fn a_release_waits_for_a_service_that_is_away_and_its_tries_are_kept() {
    let mut world = World::new(Release::Good, desired(1));
    let state = State::new(Settings::default(), Journal::default());
    let (state, _) = state.step(Event::Seen(Ok(world.system())), world.now());
    let (state, _) = state.step(Event::Desired(Some(desired(1)), None), world.now());
    let (mut state, actions) = state.step(Event::Seen(Ok(world.system())), world.now());
    assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
    let mut fails = |mut state: State, retry: Retry| {
        let failure = Failure { retry, reason: "away".into() };
        (state, _) = state.step(Event::Ended(Err(failure)), world.now());
        let next = state.deadline().unwrap_or(world.uptime);
        let waited = next - world.uptime;
        world.uptime = next;
        let (state, actions) = state.step(Event::Tick, world.now());
        (state, waited, actions)
    };
    // A day of it.
    let mut waited = Duration::ZERO;
    while waited < Duration::from_secs(86_400) {
        let (next, wait, actions) = fails(state, Retry::Patiently);
        assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
        assert!(wait <= Duration::from_secs(40), "{wait:?}");
        (state, waited) = (next, waited + wait);
    }
    assert!(state.report().unwrap().detail.contains("away"));
    for _ in 1..STAGE_TRIES {
        let (next, _, actions) = fails(state, Retry::Few);
        assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
        state = next;
    }
    let (state, _, _) = fails(state, Retry::Few);
    assert_eq!(state.journal().job.as_ref().unwrap().stage, Stage::Settle);
}

/// Killed when it had ordered the restart, a node orders it once more, whatever is asked for meanwhile; killed when it armed, it
/// lays the release out again, which locks it, and goes by what is asked for.
#[test]
fn an_ordered_restart_is_ordered_again_and_an_armed_release_waits_when_it_has_to() {
    let now = World::new(Release::Good, desired(1)).now();
    let os_alone = Desired { kubernetes: None, go: true, ..desired(1) };
    let paused = Desired { go: false, ..os_alone.clone() };
    let with_staged = || match seen(1, OLD, &[]) {
        Event::Seen(Ok(mut system)) => {
            system.deployments.insert(0, Deployment { id: NEW.into(), booted: false, staged: true });
            Event::Seen(Ok(system))
        }
        _ => unreachable!(),
    };
    let asked = || Event::Desired(Some(paused.clone()), None);
    let (arming, _) = begun(&os_alone);
    let again = || State::new(Settings::default(), arming.journal().clone());
    let (state, actions) = through(again(), [with_staged()], now);
    assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
    let (state, actions) = through(state, [staged(true), asked(), with_staged()], now);
    let stage = |state: &State| state.journal().job.as_ref().unwrap().stage;
    assert!(!actions.contains(&Action::Arm(NEW.into())), "{actions:?}");
    assert_eq!(stage(&state), Stage::Staged);

    let (restarting, actions) = through(arming, [Event::Ended(Ok(None))], now);
    assert_eq!(actions.last(), Some(&Action::Restart));
    for event in [asked(), Event::Desired(None, None), Event::Tick] {
        let state = State::new(Settings::default(), restarting.journal().clone());
        let (state, actions) = through(state, [with_staged()], now);
        assert_eq!(actions.last(), Some(&Action::Restart));
        assert_eq!(stage(&through(state, [event], now).0), Stage::Restart);
    }
    // Somebody has put it away.
    let state = State::new(Settings::default(), restarting.journal().clone());
    assert!(matches!(through(state, [seen(1, OLD, &[])], now).1.last(), Some(Action::Stage(_))));
}

/// What was cut off while it was armed may still be made the next system: whatever is asked for in its place begins after it was
/// put away.
#[test]
fn what_was_armed_is_put_away_before_another_update_begins() {
    let now = World::new(Release::Good, desired(1)).now();
    let os_alone = Desired { kubernetes: None, go: true, ..desired(1) };
    let kubernetes_alone = Desired { uid: "u2".into(), os: None, ..desired(1) };
    let attempt = Desired { attempt: 2, ..os_alone.clone() };
    let (arming, _) = begun(&os_alone);
    for other in [kubernetes_alone, attempt].map(|other| Desired { go: false, ..other }) {
        let asked = || Event::Desired(Some(other.clone()), None);
        let state = State::new(Settings::default(), arming.journal().clone());
        // Asked for before and after the node was looked at.
        let (state, actions) = through(state, [asked(), seen(1, OLD, &[])], now);
        assert_eq!(actions.last(), Some(&Action::Settle));
        // However often that fails.
        let (mut state, mut at) = (state, now);
        for _ in 0..2 * EFFECT_TRIES {
            let failure = || Failure { retry: Retry::Few, reason: "another transaction goes on".into() };
            (state, _) = state.step(Event::Ended(Err(failure())), at);
            at.uptime += Duration::from_secs(60);
            let actions;
            (state, actions) = state.step(asked(), at);
            assert_eq!(actions.last(), Some(&Action::Settle));
        }
        let (state, _) = through(state, [asked(), Event::Ended(Ok(None))], at);
        assert!(state.journal().job.is_none());
        let (state, actions) = through(state, [asked(), seen(1, OLD, &[])], at);
        assert_eq!(actions.last(), Some(&Action::Stage(Box::new(other.clone()))));
        assert_eq!(state.journal().job.as_ref().unwrap().cuts, 0);
    }
}
