//! The ordinary life of a machine, and what is refused.

use nkd_api::machine::LocalBoot;
use proptest::prelude::*;
use time::Duration;

use super::*;

fn assignment() -> Assignment {
    Assignment {
        image: "lab".into(),
        template: "node".into(),
        install_disk: None,
        hostname: None,
        ssh_authorized_keys: Vec::new(),
        kernel_args: Vec::new(),
        snippets: Vec::new(),
        local_boot: LocalBoot::Exit,
    }
}

const BOOT: Uuid = Uuid::from_u128(0xb1);

struct Life {
    machine: Machine,
    now: OffsetDateTime,
    kinds: Vec<&'static str>,
}

impl Life {
    fn new() -> Self {
        let now = OffsetDateTime::UNIX_EPOCH;
        let identity = Identity { macs: vec!["52:54:00:00:00:01".parse().unwrap()], ..Identity::default() };
        Self { machine: new_machine(Uuid::from_u128(1), identity, now), now, kinds: Vec::new() }
    }

    fn happens(&mut self, input: Input) -> &mut Self {
        self.now += Duration::seconds(10);
        let (machine, events) = step(self.machine.clone(), input, self.now).unwrap();
        self.machine = machine;
        self.kinds.extend(events.iter().map(|e| e.kind));
        self
    }

    fn refuses(&self, input: Input) -> Refused {
        step(self.machine.clone(), input, self.now).unwrap_err()
    }
}

fn accepted() -> Input {
    Input::Accept { name: Some("cp1".into()), labels: [("rack".into(), "7".into())].into(), cause: "ann".into() }
}

fn assigned() -> Input {
    Input::Assign { assignment: assignment(), cause: "ann".into() }
}

fn installed(generation: u32) -> Input {
    Input::Reported(ReportEvent::Installed { generation })
}

#[test]
fn from_first_packet_to_enrolled_with_every_step_timed() {
    let mut life = Life::new();
    assert_eq!(life.machine.name, "m-525400000001");
    life.happens(accepted()).happens(assigned());
    assert_eq!((life.machine.phase.name(), life.machine.generation), ("Assigned", 1));
    life.happens(Input::Booted(BootTaken::LiveInstall { generation: 1 }))
        .happens(Input::ConfigFetched {
            purpose: Purpose::Install,
            generation: 1,
            boot: BOOT,
            from: std::net::Ipv4Addr::LOCALHOST.into(),
        })
        .happens(Input::Enrolled { purpose: Purpose::Install, generation: 1, boot: BOOT })
        .happens(Input::Reported(ReportEvent::InstallProgress { generation: 1, step: "write".into(), percent: 50 }));
    assert_eq!(life.machine.phase, Phase::Installing);
    life.happens(installed(1)).happens(Input::Booted(BootTaken::LocalDisk));
    assert_eq!(life.machine.phase, Phase::FirstBoot);
    life.happens(Input::Enrolled { purpose: Purpose::Node, generation: 1, boot: BOOT });
    assert_eq!((life.machine.phase.name(), life.machine.installed_generation), ("Enrolled", Some(1)));
    let steps: Vec<&str> = life.machine.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(steps, ["boot", "live", "install", "restart", "first-boot", "enroll"]);
    for step in &life.machine.steps {
        assert_eq!(step.state, StepState::Done, "{step:?}");
        assert!(step.ended_at.unwrap() >= step.started_at);
    }
}

#[test]
fn a_disk_first_machine_is_seen_booting_by_its_systems_packet() {
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned()).happens(installed(1));
    life.happens(Input::Seen { identity: Identity::default(), address: None, cause: "dhcp", from_os: false });
    assert_eq!(life.machine.phase, Phase::Installed);
    life.happens(Input::Seen { identity: Identity::default(), address: None, cause: "dhcp", from_os: true });
    assert_eq!(life.machine.phase, Phase::FirstBoot);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut life = Life::new();
    assert!(matches!(life.refuses(assigned()), Refused::NotAccepted(_)));
    assert!(matches!(life.refuses(Input::Reinstall { now: false, cause: "ann".into() }), Refused::NothingAssigned(_)));
    let bad = Input::Accept { name: Some("Not_a_name".into()), labels: BTreeMap::new(), cause: "ann".into() };
    assert!(matches!(life.refuses(bad), Refused::BadName(_)));
    life.happens(accepted()).happens(assigned());
    assert!(matches!(life.refuses(installed(2)), Refused::OldGeneration { got: 2, wanted: 1, .. }));
    // Nobody has taken the configuration of this boot.
    let node = || Input::Enrolled { purpose: Purpose::Node, generation: 1, boot: BOOT };
    assert!(matches!(life.refuses(node()), Refused::OtherBoot(_)));
    let fetched = |boot| Input::ConfigFetched {
        purpose: Purpose::Install,
        generation: 1,
        boot,
        from: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    life.happens(fetched(BOOT)).happens(fetched(Uuid::from_u128(0xb2)));
    assert!(matches!(life.refuses(node()), Refused::OtherBoot(_)));
    life.happens(fetched(BOOT));
    life.happens(installed(1)).happens(Input::Reinstall { now: false, cause: "ann".into() });
    assert_eq!((life.machine.generation, life.machine.installed_generation), (2, Some(1)));
    assert!(matches!(life.refuses(node()), Refused::OtherBoot(_)));
    assert!(matches!(
        life.refuses(Input::Booted(BootTaken::LiveInstall { generation: 1 })),
        Refused::OldGeneration { .. }
    ));
}

