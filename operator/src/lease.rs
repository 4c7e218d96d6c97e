//! Which of several operators acts: the one that holds a Lease, and only as long as nobody else can have it.

#![expect(clippy::disallowed_methods, reason = "reads the clocks")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterError, LIMIT, ask, chain};

const NAME: &str = "housekeeper";

/// How long it may be acted, shared with who acts.
///
/// A renewal counts from before it was asked for. Others take the lease when it has not changed for its whole length, by
/// their own clocks. A request may be under way for as long as [`LIMIT`]: so none begins in that last part of the lease.
#[derive(Debug, Clone, Default)]
pub struct Tenure(Arc<Mutex<Option<Instant>>>);

impl Tenure {
    /// Whether a request may begin now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| holds(Instant::now(), until))
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

fn holds(now: Instant, until: Instant) -> bool {
    now + LIMIT < until
}

/// Nobody acts any more by a lease that was there before the one that we have made.
fn is_alone(now: Instant, made: Option<Instant>, lasts: Duration) -> bool {
    made.is_none_or(|made| now >= made + lasts)
}

/// A lease as it was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Record {
    holder: String,
    renewed: String,
    seconds: u64,
    transitions: i64,
    version: String,
}

/// What to do with a lease.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It is ours: renew it.
    Renew,
    /// It is nobody's by now: take it.
    Take,
    /// It is another's.
    Wait,
}

fn turn(record: &Record, me: &str, unchanged: Duration) -> Turn {
    match record.holder.as_str() {
        holder if holder == me => Turn::Renew,
        "" => Turn::Take,
        _ if unchanged >= Duration::from_secs(record.seconds) => Turn::Take,
        _ => Turn::Wait,
    }
}

/// Takes part in the election until it is told to stop.
pub struct Election {
    leases: Api<Lease>,
    me: String,
    lasts: Duration,
    tenure: Tenure,
    seen: Option<(Record, Instant)>,
    /// When we have made a lease that was not there. Who had the one before, which somebody has deleted, may act for as long as
    /// that lasts.
    made: Option<Instant>,
}

impl Election {
    /// `me` must be no other's name; `lasts` is at least three times [`LIMIT`].
    #[must_use]
    pub fn new(cluster: &Cluster, namespace: &str, me: String, lasts: Duration, tenure: Tenure) -> Self {
        let lasts = lasts.max(LIMIT * 3);
        Self { leases: Api::namespaced(cluster.client(), namespace), me, lasts, tenure, seen: None, made: None }
    }

    /// Runs, and gives the lease back at the end: `stopped` says that nobody acts any more.
    pub async fn run(mut self, stop: CancellationToken, stopped: CancellationToken) {
        let pause = self.lasts / 8;
        while !stop.is_cancelled() {
            let was = self.tenure.holds();
            if let Err(error) = self.once().await {
                tracing::warn!(error = %chain(&error), "the lease could not be renewed or taken");
            }
            match (was, self.tenure.holds()) {
                (false, true) => tracing::info!(me = self.me, "leads"),
                (true, false) => tracing::warn!(me = self.me, "leads no more"),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        stopped.cancelled().await;
        let held = self.tenure.holds();
        self.tenure.set(None);
        if held && let Err(error) = self.give_back().await {
            tracing::warn!(error = %chain(&error), "the lease could not be given back");
        }
    }

    async fn once(&mut self) -> Result<(), ClusterError> {
        let begun = Instant::now();
        let Some(lease) = ask("read the lease", self.leases.get_opt(NAME)).await? else {
            let lease = lease(&self.me, self.lasts, 0, None)?;
            // Also when no answer comes: it may be there all the same. Our own tenure of the one before goes on.
            self.made = Some(begun);
            ask("make the lease", self.leases.create(&PostParams::default(), &lease)).await?;
            self.made = Some(Instant::now());
            return Ok(());
        };
        let record = Record::of(&lease);
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record.clone(), begun));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| begun.duration_since(*since));
        let transitions = match turn(&record, &self.me, unchanged) {
            Turn::Wait => {
                self.made = None;
                self.tenure.set(None);
                return Ok(());
            }
            Turn::Renew => record.transitions,
            Turn::Take => {
                self.made = None;
                record.transitions + 1
            }
        };
        // Its version goes with it: of two that take it at once, one gets a conflict.
        let ours = lease_over(&self.me, self.lasts, transitions, &lease)?;
        ask("renew or take the lease", self.leases.replace(NAME, &PostParams::default(), &ours)).await?;
        if is_alone(begun, self.made, self.lasts) {
            self.made = None;
            self.tenure.set(Some(begun + self.lasts));
        }
        Ok(())
    }

    async fn give_back(&self) -> Result<(), ClusterError> {
        let Some(lease) = ask("read the lease", self.leases.get_opt(NAME)).await? else { return Ok(()) };
        let record = Record::of(&lease);
        if record.holder != self.me {
            return Ok(());
        }
        let free = lease_over("", Duration::from_secs(1), record.transitions, &lease)?;
        ask("give the lease back", self.leases.replace(NAME, &PostParams::default(), &free)).await.map(drop)
    }
}

