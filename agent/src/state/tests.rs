//! Properties over every order of events, and the life as a story.

use nkd_api::Sha256Digest;
use nkd_api::agent::Task;
use proptest::prelude::*;

use super::*;

fn task(generation: u32, disk: u8) -> InstallTask {
    InstallTask {
        generation,
        image_url: "http://192.0.2.1/image".into(),
        image_sha256: Sha256Digest([disk; 32]),
        image_size: 1,
        disk: Some(format!("/dev/vd{disk}")),
        installer: "coreos-installer".into(),
        append_kargs: Vec::new(),
        firstboot_args: String::new(),
    }
}

fn settings(purpose: Purpose) -> Settings {
    Settings { purpose, generation: 1, jitter: 7 }
}

fn now(seconds: u64) -> Now {
    Now { uptime: Duration::from_secs(seconds), service: OffsetDateTime::from_unix_timestamp(1_000_000_000).ok() }
}

fn dates(renew: i64, end: i64) -> CertificateDates {
    let at = |seconds| OffsetDateTime::from_unix_timestamp(1_000_000_000 + seconds).unwrap();
    CertificateDates { renew_after: at(renew), expires: at(end) }
}

fn refusal(retry: bool) -> Failure {
    Failure { retry, reason: "a reason".into() }
}

fn broken(step: &'static str, retry: bool) -> InstallFailure {
    InstallFailure { step, retry, reason: "it broke".into(), log_tail: String::new() }
}

fn answer(revision: &str, task: Task) -> Event {
    Event::Task(TaskAnswer { revision: revision.into(), task, api_servers: Vec::new() })
}

/// An agent at work, which remembers what it was told to do.
struct Agent {
    state: Option<State>,
    seconds: u64,
    actions: Vec<Action>,
    sent: Option<(u64, ReportEvent)>,
}

impl Agent {
    fn new(purpose: Purpose, certificate: Option<CertificateDates>, outcome: Option<Outcome>) -> Self {
        let state = State::new(settings(purpose), certificate, outcome, Duration::ZERO);
        Self { state: Some(state), seconds: 0, actions: Vec::new(), sent: None }
    }

    fn enrolled(purpose: Purpose) -> Self {
        let mut agent = Self::new(purpose, Some(dates(1000, 2000)), None);
        agent.event(Event::Tick);
        agent.event(Event::Synced);
        agent
    }

    fn event(&mut self, event: Event) -> &[Action] {
        if let Event::Reported(number) | Event::ReportFailed(number, _) = &event {
            self.sent.take_if(|(sent, _)| sent == number);
        }
        let (state, actions) = self.state.take().unwrap().step(event, now(self.seconds));
        self.state = Some(state);
        self.sent = self.sent.take().or_else(|| {
            actions.iter().find_map(|action| match action {
                Action::Report { number, event } => Some((*number, event.clone())),
                _ => None,
            })
        });
        self.actions = actions;
        &self.actions
    }

    fn later(&mut self, seconds: u64, event: Event) -> &[Action] {
        self.seconds += seconds;
        self.event(event)
    }

    fn word(&self) -> &'static str {
        self.state.as_ref().unwrap().word()
    }

    /// Answers every report in flight until one for which `wanted` holds is in flight; its number.
    fn report(&mut self, wanted: impl Fn(&ReportEvent) -> bool) -> u64 {
        for _ in 0..20 {
            let (number, event) = self.sent.clone().expect("a report is in flight");
            if wanted(&event) {
                return number;
            }
            self.event(Event::Reported(number));
        }
        panic!("the report never came");
    }
}

fn installs(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Install(_))).count()
}

