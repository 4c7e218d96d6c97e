//! Carries out what [`super::state`] decides.
//!
//! One effect at a time; programs that it started end with the unit, and are begun again by the next start.
#![expect(clippy::disallowed_methods, reason = "the edge where clock and files come in")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nkd_api::agent::Purpose;
use nkd_api::update::Desired;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::gate;
use super::kubernetes::{Place, fits, kubelet_version, prepare, stays};
use super::node::{NodeClient, NodeError};
use super::plane::{Plane, image_tag};
use super::state::{
    Action, Deployment, Event, Failure, Ill, Job, Journal, Now, Retry, Settings, State, System, Tree, id_of,
};
use crate::client::{CallError, Client, chain};
use crate::clock::Clock;
use crate::console;
use crate::facts::{self, Root};
use crate::files::{self, FileError};
use crate::identity::Store;
use crate::kubeadm;
use crate::ostree::{self, Backend, STATUS, Source, ask_within};
use crate::reboot::Reboot;
use crate::tls;

/// The folder of a delta that is fetched, in the state directory.
const DIFFERENCE: &str = "difference";
/// Between two looks at the node, when nothing is under way, or it is none yet.
const IDLE: Duration = Duration::from_secs(10);
/// The same while something is.
const BUSY: Duration = Duration::from_secs(2);

/// How long the cluster's API may take to say of which version it is.
const PLANE: Duration = Duration::from_secs(10);

/// How long one look through the gate may take, with all checks of the site.
const LOOK: Duration = Duration::from_secs(300);

/// Where it works.
#[derive(Debug, Clone)]
pub struct Options {
    /// `agent.json`.
    pub config: PathBuf,
    /// State directory of the agent.
    pub state: PathBuf,
    /// `/`
    pub root: PathBuf,
    /// Where programs are looked for.
    pub path: String,
    /// How to restart.
    pub reboot: Reboot,
    /// A program of the site's own in the place of ostree.
    pub os: Option<String>,
    /// What the gate asks for.
    pub settings: Settings,
}

/// It cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// No `agent.json`.
    #[error("{0} is not there: this machine was not given to an nkd service")]
    NoConfig(PathBuf),
}

struct Shared {
    options: Options,
    root: Root,
    clock: Clock,
    os: Box<dyn Backend>,
    place: Place,
    /// The tree of the release that is laid out, and whether the machine has to restart to run it.
    tree: Mutex<Option<(PathBuf, Tree)>>,
    events: mpsc::UnboundedSender<Event>,
}

/// Runs until the future is dropped. A system that is not installed has nothing to update: then it ends at once.
///
/// # Errors
/// When the agent's files cannot be used.
pub async fn run(options: Options) -> Result<(), RunError> {
    let store = Store::open(&options.config, &options.state)?;
    let config = store.config()?.ok_or_else(|| RunError::NoConfig(options.config.clone()))?;
    if config.purpose != Purpose::Node {
        return Ok(());
    }
    let journal_path = options.state.join("update.json");
    // A damaged journal is an error: without it nobody knows what was armed.
    let journal: Journal = files::read_json(&journal_path)?.unwrap_or_default();
    let root = Root::new(&options.root);
    let clock = Clock::new(facts::uptime(&root));
    let os: Box<dyn Backend> = match &options.os {
        Some(program) => Box::new(ostree::Site::new(program.clone())),
        None => ostree::detect(&options.root, &options.path),
    };
    let place = Place { root: options.root.clone(), state: options.state.clone(), systemctl: "systemctl".into() };
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut node = NodeClient::new(&options.root);
    let settings = options.settings;
    let shared = Arc::new(Shared { options, root, clock, os, place, tree: Mutex::new(None), events });
    let mut state = State::new(settings, journal);
    let mut event = Event::Tick;
    let mut next_look = Instant::now();
    let mut unseen = String::new();
    loop {
        let actions;
        (state, actions) = state.step(event, shared.now());
        for action in actions {
            match action {
                // If that fails, nothing of what follows may begin: the next start goes on from what is on the disk.
                Action::Remember(journal) => files::write_json(&journal_path, &journal)?,
                Action::Say(text) => console::say(&text),
                Action::Tell(report) => {
                    let told = node.tell(&report).await.map_err(|error| error.to_string());
                    // The receiver is in this function.
                    let _ = shared.events.send(Event::Told(told));
                }
                action => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        let event = perform(&shared, action).await;
                        let _ = shared.events.send(event);
                    });
                }
            }
        }
        let busy = state.journal().job.as_ref().is_some_and(|job| !job.stage.is_end());
        let due = state.deadline().map(|at| at.saturating_sub(shared.clock.uptime()));
        let look = next_look.saturating_duration_since(Instant::now());
        let wait = due.map_or(look, |due| due.min(look)).max(Duration::from_millis(20));
        event = match timeout(wait, inbox.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            Err(_) if Instant::now() >= next_look => {
                let is_node = node.is_node();
                next_look = Instant::now() + if is_node && busy { BUSY } else { IDLE };
                match is_node {
                    false => Event::Tick,
                    true => match node.look().await {
                        Ok(seen) => {
                            unseen.clear();
                            Event::Desired(seen.desired, seen.reported)
                        }
                        Err(error) => {
                            let reason = error.to_string();
                            // Once, not at every look: an API server may be away for long.
                            if unseen.is_empty() {
                                tracing::warn!(reason, "the node cannot be looked at");
                            }
                            unseen = reason;
                            Event::Tick
                        }
                    },
                }
            }
            Err(_) => Event::Tick,
        };
    }
}