impl Record {
    fn of(lease: &Lease) -> Self {
        let value = serde_json::to_value(lease).unwrap_or(Value::Null);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let spec = &value["spec"];
        Self {
            holder: text(&spec["holderIdentity"]),
            renewed: text(&spec["renewTime"]),
            seconds: spec["leaseDurationSeconds"].as_u64().unwrap_or(60),
            transitions: spec["leaseTransitions"].as_i64().unwrap_or_default(),
            version: text(&value["metadata"]["resourceVersion"]),
        }
    }
}

fn lease_over(holder: &str, lasts: Duration, transitions: i64, old: &Lease) -> Result<Lease, ClusterError> {
    lease(holder, lasts, transitions, old.metadata.resource_version.as_deref())
}

fn lease(holder: &str, lasts: Duration, transitions: i64, version: Option<&str>) -> Result<Lease, ClusterError> {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let now = OffsetDateTime::now_utc().format(format).map_err(|e| ClusterError::Config(e.into()))?;
    let holder = (!holder.is_empty()).then_some(holder);
    let lease = json!({
        "metadata": {"name": NAME, "resourceVersion": version},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": lasts.as_secs(),
            "renewTime": now,
            "acquireTime": now,
            "leaseTransitions": transitions,
        },
    });
    serde_json::from_value(lease).map_err(|e| ClusterError::Form("the lease".into(), e))
}

#[cfg(test)]
mod tests {
    use axum::extract::State;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use axum::routing::{get, post};
    use axum::{Json, Router};

    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_has_not_changed_for_its_whole_length() {
        let record = |holder: &str| Record { holder: holder.into(), seconds: 30, ..Record::default() };
        let seconds = Duration::from_secs;
        assert_eq!(turn(&record("me"), "me", seconds(0)), Turn::Renew);
        assert_eq!(turn(&record(""), "me", seconds(0)), Turn::Take);
        assert_eq!(turn(&record("other"), "me", seconds(29)), Turn::Wait);
        assert_eq!(turn(&record("other"), "me", seconds(30)), Turn::Take);
    }

    #[test]
    fn who_cannot_renew_has_stopped_before_another_can_take() {
        // The leader's last renewal was asked for at 0 and seen by the other one at any time after that.
        let lasts = Duration::from_secs(30);
        let begun = Instant::now();
        let last_request = (0..60).map(Duration::from_secs).filter(|after| holds(begun + *after, begun + lasts)).max();
        assert!(last_request.unwrap() + LIMIT < lasts, "its last request has ended by then");
    }

    #[tokio::test]
    async fn who_makes_a_lease_that_was_deleted_waits_for_who_had_it() {
        type Held = Arc<Mutex<Option<Value>>>;
        async fn read(State(held): State<Held>) -> Response {
            let gone =
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
            let held = held.lock().unwrap().clone();
            held.map_or_else(|| (StatusCode::NOT_FOUND, Json(gone)).into_response(), |held| Json(held).into_response())
        }
        async fn write(State(held): State<Held>, Json(lease): Json<Value>) -> Response {
            *held.lock().unwrap() = Some(lease.clone());
            Json(lease).into_response()
        }
        let held = Held::default();
        let path = "/apis/coordination.k8s.io/v1/namespaces/nkd-system/leases";
        let router = Router::new().route(path, post(write)).route(&format!("{path}/{NAME}"), get(read).put(write));
        let client = kube::Client::new(router.with_state(Arc::clone(&held)), "default");
        let (tenure, lasts) = (Tenure::default(), LIMIT * 4);
        let leases = Api::namespaced(client, "nkd-system");
        let mut election = Election { leases, me: "me".into(), lasts, tenure: tenure.clone(), seen: None, made: None };
        for _ in 0..3 {
            election.once().await.unwrap();
            assert!(held.lock().unwrap().is_some() && !tenure.holds(), "who had it before may act still");
        }
        election.made = Some(Instant::now() - lasts);
        election.once().await.unwrap();
        assert!(tenure.holds());
        // Deleted under us: what we have of it goes on, and no longer.
        let until = *tenure.0.lock().unwrap();
        *held.lock().unwrap() = None;
        election.once().await.unwrap();
        election.once().await.unwrap();
        assert_eq!(*tenure.0.lock().unwrap(), until);
        // One that was given back is nobody's.
        *held.lock().unwrap() =
            Some(serde_json::to_value(super::lease("", Duration::from_secs(1), 2, None).unwrap()).unwrap());
        election.once().await.unwrap();
        assert_ne!(*tenure.0.lock().unwrap(), until);
    }

    #[test]
    fn a_lease_is_written_as_the_api_has_it() {
        let lease = lease("me", Duration::from_secs(30), 2, Some("7")).unwrap();
        let record = Record::of(&lease);
        assert_eq!((record.holder.as_str(), record.seconds, record.transitions), ("me", 30, 2));
        assert!(!record.renewed.is_empty());
        assert_eq!(Record::of(&super::lease("", Duration::from_secs(1), 2, None).unwrap()).holder, "");
    }
}
