//! The machines of this service: applies inputs to records, durably, and tells whoever watches.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock and random identities come in")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nkd_api::MacAddr;
use nkd_api::agent::ReportEvent;
use nkd_api::machine::{Identity, Machine, MachineEvent};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::identity::{self, Recognised};
use super::lifecycle::{self, Input, Refused};
use super::rules;
use crate::store::{Change, NewEvent, RowEffects, Store, StoreError};
use crate::trace::{Trace, Traces};

/// A machine operation failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The input does not fit.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No such machine.
    #[error("no machine {0}: `nkd machine list` shows all")]
    NotFound(Selector),
    /// So many machines that nobody knows that no more are written down.
    #[error(
        "there are {UNKNOWN} machines that nobody has accepted: `nkd machine list` shows them, `nkd machine forget --unaccepted` forgets them"
    )]
    TooManyUnknown,
    /// More than one machine fits.
    #[error("{0} fits {1} machines: name one of them by MAC or name")]
    Ambiguous(Selector, usize),
    /// What is to be declared was seen already.
    #[error("the {kind} {value} is that of {machine}, which was seen already and waits to be accepted")]
    Waits {
        /// What kind of key.
        kind: &'static str,
        /// The key.
        value: String,
        /// Name of the machine that has it.
        machine: String,
        /// Name that the declaration gives.
        wanted: Option<String>,
    },
}

/// How a machine is named by a person or a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Stable identity.
    Id(Uuid),
    /// Hardware address.
    Mac(MacAddr),
    /// Name, UUID or serial.
    Word(String),
}

impl std::str::FromStr for Selector {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match (text.parse::<MacAddr>(), text.parse::<Uuid>()) {
            (Ok(mac), _) => Self::Mac(mac),
            (_, Ok(id)) => Self::Id(id),
            _ => Self::Word(text.to_owned()),
        })
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "`{id}`"),
            Self::Mac(mac) => write!(f, "with MAC {mac}"),
            Self::Word(word) => write!(f, "`{word}`"),
        }
    }
}

/// A sighting that teaches nothing new is written down at most this often.
const SIGHTING_INTERVAL: Duration = Duration::from_secs(60);
/// Machines that nobody has accepted are written down up to this number: whoever makes up MAC addresses does not fill
/// the disk.
pub const UNKNOWN: usize = 4096;
/// A machine that nobody has accepted makes room for another one when it was not seen for so long.
const OLD_STRANGER: time::Duration = time::Duration::minutes(10);
/// So many of them at a time.
const STRANGERS_AT_ONCE: u32 = 512;
/// How long their count is believed; those met since are added to it.
const COUNT_AGAIN: Duration = Duration::from_secs(10);
/// Tries when two writers meet.
const TRIES: usize = 16;

/// The last sighting of a MAC that was written down.
type Recent = (Identity, Option<IpAddr>, Instant);

/// The machines.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    events: broadcast::Sender<MachineEvent>,
    recent: Arc<Mutex<HashMap<MacAddr, Recent>>>,
    /// Machines that nobody has accepted, and when they were counted.
    unknown: Arc<Mutex<Option<(usize, Instant)>>>,
    traces: Traces,
}

impl Registry {
    /// Over a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let events = broadcast::channel(1024).0;
        Self { store, events, recent: Arc::default(), unknown: Arc::default(), traces: Traces::default() }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Which machine speaks from where, for log lines.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Events from now on. A slow reader is told how many it missed.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    /// The machine that a person or program means.
    pub async fn find(&self, selector: &Selector) -> Result<Machine, RegistryError> {
        let mut found = match selector {
            Selector::Mac(mac) => self.store.machines_by_key("mac", &mac.to_string()).await?,
            Selector::Id(id) => match self.store.machine(*id).await? {
                Some(machine) => vec![machine],
                None => self.store.machines_by_key("uuid", &id.to_string()).await?,
            },
            Selector::Word(word) => match self.store.machine_by_name(word).await? {
                Some(machine) => vec![machine],
                None => self.store.machines_by_key("serial", word).await?,
            },
        };
        match found.len() {
            0 => Err(RegistryError::NotFound(selector.clone())),
            1 => Ok(found.remove(0).0),
            many => Err(RegistryError::Ambiguous(selector.clone(), many)),
        }
    }

