//! Machines, their keys and their history.

use async_trait::async_trait;
use nkd_api::machine::{AcceptRule, Machine, MachineEvent};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::group::Write;
use super::{NewToken, Seal, Store, StoreError, conflict, from_millis, millis};

/// The newest so many events of a machine are kept.
pub(super) const EVENTS_PER_MACHINE: i64 = 1000;

/// An event before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Kind.
    pub kind: &'static str,
    /// Message.
    pub message: String,
    /// Cause.
    pub cause: String,
}

/// What is written together with a changed machine, in the same transaction.
#[derive(Debug, Default, Clone)]
pub struct RowEffects {
    /// Tokens to issue.
    pub tokens: Vec<NewToken>,
    /// The boot that they belong to.
    pub boot: Option<super::Boot>,
    /// The report that caused the change; when it was counted before, nothing is written.
    pub report: Option<Uuid>,
    /// Unused tokens that are worthless from now on.
    pub supersede: Supersede,
}

/// A machine to write, with its revision as read (0: new).
#[derive(Debug)]
pub struct Change<'a> {
    /// The record.
    pub machine: &'a Machine,
    /// Revision as read.
    pub revision: i64,
    /// History to add.
    pub events: &'a [NewEvent],
    /// What else.
    pub effects: RowEffects,
}

/// Which tokens of a machine are worthless from now on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Supersede {
    /// None.
    #[default]
    Nothing,
    /// The unused ones of every other boot: this one has fetched its configuration. Whoever comes with one is found out.
    OtherBoots(Uuid),
    /// All of them: an operator gave an order. They are as if they had never been issued, and accuse nobody any more.
    All,
    /// The same for those of every boot but the one whose system is on the disk.
    AllBut(Uuid),
}

