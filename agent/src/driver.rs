//! Carries out what [`crate::state`] decides.
//!
//! One task steps the state; every action runs in a task of its own and comes back as an event.
#![expect(clippy::disallowed_methods, reason = "makes the random identity of a run")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nkd_api::agent::{AgentConfig, EnrollRequest, Purpose, RenewRequest, Report, ReportEvent};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::balance;
use crate::client::{CallError, Client, chain};
use crate::clock::Clock;
use crate::console;
use crate::facts::{self, Root, net};
use crate::files::FileError;
use crate::identity::{self, Enrolling, Identity, Store, token_sha256};
use crate::install::{self, Patience, Workplace};
use crate::kubeadm;
use crate::reboot::Reboot;
use crate::state::{Action, Event, Failure, Now, Settings, State};
use crate::status::{self, Status};
use crate::tls::{self, TlsError};

/// Where the agent works.
#[derive(Debug, Clone)]
pub struct Options {
    /// `agent.json`.
    pub config: PathBuf,
    /// State directory.
    pub state: PathBuf,
    /// Root of /sys, /proc and /dev.
    pub root: PathBuf,
    /// Directory in memory.
    pub run_dir: PathBuf,
    /// Directory in memory that outlives the agent.
    pub orders: PathBuf,
    /// Status socket.
    pub socket: PathBuf,
    /// Where programs are looked for.
    pub path: String,
    /// How to restart.
    pub reboot: Reboot,
    /// When to give up on an image.
    pub patience: Patience,
}