    /// The machine with this MAC, if there is a record.
    pub async fn by_mac(&self, mac: MacAddr) -> Result<Option<Machine>, StoreError> {
        Ok(self.store.machines_by_key("mac", &mac.to_string()).await?.into_iter().next().map(|(machine, _)| machine))
    }

    /// Takes note of a packet or request; a machine never seen before gets a record, and the rules are asked.
    pub async fn sighted(
        &self,
        sighting: Identity,
        address: Option<IpAddr>,
        cause: &'static str,
        from_os: bool,
    ) -> Result<Machine, RegistryError> {
        let mac = sighting.macs.first().copied();
        let known = match mac {
            Some(mac) => self.by_mac(mac).await?,
            None => None,
        };
        if let (Some(machine), Some(mac)) = (&known, mac) {
            let waits_for_os = from_os && machine.phase == nkd_api::machine::Phase::Installed;
            if !waits_for_os && !self.is_news(mac, &sighting, address) {
                self.traces.learn(machine);
                return Ok(machine.clone());
            }
        }
        let input = Input::Seen { identity: sighting.clone(), address, cause, from_os };
        let written = match known {
            Some(machine) => self.apply(machine.id, input, RowEffects::default()).await,
            None => self.meet(sighting, input).await,
        };
        let machine = written.inspect_err(|_| {
            // It is news still: it was not written down.
            if let Some(mac) = mac {
                self.recent.lock().unwrap_or_else(PoisonError::into_inner).remove(&mac);
            }
        })?;
        self.apply_rules(machine).await
    }

    /// True when a sighting differs from the last one of this MAC, or that one is long ago.
    fn is_news(&self, mac: MacAddr, sighting: &Identity, address: Option<IpAddr>) -> bool {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if recent.len() > 65_536 {
            recent.retain(|_, (_, _, at)| now.duration_since(*at) < SIGHTING_INTERVAL);
        }
        match recent.get_mut(&mac) {
            Some((identity, last, at)) => {
                let mut merged = identity.clone();
                let learned = identity::learn(&mut merged, sighting);
                let moved = address.is_some() && *last != address;
                let old = now.duration_since(*at) >= SIGHTING_INTERVAL;
                if learned || moved || old {
                    *identity = merged;
                    *last = address.or(*last);
                    *at = now;
                    return true;
                }
                false
            }
            None => {
                recent.insert(mac, (sighting.clone(), address, now));
                true
            }
        }
    }