#[test]
fn a_blank_machine_enrolls_installs_reports_and_only_then_restarts() {
    let mut agent = Agent::new(Purpose::Install, None, None);
    assert_eq!(agent.event(Event::Tick), [Action::Sync]);
    assert_eq!(agent.event(Event::Synced), [Action::Enroll]);
    let actions = agent.event(Event::Certified(dates(1000, 2000)));
    assert!(actions.contains(&Action::Poll { seen: None }), "{actions:?}");
    assert_eq!(installs(agent.event(answer("a", Task::Install(task(1, 0))))), 1);
    agent.event(Event::Progress { step: "write", percent: 50 });
    let actions = agent.event(Event::InstallEnded(Ok(())));
    assert!(matches!(&actions[0], Action::Remember(Outcome::Installed { .. })), "{actions:?}");
    let number = agent.report(|event| matches!(event, ReportEvent::Installed { generation: 1 }));
    assert!(!agent.event(Event::ReportFailed(number, refusal(true))).contains(&Action::Reboot));
    agent.later(10, Event::Tick);
    let number = agent.report(|event| matches!(event, ReportEvent::Installed { generation: 1 }));
    assert!(agent.event(Event::Reported(number)).contains(&Action::Reboot));
    assert_eq!(agent.word(), "rebooting");
    agent.event(Event::RebootFailed("busy".into()));
    assert!(agent.later(30, Event::Tick).contains(&Action::Reboot));
}

/// Whatever the agent does about its task, the balancer hears of every list, and never of an empty one.
#[test]
fn the_balancer_is_told_at_every_answer() {
    let mut agent = Agent::enrolled(Purpose::Node);
    let run = KubeadmTask { operation: uuid::Uuid::from_u128(1), action: nkd_api::agent::KubeadmAction::Join };
    let servers: Vec<SocketAddr> = vec!["192.0.2.11:6443".parse().unwrap()];
    for (revision, task) in [("a", Task::Kubeadm(run.clone())), ("b", Task::Kubeadm(run)), ("c", Task::Run)] {
        let answer = TaskAnswer { revision: revision.into(), task, api_servers: servers.clone() };
        let actions = agent.event(Event::Task(answer));
        assert!(actions.contains(&Action::Balance(servers.clone())), "{revision}: {actions:?}");
        agent.later(2, Event::Tick);
    }
    let actions = agent.event(answer("d", Task::Run));
    assert!(!actions.iter().any(|action| matches!(action, Action::Balance(_))), "{actions:?}");
}

#[test]
fn a_fetch_that_breaks_is_tried_again_three_times_and_a_wrong_digest_never() {
    let mut agent = Agent::enrolled(Purpose::Install);
    let mut started = installs(agent.event(answer("a", Task::Install(task(1, 0)))));
    for _ in 0..10 {
        agent.event(Event::InstallEnded(Err(broken("fetch", true))));
        started += installs(agent.later(60, Event::Tick));
    }
    assert_eq!(started, 4);
    assert_eq!(agent.word(), "failed");

    let mut agent = Agent::enrolled(Purpose::Install);
    agent.event(answer("a", Task::Install(task(1, 0))));
    agent.event(Event::InstallEnded(Err(broken("verify", false))));
    agent.report(|event| matches!(event, ReportEvent::Failed { step, .. } if step == "verify"));
    for revision in ["b", "c"] {
        agent.later(60, Event::Tick);
        assert_eq!(installs(agent.event(answer(revision, Task::Install(task(1, 0))))), 0);
    }
    agent.later(60, Event::Tick);
    assert_eq!(installs(agent.event(answer("d", Task::Install(task(1, 1))))), 1, "another image is another try");
}

#[test]
fn an_agent_that_was_killed_after_the_installation_reports_it_and_does_not_install_again() {
    let mut agent =
        Agent::new(Purpose::Install, Some(dates(1000, 2000)), Some(Outcome::Installed { task: task(1, 0) }));
    agent.event(Event::Tick);
    agent.event(Event::Synced);
    assert_eq!(installs(agent.event(answer("a", Task::Install(task(1, 0))))), 0);
    agent.report(|event| matches!(event, ReportEvent::Installed { generation: 1 }));
}