/// Does one thing, on a thread where it may wait.
async fn perform(shared: &Arc<Shared>, action: Action) -> Event {
    match action {
        Action::Look => {
            let (system, plane) = tokio::join!(blocking(shared, Shared::system), shared.plane());
            let seen = system.map(|system| System { plane, ..system });
            Event::Seen(seen.map_err(|failure| failure.reason))
        }
        Action::Stage(desired) => {
            let source = match desired.os.as_ref().and_then(|os| os.commit.as_deref()) {
                // What runs or is staged needs no source: the service may be away.
                Some(commit) => source(shared, commit).await,
                None => Err(not_known(Retry::Never, "the release names no commit")),
            };
            let stage = move |shared: &Shared| {
                shared.stage(&desired, source.as_ref()).map(Some).map_err(|failure| shared.perhaps_own(failure))
            };
            let ended = blocking(shared, stage).await;
            // What was not taken to be applied.
            ostree::difference::discard(&shared.options.state.join(DIFFERENCE));
            Event::Ended(ended)
        }
        Action::Kubeadm(desired) => {
            // kubeadm asks the API at once, and gives up at once. That of the only control plane is away for a while after a
            // power cut.
            if let Err(reason) = NodeClient::new(&shared.options.root).look().await {
                let reason = format!("the cluster's API does not answer: {reason}");
                let away = move |shared: &Shared| Err(shared.place.away(&desired, &reason));
                return Event::Ended(blocking(shared, away).await);
            }
            Event::Ended(blocking(shared, move |shared| shared.kubeadm(&desired).map(|()| None)).await)
        }
        Action::Arm(id) => Event::Ended(blocking(shared, move |shared| shared.os.arm(&id).map(|()| None)).await),
        Action::Check(job) => {
            let limit = shared.options.settings.gate.min(LOOK);
            Event::Checked(within(limit, shared.check(&job)).await)
        }
        Action::Confirm => Event::Ended(
            blocking(shared, |shared| {
                shared.os.confirm()?;
                shared.place.forget().map_err(|reason| Failure { retry: Retry::Few, reason })?;
                Ok(None)
            })
            .await,
        ),
        Action::Revert => Event::Ended(blocking(shared, |shared| shared.revert().map(|()| None)).await),
        Action::Settle => Event::Ended(blocking(shared, |shared| shared.settle().map(|()| None)).await),
        Action::Restart => {
            console::say("the machine restarts for its update");
            let reason = shared.options.reboot.run().await;
            Event::Ended(Err(Failure { retry: Retry::Few, reason }))
        }
        Action::Remember(_) | Action::Say(_) | Action::Tell(_) => Event::Tick,
    }
}

/// A look that comes to no end is an illness too: a program of the node does not answer.
async fn within<T>(limit: Duration, look: impl Future<Output = Result<T, Ill>>) -> Result<T, Ill> {
    let reason = || format!("a look at it takes longer than {} s: what does not answer?", limit.as_secs());
    timeout(limit, look).await.unwrap_or_else(|_| Err(Ill::Node(reason())))
}