/// The agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// No `agent.json`.
    #[error("{0} is not there: this machine was not given to an nkd service")]
    NoConfig(PathBuf),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address of the service.
    #[error(transparent)]
    Address(#[from] CallError),
    /// The status socket.
    #[error("the status socket {path} cannot be opened")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// What the actions share.
struct Shared {
    options: Options,
    root: Root,
    config: AgentConfig,
    store: Store,
    clock: Clock,
    client: Client,
    boot_id: String,
    /// Makes the identities of this run's reports.
    run: Uuid,
    events: mpsc::UnboundedSender<Event>,
    contact: watch::Sender<Option<OffsetDateTime>>,
}

/// Runs until the future is dropped.
///
/// # Errors
/// When the agent's files or its socket cannot be used. What the service says is never an error: the agent waits.
pub async fn run(options: Options) -> Result<(), RunError> {
    let store = Store::open(&options.config, &options.state)?;
    let config = store.config()?.ok_or_else(|| RunError::NoConfig(options.config.clone()))?;
    let root = Root::new(&options.root);
    let clock = Clock::new(facts::uptime(&root));
    let identity = usable_identity(&store, &config);
    if let Some(identity) = &identity {
        // An earlier run may have died between the two, or was of an agent that did not write it.
        store.show_identity(identity);
        store.blank_token()?;
        store.keep_enrolling(None)?;
    }
    let ca = identity.as_ref().map_or(&config.ca, |identity| &identity.ca);
    let tls = tls::client_config(ca, identity.as_ref().map(Into::into), &clock)?;
    let client = Client::new(&config.server, tls)?;
    let settings =
        Settings { purpose: config.purpose, generation: config.generation, jitter: config.machine.as_bytes()[15] };
    let outcome = store.outcome().unwrap_or_else(|error| {
        tracing::warn!(error = %chain(&error), "the journal is not used");
        None
    });
    let state = State::new(settings, identity.as_ref().map(Identity::dates), outcome, clock.uptime());
    console::say(&format!(
        "machine {} is here for {}, generation {}, service {}",
        config.machine,
        config.purpose.as_str(),
        config.generation,
        config.server
    ));

    let socket = |source| RunError::Socket { path: options.socket.clone(), source };
    let listener = status::listen(&options.socket).map_err(socket)?;
    let (events, inbox) = mpsc::unbounded_channel();
    let boot_id = facts::boot_id(&root);
    let (contact, _) = watch::channel(None);
    let run = Uuid::new_v4();
    let shared = Shared { options, root, config, store, clock, client, boot_id, run, events, contact };
    let (board, reader) = watch::channel(Arc::new(shared.status(&state)));
    tokio::select! {
        () = status::serve(listener, reader) => Ok(()),
        () = drive(Arc::new(shared), state, inbox, board) => Ok(()),
    }
}

/// The certificate on disk, if it is there, readable, and what the configuration asks for.
fn usable_identity(store: &Store, config: &AgentConfig) -> Option<Identity> {
    let identity = store.identity().unwrap_or_else(|error| {
        console::say(&format!("the certificate on disk is not used: {}", chain(&error)));
        None
    })?;
    if !identity.serves(config) {
        console::say("agent.json asks for another enrollment than the one on disk: enrolling anew");
        return None;
    }
    Some(identity)
}

async fn drive(
    shared: Arc<Shared>,
    mut state: State,
    mut inbox: mpsc::UnboundedReceiver<Event>,
    board: watch::Sender<Arc<Status>>,
) {
    // They end with this future.
    let mut tasks = JoinSet::new();
    let mut event = Event::Tick;
    loop {
        let now = shared.now();
        let actions;
        (state, actions) = state.step(event, now);
        for action in actions {
            act(&shared, &mut tasks, action);
        }
        while tasks.try_join_next().is_some() {}
        board.send_replace(Arc::new(shared.status(&state)));
        let wait = state.deadline(now).saturating_sub(shared.clock.uptime()).max(Duration::from_millis(5));
        event = match timeout(wait, inbox.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(_) => Event::Tick,
        };
    }
}

/// Starts an action.
fn act(shared: &Arc<Shared>, tasks: &mut JoinSet<()>, action: Action) {
    match action {
        Action::Say(text) => console::say(&text),
        Action::Remember(outcome) => {
            if let Err(error) = shared.store.keep_outcome(&outcome) {
                tracing::warn!(error = %chain(&error), "the journal was not written");
            }
        }
        action => {
            let shared = shared.clone();
            tasks.spawn(async move {
                let event = perform(&shared, action).await;
                // The receiver lives as long as the agent does.
                let _ = shared.events.send(event);
            });
        }
    }
}

async fn perform(shared: &Shared, action: Action) -> Event {
    match action {
        Action::Sync => match shared.client.time().await {
            Ok(answer) => {
                shared.heard(Some(answer.server_time));
                // The connection was made before the clock was known: check the certificate again, by the clock.
                match shared
                    .use_tls(shared.store.identity().ok().flatten().filter(|i| i.serves(&shared.config)).as_ref())
                {
                    Ok(()) => Event::Synced,
                    Err(failure) => Event::SyncFailed(failure),
                }
            }
            Err(error) => Event::SyncFailed(error.failure()),
        },
        Action::Enroll => match enroll(shared).await {
            Ok(identity) => Event::Certified(identity.dates()),
            Err(failure) => Event::CertifyFailed(failure),
        },
        Action::Renew => match renew(shared).await {
            Ok(identity) => Event::Certified(identity.dates()),
            Err(failure) => Event::CertifyFailed(failure),
        },
        Action::Poll { seen } => match shared.client.task(seen.as_deref()).await {
            Ok(answer) => {
                shared.heard(None);
                Event::Task(answer)
            }
            Err(error) => Event::TaskFailed(error.failure()),
        },
        Action::Report { number, event } => match shared.report(number, event).await {
            Ok(()) => Event::Reported(number),
            Err(error) => Event::ReportFailed(number, error.failure()),
        },
        Action::GatherFacts => {
            if shared.config.purpose == Purpose::Node {
                let _ = shared.events.send(Event::Certificates(kubeadm::certificates(&shared.options.root)));
            }
            Event::Facts(Box::new(facts::gather(&shared.root, &net::addresses())))
        }
        Action::Install(task) => {
            let place = Workplace {
                root: shared.root.clone(),
                run_dir: shared.options.run_dir.clone(),
                path: shared.options.path.clone(),
                patience: shared.options.patience,
            };
            let progress = |step, percent| {
                let _ = shared.events.send(Event::Progress { step, percent });
            };
            Event::InstallEnded(install::install(&place, &shared.client, &task, progress).await)
        }
        Action::Kubeadm(task) => {
            let place = kubeadm::Place {
                state: shared.options.state.clone(),
                orders: shared.options.orders.clone(),
                path: shared.options.path.clone(),
            };
            let progress = |step: &str| {
                let _ = shared.events.send(Event::KubeadmStep(step.to_owned()));
            };
            Event::KubeadmEnded(kubeadm::carry_out(&place, &shared.client, &task, progress).await)
        }
        Action::Wipe => {
            let root = shared.root.clone();
            let ended = tokio::task::spawn_blocking(move || install::wipe_system(&root)).await;
            Event::WipeEnded(ended.unwrap_or_else(|error| Err(error.to_string())))
        }
        Action::Balance(servers) => {
            // Beside agent.json; there is none on a node of a cluster with an endpoint of its own.
            let path = shared.options.config.with_file_name("balancer.json");
            match balance::keep(&path, &servers) {
                Ok(true) => console::say("the API servers of this node's cluster are others now"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the balancer is not told: tried again at the next answer")
                }
            }
            Event::Tick
        }
        Action::Reboot => Event::RebootFailed(shared.options.reboot.run().await),
        Action::Say(_) | Action::Remember(_) => Event::Tick,
    }
}

impl Shared {
    fn now(&self) -> Now {
        Now { uptime: self.clock.uptime(), service: self.clock.service() }
    }

    /// The service answered, perhaps with its clock.
    fn heard(&self, clock: Option<OffsetDateTime>) {
        if let Some(clock) = clock {
            self.clock.set_service(clock);
        }
        self.contact.send_replace(self.clock.service());
    }

    fn use_tls(&self, identity: Option<&Identity>) -> Result<(), Failure> {
        let ca = identity.map_or(&self.config.ca, |identity| &identity.ca);
        let config = tls::client_config(ca, identity.map(Into::into), &self.clock).map_err(|error| broken(&error))?;
        self.client.use_config(config);
        Ok(())
    }

    async fn report(&self, number: u64, event: ReportEvent) -> Result<(), CallError> {
        // The same number gives the same identity, so that a report sent twice counts once.
        let id = Uuid::from_u128(self.run.as_u128().wrapping_add(u128::from(number)));
        let answer = self.client.report(&Report { id, boot_id: self.boot_id.clone(), event }).await?;
        self.heard(Some(answer.server_time));
        Ok(())
    }

    fn status(&self, state: &State) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: self.config.machine,
            purpose: self.config.purpose,
            generation: self.config.generation,
            server: self.config.server.clone(),
            phase: state.word().to_owned(),
            message: state.said().to_owned(),
            last_contact: *self.contact.borrow(),
            renew_after: state.certificate().map(|dates| dates.renew_after),
            certificate_expires: state.certificate().map(|dates| dates.expires),
        }
    }
}