impl Store {
    /// Writes one changed machine. Returns its events with their numbers, or none if the report had been counted.
    pub async fn save_machine(
        &self,
        change: Change<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<Vec<MachineEvent>>, StoreError> {
        let Change { machine, revision, events, effects } = change;
        let (machine, events, seal) = (machine.clone(), events.to_vec(), self.seal.clone());
        let pulse = machine.clone();
        let written = self.writer.write(SaveMachine { machine, revision, events, effects, now, seal }).await?;
        if written.is_some() {
            self.pulses.wrote(&pulse);
        }
        Ok(written)
    }

    /// Takes note of a sign of life of a machine. False when enough time has passed that its record is to be written.
    #[must_use]
    pub fn hear(&self, machine: Uuid, now: OffsetDateTime) -> bool {
        self.pulses.hear(machine, now)
    }

    /// A machine with its revision.
    pub async fn machine(&self, id: Uuid) -> Result<Option<(Machine, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM machine WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(|row| self.machine_row(row)).transpose()
    }

    /// A machine by its unique name.
    pub async fn machine_by_name(&self, name: &str) -> Result<Option<(Machine, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM machine WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(|row| self.machine_row(row)).transpose()
    }

    /// Every machine that carries one key: `mac`, `uuid` or `serial`.
    pub async fn machines_by_key(&self, kind: &str, value: &str) -> Result<Vec<(Machine, i64)>, StoreError> {
        sqlx::query("SELECT m.doc, m.revision FROM machine_key k JOIN machine m ON m.id = k.machine WHERE k.kind = ? AND k.value = ?")
            .bind(kind)
            .bind(value)
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(|row| self.machine_row(row))
            .collect()
    }

    /// All machines, by name.
    pub async fn machines(&self) -> Result<Vec<Machine>, StoreError> {
        sqlx::query("SELECT doc, revision FROM machine ORDER BY name")
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(|row| self.machine_row(row).map(|(machine, _)| machine))
            .collect()
    }

    /// Those of these machines that there are.
    pub async fn machines_of(&self, ids: &[Uuid]) -> Result<Vec<Machine>, StoreError> {
        let select = "SELECT doc, revision FROM machine WHERE id IN (SELECT value FROM json_each(?))";
        let rows = sqlx::query(select).bind(super::encode("list of machines", &ids)?).fetch_all(&self.read).await?;
        rows.iter().map(|row| self.machine_row(row).map(|(machine, _)| machine)).collect()
    }

    /// How many machines nobody has accepted.
    pub async fn count_unknown(&self) -> Result<usize, StoreError> {
        let row =
            sqlx::query("SELECT COUNT(*) FROM machine WHERE doc ->> '$.accepted' = 0").fetch_one(&self.read).await?;
        Ok(usize::try_from(row.get::<i64, _>(0)).unwrap_or(0))
    }

    /// Removes machines that nobody has accepted or labelled and that were not seen since `before`, those first that were
    /// not seen for longest, at most so many. How many there were.
    pub async fn forget_unknown(&self, before: OffsetDateTime, most: u32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "DELETE FROM machine WHERE id IN (SELECT id FROM machine WHERE doc ->> '$.accepted' = 0
             AND doc ->> '$.labels' = '{}' AND julianday(doc ->> '$.lastSeen') < julianday(?, 'unixepoch')
             ORDER BY julianday(doc ->> '$.lastSeen') LIMIT ?)",
        )
        .bind(before.unix_timestamp())
        .bind(most)
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected())
    }

    /// Removes a machine with its keys, history, boots and tokens. False when there was none.
    pub async fn forget_machine(&self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM machine WHERE id = ?").bind(id.to_string()).execute(&self.write).await?;
        self.pulses.forget(id);
        Ok(done.rows_affected() > 0)
    }

    fn machine_row(&self, row: &SqliteRow) -> Result<(Machine, i64), StoreError> {
        let mut machine = self.seal.decode("machine", row.get(0))?;
        self.pulses.add_to(&mut machine);
        Ok((machine, row.get(1)))
    }

    /// Events of one machine or of all, oldest first: the first ones after number `after`, or the newest ones.
    pub async fn events(
        &self,
        machine: Option<Uuid>,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<MachineEvent>, StoreError> {
        let mut query = sqlx::QueryBuilder::new(
            "SELECT * FROM (SELECT id, machine, at, kind, phase, message, cause FROM event WHERE true",
        );
        if let Some(id) = machine {
            query.push(" AND machine = ").push_bind(id.to_string());
        }
        match after {
            Some(after) => query.push(" AND id > ").push_bind(after).push(" ORDER BY id LIMIT "),
            None => query.push(" ORDER BY id DESC LIMIT "),
        };
        query.push_bind(i64::from(limit)).push(") ORDER BY id");
        let rows = query.build().fetch_all(&self.read).await?;
        Ok(rows
            .iter()
            .map(|row| MachineEvent {
                id: row.get(0),
                machine: row.get::<String, _>(1).parse().unwrap_or_default(),
                at: from_millis(row.get(2)),
                kind: row.get(3),
                phase: row.get(4),
                message: row.get(5),
                cause: row.get(6),
            })
            .collect())
    }

    /// The rules that accept machines, by name.
    pub async fn accept_rules(&self) -> Result<Vec<AcceptRule>, StoreError> {
        sqlx::query("SELECT doc FROM accept_rule ORDER BY name")
            .fetch_all(&self.read)
            .await?
            .iter()
            .map(|row| self.seal.decode("rule", row.get(0)))
            .collect()
    }

    /// Writes a rule, or replaces the one of that name.
    pub async fn save_rule(&self, rule: &AcceptRule) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO accept_rule (name, doc) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET doc = excluded.doc",
        )
        .bind(&rule.name)
        .bind(self.seal.encode("rule", rule)?)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Removes a rule. False when there was none.
    pub async fn remove_rule(&self, name: &str) -> Result<bool, StoreError> {
        Ok(sqlx::query("DELETE FROM accept_rule WHERE name = ?").bind(name).execute(&self.write).await?.rows_affected()
            > 0)
    }

    /// Drops what only had meaning for a while: old boots, dead tokens, counted reports, all but the newest events of
    /// each machine, and machines that nobody has accepted or labelled and that were not seen for a week.
    pub async fn prune(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let day_ago = millis(now - time::Duration::days(1));
        let mut tx = self.write.begin().await?;
        // A used token is kept a week so that a second use is still recognised as such.
        sqlx::query("DELETE FROM token WHERE expires < ?")
            .bind(millis(now - time::Duration::days(7)))
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM boot WHERE created < ?").bind(day_ago).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM report WHERE at < ?").bind(day_ago).execute(&mut *tx).await?;
        sqlx::query(
            "DELETE FROM event WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY machine ORDER BY id DESC) AS age FROM event) WHERE age > ?)",
        )
        .bind(EVENTS_PER_MACHINE)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM machine WHERE doc ->> '$.accepted' = 0 AND doc ->> '$.labels' = '{}'
             AND julianday(doc ->> '$.lastSeen') < julianday(?, 'unixepoch', '-7 days')",
        )
        .bind(now.unix_timestamp())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.pulses.forget_before(now - time::Duration::days(7));
        Ok(())
    }
}

/// [`Store::save_machine`] with everything that it needs.
struct SaveMachine {
    machine: Machine,
    revision: i64,
    events: Vec<NewEvent>,
    effects: RowEffects,
    now: OffsetDateTime,
    seal: Seal,
}