/// Where a release is, by the word of the service. While the service is away, the release waits.
async fn source(shared: &Arc<Shared>, commit: &str) -> Result<Source, Failure> {
    let here = |reason: String| not_known(Retry::Few, &reason);
    let store = Store::open(&shared.options.config, &shared.options.state).map_err(|error| here(chain(&error)))?;
    let identity = store.identity().map_err(|error| here(chain(&error)))?;
    let identity = identity.ok_or_else(|| here("this machine has not enrolled".to_owned()))?;
    let config = store.config().map_err(|error| here(chain(&error)))?;
    let config = config.ok_or_else(|| here("agent.json is gone".to_owned()))?;
    let clock = Clock::new(Duration::ZERO);
    let tls = tls::client_config(&identity.ca, Some((&identity).into()), &clock).map_err(|e| here(chain(&e)))?;
    let client = Client::new(&config.server, tls).map_err(|error| here(chain(&error)))?;
    let found = client.release(commit).await.map_err(|error| {
        let retry = if error.retry() { Retry::Patiently } else { Retry::Few };
        not_known(retry, &chain(&error))
    })?;
    let url = format!("{}{}", config.server.trim_end_matches('/'), found.repository);
    let difference = difference(shared, &client, &found.repository, commit).await.unwrap_or_else(|reason| {
        tracing::warn!(reason, "the release's delta cannot be had; its objects are fetched");
        None
    });
    Ok(Source { url, ca: identity.ca, key: found.key, ed25519_key: found.ed25519_key, difference })
}

/// Fetches the delta between what runs and a release, if the service has one and anything of the release is missing.
async fn difference(
    shared: &Arc<Shared>,
    client: &Client,
    repository: &str,
    to: &str,
) -> Result<Option<PathBuf>, String> {
    if !shared.os.takes_differences() || ostree::difference::is_whole(&shared.options.root, to) {
        return Ok(None);
    }
    let deployments =
        blocking(shared, |shared| shared.os.deployments().map_err(|reason| Failure { retry: Retry::Few, reason }));
    let deployments = deployments.await.map_err(|failure| failure.reason)?;
    let Some(from) = deployments.into_iter().find(|deployment| deployment.booted) else { return Ok(None) };
    let folder = shared.options.state.join(DIFFERENCE);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", folder.display()));
        }
        _ => files::make_private_dir(&folder).map_err(|error| chain(&error))?,
    }
    fetched(ostree::difference::fetch(client, repository, [&from.id, to], &folder).await, folder)
}

/// The folder that a delta was fetched to. One that did not come whole goes at once: the release's objects need the room.
fn fetched(came: Result<bool, CallError>, folder: PathBuf) -> Result<Option<PathBuf>, String> {
    if matches!(came, Ok(true)) {
        return Ok(Some(folder));
    }
    ostree::difference::discard(&folder);
    came.map(|_| None).map_err(|error| chain(&error))
}

/// The release has to be fetched, and nobody says from where.
fn not_known(retry: Retry, reason: &str) -> Failure {
    Failure { retry, reason: format!("the service does not say where the release is: {reason}") }
}

/// Programs are waited for on a thread of their own.
async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let shared = Arc::clone(shared);
    let ended = tokio::task::spawn_blocking(move || work(&shared)).await;
    ended.unwrap_or_else(|error| Err(Failure { retry: Retry::Few, reason: error.to_string() }))
}

/// What systemd lists, without scopes: they hold what others have started, containers and sessions. One whose container takes long
/// to end, as an API server that kubeadm replaces, has failed for systemd, and says nothing of the node.
fn failed_units(listed: &str) -> Vec<String> {
    let units = listed.lines().filter_map(|line| line.split_whitespace().next());
    units.filter(|unit| !unit.ends_with(".scope")).map(str::to_owned).collect()
}

impl Shared {
    fn now(&self) -> Now {
        Now { uptime: self.clock.uptime(), date: OffsetDateTime::now_utc() }
    }

