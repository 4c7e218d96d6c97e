//! Boots, their sealed configurations, and single-use tokens.

use async_trait::async_trait;
use nkd_api::agent::Purpose;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::group::Write;
use super::{Seal, Store, StoreError, from_millis, millis};

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Fetch one configuration.
    Config,
    /// Buy one client certificate.
    Enroll,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Enroll => "enroll",
        }
    }
}

/// A token to issue; only its digest is kept.
#[derive(Clone)]
pub struct NewToken {
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// Scope.
    pub scope: Scope,
    /// Machine that it is bound to.
    pub machine: Uuid,
    /// Generation that it is bound to.
    pub generation: u32,
    /// Purpose of the certificate behind it.
    pub purpose: Purpose,
    /// Network boot that it is bound to; that of an installed node is the one that installed it.
    pub boot: Uuid,
    /// End of its life.
    pub expires: OffsetDateTime,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewToken({}, {}, generation {})", self.scope.as_str(), self.machine, self.generation)
    }
}

/// A token as it stands in the store.
#[derive(Debug, Clone)]
pub struct Token {
    /// Machine.
    pub machine: Uuid,
    /// Generation.
    pub generation: u32,
    /// Purpose.
    pub purpose: Purpose,
    /// Boot.
    pub boot: Uuid,
    /// End of its life.
    pub expires: OffsetDateTime,
    /// When it was used.
    pub used: Option<OffsetDateTime>,
}

/// What came of trying to use a token.
#[derive(Debug, Clone)]
pub enum TokenUse {
    /// It was good, or was used by the same key before; it is used now, durably.
    Granted(Token),
    /// It had been used before, at that time.
    Reused(Token, OffsetDateTime),
    /// Its time was over.
    Expired(Token),
    /// Another boot of the same machine has fetched its configuration (`contested`: two parties boot as this machine),
    /// or an operator gave an order.
    Superseded {
        /// The token.
        token: Token,
        /// Another boot took its configuration.
        contested: bool,
    },
    /// There is no such token (any more).
    Unknown,
}

/// One network boot with a configuration behind it.
#[derive(Clone)]
pub struct Boot {
    /// Random identity, part of the addresses of this boot.
    pub id: Uuid,
    /// Machine.
    pub machine: Uuid,
    /// Generation.
    pub generation: u32,
    /// What is booted: discovery or install.
    pub purpose: Purpose,
    /// Image that is booted.
    pub image: String,
    /// When the script was asked for.
    pub created: OffsetDateTime,
    /// The overlay initrd. Holds a token: it is served to the boot plane, so the token in it is single-use.
    pub overlay: Vec<u8>,
    /// The rendered Ignition configuration.
    pub config: Vec<u8>,
}

impl std::fmt::Debug for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Boot({} of {}, generation {})", self.id, self.machine, self.generation)
    }
}

/// How long a configuration is given again to the address that took it: the connection broke, or the service was killed
/// before the answer.
const FETCH_AGAIN: time::Duration = time::Duration::minutes(5);
/// Boots kept for each machine: an older script that is still being read stays valid.
const BOOTS_PER_MACHINE: i64 = 32;