    async fn meet(&self, sighting: Identity, input: Input) -> Result<Machine, RegistryError> {
        for attempt in 0..TRIES {
            let mut candidates = Vec::new();
            for (kind, value) in sighting
                .macs
                .iter()
                .map(|m| ("mac", m.to_string()))
                .chain(sighting.uuid.clone().map(|u| ("uuid", u)))
                .chain(sighting.serial.clone().map(|s| ("serial", s)))
            {
                for (machine, _) in self.store.machines_by_key(kind, &value).await? {
                    if !candidates.iter().any(|m: &Machine| m.id == machine.id) {
                        candidates.push(machine);
                    }
                }
            }
            let refs: Vec<&Machine> = candidates.iter().collect();
            if let Recognised::One(i) = identity::recognise(&sighting, &refs) {
                return self.apply(candidates[i].id, input, RowEffects::default()).await;
            }
            let now = OffsetDateTime::now_utc();
            let mut machine = lifecycle::new_machine(Uuid::now_v7(), sighting.clone(), now);
            if attempt > 1 {
                // Somebody gave this very name to another machine: that must not keep this one out.
                machine.name = format!("{}-{}", machine.name, &machine.id.simple().to_string()[28..]);
            }
            let mut events = vec![NewEvent { kind: "seen", message: "first seen".into(), cause: cause_of(&input) }];
            let others = identity::clashes(&machine, &refs);
            if let (Some(uuid), false) = (machine.identity.uuid.clone(), others.is_empty()) {
                let names: Vec<&str> = others.iter().map(|m| m.name.as_str()).collect();
                events.push(NewEvent {
                    kind: "clash",
                    message: format!("its UUID {uuid} is that of {} too: told apart by MAC", names.join(", ")),
                    cause: "service".into(),
                });
            }
            if let Input::Seen { address, .. } = &input {
                machine.address = *address;
            }
            match rules::first_match(&machine, &self.store.accept_rules().await?) {
                None => self.make_room(now).await?,
                // Whom a rule lets in is a stranger for a moment only.
                Some(_) => self.count_one(),
            }
            match self.save(&machine, 0, &events, RowEffects::default(), now).await {
                Ok(_) => return Ok(machine),
                // Another task met the same machine first.
                Err(StoreError::Conflict(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(StoreError::Stale.into())
    }

    /// Counts a machine that is about to be met, or refuses it.
    async fn make_room(&self, clock: OffsetDateTime) -> Result<(), RegistryError> {
        let counted = *self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let count = match counted {
            Some((count, at)) if now.duration_since(at) < COUNT_AGAIN => count,
            _ => {
                let mut count = self.store.count_unknown().await?;
                if count >= UNKNOWN {
                    // Those that were there once and never again make room.
                    let gone = self.store.forget_unknown(clock - OLD_STRANGER, STRANGERS_AT_ONCE).await?;
                    count = count.saturating_sub(usize::try_from(gone).unwrap_or(usize::MAX));
                }
                if count >= UNKNOWN {
                    tracing::warn!(
                        count,
                        "machines that are met now are not written down: there are too many that nobody has accepted; `nkd machine forget --unaccepted` makes room"
                    );
                }
                *self.unknown.lock().unwrap_or_else(PoisonError::into_inner) = Some((count, now));
                count
            }
        };
        if count >= UNKNOWN {
            return Err(RegistryError::TooManyUnknown);
        }
        self.count_one();
        Ok(())
    }

    fn count_one(&self) {
        if let Some((count, _)) = self.unknown.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *count += 1;
        }
    }

    /// Asks the rules about a machine that is not accepted yet.
    pub async fn apply_rules(&self, machine: Machine) -> Result<Machine, RegistryError> {
        if machine.accepted {
            return Ok(machine);
        }
        let rules = self.store.accept_rules().await?;
        let Some(rule) = rules::first_match(&machine, &rules) else { return Ok(machine) };
        if let Some((count, _)) = self.unknown.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *count = count.saturating_sub(1);
        }
        let input = Input::LetIn {
            labels: rule.labels.clone(),
            assignment: rule.assignment.clone(),
            cause: format!("rule {}", rule.name),
        };
        self.apply(machine.id, input, RowEffects::default()).await
    }

    /// Asks the rules again for every machine that is not accepted yet; returns the names of those let in.
    pub async fn rescan_rules(&self) -> Result<Vec<String>, RegistryError> {
        let mut let_in = Vec::new();
        for machine in self.store.machines().await? {
            if !machine.accepted {
                let after = self.apply_rules(machine).await?;
                if after.accepted {
                    let_in.push(after.name);
                }
            }
        }
        Ok(let_in)
    }

    /// Writes down a machine that nobody has seen yet. Its MACs must belong to no other, none of its keys to one that
    /// waits: that one is the machine, and two records would never become one.
    pub async fn declare(
        &self,
        name: Option<String>,
        identity: Identity,
        cause: &str,
    ) -> Result<Machine, RegistryError> {
        let now = OffsetDateTime::now_utc();
        let mut machine = lifecycle::new_machine(Uuid::now_v7(), identity, now);
        if let Some(name) = &name {
            if !lifecycle::valid_name(name) {
                return Err(Refused::BadName(name.clone()).into());
            }
            machine.name.clone_from(name);
        }
        self.not_waiting(&machine.identity, name.as_deref()).await?;
        let events =
            [NewEvent { kind: "declared", message: "declared before its first packet".into(), cause: cause.into() }];
        match self.save(&machine, 0, &events, RowEffects::default(), now).await {
            Ok(_) => Ok(machine),
            Err(error) => {
                if matches!(error, StoreError::Conflict(_)) {
                    // Its first packet came in between.
                    self.not_waiting(&machine.identity, name.as_deref()).await?;
                }
                Err(error.into())
            }
        }
    }

    /// Refuses keys of a machine that waits to be accepted.
    async fn not_waiting(&self, identity: &Identity, wanted: Option<&str>) -> Result<(), RegistryError> {
        let macs = identity.macs.iter().map(|mac| ("MAC address", "mac", mac.to_string()));
        let uuid = identity.uuid.clone().map(|uuid| ("UUID", "uuid", uuid));
        let serial = identity.serial.clone().map(|serial| ("serial number", "serial", serial));
        for (kind, key, value) in macs.chain(uuid).chain(serial) {
            let found = self.store.machines_by_key(key, &value).await?;
            if let Some((machine, _)) = found.into_iter().find(|(machine, _)| !machine.accepted) {
                let (machine, wanted) = (machine.name, wanted.map(str::to_owned));
                return Err(RegistryError::Waits { kind, value, machine, wanted });
            }
        }
        Ok(())
    }

    /// Applies one input, durably, with what belongs to it; returns the record after it.
    pub async fn apply(&self, id: Uuid, input: Input, effects: RowEffects) -> Result<Machine, RegistryError> {
        for _ in 0..TRIES {
            let now = OffsetDateTime::now_utc();
            let Some((machine, revision)) = self.store.machine(id).await? else {
                return Err(RegistryError::NotFound(Selector::Id(id)));
            };
            let (after, events) = lifecycle::step(machine, input.clone(), now)?;
            match self.save(&after, revision, &events, effects.clone(), now).await {
                Ok(true) => return Ok(after),
                // The report was counted before: the record is as it was.
                Ok(false) => return self.find(&Selector::Id(id)).await,
                Err(StoreError::Stale) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(StoreError::Stale.into())
    }

    /// A sign of life and nothing else: it is written down every few minutes only. `machine` is the record as read.
    pub async fn heard(&self, mut machine: Machine, event: ReportEvent) -> Result<Machine, RegistryError> {
        let now = OffsetDateTime::now_utc();
        if lifecycle::is_called_silent(&machine) || !self.store.hear(machine.id, now) {
            return self.apply(machine.id, Input::Reported(event), RowEffects::default()).await;
        }
        machine.last_seen = now.max(machine.last_seen);
        Ok(machine)
    }

    async fn save(
        &self,
        machine: &Machine,
        revision: i64,
        events: &[NewEvent],
        effects: RowEffects,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let stored = self.store.save_machine(Change { machine, revision, events, effects }, now).await?;
        let Some(stored) = stored else { return Ok(false) };
        self.traces.learn(machine);
        for event in stored {
            tracing::info!(trace = %Trace::of(machine), machine = %machine.name, id = %machine.id, kind = event.kind, phase = event.phase, cause = event.cause, "{}", event.message);
            // Nobody may be watching.
            let _ = self.events.send(event);
        }
        Ok(true)
    }

    /// Forgets a machine: the next packet makes a new record.
    pub async fn forget(&self, machine: &Machine) -> Result<(), StoreError> {
        self.store.forget_machine(machine.id).await?;
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for mac in &machine.identity.macs {
            recent.remove(mac);
        }
        Ok(())
    }

    /// Says of every machine on its way that nobody has heard of it for too long.
    pub async fn look_for_silent(
        &self,
        listening_since: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), RegistryError> {
        for machine in self.store.machines().await? {
            if !lifecycle::is_silent(&machine, listening_since, now) {
                continue;
            }
            let Some((machine, revision)) = self.store.machine(machine.id).await? else { continue };
            let (after, events) = lifecycle::step(machine, Input::Silent { listening_since }, now)?;
            if events.is_empty() {
                continue;
            }
            match self.save(&after, revision, &events, RowEffects::default(), now).await {
                // It speaks at this very moment.
                Ok(_) | Err(StoreError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn cause_of(input: &Input) -> String {
    match input {
        Input::Seen { cause, .. } => (*cause).to_owned(),
        _ => "service".to_owned(),
    }
}