#[test]
fn a_node_that_comes_from_its_disk_is_proof_of_the_installation_whose_report_was_lost() {
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned());
    life.happens(Input::ConfigFetched {
        purpose: Purpose::Install,
        generation: 1,
        boot: BOOT,
        from: std::net::Ipv4Addr::LOCALHOST.into(),
    });
    life.happens(Input::Enrolled { purpose: Purpose::Node, generation: 1, boot: BOOT });
    assert_eq!((life.machine.phase.name(), life.machine.installed_generation), ("Enrolled", Some(1)));
    assert!(life.kinds.contains(&"installed"));
    // From then on another live boot of this generation is somebody else's.
    let other = Input::ConfigFetched {
        purpose: Purpose::Install,
        generation: 1,
        boot: Uuid::from_u128(0xb2),
        from: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    assert!(matches!(life.refuses(other), Refused::Installed { generation: 1, .. }));
    // Releasing keeps the certificate of the system on the disk, and ends that of an installation under way.
    life.happens(Input::Alarm { reason: "x".into() }).happens(Input::Release { cause: "ann".into() });
    assert_eq!(life.machine.current_boot, Some(BOOT));
    life.happens(Input::Reinstall { now: false, cause: "ann".into() });
    life.happens(Input::ConfigFetched {
        purpose: Purpose::Install,
        generation: 2,
        boot: BOOT,
        from: std::net::Ipv4Addr::LOCALHOST.into(),
    });
    life.happens(Input::Alarm { reason: "x".into() }).happens(Input::Release { cause: "ann".into() });
    assert_eq!(life.machine.current_boot, None);
}

#[test]
fn the_same_report_under_another_number_says_nothing_twice() {
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned()).happens(installed(1));
    let before = (life.machine.steps.clone(), life.kinds.len());
    life.happens(installed(1));
    assert_eq!((life.machine.steps.clone(), life.kinds.len()), before);
}

#[test]
fn a_waiting_machine_says_each_reason_once() {
    let mut life = Life::new();
    let waits = || Input::Booted(BootTaken::NotNow { reason: "no image".into() });
    life.happens(waits()).happens(waits()).happens(waits());
    assert_eq!(life.kinds, ["boot-script"]);
    assert_eq!(life.machine.waiting.as_deref(), Some("no image"));
}

#[test]
fn a_failure_keeps_step_reason_and_log_and_a_new_boot_tries_again() {
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned()).happens(Input::Booted(BootTaken::LiveInstall { generation: 1 }));
    let failed = ReportEvent::Failed {
        generation: 1,
        step: "verify".into(),
        reason: "wrong digest".into(),
        log_tail: "last line".into(),
    };
    life.happens(Input::Reported(failed));
    assert_eq!(life.machine.phase, Phase::Failed { step: "verify".into(), reason: "wrong digest".into() });
    assert_eq!(life.machine.steps.last().unwrap().state, StepState::Failed);
    life.happens(Input::Booted(BootTaken::LiveInstall { generation: 1 }));
    assert_eq!(life.machine.phase, Phase::Booting);
}