pub(super) async fn insert_boot(tx: &mut Transaction<'_, Sqlite>, boot: &Boot, seal: &Seal) -> Result<(), StoreError> {
    let id = boot.id.to_string();
    sqlx::query(
        "INSERT INTO boot (id, machine, generation, purpose, image, created, overlay, config) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&id)
    .bind(boot.machine.to_string())
    .bind(i64::from(boot.generation))
    .bind(boot.purpose.as_str())
    .bind(&boot.image)
    .bind(millis(boot.created))
    .bind(seal.seal(&format!("overlay/{id}"), &boot.overlay)?)
    .bind(seal.seal(&format!("config/{id}"), &boot.config)?)
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM boot WHERE machine = ?1 AND id NOT IN (SELECT id FROM boot WHERE machine = ?1 ORDER BY created DESC LIMIT ?2)")
        .bind(boot.machine.to_string())
        .bind(BOOTS_PER_MACHINE)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(super) async fn insert_token(tx: &mut Transaction<'_, Sqlite>, token: &NewToken) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO token (hash, scope, machine, generation, purpose, boot, expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&token.hash[..])
    .bind(token.scope.as_str())
    .bind(token.machine.to_string())
    .bind(i64::from(token.generation))
    .bind(token.purpose.as_str())
    .bind(token.boot.to_string())
    .bind(millis(token.expires))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// [`Store::use_token`] with everything that it needs.
struct UseToken {
    hash: [u8; 32],
    scope: Scope,
    user: Option<[u8; 32]>,
    now: OffsetDateTime,
}

#[async_trait]
impl Write for UseToken {
    type Output = TokenUse;

    async fn write(&self, tx: &mut Transaction<'_, Sqlite>) -> Result<TokenUse, StoreError> {
        let row = sqlx::query(
            "SELECT machine, generation, purpose, boot, expires, used, used_by, superseded FROM token WHERE hash = ? AND scope = ?",
        )
        .bind(&self.hash[..])
        .bind(self.scope.as_str())
        .fetch_optional(&mut **tx)
        .await?;
        let Some(row) = row else { return Ok(TokenUse::Unknown) };
        let token = token_row(&row);
        if let Some(used) = token.used {
            let by: Option<Vec<u8>> = row.get(6);
            let same = by.as_deref().zip(self.user.as_ref()).is_some_and(|(by, user)| by == user);
            return Ok(match self.scope {
                _ if !same => TokenUse::Reused(token, used),
                // Late, but the same one: no second user.
                _ if token.expires <= self.now => TokenUse::Expired(token),
                Scope::Enroll => TokenUse::Granted(token),
                Scope::Config if self.is_followed(tx, &token, used).await? => TokenUse::Reused(token, used),
                Scope::Config => TokenUse::Granted(token),
            });
        }
        if token.expires <= self.now {
            return Ok(TokenUse::Expired(token));
        }
        if let Some(superseded) = row.get::<Option<i64>, _>(7) {
            // The other boot's token was used a moment before this one was superseded for it.
            let later = sqlx::query(
                "SELECT COUNT(*) FROM token WHERE machine = ? AND scope = 'config' AND used >= ? AND boot IS NOT ?",
            )
            .bind(token.machine.to_string())
            .bind(superseded - 60_000)
            .bind(token.boot.to_string())
            .fetch_one(&mut **tx)
            .await?;
            return Ok(TokenUse::Superseded { token, contested: later.get::<i64, _>(0) > 0 });
        }
        sqlx::query("UPDATE token SET used = ?, used_by = ? WHERE hash = ?")
            .bind(millis(self.now))
            .bind(self.user.as_ref().map(|user| &user[..]))
            .bind(&self.hash[..])
            .execute(&mut **tx)
            .await?;
        Ok(TokenUse::Granted(token))
    }
}

impl UseToken {
    /// True when something has happened since the configuration was taken: its answer did arrive, or another boot came,
    /// or it is too long ago for a broken connection.
    async fn is_followed(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        token: &Token,
        used: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) FROM token WHERE machine = ?1 AND ((boot = ?2 AND scope = 'enroll' AND used IS NOT NULL)
             OR (boot <> ?2 AND scope = 'config' AND used >= ?3))",
        )
        .bind(token.machine.to_string())
        .bind(token.boot.to_string())
        .bind(millis(used))
        .fetch_one(&mut **tx)
        .await?;
        Ok(row.get::<i64, _>(0) > 0 || self.now - used > FETCH_AGAIN)
    }
}

impl Store {
    /// Issues the token of the node that a live system installs. Earlier ones that were not used are worthless then: at
    /// most one is good at any time.
    pub async fn issue_node_token(&self, token: &NewToken, now: OffsetDateTime) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        sqlx::query(
            "UPDATE token SET superseded = ? WHERE machine = ? AND purpose = ? AND used IS NULL AND superseded IS NULL",
        )
        .bind(millis(now))
        .bind(token.machine.to_string())
        .bind(Purpose::Node.as_str())
        .execute(&mut *tx)
        .await?;
        insert_token(&mut tx, token).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Uses a token up, if it is good. The use is durable before this returns. `user` is the digest of the public key
    /// that a certificate is bought for, or of the address that a configuration is fetched from: the same user may come
    /// again, because the answer may have been lost. A configuration is given again only for a short while, and only as
    /// long as nobody has enrolled with what was in it.
    pub async fn use_token(
        &self,
        hash: &[u8; 32],
        scope: Scope,
        user: Option<&[u8; 32]>,
        now: OffsetDateTime,
    ) -> Result<TokenUse, StoreError> {
        self.writer.write(UseToken { hash: *hash, scope, user: user.copied(), now }).await
    }

    /// The token behind a digest, used or not. Looking uses nothing up.
    pub async fn token(&self, hash: &[u8; 32], scope: Scope) -> Result<Option<Token>, StoreError> {
        let row = sqlx::query(
            "SELECT machine, generation, purpose, boot, expires, used FROM token WHERE hash = ? AND scope = ?",
        )
        .bind(&hash[..])
        .bind(scope.as_str())
        .fetch_optional(&self.read)
        .await?;
        Ok(row.as_ref().map(token_row))
    }

    /// One boot, with its configuration opened.
    pub async fn boot(&self, id: Uuid) -> Result<Option<Boot>, StoreError> {
        let row =
            sqlx::query("SELECT machine, generation, purpose, image, created, overlay, config FROM boot WHERE id = ?")
                .bind(id.to_string())
                .fetch_optional(&self.read)
                .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Boot {
            id,
            machine: row.get::<String, _>(0).parse().unwrap_or_default(),
            generation: u32::try_from(row.get::<i64, _>(1)).unwrap_or(0),
            purpose: row.get::<String, _>(2).parse().unwrap_or(Purpose::Discovery),
            image: row.get(3),
            created: from_millis(row.get(4)),
            overlay: self.seal.open(&format!("overlay/{id}"), row.get(5))?,
            config: self.seal.open(&format!("config/{id}"), row.get(6))?,
        }))
    }
}

fn token_row(row: &SqliteRow) -> Token {
    Token {
        machine: row.get::<String, _>(0).parse().unwrap_or_default(),
        generation: u32::try_from(row.get::<i64, _>(1)).unwrap_or(0),
        purpose: row.get::<String, _>(2).parse().unwrap_or(Purpose::Discovery),
        boot: row.get::<Option<String>, _>(3).and_then(|b| b.parse().ok()).unwrap_or_default(),
        expires: from_millis(row.get(4)),
        used: row.get::<Option<i64>, _>(5).map(from_millis),
    }
}
