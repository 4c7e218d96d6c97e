//! An agent that holds a certificate: asks for its task, reports, renews, installs.

use std::time::Duration;

use nkd_api::agent::{InstallTask, KubeadmAction, KubeadmState, KubeadmTask, Purpose, ReportEvent, Task, TaskAnswer};
use nkd_api::facts::Facts;

use super::lane::{backoff, spread};
use crate::kubeadm::Shown;

use super::{Action, CertificateDates, Event, InstallFailure, Lane, Now, Outbox, Outcome, Phase, Settings, Voice};

/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Time between looks at the machine.
const FACTS: Duration = Duration::from_secs(60);
/// Shortest time between the starts of two polls.
const POLL_PACE: Duration = Duration::from_secs(1);
/// Time between polls once the service said stop.
const STOPPED_POLL: Duration = Duration::from_secs(60);
/// A try and three more.
const TRIES: u32 = 4;
/// Progress is told this often, or at every [`PROGRESS_STEP`] percent.
const PROGRESS: Duration = Duration::from_secs(2);
const PROGRESS_STEP: u8 = 5;

/// What an enrolled agent does about its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Idle,
    /// The service does not want to hear from it.
    Stopped,
    /// The installer runs.
    Installing {
        /// What was asked.
        task: InstallTask,
        /// 1 to 4.
        attempt: u32,
        /// When and what progress was last reported.
        told: Option<(Duration, &'static str, u8)>,
    },
    /// It waits to run again.
    Waiting {
        /// What was asked.
        task: InstallTask,
        /// The coming attempt.
        attempt: u32,
        /// When.
        until: Duration,
    },
    /// The disk is good, and the service does not know it yet.
    Installed {
        /// Generation.
        generation: u32,
    },
    /// The disk of this system is being made unbootable.
    Wiping {
        /// Generation.
        generation: u32,
    },
    /// It boots no more, and the service does not know it yet.
    Wiped {
        /// Generation.
        generation: u32,
    },
    /// The installation failed, for good.
    Failed,
    /// kubeadm runs.
    Kubeadm {
        /// What was asked.
        task: KubeadmTask,
        /// Which try to get it going.
        attempt: u32,
    },
    /// kubeadm could not be run; it waits to try again.
    KubeadmWaiting {
        /// What was asked.
        task: KubeadmTask,
        /// The coming attempt.
        attempt: u32,
        /// When.
        until: Duration,
    },
}

/// An agent that holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    poll: Lane,
    revision: Option<String>,
    outbox: Outbox,
    renewal: Lane,
    facts: Lane,
    known: Option<Box<Facts>>,
    /// Certificates that were told.
    shown: Shown,
    heartbeat: Duration,
    work: Work,
    /// Installations that failed: none of them is tried again by itself.
    failed: Vec<InstallTask>,
    /// The outcome of an earlier run of the agent in this boot.
    resumed: Option<Outcome>,
    /// The last run of kubeadm whose end was told.
    told: Option<uuid::Uuid>,
}

impl Enrolled {
    pub(super) fn new(now: Now, resumed: Option<Outcome>) -> Self {
        Self {
            poll: Lane::at(now.uptime),
            revision: None,
            outbox: Outbox::new(now.uptime),
            renewal: Lane::at(now.uptime),
            facts: Lane::at(now.uptime),
            known: None,
            shown: Shown::default(),
            heartbeat: now.uptime,
            work: Work::Idle,
            failed: Vec::new(),
            resumed,
            told: None,
        }
    }