#[test]
fn a_machine_that_leaves_is_wiped_and_stands_in_the_pool_until_something_is_assigned() {
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned()).happens(installed(1));
    life.happens(Input::Unassign { cause: "rack7".into() });
    let stands = |life: &Life| (life.machine.generation, life.machine.wipe_generation, life.machine.phase.clone());
    assert_eq!(stands(&life), (2, Some(1), Phase::Discovered));
    let before = life.machine.clone();
    life.happens(Input::Unassign { cause: "rack7".into() });
    assert_eq!(stands(&life), (before.generation, before.wipe_generation, before.phase), "told twice, it counts once");
    life.happens(Input::Reported(ReportEvent::Wiped { generation: 1 }));
    assert_eq!((life.machine.installed_generation, life.machine.wipe_generation), (None, None));
    life.happens(assigned());
    assert_eq!((life.machine.generation, life.machine.phase.clone()), (2, Phase::Assigned));
    // Late news of the old system change nothing once the new one is there.
    life.happens(installed(2)).happens(Input::Reported(ReportEvent::Wiped { generation: 1 }));
    assert_eq!(life.machine.installed_generation, Some(2));
}

#[test]
fn a_new_assignment_of_an_installed_machine_waits_for_reinstall() {
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned()).happens(installed(1));
    let other = Assignment { image: "other".into(), ..assignment() };
    life.happens(Input::Assign { assignment: other, cause: "ann".into() });
    assert_eq!(life.machine.generation, 1);
    assert!(life.machine.waiting.as_deref().unwrap().contains("reinstall"));
}

fn install_script(generation: u32) -> Input {
    Input::Booted(BootTaken::LiveInstall { generation })
}

/// A life up to its n-th step, of those that lie between taking the script and joining.
fn life_until(n: usize) -> Life {
    let from = std::net::Ipv4Addr::LOCALHOST.into();
    let progress =
        |percent| Input::Reported(ReportEvent::InstallProgress { generation: 1, step: "write".into(), percent });
    let mut life = Life::new();
    life.happens(accepted()).happens(assigned());
    let inputs = [
        install_script(1),
        Input::ConfigFetched { purpose: Purpose::Install, generation: 1, boot: BOOT, from },
        Input::Enrolled { purpose: Purpose::Install, generation: 1, boot: BOOT },
        progress(36),
        installed(1),
        Input::Booted(BootTaken::LocalDisk),
        Input::Enrolled { purpose: Purpose::Node, generation: 1, boot: BOOT },
    ];
    for input in inputs.into_iter().take(n) {
        life.happens(input);
    }
    life
}

proptest! {
    /// Silence is told once, after the limit of the step that runs, and changes nothing but the reason to wait; the next
    /// word takes that away.
    #[test]
    fn silence_is_told_once_and_changes_nothing_else(n in 0usize..8, silent in 0i64..1200, late in 0i64..1200) {
        let life = life_until(n);
        let listening_since = life.now + Duration::seconds(late);
        let now = life.now + Duration::seconds(silent);
        let on_its_way = (1..7).contains(&n);
        let limit = if n == 3 || n == 4 { SILENT_INSTALL } else { SILENT_BOOT };
        let (after, events) = step(life.machine.clone(), Input::Silent { listening_since }, now).unwrap();
        let told = on_its_way && now - listening_since > limit;
        prop_assert_eq!(events.len(), usize::from(told));
        prop_assert_eq!(is_called_silent(&after), told);
        let otherwise = Machine { waiting: life.machine.waiting.clone(), ..after.clone() };
        prop_assert_eq!(&otherwise, &life.machine);
        let (again, events) = step(after, Input::Silent { listening_since }, now + Duration::days(1)).unwrap();
        prop_assert_eq!(events.len(), usize::from(on_its_way && !told));
        let word = Input::Reported(ReportEvent::Heartbeat { uptime: 1 });
        let (speaks, events) = step(again, word, now + Duration::days(2)).unwrap();
        prop_assert!(events.is_empty());
        prop_assert_eq!(speaks.waiting, life.machine.waiting);
    }
}

#[test]
fn a_machine_that_goes_silent_is_named_with_its_step() {
    let mut life = life_until(4);
    life.now = life.machine.last_seen + SILENT_INSTALL + Duration::milliseconds(1);
    let (after, events) =
        step(life.machine.clone(), Input::Silent { listening_since: OffsetDateTime::UNIX_EPOCH }, life.now).unwrap();
    let reason = "not heard from since 1970-01-01T00:01:00Z: is it on? its console says more";
    assert_eq!(after.waiting.as_deref(), Some(reason));
    assert_eq!(events[0].kind, "silent");
    assert_eq!(events[0].message, format!("{reason}; the last of it was install: write 36%"));
    // What an operator does is no word of the machine.
    let (labelled, _) = step(after, accepted(), life.now).unwrap();
    assert_eq!(labelled.waiting.as_deref(), Some(reason));
    let (back, _) = step(labelled, install_script(1), life.now).unwrap();
    assert_eq!(back.waiting, None);
}