/// Something on this machine is in the way: an operator must act.
fn broken(error: &dyn std::error::Error) -> Failure {
    Failure { retry: false, reason: chain(error) }
}

/// Trades the token for a certificate. The key and the intent are on disk before the token is sent.
async fn enroll(shared: &Shared) -> Result<Identity, Failure> {
    let store = &shared.store;
    // Read anew: an operator may have put a new token there.
    let config = store.config().map_err(|error| broken(&error))?.unwrap_or_else(|| shared.config.clone());
    if config.token.is_empty() {
        let reason = "agent.json holds no token and there is no certificate; put a new token there".to_owned();
        return Err(Failure { retry: false, reason });
    }
    let token_sha256 = token_sha256(&config.token);
    let begun = store.enrolling().unwrap_or_else(|error| {
        tracing::warn!(error = %chain(&error), "an enrollment that was begun is not used");
        None
    });
    let mut enrolling = match begun.filter(|begun| begun.token_sha256 == token_sha256) {
        Some(begun) => begun,
        None => {
            let key = identity::new_key().map_err(|error| broken(&error))?;
            Enrolling { token_sha256: token_sha256.clone(), key, sent: false }
        }
    };
    let sent_before = std::mem::replace(&mut enrolling.sent, true);
    store.keep_enrolling(Some(&enrolling)).map_err(|error| broken(&error))?;
    let csr = identity::request(&enrolling.key).map_err(|error| broken(&error))?;
    let facts = facts::gather(&shared.root, &net::addresses());
    let request = EnrollRequest { machine: config.machine, token: config.token.clone(), csr, facts };
    let answer = shared.client.enroll(&request).await.map_err(|error| {
        let mut failure = error.failure();
        if sent_before && !failure.retry {
            failure.reason = format!(
                "{}; the token was sent before and the answer was lost, so it may be used up: it takes a new token",
                failure.reason
            );
        }
        failure
    })?;
    shared.heard(Some(answer.server_time));
    let identity = Identity {
        machine: config.machine,
        purpose: config.purpose,
        generation: config.generation,
        token_sha256,
        key: enrolling.key,
        certificate: answer.certificate,
        ca: answer.ca,
        renew_after: answer.renew_after,
        expires: answer.expires,
    };
    shared.use_tls(Some(&identity))?;
    store.keep_identity(&identity).map_err(|error| broken(&error))?;
    forget_token(store);
    Ok(identity)
}

/// The token is used up. It is no harm if it stays: the next start tries again.
fn forget_token(store: &Store) {
    if let Err(error) = store.blank_token().and_then(|()| store.keep_enrolling(None)) {
        tracing::warn!(error = %chain(&error), "the used token could not be removed from agent.json");
    }
}

async fn renew(shared: &Shared) -> Result<Identity, Failure> {
    let store = &shared.store;
    let identity = store
        .identity()
        .map_err(|error| broken(&error))?
        .ok_or_else(|| Failure { retry: false, reason: "the certificate on disk is gone".to_owned() })?;
    let key = identity::new_key().map_err(|error| broken(&error))?;
    let csr = identity::request(&key).map_err(|error| broken(&error))?;
    let answer = shared.client.renew(&RenewRequest { csr }).await.map_err(|error| error.failure())?;
    shared.heard(Some(answer.server_time));
    let renewed = identity.renewed(key, answer);
    shared.use_tls(Some(&renewed))?;
    store.keep_identity(&renewed).map_err(|error| broken(&error))?;
    Ok(renewed)
}