    /// What it does about its task.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    pub(super) fn word(&self) -> &'static str {
        match self.work {
            Work::Idle => "waiting",
            Work::Stopped => "stopped",
            Work::Installing { .. } | Work::Waiting { .. } => "installing",
            Work::Installed { .. } => "installed",
            Work::Wiping { .. } | Work::Wiped { .. } => "wiping",
            Work::Failed => "failed",
            Work::Kubeadm { ref task, .. } | Work::KubeadmWaiting { ref task, .. } => match task.action {
                KubeadmAction::Renew => "renewing certificates",
                KubeadmAction::Recover => "bringing etcd back",
                KubeadmAction::Snapshot => "taking a snapshot of etcd",
                _ => "joining",
            },
        }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        let until = match self.work {
            Work::Waiting { until, .. } | Work::KubeadmWaiting { until, .. } => Some(until),
            _ => None,
        };
        // The renewal is judged by the other clock, at every step.
        [self.poll.due(), self.outbox.due(), self.facts.due(), Some(self.heartbeat), until].into_iter().flatten().min()
    }

    pub(super) fn step(
        mut self: Box<Self>,
        event: Event,
        now: Now,
        settings: Settings,
        certificate: Option<CertificateDates>,
        voice: &mut Voice<'_>,
    ) -> Phase {
        match event {
            Event::Task(answer) if self.poll.is_busy() => return self.take_task(answer, now, settings, voice),
            Event::TaskFailed(failure) if self.poll.is_busy() => {
                self.poll.failed(now.uptime, &failure, settings.jitter);
                let expired = certificate.zip(now.service).is_some_and(|(dates, service)| dates.expires <= service);
                voice.say(if expired {
                    format!(
                        "this node's certificate has expired; an operator must give it a new token: {}",
                        failure.reason
                    )
                } else if failure.retry {
                    format!("the service does not answer, trying again: {}", failure.reason)
                } else {
                    format!(
                        "the service refuses this node; an operator must act, asking again every minute: {}",
                        failure.reason
                    )
                });
            }
            Event::Reported(number) => match self.outbox.acknowledged(number, now.uptime) {
                Some(ReportEvent::Installed { generation }) if self.work == (Work::Installed { generation }) => {
                    voice.say(format!("generation {generation} is installed and reported; restarting from the disk"));
                    return Phase::Rebooting(Lane::at(now.uptime));
                }
                Some(ReportEvent::Wiped { generation }) if self.work == (Work::Wiped { generation }) => {
                    voice.say("this system is wiped; restarting".into());
                    return Phase::Rebooting(Lane::at(now.uptime));
                }
                _ => {}
            },
            Event::WipeEnded(result) => self.take_wipe_end(result, now, voice),
            Event::ReportFailed(number, failure) => {
                self.outbox.failed(number, now.uptime, &failure, settings.jitter);
                if !failure.retry {
                    // Whatever it was: the next look tells them again.
                    self.shown = Shown::default();
                    voice.say(format!("the service refused a report: {}", failure.reason));
                }
            }
            Event::Facts(facts) if self.facts.is_busy() => {
                self.facts.succeeded(now.uptime + FACTS);
                if self.known.as_ref() != Some(&facts) {
                    self.known = Some(facts.clone());
                    self.outbox.push(ReportEvent::Facts { facts });
                }
            }
            Event::Certificates(shown) if self.shown != shown => {
                self.shown = shown.clone();
                let Shown { certificates, unreadable } = shown;
                self.outbox.push(ReportEvent::Certificates { certificates, unreadable });
            }
            Event::Certified(_) if self.renewal.is_busy() => {
                self.renewal.succeeded(now.uptime);
                voice.say("the certificate is renewed".into());
            }
            Event::CertifyFailed(failure) if self.renewal.is_busy() => {
                self.renewal.failed(now.uptime, &failure, settings.jitter);
                if !failure.retry {
                    voice.say(format!("the service does not renew the certificate: {}", failure.reason));
                }
            }
            Event::Progress { step, percent } => self.take_progress(step, percent, now),
            Event::InstallEnded(result) => self.take_end(result, now, settings, voice),
            Event::KubeadmStep(step) => {
                if let Work::Kubeadm { task, .. } = &self.work {
                    let (operation, progress) = (task.operation, KubeadmState::Running { step });
                    self.outbox.push(ReportEvent::Kubeadm { operation, progress });
                }
            }
            Event::KubeadmEnded(result) => self.take_kubeadm_end(result, now, settings, voice),
            _ => {}
        }
        Phase::Enrolled(self)
    }

    /// Sends whatever is due.
    pub(super) fn send_due(
        &mut self,
        now: Now,
        settings: Settings,
        certificate: Option<CertificateDates>,
        actions: &mut Vec<Action>,
    ) {
        if let Work::Waiting { task, attempt, until } = &self.work
            && *until <= now.uptime
        {
            let (task, attempt) = (task.clone(), *attempt);
            self.work = Work::Installing { task: task.clone(), attempt, told: None };
            actions.push(Action::Install(task));
        }
        if let Work::KubeadmWaiting { task, attempt, until } = self.work.clone()
            && until <= now.uptime
        {
            actions.push(Action::Kubeadm(task.clone()));
            self.work = Work::Kubeadm { task, attempt };
        }
        if self.poll.take(now.uptime) {
            actions.push(Action::Poll { seen: self.revision.clone() });
        }
        if self.facts.take(now.uptime) {
            actions.push(Action::GatherFacts);
        }
        if self.heartbeat <= now.uptime {
            self.heartbeat = now.uptime + spread(HEARTBEAT, settings.jitter);
            if self.work != Work::Stopped {
                self.outbox.push(ReportEvent::Heartbeat { uptime: now.uptime.as_secs() });
            }
        }
        if let Some((number, event)) = self.outbox.take(now.uptime) {
            actions.push(Action::Report { number, event });
        }
        let old = certificate.zip(now.service).is_some_and(|(dates, service)| dates.renew_after <= service);
        if old && self.renewal.take(now.uptime) {
            actions.push(Action::Renew);
        }
    }

    fn take_task(
        mut self: Box<Self>,
        answer: TaskAnswer,
        now: Now,
        settings: Settings,
        voice: &mut Voice<'_>,
    ) -> Phase {
        let pace = self.poll.since().unwrap_or(now.uptime) + POLL_PACE;
        self.poll.succeeded(pace.max(now.uptime));
        self.revision = Some(answer.revision);
        // At every answer: a run of kubeadm may have written an older list meanwhile.
        if !answer.api_servers.is_empty() {
            voice.act(Action::Balance(answer.api_servers));
        }
        // Work that runs is left to end, and its outcome is told first; then the task is asked for anew.
        match (&self.work, &answer.task) {
            (Work::Idle | Work::Stopped | Work::Failed, _) => {}
            (Work::KubeadmWaiting { task, .. }, Task::Kubeadm(wanted)) if task == wanted => {
                return Phase::Enrolled(self);
            }
            (Work::KubeadmWaiting { .. }, _) => self.work = Work::Idle,
            _ => return Phase::Enrolled(self),
        }
        match answer.task {
            Task::Wait { reason } => {
                self.leave_stop();
                voice.say(format!("waiting: {reason}"));
            }
            Task::Run => {
                self.leave_stop();
                voice.say("enrolled; the node is as it should be".into());
            }
            Task::Stop { reason } => {
                if self.work == Work::Idle {
                    self.work = Work::Stopped;
                }
                self.poll.succeeded(now.uptime + spread(STOPPED_POLL, settings.jitter));
                voice.say(format!("the service stopped this node until an operator acts: {reason}"));
            }
            Task::Reboot { reason } => {
                voice.say(format!("restarting: {reason}"));
                return Phase::Rebooting(Lane::at(now.uptime));
            }
            Task::Wipe { generation } => {
                self.leave_stop();
                // Never a live system, never another one than the task means.
                if settings.purpose == Purpose::Node && generation == settings.generation {
                    voice.say("the machine leaves: the disk of this system is wiped".into());
                    voice.act(Action::Wipe);
                    self.work = Work::Wiping { generation };
                }
            }
            Task::Kubeadm(task) => {
                self.leave_stop();
                if self.told != Some(task.operation) {
                    voice.say(format!("kubeadm {}", word(&task)));
                    voice.act(Action::Kubeadm(task.clone()));
                    self.work = Work::Kubeadm { task, attempt: 1 };
                }
            }
            Task::Install(task) => {
                self.leave_stop();
                self.take_install(task, now, settings, voice);
            }
        }
        Phase::Enrolled(self)
    }

    fn leave_stop(&mut self) {
        if self.work == Work::Stopped {
            self.work = Work::Idle;
        }
    }

    fn take_install(&mut self, task: InstallTask, now: Now, settings: Settings, voice: &mut Voice<'_>) {
        if self.failed.contains(&task) {
            return;
        }
        let wrong = if settings.purpose != Purpose::Install {
            Some(format!("an installation was asked of an agent that is here for {}", settings.purpose.as_str()))
        } else if task.generation != settings.generation {
            Some(format!(
                "an installation of generation {} was asked, but this system was booted for generation {}",
                task.generation, settings.generation
            ))
        } else {
            None
        };
        if let Some(reason) = wrong {
            let failure = InstallFailure { step: "task", retry: false, reason, log_tail: String::new() };
            return self.fail(task, failure, voice);
        }
        match self.resumed.take() {
            Some(Outcome::Installed { task: done }) if done == task => return self.installed(task.generation, now),
            Some(Outcome::Failed { task: failed, step, reason }) if failed == task => {
                voice.say(format!("the installation failed earlier at `{step}`: {reason}"));
                let generation = task.generation;
                self.outbox.push(ReportEvent::Failed { generation, step, reason, log_tail: String::new() });
                self.work = Work::Failed;
                self.failed.push(task);
                return;
            }
            _ => {}
        }
        voice.say(format!("installing generation {}", task.generation));
        self.work = Work::Installing { task: task.clone(), attempt: 1, told: None };
        voice.act(Action::Install(task));
    }

    fn take_progress(&mut self, step: &'static str, percent: u8, now: Now) {
        let Work::Installing { task, told, .. } = &mut self.work else {
            return;
        };
        let due = told.is_none_or(|(at, last, done)| {
            last != step || (percent > done && (percent >= done + PROGRESS_STEP || now.uptime >= at + PROGRESS))
        });
        if due {
            *told = Some((now.uptime, step, percent));
            let generation = task.generation;
            self.outbox.push(ReportEvent::InstallProgress { generation, step: step.to_owned(), percent });
        }
    }

    fn take_end(&mut self, result: Result<(), InstallFailure>, now: Now, settings: Settings, voice: &mut Voice<'_>) {
        let Work::Installing { task, attempt, .. } = &self.work else {
            return;
        };
        let (task, attempt) = (task.clone(), *attempt);
        match result {
            Ok(()) => {
                let generation = task.generation;
                voice.act(Action::Remember(Outcome::Installed { task }));
                voice.say(format!("generation {generation} is on the disk; telling the service"));
                self.installed(generation, now);
            }
            Err(failure) if failure.retry && attempt < TRIES => {
                let wait = spread(backoff(attempt + 2, Duration::from_secs(30)), settings.jitter);
                voice.say(format!(
                    "the installation broke at `{}`, trying again in {} s: {}",
                    failure.step,
                    wait.as_secs(),
                    failure.reason
                ));
                self.work = Work::Waiting { task, attempt: attempt + 1, until: now.uptime + wait };
            }
            Err(failure) => {
                let (step, reason) = (failure.step.to_owned(), failure.reason.clone());
                voice.act(Action::Remember(Outcome::Failed { task: task.clone(), step, reason }));
                self.fail(task, failure, voice);
                self.ask_anew(now);
            }
        }
    }

    fn take_kubeadm_end(
        &mut self,
        result: Result<KubeadmState, String>,
        now: Now,
        settings: Settings,
        voice: &mut Voice<'_>,
    ) {
        let Work::Kubeadm { task, attempt } = self.work.clone() else {
            return;
        };
        match result {
            Ok(progress) => {
                voice.say(match &progress {
                    KubeadmState::Failed { step, reason, .. } => format!("kubeadm failed at `{step}`: {reason}"),
                    _ => format!("kubeadm {} is done", word(&task)),
                });
                self.outbox.push(ReportEvent::Kubeadm { operation: task.operation, progress });
                self.told = Some(task.operation);
                self.work = Work::Idle;
                // kubeadm may have made certificates.
                if !self.facts.is_busy() {
                    self.facts = Lane::at(now.uptime);
                }
                self.ask_anew(now);
            }
            Err(reason) => {
                let wait = spread(backoff(attempt, Duration::from_secs(30)), settings.jitter);
                voice.say(format!("kubeadm could not be run, trying again in {} s: {reason}", wait.as_secs()));
                let progress = KubeadmState::Running { step: format!("waits: {reason}") };
                self.outbox.push(ReportEvent::Kubeadm { operation: task.operation, progress });
                // The order may have changed meanwhile: the task is asked for anew as well.
                self.work = Work::KubeadmWaiting { task, attempt: attempt + 1, until: now.uptime + wait };
            }
        }
    }

    fn take_wipe_end(&mut self, result: Result<(), String>, now: Now, voice: &mut Voice<'_>) {
        let Work::Wiping { generation } = self.work else { return };
        match result {
            Ok(()) => {
                self.work = Work::Wiped { generation };
                self.outbox.push(ReportEvent::Wiped { generation });
            }
            Err(reason) => {
                voice.say(format!("this system could not be wiped, trying again in {} s: {reason}", FACTS.as_secs()));
                self.work = Work::Idle;
                self.revision = None;
                if !self.poll.is_busy() {
                    self.poll = Lane::at(now.uptime + FACTS);
                }
            }
        }
    }

    fn installed(&mut self, generation: u32, now: Now) {
        self.work = Work::Installed { generation };
        self.outbox.push(ReportEvent::Installed { generation });
        self.ask_anew(now);
    }

    fn fail(&mut self, task: InstallTask, failure: InstallFailure, voice: &mut Voice<'_>) {
        voice.say(format!("the installation failed at `{}`: {}", failure.step, failure.reason));
        self.outbox.push(ReportEvent::Failed {
            generation: task.generation,
            step: failure.step.to_owned(),
            reason: failure.reason,
            log_tail: failure.log_tail,
        });
        self.work = Work::Failed;
        self.failed.push(task);
    }

    /// The task that came while the installer ran was not heeded: have it again.
    fn ask_anew(&mut self, now: Now) {
        self.revision = None;
        if !self.poll.is_busy() {
            self.poll = Lane::at(now.uptime);
        }
    }
}

/// What kubeadm does, in a word.
fn word(task: &KubeadmTask) -> &'static str {
    match task.action {
        KubeadmAction::Init => "init",
        KubeadmAction::Join => "join",
        KubeadmAction::Reset => "reset",
        KubeadmAction::Renew => "certs renew",
        KubeadmAction::Recover => "(etcd is brought back)",
        KubeadmAction::Snapshot => "(a snapshot of etcd)",
    }
}