#[test]
fn what_a_machine_was_at_when_it_broke_off_stays_in_front_of_its_new_steps() {
    let mut life = life_until(4);
    let shown = |life: &Life| -> Vec<(String, StepState, String)> {
        life.machine.steps.iter().map(|s| (s.name.clone(), s.state, s.detail.clone())).collect()
    };
    let broken = |what: &str, detail: &str| (what.to_owned(), StepState::Failed, detail.to_owned());
    let boots = |detail: &str| ("boot".to_owned(), StepState::Running, detail.to_owned());
    life.kinds.clear();
    life.happens(install_script(1));
    assert_eq!(life.kinds, ["broke-off", "boot-script", "phase"]);
    let install = broken("install", "install broke off at write 36% (generation 1)");
    assert_eq!(shown(&life), [install.clone(), boots("took the install script")]);
    assert_eq!(life.machine.steps[0].ended_at, Some(life.now));
    // The new installation is a step of its own.
    life.happens(Input::Reported(ReportEvent::InstallProgress { generation: 1, step: "write".into(), percent: 2 }));
    assert_eq!(shown(&life)[0], install);
    assert_eq!(shown(&life)[2], ("install".into(), StepState::Running, "write 2%".into()));
    // The last one that broke off takes the place of the one before, unless it only took its script again.
    life.happens(install_script(1)).happens(install_script(1)).happens(Input::ConfigFetched {
        purpose: Purpose::Install,
        generation: 1,
        boot: BOOT,
        from: std::net::Ipv4Addr::LOCALHOST.into(),
    });
    assert_eq!(shown(&life)[0], broken("install", "install broke off at write 2% (generation 1)"));
    life.happens(install_script(1));
    let live = broken("live", "live broke off: the live system starts (generation 1)");
    assert_eq!(shown(&life), [live, boots("took the install script")]);
}

#[test]
fn a_first_boot_that_breaks_off_begins_again_and_a_run_of_kubeadm_goes_on() {
    let mut life = life_until(6);
    life.kinds.clear();
    life.happens(Input::Booted(BootTaken::LocalDisk));
    assert_eq!(life.kinds, ["broke-off", "boot-script"]);
    let (first, last) = (&life.machine.steps[0], life.machine.steps.last().unwrap());
    assert_eq!((first.name.as_str(), first.state), ("first-boot", StepState::Failed));
    assert_eq!((last.name.as_str(), last.state, last.started_at), ("first-boot", StepState::Running, life.now));
    life.happens(Input::Enrolled { purpose: Purpose::Node, generation: 1, boot: BOOT });
    life.happens(Input::Joining { cluster: "c".into() });
    let before = life.machine.steps.clone();
    life.kinds.clear();
    life.happens(Input::Booted(BootTaken::LocalDisk));
    assert_eq!((life.kinds.clone(), &life.machine.steps), (vec!["boot-script"], &before));
}

#[test]
fn what_dhcp_keeps_from_a_machine_is_said_once_and_ends_with_the_next_answer() {
    let mut life = Life::new();
    let keeps = |reason: &str| Input::NotServed { reason: reason.into() };
    life.happens(keeps("no address: a")).happens(keeps("no address: a")).happens(keeps("nothing to boot: b"));
    assert_eq!(life.kinds, ["not-served", "not-served"]);
    assert_eq!(life.machine.waiting.as_deref(), Some("nothing to boot: b"));
    assert!(!is_news(&life.machine, &keeps("nothing to boot: b")) && is_news(&life.machine, &Input::Served));
    life.happens(Input::Served);
    assert_eq!(life.machine.waiting.as_deref(), Some("not accepted yet"), "as before");
    assert!(!is_news(&life.machine, &Input::Served));
    life.happens(accepted()).happens(assigned()).happens(keeps("nothing to boot: b"));
    life.happens(Input::Served);
    assert_eq!(life.machine.waiting.as_deref(), Some("waits for a network boot"));
    // An operating system that starts has booted from its disk.
    life.happens(keeps("nothing to boot: b"));
    life.happens(Input::Seen { identity: Identity::default(), address: None, cause: "dhcp", from_os: true });
    assert_eq!(life.machine.waiting.as_deref(), Some("waits for a network boot"));
}
