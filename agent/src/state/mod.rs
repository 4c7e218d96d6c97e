//! The life of the agent, as a pure function.
//!
//! ```text
//! Syncing ──clock──▶ Enrolling ──certificate──▶ Enrolled ──restart──▶ Rebooting
//!    └───────────────(has a certificate)───────────▲
//!
//! work of an enrolled agent:
//! Idle ──Install task──▶ Installing ──written, verified──▶ Installed ──acknowledged──▶ Rebooting
//!  ▲                      │      ▲ waits, then tries again (a fetch failed, at most three times)
//!  └──another task── Failed ◀────┘ anything else
//! ```
//! `step` takes an event and returns the next state and what to do. It knows no clock: [`Now`] is an argument.
//!
//! What always holds: the installer starts only in a live system whose token is of the task's generation; a restart
//! after an installation follows the acknowledged report; an installation whose digest was wrong is not tried again.

mod enrolled;
mod lane;
mod outbox;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use nkd_api::agent::{InstallTask, KubeadmState, KubeadmTask, Purpose, ReportEvent, TaskAnswer};
use nkd_api::facts::Facts;

use crate::kubeadm::Shown;
use time::OffsetDateTime;

pub use enrolled::{Enrolled, Work};
pub use lane::{Lane, backoff, spread};
pub use outbox::Outbox;

/// Longest time between two steps.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// Wait before a restart that did not happen is asked for again.
const REBOOT_RETRY: Duration = Duration::from_secs(30);

/// Both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the kernel started. Never goes back.
    pub uptime: Duration,
    /// The service's clock, once it is known.
    pub service: Option<OffsetDateTime>,
}

/// What does not change in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What the agent is here for.
    pub purpose: Purpose,
    /// Generation that its token belongs to.
    pub generation: u32,
    /// Spreads the waits of many machines.
    pub jitter: u8,
}

/// Dates of the certificate that the agent holds, by the service's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateDates {
    /// Renew from here on.
    pub renew_after: OffsetDateTime,
    /// Useless from here on.
    pub expires: OffsetDateTime,
}

/// How an installation ended, kept in the journal until the service knows.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The disk is good.
    Installed {
        /// What was asked.
        task: InstallTask,
    },
    /// The disk cannot boot.
    Failed {
        /// What was asked.
        task: InstallTask,
        /// The step that ended badly.
        step: String,
        /// One sentence.
        reason: String,
    },
}

/// A request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// True: transport or 503, ask again soon. False: the service said no.
    pub retry: bool,
    /// For people.
    pub reason: String,
}

/// Why an installation ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallFailure {
    /// `disk`, `config`, `fetch`, `write`, `verify`, `finish`.
    pub step: &'static str,
    /// True: it may go better next time (a fetch that broke).
    pub retry: bool,
    /// One sentence.
    pub reason: String,
    /// Last lines of the installer.
    pub log_tail: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time went by.
    Tick,
    /// The service told its clock.
    Synced,
    /// It did not.
    SyncFailed(Failure),
    /// There is a new certificate, on disk.
    Certified(CertificateDates),
    /// Enrolling or renewing failed.
    CertifyFailed(Failure),
    /// The task is here.
    Task(TaskAnswer),
    /// It could not be had.
    TaskFailed(Failure),
    /// The service has this report.
    Reported(u64),
    /// It has not.
    ReportFailed(u64, Failure),
    /// What the machine says of itself now.
    Facts(Box<Facts>),
    /// The certificates of Kubernetes that are on the disk now.
    Certificates(Shown),
    /// The installation moves.
    Progress {
        /// `fetch`, `write`, `verify`, `finish`.
        step: &'static str,
        /// 0 to 100.
        percent: u8,
    },
    /// The installation ended.
    InstallEnded(Result<(), InstallFailure>),
    /// kubeadm moves.
    KubeadmStep(String),
    /// kubeadm ended, well or badly; or it could not be run at all, which is worth another try.
    KubeadmEnded(Result<KubeadmState, String>),
    /// The disk of this system boots no more, or still does, and why.
    WipeEnded(Result<(), String>),
    /// The machine did not restart.
    RebootFailed(String),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for the service's clock.
    Sync,
    /// Trade the token for a certificate.
    Enroll,
    /// Trade the certificate for a new one.
    Renew,
    /// Ask for the task, waiting for a change of `seen`.
    Poll {
        /// The revision that is known.
        seen: Option<String>,
    },
    /// Send a report.
    Report {
        /// The same number when the same report is sent again.
        number: u64,
        /// What it says.
        event: ReportEvent,
    },
    /// Look at the machine.
    GatherFacts,
    /// Write the disk.
    Install(InstallTask),
    /// See to it that kubeadm runs, and follow it.
    Kubeadm(KubeadmTask),
    /// Make the disk of this system unbootable.
    Wipe,
    /// See to it that the balancer of this node knows these API servers, if there is one.
    Balance(Vec<SocketAddr>),
    /// Keep this in the journal before anything else.
    Remember(Outcome),
    /// Restart the machine.
    Reboot,
    /// Tell the person at the machine.
    Say(String),
}

/// Where the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Asks for the service's clock.
    Syncing(Lane),
    /// Asks for a certificate.
    Enrolling(Lane),
    /// Holds one.
    Enrolled(Box<Enrolled>),
    /// Waits for the end.
    Rebooting(Lane),
}

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    settings: Settings,
    certificate: Option<CertificateDates>,
    outcome: Option<Outcome>,
    said: String,
    phase: Phase,
}