#[test]
fn a_task_of_another_generation_or_purpose_is_refused() {
    for (purpose, generation) in [(Purpose::Install, 2), (Purpose::Node, 1), (Purpose::Discovery, 1)] {
        let mut agent = Agent::enrolled(purpose);
        assert_eq!(installs(agent.event(answer("a", Task::Install(task(generation, 0))))), 0);
        agent.report(|event| matches!(event, ReportEvent::Failed { step, .. } if step == "task"));
    }
}

#[test]
fn a_refused_token_is_said_once_and_asked_again_every_minute() {
    let mut agent = Agent::new(Purpose::Node, None, None);
    agent.event(Event::Tick);
    agent.event(Event::Synced);
    let said = agent.event(Event::CertifyFailed(refusal(false)));
    assert!(matches!(said, [Action::Say(text)] if text.contains("a reason")), "{said:?}");
    assert!(agent.later(59, Event::Tick).is_empty());
    assert_eq!(agent.later(3, Event::Tick), [Action::Enroll]);
    assert!(agent.event(Event::CertifyFailed(refusal(false))).is_empty());
}

#[test]
fn the_certificate_is_renewed_by_the_clock_of_the_service() {
    let mut agent = Agent::new(Purpose::Node, Some(dates(-1, 2000)), None);
    agent.event(Event::Tick);
    assert!(agent.event(Event::Synced).contains(&Action::Renew));
    assert!(!agent.later(5, Event::Tick).contains(&Action::Renew), "one is in flight");
    agent.event(Event::CertifyFailed(refusal(true)));
    assert!(agent.later(5, Event::Tick).contains(&Action::Renew));
    agent.event(Event::Certified(dates(1000, 2000)));
    assert!(!agent.later(500, Event::Tick).contains(&Action::Renew));
}

#[test]
fn an_expired_certificate_is_named_as_the_reason() {
    let mut agent = Agent::new(Purpose::Node, Some(dates(-9, -1)), None);
    agent.event(Event::Tick);
    agent.event(Event::Synced);
    let said = agent.event(Event::TaskFailed(refusal(true)));
    assert!(matches!(said, [Action::Say(text)] if text.contains("expired")), "{said:?}");
}

#[test]
fn a_stopped_agent_sends_no_heartbeat_and_asks_once_a_minute() {
    let mut agent = Agent::enrolled(Purpose::Node);
    agent.event(answer("a", Task::Stop { reason: "cloned".into() }));
    assert_eq!(agent.word(), "stopped");
    let actions = agent.later(59, Event::Tick);
    assert!(!actions.iter().any(|a| matches!(a, Action::Report { .. } | Action::Poll { .. })), "{actions:?}");
    assert!(agent.later(20, Event::Tick).contains(&Action::Poll { seen: Some("a".into()) }));
    agent.event(answer("b", Task::Run));
    assert_eq!(agent.word(), "waiting");
}

#[test]
fn certificates_are_told_when_they_change_and_again_when_the_service_refused_them() {
    let shown = |serial: &str| Shown {
        certificates: vec![nkd_api::agent::NodeCertificate {
            name: "apiserver".into(),
            subject: "CN=kube-apiserver".into(),
            serial: serial.into(),
            since: OffsetDateTime::UNIX_EPOCH,
            not_after: OffsetDateTime::UNIX_EPOCH,
        }],
        unreadable: Vec::new(),
    };
    let is = |event: &ReportEvent| matches!(event, ReportEvent::Certificates { .. });
    let told = |agent: &Agent| agent.sent.as_ref().is_some_and(|(_, event)| is(event));
    let mut agent = Agent::enrolled(Purpose::Node);
    while let Some((number, _)) = agent.sent.clone() {
        agent.event(Event::Reported(number));
    }
    agent.event(Event::Certificates(Shown::default()));
    assert!(!told(&agent), "a node of no cluster has nothing to tell");
    agent.event(Event::Certificates(shown("1")));
    let number = agent.report(is);
    agent.event(Event::Reported(number));
    agent.event(Event::Certificates(shown("1")));
    assert!(!told(&agent), "nothing has changed");
    agent.event(Event::Certificates(shown("2")));
    let number = agent.report(is);
    agent.event(Event::ReportFailed(number, refusal(false)));
    agent.event(Event::Certificates(shown("2")));
    agent.later(61, Event::Tick);
    agent.report(is);
}