    fn system(&self) -> Result<System, Failure> {
        let again = |reason: String| Failure { retry: Retry::Few, reason };
        let words = ["list-units", "--state=failed", "--plain", "--no-legend", "--no-pager"];
        let failed = ask_within(STATUS, "systemctl", &words);
        let failed = failed.map_err(String::from).map_err(again)?;
        Ok(System {
            boot_id: facts::boot_id(&self.root),
            deployments: self.os.deployments().map_err(again)?,
            finalize_failure: self.os.finalize_failure(),
            kubernetes: kubelet_version(&self.options.root),
            plane: None,
            failed_units: failed_units(&failed),
            caution: self.os.caution(),
        })
    }

    /// What kubeadm has made of this node, if it is a control plane.
    async fn plane(&self) -> Option<Plane> {
        let manifest = self.options.root.join(kubeadm::API_SERVER);
        let server = image_tag(&std::fs::read_to_string(manifest).ok()?);
        let mut node = NodeClient::new(&self.options.root);
        let asked = timeout(PLANE, node.cluster_version()).await;
        let config = asked.map_err(|_| "it did not answer in time".to_owned());
        let config = config.and_then(|config| config.map_err(|error| error.to_string()));
        Some(Plane { server, config })
    }

    fn tree(&self) -> Option<(PathBuf, Tree)> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stage(&self, desired: &Desired, source: Result<&Source, &Failure>) -> Result<Tree, Failure> {
        let tree = match &desired.os {
            Some(os) => self.os.stage(os, source)?,
            None => self.options.root.clone(),
        };
        fits(&tree, desired)?;
        stays(&tree, desired, kubelet_version(&self.options.root).as_deref())?;
        if desired.kubernetes.is_some() {
            prepare(&tree)?;
        }
        let wanted = desired.os.as_ref().and_then(id_of);
        let booted = self.os.deployments().map_err(|reason| Failure { retry: Retry::Few, reason })?;
        let booted = booted.into_iter().find(|deployment| deployment.booted).map(|deployment| deployment.id);
        let laid_out = Tree { restart: wanted.is_some() && booted.as_deref() != wanted };
        *self.tree.lock().unwrap_or_else(PoisonError::into_inner) = Some((tree, laid_out.clone()));
        Ok(laid_out)
    }

    fn kubeadm(&self, desired: &Desired) -> Result<(), Failure> {
        let (tree, laid_out) =
            self.tree().ok_or_else(|| Failure { retry: Retry::Never, reason: "the release is not laid out".into() })?;
        if let Some(id) = desired.os.as_ref().and_then(id_of) {
            let all = self.os.deployments().map_err(|reason| Failure { retry: Retry::Few, reason })?;
            let there = |deployment: &Deployment| deployment.id == id && (deployment.staged || deployment.booted);
            if !all.iter().any(there) {
                let reason = format!("{id} is not staged any more: somebody has staged another system, or cleaned up");
                return Err(Failure { retry: Retry::Never, reason });
            }
        }
        // Who restarts into the release has another kubelet then, which reads what kubeadm has written.
        self.place.upgrade(&tree, desired, !laid_out.restart)
    }

    async fn check(self: &Arc<Self>, job: &Job) -> Result<System, Ill> {
        let system = blocking(self, Self::system).await.map_err(|failure| Ill::Node(failure.reason))?;
        self.try_out(job, &system).await.map(|()| system)
    }

    async fn try_out(self: &Arc<Self>, job: &Job, system: &System) -> Result<(), Ill> {
        let mut node = NodeClient::new(&self.options.root);
        let away = |error: NodeError| match error {
            NodeError::Access(_) => Ill::Node(error.to_string()),
            NodeError::Api(reason) => {
                let reason = format!("the cluster's API does not answer: {reason}");
                // That of a control plane is its own.
                let own = kubeadm::api_server_port(&self.options.root).is_some();
                if own { Ill::Node(reason) } else { Ill::Unknown(reason) }
            }
        };
        let seen = node.look().await.map_err(away)?;
        gate::judge(job, system, &seen).map_err(Ill::Node)?;
        let (root, wanted) = (self.options.root.clone(), job.desired.kubernetes.clone());
        let tried = tokio::task::spawn_blocking(move || gate::try_out(&root, wanted.as_deref())).await;
        tried.unwrap_or_else(|error| Err(error.to_string())).map_err(Ill::Node)
    }