impl State {
    /// The agent as it starts: with the certificate and the outcome that are on disk.
    #[must_use]
    pub fn new(
        settings: Settings,
        certificate: Option<CertificateDates>,
        outcome: Option<Outcome>,
        uptime: Duration,
    ) -> Self {
        let phase = Phase::Syncing(Lane::at(uptime));
        Self { settings, certificate, outcome, said: String::new(), phase }
    }

    /// Where the agent is.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The phase in one word, for people and programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match &self.phase {
            Phase::Syncing(_) => "connecting",
            Phase::Enrolling(_) => "enrolling",
            Phase::Enrolled(enrolled) => enrolled.word(),
            Phase::Rebooting(_) => "rebooting",
        }
    }

    /// The last thing that was said to the person at the machine.
    #[must_use]
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Dates of the certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateDates> {
        self.certificate
    }

    /// When to step again if nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Now) -> Duration {
        let due = match &self.phase {
            Phase::Syncing(lane) | Phase::Enrolling(lane) | Phase::Rebooting(lane) => lane.due(),
            Phase::Enrolled(enrolled) => enrolled.due(),
        };
        due.unwrap_or(Duration::MAX).clamp(now.uptime, now.uptime + LONGEST_SLEEP)
    }

    /// Takes an event.
    #[must_use]
    pub fn step(mut self, event: Event, now: Now) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        let phase = match self.phase {
            Phase::Syncing(lane) => syncing(lane, &event, now, &mut self.said, self.settings, &mut actions)
                .unwrap_or_else(|| match self.certificate {
                    Some(_) => Phase::Enrolled(Box::new(Enrolled::new(now, self.outcome.take()))),
                    None => Phase::Enrolling(Lane::at(now.uptime)),
                }),
            Phase::Enrolling(lane) => match (&event, lane.is_busy()) {
                (Event::Certified(dates), true) => {
                    self.certificate = Some(*dates);
                    say(&mut self.said, &mut actions, "enrolled with the service".into());
                    Phase::Enrolled(Box::new(Enrolled::new(now, self.outcome.take())))
                }
                _ => enrolling(lane, &event, now, &mut self.said, self.settings, &mut actions),
            },
            Phase::Enrolled(enrolled) => {
                if let Event::Certified(dates) = &event {
                    self.certificate = Some(*dates);
                }
                let mut voice = Voice { said: &mut self.said, actions: &mut actions };
                enrolled.step(event.clone(), now, self.settings, self.certificate, &mut voice)
            }
            Phase::Rebooting(lane) => rebooting(lane, &event, now, &mut self.said, &mut actions),
        };
        self.phase = phase;
        // A phase that was just entered has work that is due now.
        match &mut self.phase {
            Phase::Syncing(_) => {}
            Phase::Enrolling(lane) => actions.extend(lane.take(now.uptime).then_some(Action::Enroll)),
            Phase::Enrolled(enrolled) => enrolled.send_due(now, self.settings, self.certificate, &mut actions),
            Phase::Rebooting(lane) => actions.extend(lane.take(now.uptime).then_some(Action::Reboot)),
        }
        (self, actions)
    }
}

/// Where the steps of a phase put their actions and what they say.
pub(crate) struct Voice<'a> {
    pub(crate) said: &'a mut String,
    pub(crate) actions: &'a mut Vec<Action>,
}

impl Voice<'_> {
    pub(crate) fn say(&mut self, text: String) {
        say(self.said, self.actions, text);
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// Says something, once.
fn say(said: &mut String, actions: &mut Vec<Action>, text: String) {
    if *said != text {
        said.clone_from(&text);
        actions.push(Action::Say(text));
    }
}

/// None: the clock is known.
fn syncing(
    mut lane: Lane,
    event: &Event,
    now: Now,
    said: &mut String,
    settings: Settings,
    actions: &mut Vec<Action>,
) -> Option<Phase> {
    match event {
        Event::Synced if lane.is_busy() => return None,
        Event::SyncFailed(failure) if lane.is_busy() => {
            lane.failed(now.uptime, failure, settings.jitter);
            say(said, actions, format!("cannot reach the service, trying again: {}", failure.reason));
        }
        _ => {}
    }
    if lane.take(now.uptime) {
        actions.push(Action::Sync);
    }
    Some(Phase::Syncing(lane))
}

fn enrolling(
    mut lane: Lane,
    event: &Event,
    now: Now,
    said: &mut String,
    settings: Settings,
    actions: &mut Vec<Action>,
) -> Phase {
    if let (Event::CertifyFailed(failure), true) = (event, lane.is_busy()) {
        lane.failed(now.uptime, failure, settings.jitter);
        let text = if failure.retry {
            format!("enrollment is not through yet, trying again: {}", failure.reason)
        } else {
            format!("enrollment was refused; an operator must act, asking again every minute: {}", failure.reason)
        };
        say(said, actions, text);
    }
    Phase::Enrolling(lane)
}

fn rebooting(mut lane: Lane, event: &Event, now: Now, said: &mut String, actions: &mut Vec<Action>) -> Phase {
    if let (Event::RebootFailed(reason), true) = (event, lane.is_busy()) {
        say(said, actions, format!("the machine did not restart, trying again: {reason}"));
        lane.succeeded(now.uptime + REBOOT_RETRY);
    }
    Phase::Rebooting(lane)
}