#[test]
fn facts_are_told_when_they_change() {
    let mut agent = Agent::enrolled(Purpose::Node);
    let facts = Box::new(Facts { cpus: 2, ..Facts::default() });
    agent.event(Event::Facts(facts.clone()));
    let number = agent.report(|event| matches!(event, ReportEvent::Facts { .. }));
    agent.event(Event::Reported(number));
    assert!(agent.later(61, Event::Tick).contains(&Action::GatherFacts));
    let number = agent.report(|event| matches!(event, ReportEvent::Heartbeat { .. }));
    agent.event(Event::Reported(number));
    let actions = agent.event(Event::Facts(facts));
    assert!(!actions.iter().any(|action| matches!(action, Action::Report { .. })), "{actions:?}");
}

#[test]
fn progress_is_told_at_most_every_two_seconds_or_five_percent() {
    let mut agent = Agent::enrolled(Purpose::Install);
    agent.event(answer("a", Task::Install(task(1, 0))));
    let mut told = 0;
    for percent in 0..100 {
        for _ in 0..50 {
            agent.event(Event::Progress { step: "write", percent });
            if let Some((number, event)) = agent.sent.clone() {
                told += usize::from(matches!(event, ReportEvent::InstallProgress { .. }));
                agent.event(Event::Reported(number));
            }
        }
    }
    assert!((15..=21).contains(&told), "{told}");
}