    fn job(&self) -> Result<Job, Failure> {
        let path = self.options.state.join("update.json");
        let journal: Option<Journal> =
            files::read_json(&path).map_err(|error| Failure { retry: Retry::Few, reason: chain(&error) })?;
        let none = || Failure { retry: Retry::Never, reason: "the journal holds no update".to_owned() };
        journal.and_then(|journal| journal.job).ok_or_else(none)
    }

    fn revert(&self) -> Result<(), Failure> {
        let job = self.job()?;
        let from =
            job.from.ok_or_else(|| Failure { retry: Retry::Never, reason: "nothing ran here before".to_owned() })?;
        self.os.revert(&from)?;
        // The older kubelet starts with what it had.
        self.place.restore(&job.desired).map_err(|reason| Failure { retry: Retry::Few, reason })
    }

    /// A release that has to be fetched once more, since a kubeadm was cut off, is waited for. But what that has left of this node
    /// may be why it does not come.
    fn perhaps_own(&self, failure: Failure) -> Failure {
        match self.job() {
            Ok(job) if failure.retry == Retry::Patiently && job.is_half_done() => {
                self.place.away(&job.desired, &failure.reason)
            }
            _ => failure,
        }
    }

    fn settle(&self) -> Result<(), Failure> {
        let job = self.job()?;
        let again = |reason| Failure { retry: Retry::Few, reason };
        if job.put_back {
            self.place.put_back(&job.desired).map_err(again)?;
        } else if job.is_half_done() {
            self.place.put_back_moved_out(&job.desired).map_err(again)?;
            self.place.may_forget(&job.desired)?;
        }
        self.place.restore(&job.desired).map_err(again)?;
        match job.desired.os.as_ref().and_then(id_of) {
            Some(id) => self.os.discard(id),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nkd_api::update::OsRelease;

    use super::super::state::Stage;
    use super::*;

    #[tokio::test]
    async fn a_look_that_comes_to_no_end_is_an_illness_of_the_node() {
        let limit = Duration::from_millis(10);
        let ill = within(limit, std::future::pending::<Result<(), Ill>>()).await.unwrap_err();
        assert!(matches!(ill, Ill::Node(why) if why.contains("longer than")));
        let away = || Ill::Unknown("away".into());
        assert_eq!(within(limit, async { Err::<(), _>(away()) }).await, Err(away()));
    }

    /// A program of a test. It is copied by another one, so that nobody holds it open for writing when it is run.
    fn program(path: &Path, text: &str) {
        let draft = path.with_extension("draft");
        std::fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
        ostree::tell("install", &["-D", "-m", "755", &draft.display().to_string(), &path.display().to_string()])
            .unwrap();
    }

    /// A node of a site's own images, `old` and `new`, the first of which runs. Its programs write down what they are told.
    fn node(folder: &Path) -> Shared {
        let path = |name: &str| folder.join(name).display().to_string();
        program(
            &folder.join("os"),
            &format!(
                "case $1 in\nstatus) echo '[{{\"id\": \"new\", \"staged\": true}}, {{\"id\": \"old\", \"booted\": true}}]' ;;\n\
                 stage) echo {} ;;\nesac",
                path("tree")
            ),
        );
        std::fs::create_dir_all(folder.join("tree/usr/bin")).unwrap();
        let said = path("said");
        program(
            &folder.join("tree/usr/bin/kubeadm"),
            &format!("[ \"$1\" = version ] && echo v2 && exit\necho kubeadm $* >>{said}"),
        );
        program(&folder.join("tree/usr/bin/kubelet"), "echo Kubernetes v2");
        program(&folder.join("systemctl"), &format!("echo systemctl $* >>{said}"));
        let options = Options {
            config: folder.join("agent.json"),
            state: folder.join("state"),
            root: folder.join("root"),
            path: String::new(),
            reboot: Reboot::System,
            os: None,
            settings: Settings::default(),
        };
        for folder in [&options.state, &options.root] {
            std::fs::create_dir(folder).unwrap();
        }
        let place = Place { root: options.root.clone(), state: options.state.clone(), systemctl: path("systemctl") };
        Shared {
            root: Root::new(&options.root),
            clock: Clock::new(Duration::ZERO),
            os: Box::new(ostree::Site::new(path("os"))),
            place,
            tree: Mutex::new(None),
            events: mpsc::unbounded_channel().0,
            options,
        }
    }

    fn desired(os: Option<&str>) -> Desired {
        Desired {
            update: "u".into(),
            uid: "u1".into(),
            attempt: 1,
            retry: None,
            os: os.map(|id| OsRelease { commit: Some(id.into()), ..OsRelease::default() }),
            kubernetes: Some("v2".into()),
            first: false,
            go: true,
            ignore_preflight_errors: Vec::new(),
        }
    }

    /// Which kubeadm has written its configuration anew.
    #[test]
    fn the_kubelet_is_restarted_where_the_machine_is_not() {
        for (id, restarts) in [("old", true), ("new", false)] {
            let folder = tempfile::tempdir().unwrap();
            let node = node(folder.path());
            let wanted = desired(Some(id));
            let source = not_known(Retry::Never, "nobody asks");
            assert_eq!(node.stage(&wanted, Err(&source)), Ok(Tree { restart: !restarts }));
            node.kubeadm(&wanted).unwrap();
            let said = std::fs::read_to_string(folder.path().join("said")).unwrap();
            let expected = if restarts { "systemctl restart kubelet.service\n" } else { "" };
            assert_eq!(said, format!("kubeadm upgrade node\n{expected}"));
        }
    }

    /// Those that kubeadm has made stay otherwise: an older kubelet may run newer ones.
    #[test]
    fn static_pods_are_put_back_when_they_were_given_up_alone() {
        for (put_back, kubeadm) in [(false, true), (false, false), (true, false)] {
            let folder = tempfile::tempdir().unwrap();
            let node = node(folder.path());
            let wanted = desired(Some("new"));
            let manifest = node.options.root.join("etc/kubernetes/manifests/kube-apiserver.yaml");
            std::fs::create_dir_all(manifest.parent().unwrap()).unwrap();
            std::fs::write(&manifest, "old").unwrap();
            node.place.keep(&wanted).unwrap();
            std::fs::write(&manifest, "new").unwrap();
            let job = Job {
                desired: wanted,
                stage: Stage::Settle,
                boot_id: "b".into(),
                from: Some("old".into()),
                failed_before: Vec::new(),
                kubeadm_began: true,
                cuts: 1,
                kubeadm,
                restaged: 0,
                reason: "why".into(),
                condemned: false,
                put_back,
            };
            let is_cut_off = job.is_half_done() && !put_back;
            let journal = Journal { job: Some(job), denied: Vec::new() };
            files::write_json(&node.options.state.join("update.json"), &journal).unwrap();
            for _ in 0..2 {
                match node.settle() {
                    // Its API server is not there: what was kept is needed still.
                    Err(failure) if is_cut_off => assert_eq!(failure.retry, Retry::Patiently),
                    settled => settled.unwrap(),
                }
                assert_eq!(node.place.kept(&desired(Some("new"))).exists(), is_cut_off);
                assert_eq!(std::fs::read_to_string(&manifest).unwrap(), if put_back { "old" } else { "new" });
            }
        }
    }

    #[test]
    fn a_delta_that_did_not_come_whole_leaves_its_room() {
        let full = || Err(CallError::Address("x".into()));
        for (came, stays) in [(Ok(true), true), (Ok(false), false), (full(), false)] {
            let state = tempfile::tempdir().unwrap();
            let folder = state.path().join(DIFFERENCE);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("superblock"), "half").unwrap();
            let failed = came.is_err();
            let found = fetched(came, folder.clone());
            assert_eq!((found.is_err(), found.ok().flatten()), (failed, stays.then_some(folder.clone())));
            assert_eq!(folder.exists(), stays);
        }
    }

    #[test]
    fn a_container_that_ended_late_is_no_unit_of_the_node_that_has_failed() {
        let listed = "chrony.service loaded failed failed chrony, an NTP client/server\n\
                      cri-containerd-e53356.scope loaded failed failed libcontainer container e53356\n\
                      var-lib-data.mount loaded failed failed /var/lib/data\n";
        assert_eq!(failed_units(listed), ["chrony.service", "var-lib-data.mount"]);
    }
}
