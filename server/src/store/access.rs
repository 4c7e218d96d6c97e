//! Users, audit trail, sealed secrets, and DHCP leases.

use std::collections::HashMap;
use std::net::IpAddr;

use async_trait::async_trait;
use nkd_api::user::{AuditEntry, Role, User};
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, Sqlite, Transaction};

use super::group::Write;
use super::{Store, StoreError, conflict, encode, from_millis, millis};

impl Store {
    /// Makes a user. The token is kept as its SHA-256 only.
    pub async fn create_user(&self, user: &User, token_hash: &[u8; 32]) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO user_account (name, role, token, created) VALUES (?, ?, ?, ?)")
            .bind(&user.name)
            .bind(user.role.to_string())
            .bind(&token_hash[..])
            .bind(millis(user.created_at))
            .execute(&self.write)
            .await
            .map_err(|e| conflict(e, || format!("there is a user `{}` already", user.name)))?;
        Ok(())
    }

    /// Gives a user a new token; the old one is worthless from then on. False when there is no such user.
    pub async fn replace_user_token(&self, name: &str, token_hash: &[u8; 32]) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE user_account SET token = ? WHERE name = ?")
            .bind(&token_hash[..])
            .bind(name)
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes a user. False when there was none.
    pub async fn remove_user(&self, name: &str) -> Result<bool, StoreError> {
        Ok(sqlx::query("DELETE FROM user_account WHERE name = ?")
            .bind(name)
            .execute(&self.write)
            .await?
            .rows_affected()
            > 0)
    }

    /// All users, by name.
    pub async fn users(&self) -> Result<Vec<User>, StoreError> {
        let rows =
            sqlx::query("SELECT name, role, created FROM user_account ORDER BY name").fetch_all(&self.read).await?;
        Ok(rows.iter().map(user_row).collect())
    }

    /// The user whose token has this digest.
    pub async fn user_by_token(&self, token_hash: &[u8; 32]) -> Result<Option<User>, StoreError> {
        let row = sqlx::query("SELECT name, role, created FROM user_account WHERE token = ?")
            .bind(&token_hash[..])
            .fetch_optional(&self.read)
            .await?;
        Ok(row.as_ref().map(user_row))
    }

    /// Adds a line to the audit trail.
    pub async fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        audit(entry).execute(&self.write).await?;
        Ok(())
    }

    /// The newest lines of the audit trail, oldest first.
    pub async fn audit_trail(&self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM (SELECT at, who, action, target, detail, id FROM audit ORDER BY id DESC LIMIT ?) ORDER BY id",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.read)
        .await?;
        Ok(rows
            .iter()
            .map(|row| AuditEntry {
                at: from_millis(row.get(0)),
                who: row.get(1),
                action: row.get(2),
                target: row.get(3),
                detail: row.get(4),
            })
            .collect())
    }

    /// Opens a sealed secret.
    pub async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT value FROM secret WHERE name = ?").bind(name).fetch_optional(&self.read).await?;
        row.map(|row| Ok(self.seal.open(name, row.get(0))?)).transpose()
    }

    /// Seals secrets and keeps them, all or none, replacing older ones of the same names.
    pub async fn save_secrets(&self, secrets: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        for (name, value) in secrets {
            sqlx::query("INSERT INTO secret (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
                .bind(name)
                .bind(self.seal.seal(name, value)?)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Removes everything under seal whose name begins with `prefix`, but `keep`.
    pub async fn delete_secrets(&self, prefix: &str, keep: &[String]) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        let names = sqlx::query("SELECT name FROM secret WHERE substr(name, 1, length(?1)) = ?1").bind(prefix);
        let names: Vec<String> = names.fetch_all(&mut *tx).await?.iter().map(|row| row.get(0)).collect();
        for name in names.iter().filter(|name| !keep.contains(name)) {
            sqlx::query("DELETE FROM secret WHERE name = ?").bind(name).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The lease of one address.
    pub async fn lease(&self, ip: IpAddr) -> Result<Option<String>, StoreError> {
        let row =
            sqlx::query("SELECT doc FROM lease WHERE ip = ?").bind(ip.to_string()).fetch_optional(&self.read).await?;
        Ok(row.map(|r| r.get(0)))
    }

    /// All DHCP leases, as JSON documents by address.
    pub async fn leases(&self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query("SELECT doc FROM lease").fetch_all(&self.read).await?.iter().map(|r| r.get(0)).collect())
    }

    /// Writes (`Some`) and removes (`None`) leases, all or none.
    pub async fn save_leases(&self, changes: &[(String, Option<String>)]) -> Result<(), StoreError> {
        self.writer.write(SaveLeases(changes.to_vec())).await
    }
}

/// A line of the audit trail.
pub(super) fn audit(entry: &AuditEntry) -> Query<'_, Sqlite, SqliteArguments> {
    sqlx::query("INSERT INTO audit (at, who, action, target, detail) VALUES (?, ?, ?, ?, ?)")
        .bind(millis(entry.at))
        .bind(&entry.who)
        .bind(&entry.action)
        .bind(&entry.target)
        .bind(&entry.detail)
}

/// [`Store::save_leases`] with the leases.
struct SaveLeases(Vec<(String, Option<String>)>);

#[async_trait]
impl Write for SaveLeases {
    type Output = ();

    async fn write(&self, tx: &mut Transaction<'_, Sqlite>) -> Result<(), StoreError> {
        // Two statements for all of them, because each one costs a trip to the thread that SQLite runs on. The last change
        // of an address counts.
        let last: HashMap<&str, Option<&str>> = self.0.iter().map(|(ip, doc)| (ip.as_str(), doc.as_deref())).collect();
        let kept: Vec<(&str, &str)> = last.iter().filter_map(|(ip, doc)| Some((*ip, (*doc)?))).collect();
        let gone: Vec<&str> = last.iter().filter(|(_, doc)| doc.is_none()).map(|(ip, _)| *ip).collect();
        if !gone.is_empty() {
            sqlx::query("DELETE FROM lease WHERE ip IN (SELECT value FROM json_each(?))")
                .bind(encode("leases", &gone)?)
                .execute(&mut **tx)
                .await?;
        }
        if !kept.is_empty() {
            sqlx::query(
                "INSERT INTO lease (ip, doc) SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true
                 ON CONFLICT (ip) DO UPDATE SET doc = excluded.doc",
            )
            .bind(encode("leases", &kept)?)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }
}

fn user_row(row: &sqlx::sqlite::SqliteRow) -> User {
    User {
        name: row.get(0),
        role: row.get::<String, _>(1).parse().unwrap_or(Role::Viewer),
        created_at: from_millis(row.get(2)),
    }
}