fn any_task() -> impl Strategy<Value = Task> {
    prop_oneof![
        Just(Task::Wait { reason: "w".into() }),
        (0u32..3, 0u8..2).prop_map(|(generation, disk)| Task::Install(task(generation, disk))),
        Just(Task::Install(task(1, 0))),
        Just(Task::Reboot { reason: "r".into() }),
        (0u32..3).prop_map(|generation| Task::Wipe { generation }),
        Just(Task::Run),
        Just(Task::Stop { reason: "s".into() }),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let failure = || any::<bool>().prop_map(refusal);
    prop_oneof![
        3 => Just(Event::Tick),
        1 => Just(Event::Synced),
        1 => failure().prop_map(Event::SyncFailed),
        2 => (-5i64..5, 0i64..9).prop_map(|(renew, end)| Event::Certified(dates(renew, end))),
        1 => failure().prop_map(Event::CertifyFailed),
        5 => ("[a-c]", any_task()).prop_map(|(revision, task)| answer(&revision, task)),
        1 => failure().prop_map(Event::TaskFailed),
        5 => (0u64..12).prop_map(Event::Reported),
        1 => (0u64..12, failure()).prop_map(|(number, failure)| Event::ReportFailed(number, failure)),
        1 => (0u32..3).prop_map(|cpus| Event::Facts(Box::new(Facts { cpus, ..Facts::default() }))),
        1 => (0u8..=100).prop_map(|percent| Event::Progress { step: "write", percent }),
        2 => Just(Event::InstallEnded(Ok(()))),
        2 => any::<bool>().prop_map(|retry| Event::InstallEnded(Err(broken(if retry { "fetch" } else { "verify" }, retry)))),
        2 => any::<bool>().prop_map(|well| Event::WipeEnded(if well { Ok(()) } else { Err("busy".into()) })),
        1 => Just(Event::RebootFailed("no".into())),
    ]
}

/// What is in flight and what was seen, as an outsider counts it.
#[derive(Default)]
struct Watch {
    installing: Option<InstallTask>,
    written: bool,
    wiping: bool,
    wiped: bool,
    sent_last: Option<u64>,
    may_reboot: bool,
    spoiled: Vec<InstallTask>,
    in_flight: [bool; 5],
}

impl Watch {
    fn before(&mut self, event: &Event) {
        let busy = self.in_flight;
        match event {
            Event::Task(TaskAnswer { task: Task::Reboot { .. }, .. })
                if busy[3] && self.installing.is_none() && !self.written =>
            {
                self.may_reboot = true;
            }
            Event::WipeEnded(result) if self.wiping => {
                self.wiping = false;
                self.wiped |= result.is_ok();
            }
            Event::Reported(number) if self.sent_last == Some(*number) => self.may_reboot = true,
            Event::InstallEnded(result) => {
                if let Some(task) = self.installing.take() {
                    match result {
                        Ok(()) => self.written = true,
                        Err(failure) if failure.step == "verify" => self.spoiled.push(task),
                        Err(_) => {}
                    }
                }
            }
            _ => {}
        }
        match event {
            Event::Synced | Event::SyncFailed(_) => self.in_flight[0] = false,
            Event::Certified(_) | Event::CertifyFailed(_) => self.in_flight[1..3].fill(false),
            Event::Task(_) | Event::TaskFailed(_) => self.in_flight[3] = false,
            Event::RebootFailed(_) => self.in_flight[4] = false,
            _ => {}
        }
    }

    fn after(&mut self, actions: &[Action]) -> Result<(), TestCaseError> {
        for action in actions {
            let place = match action {
                Action::Sync => Some(0),
                Action::Enroll => Some(1),
                Action::Renew => Some(2),
                Action::Poll { .. } => Some(3),
                Action::Reboot => Some(4),
                _ => None,
            };
            if let Some(place) = place {
                prop_assert!(!self.in_flight[place], "{action:?} is in flight already");
                self.in_flight[place] = true;
            }
            match action {
                Action::Install(task) => {
                    prop_assert_eq!(task.generation, 1, "only the token's generation");
                    prop_assert!(self.installing.is_none(), "one installer at a time");
                    prop_assert!(!self.written, "a good disk is not written again");
                    prop_assert!(!self.spoiled.contains(task), "a wrong digest is not tried again");
                    self.installing = Some(task.clone());
                }
                Action::Report { number, event: ReportEvent::Installed { .. } } => {
                    prop_assert!(self.written, "nothing is installed");
                    self.sent_last = Some(*number);
                }
                Action::Wipe => {
                    prop_assert!(!self.wiping && !self.wiped, "once is enough");
                    self.wiping = true;
                }
                Action::Report { number, event: ReportEvent::Wiped { generation } } => {
                    prop_assert!(self.wiped && *generation == 1, "nothing is wiped");
                    self.sent_last = Some(*number);
                }
                Action::Reboot => prop_assert!(self.may_reboot, "nobody has agreed to a restart"),
                _ => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_nothing_is_written_or_restarted_without_cause(
        purpose in prop_oneof![4 => Just(Purpose::Install), 1 => Just(Purpose::Node), 1 => Just(Purpose::Discovery)],
        certificate in any::<bool>(),
        events in proptest::collection::vec((any_event(), 0u64..40), 0..120),
    ) {
        let mut state = State::new(settings(purpose), certificate.then(|| dates(1, 2)), None, Duration::ZERO);
        let mut watch = Watch::default();
        let mut seconds = 0;
        let opening = [(Event::Tick, 0), (Event::Synced, 0), (Event::Certified(dates(1, 2)), 0)];
        for (event, pause) in opening.into_iter().chain(events) {
            seconds += pause;
            watch.before(&event);
            let (next, actions) = state.step(event, now(seconds));
            watch.after(&actions)?;
            if purpose != Purpose::Node {
                prop_assert!(!actions.contains(&Action::Wipe), "a live system wiped itself");
            }
            if purpose != Purpose::Install {
                prop_assert_eq!(installs(&actions), 0);
            }
            let uptime = Duration::from_secs(seconds);
            let deadline = next.deadline(now(seconds));
            prop_assert!(deadline >= uptime && deadline <= uptime + LONGEST_SLEEP);
            state = next;
        }
    }
}