#[async_trait]
impl Write for SaveMachine {
    type Output = Option<Vec<MachineEvent>>;

    async fn write(&self, tx: &mut Transaction<'_, Sqlite>) -> Result<Self::Output, StoreError> {
        let Self { machine, revision, events, effects, now, seal } = self;
        let id = machine.id.to_string();
        let doc = seal.encode("machine", machine)?;
        let taken = || format!("the name `{}` is taken by another machine", machine.name);
        if let Some(report) = effects.report {
            let new = sqlx::query("INSERT INTO report (id, machine, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(report.to_string())
                .bind(&id)
                .bind(millis(*now))
                .execute(&mut **tx)
                .await?;
            if new.rows_affected() == 0 {
                return Ok(None);
            }
        }
        if *revision == 0 {
            sqlx::query("INSERT INTO machine (id, name, doc, revision) VALUES (?, ?, ?, 1)")
                .bind(&id)
                .bind(&machine.name)
                .bind(&doc)
                .execute(&mut **tx)
                .await
                .map_err(|e| conflict(e, taken))?;
        } else {
            let done = sqlx::query(
                "UPDATE machine SET name = ?, doc = ?, revision = revision + 1 WHERE id = ? AND revision = ?",
            )
            .bind(&machine.name)
            .bind(&doc)
            .bind(&id)
            .bind(revision)
            .execute(&mut **tx)
            .await
            .map_err(|e| conflict(e, taken))?;
            if done.rows_affected() != 1 {
                return Err(StoreError::Stale);
            }
        }
        save_keys(tx, machine).await?;
        let statement = match effects.supersede {
            Supersede::Nothing => None,
            Supersede::OtherBoots(boot) => Some((
                "UPDATE token SET superseded = ?1 WHERE machine = ?2 AND used IS NULL AND superseded IS NULL AND boot <> ?3",
                boot,
            )),
            Supersede::All => Some(("DELETE FROM token WHERE machine = ?2", Uuid::nil())),
            Supersede::AllBut(boot) => Some(("DELETE FROM token WHERE machine = ?2 AND boot <> ?3", boot)),
        };
        if let Some((statement, boot)) = statement {
            sqlx::query(statement).bind(millis(*now)).bind(&id).bind(boot.to_string()).execute(&mut **tx).await?;
        }
        if let Some(boot) = &effects.boot {
            super::tokens::insert_boot(tx, boot, seal).await?;
        }
        for token in &effects.tokens {
            super::tokens::insert_token(tx, token).await?;
        }
        let mut stored = Vec::with_capacity(events.len());
        for event in events {
            let row = sqlx::query(
                "INSERT INTO event (machine, at, kind, phase, message, cause) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            )
            .bind(&id)
            .bind(millis(*now))
            .bind(event.kind)
            .bind(machine.phase.name())
            .bind(&event.message)
            .bind(&event.cause)
            .fetch_one(&mut **tx)
            .await?;
            stored.push(MachineEvent {
                id: row.get(0),
                machine: machine.id,
                at: *now,
                kind: event.kind.to_owned(),
                phase: machine.phase.name().to_owned(),
                message: event.message.clone(),
                cause: event.cause.clone(),
            });
        }
        Ok(Some(stored))
    }
}

async fn save_keys(tx: &mut Transaction<'_, Sqlite>, machine: &Machine) -> Result<(), StoreError> {
    let id = machine.id.to_string();
    let mut wanted: Vec<(&str, String)> = machine.identity.macs.iter().map(|m| ("mac", m.to_string())).collect();
    wanted.extend(machine.identity.uuid.clone().map(|u| ("uuid", u)));
    wanted.extend(machine.identity.serial.clone().map(|s| ("serial", s)));
    let rows =
        sqlx::query("SELECT kind, value FROM machine_key WHERE machine = ?").bind(&id).fetch_all(&mut **tx).await?;
    let present: Vec<(String, String)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    for (kind, value) in &present {
        if !wanted.iter().any(|(k, v)| k == kind && v == value) {
            sqlx::query("DELETE FROM machine_key WHERE kind = ? AND value = ? AND machine = ?")
                .bind(kind)
                .bind(value)
                .bind(&id)
                .execute(&mut **tx)
                .await?;
        }
    }
    for (kind, value) in &wanted {
        if !present.iter().any(|(k, v)| k == kind && v == value) {
            sqlx::query("INSERT INTO machine_key (kind, value, machine) VALUES (?, ?, ?)")
                .bind(*kind)
                .bind(value)
                .bind(&id)
                .execute(&mut **tx)
                .await
                .map_err(|e| conflict(e, || format!("the {kind} {value} belongs to another machine")))?;
        }
    }
    Ok(())
}
