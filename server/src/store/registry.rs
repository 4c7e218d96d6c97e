//! The OCI registry: what its repositories hold. One transaction decides what is there; the bytes of blobs are files.

use std::collections::BTreeSet;

use nkd_api::Sha256Digest;
use nkd_api::registry::{Deleted, Repository, Tag};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use time::{Duration, OffsetDateTime};

use super::{Store, StoreError, encode, from_millis, millis};

/// A manifest that is to be kept.
#[derive(Debug, Clone)]
pub struct NewManifest {
    /// Of which repository.
    pub repository: String,
    /// Digest of the body.
    pub digest: Sha256Digest,
    /// Content-Type.
    pub media_type: String,
    /// The bytes, as they were pushed.
    pub body: Vec<u8>,
    /// Blobs that it is made of, with their sizes.
    pub blobs: Vec<(Sha256Digest, u64)>,
    /// Manifests that it is made of, with their sizes.
    pub manifests: Vec<(Sha256Digest, u64)>,
    /// The manifest that it says something of.
    pub subject: Option<Sha256Digest>,
    /// Kind of artifact.
    pub artifact_type: Option<String>,
    /// The tag that is to stand for it.
    pub tag: Option<String>,
    /// The time.
    pub now: OffsetDateTime,
}

/// A manifest as it was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// Digest of the body.
    pub digest: Sha256Digest,
    /// Content-Type.
    pub media_type: String,
    /// The bytes.
    pub body: Vec<u8>,
    /// Kind of artifact.
    pub artifact_type: Option<String>,
}

/// How the keeping of a manifest went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is there.
    Yes,
    /// The repository does not have this part of it.
    Lacks(Sha256Digest),
    /// It has the part, with so many bytes.
    Differs(Sha256Digest, u64),
}

/// How the deletion of a manifest went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It is gone, with its tags.
    Yes(Deleted),
    /// It was not there.
    Missing,
    /// It is a part of this one.
    PartOf(Sha256Digest),
}

/// A blob that a repository holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBlob {
    /// Repository.
    pub repository: String,
    /// Digest.
    pub digest: Sha256Digest,
    /// Bytes.
    pub size: u64,
    /// Another repository holds it too.
    pub shared: bool,
}

/// What nothing refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused {
    /// Manifests that were dropped.
    pub manifests: u64,
    /// Blobs that may go.
    pub blobs: Vec<HeldBlob>,
}

impl Store {
    /// Size of a blob of a repository, and when it was used last.
    pub async fn registry_blob(
        &self,
        repository: &str,
        digest: &Sha256Digest,
    ) -> Result<Option<(u64, OffsetDateTime)>, StoreError> {
        let row = sqlx::query("SELECT size, used FROM registry_blob WHERE repository = ? AND digest = ?");
        let row = row.bind(repository).bind(digest.to_string()).fetch_optional(&self.read).await?;
        Ok(row.map(|row| (size(&row, 0), from_millis(row.get(1)))))
    }

    /// A repository has a blob from now on, or uses it again.
    pub async fn keep_registry_blob(
        &self,
        repository: &str,
        digest: &Sha256Digest,
        size: u64,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO registry_blob (repository, digest, size, used) VALUES (?, ?, ?, ?)
             ON CONFLICT (repository, digest) DO UPDATE SET used = max(used, excluded.used)",
        )
        .bind(repository)
        .bind(digest.to_string())
        .bind(number(size))
        .bind(millis(now))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Gives a repository a blob of another one: of `from`, or of whichever has it. False when none has.
    pub async fn mount_registry_blob(
        &self,
        repository: &str,
        from: Option<&str>,
        digest: &Sha256Digest,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO registry_blob (repository, digest, size, used)
             SELECT ?1, digest, size, ?4 FROM registry_blob WHERE digest = ?3 AND (?2 IS NULL OR repository = ?2) LIMIT 1
             ON CONFLICT (repository, digest) DO UPDATE SET used = max(used, excluded.used)",
        )
        .bind(repository)
        .bind(from)
        .bind(digest.to_string())
        .bind(millis(now))
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Keeps a manifest, and lets a tag stand for it, if everything that it is made of is there.
    pub async fn keep_registry_manifest(&self, new: &NewManifest) -> Result<Kept, StoreError> {
        let mut tx = self.write.begin().await?;
        // One question for all of them: a manifest may name tens of thousands, and other writers wait.
        let has_blobs = "SELECT p.value ->> 0, p.value ->> 1, h.size, h.size FROM json_each(?2) p
             LEFT JOIN registry_blob h ON h.repository = ?1 AND h.digest = p.value ->> 0";
        let has_manifests = "SELECT p.value ->> 0, p.value ->> 1, length(h.body), h.total FROM json_each(?2) p
             LEFT JOIN registry_manifest h ON h.repository = ?1 AND h.digest = p.value ->> 0";
        let mut total = 0_i64;
        for (parts, sql) in [(&new.blobs, has_blobs), (&new.manifests, has_manifests)] {
            let rows = sqlx::query(sql).bind(&new.repository).bind(encode("parts", parts)?);
            for row in rows.fetch_all(&mut *tx).await? {
                let (digest, said, is) = (hex(row.get(0))?, row.get::<i64, _>(1), row.get::<Option<i64>, _>(2));
                match is {
                    None => return Ok(Kept::Lacks(digest)),
                    Some(is) if is != said => return Ok(Kept::Differs(digest, size(&row, 2))),
                    Some(_) => total = total.saturating_add(row.get(3)),
                }
            }
        }
        let id: i64 = sqlx::query(
            "INSERT INTO registry_manifest (repository, digest, media_type, body, total, subject, artifact_type, pushed)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (repository, digest) DO UPDATE SET pushed = excluded.pushed RETURNING id",
        )
        .bind(&new.repository)
        .bind(new.digest.to_string())
        .bind(&new.media_type)
        .bind(&new.body)
        .bind(total)
        .bind(new.subject.map(|digest| digest.to_string()))
        .bind(&new.artifact_type)
        .bind(millis(new.now))
        .fetch_one(&mut *tx)
        .await?
        .get(0);
        let parts: BTreeSet<String> =
            new.blobs.iter().chain(&new.manifests).map(|(digest, _)| digest.to_string()).collect();
        sqlx::query(
            "INSERT INTO registry_reference (manifest, repository, digest) SELECT ?, ?, value FROM json_each(?) WHERE true
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(&new.repository)
        .bind(encode("references", &parts)?)
        .execute(&mut *tx)
        .await?;
        if let Some(tag) = &new.tag {
            left_by_tag(&mut tx, &new.repository, tag, new.now).await?;
            sqlx::query(
                "INSERT INTO registry_tag (repository, name, manifest, changed) VALUES (?, ?, ?, ?)
                 ON CONFLICT (repository, name) DO UPDATE SET manifest = excluded.manifest, changed = excluded.changed",
            )
            .bind(&new.repository)
            .bind(tag)
            .bind(id)
            .bind(millis(new.now))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(Kept::Yes)
    }

    /// The manifest of this digest.
    pub async fn registry_manifest(
        &self,
        repository: &str,
        digest: &Sha256Digest,
    ) -> Result<Option<StoredManifest>, StoreError> {
        let row = sqlx::query(
            "SELECT digest, media_type, body, artifact_type FROM registry_manifest WHERE repository = ? AND digest = ?",
        );
        let row = row.bind(repository).bind(digest.to_string()).fetch_optional(&self.read).await?;
        row.as_ref().map(manifest).transpose()
    }

    /// The manifest that a tag stands for.
    pub async fn registry_tagged(&self, repository: &str, tag: &str) -> Result<Option<StoredManifest>, StoreError> {
        let row = sqlx::query(
            "SELECT m.digest, m.media_type, m.body, m.artifact_type FROM registry_tag t
             JOIN registry_manifest m ON m.id = t.manifest WHERE t.repository = ? AND t.name = ?",
        );
        let row = row.bind(repository).bind(tag).fetch_optional(&self.read).await?;
        row.as_ref().map(manifest).transpose()
    }

    /// Manifests that say something of this one, by digest, after `last`.
    pub async fn registry_referrers(
        &self,
        repository: &str,
        subject: &Sha256Digest,
        artifact_type: Option<&str>,
        last: &str,
        limit: u32,
    ) -> Result<Vec<StoredManifest>, StoreError> {
        let rows = sqlx::query(
            "SELECT digest, media_type, body, artifact_type FROM registry_manifest
             WHERE repository = ?1 AND subject = ?2 AND (?3 IS NULL OR artifact_type = ?3) AND digest > ?4
             ORDER BY digest LIMIT ?5",
        )
        .bind(repository)
        .bind(subject.to_string())
        .bind(artifact_type)
        .bind(last)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(manifest).collect()
    }

    /// True when a repository holds anything.
    pub async fn is_registry_repository(&self, repository: &str) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM registry_manifest WHERE repository = ?1)
                 OR EXISTS (SELECT 1 FROM registry_blob WHERE repository = ?1)",
        );
        Ok(row.bind(repository).fetch_one(&self.read).await?.get(0))
    }

    /// Names of tags after `last`, in their order.
    pub async fn registry_tag_names(
        &self,
        repository: &str,
        last: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query("SELECT name FROM registry_tag WHERE repository = ? AND name > ? ORDER BY name LIMIT ?");
        let rows = rows.bind(repository).bind(last).bind(limit).fetch_all(&self.read).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Names of repositories after `last`, in their order.
    pub async fn registry_names(&self, last: &str, limit: u32) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT repository FROM registry_manifest WHERE repository > ? ORDER BY repository LIMIT ?",
        );
        let rows = rows.bind(last).bind(limit).fetch_all(&self.read).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// All repositories with what is in them.
    pub async fn registry_repositories(&self) -> Result<Vec<Repository>, StoreError> {
        let rows = sqlx::query(
            "SELECT m.repository, count(*), max(m.pushed),
               (SELECT count(*) FROM registry_tag t WHERE t.repository = m.repository),
               (SELECT coalesce(sum(b.size), 0) FROM registry_blob b WHERE b.repository = m.repository)
             FROM registry_manifest m GROUP BY m.repository ORDER BY m.repository",
        )
        .fetch_all(&self.read)
        .await?;
        let repository = |row: &SqliteRow| Repository {
            name: row.get(0),
            manifests: size(row, 1),
            pushed_at: from_millis(row.get(2)),
            tags: size(row, 3),
            size: size(row, 4),
            lost: 0,
        };
        Ok(rows.iter().map(repository).collect())
    }

    /// All tags of a repository.
    pub async fn registry_tags(&self, repository: &str) -> Result<Vec<Tag>, StoreError> {
        let rows = sqlx::query(
            "SELECT t.name, m.digest, m.media_type, m.total, t.changed FROM registry_tag t
             JOIN registry_manifest m ON m.id = t.manifest WHERE t.repository = ? ORDER BY t.name",
        )
        .bind(repository)
        .fetch_all(&self.read)
        .await?;
        let tag = |row: &SqliteRow| Tag {
            name: row.get(0),
            digest: format!("sha256:{}", row.get::<String, _>(1)),
            media_type: row.get(2),
            size: size(row, 3),
            lost: 0,
            changed_at: from_millis(row.get(4)),
        };
        Ok(rows.iter().map(tag).collect())
    }

    /// Names of repositories, each with every blob that its manifests are made of, in their order.
    pub async fn registry_used_blobs(&self) -> Result<Vec<(String, Sha256Digest)>, StoreError> {
        let rows = sqlx::query(
            "SELECT b.repository, b.digest FROM registry_blob b WHERE EXISTS
               (SELECT 1 FROM registry_reference r WHERE r.repository = b.repository AND r.digest = b.digest)
             ORDER BY b.repository",
        );
        names_and_digests(&rows.fetch_all(&self.read).await?)
    }

    /// Names of tags of a repository, each with every blob that it stands for: by its manifest, and by those that this one
    /// is made of.
    pub async fn registry_tagged_blobs(&self, repository: &str) -> Result<Vec<(String, Sha256Digest)>, StoreError> {
        let rows = sqlx::query(
            "WITH RECURSIVE part (tag, manifest) AS (
               SELECT name, manifest FROM registry_tag WHERE repository = ?1
               UNION
               SELECT p.tag, m.id FROM part p JOIN registry_reference r ON r.manifest = p.manifest
               JOIN registry_manifest m ON m.repository = ?1 AND m.digest = r.digest)
             SELECT DISTINCT p.tag, b.digest FROM part p JOIN registry_reference r ON r.manifest = p.manifest
             JOIN registry_blob b ON b.repository = ?1 AND b.digest = r.digest ORDER BY p.tag",
        );
        names_and_digests(&rows.bind(repository).fetch_all(&self.read).await?)
    }

    /// Takes a tag away; the manifest stays. False when there was none.
    pub async fn remove_registry_tag(
        &self,
        repository: &str,
        tag: &str,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        left_by_tag(&mut tx, repository, tag, now).await?;
        let done = sqlx::query("DELETE FROM registry_tag WHERE repository = ? AND name = ?");
        let done = done.bind(repository).bind(tag).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes a manifest with its tags, unless it is a part of another one.
    pub async fn remove_registry_manifest(&self, repository: &str, digest: &Sha256Digest) -> Result<Gone, StoreError> {
        let mut tx = self.write.begin().await?;
        let holder = sqlx::query(
            "SELECT m.digest FROM registry_reference r JOIN registry_manifest m ON m.id = r.manifest
             WHERE r.repository = ? AND r.digest = ? LIMIT 1",
        );
        let holder = holder.bind(repository).bind(digest.to_string()).fetch_optional(&mut *tx).await?;
        let tags = sqlx::query(
            "SELECT count(*) FROM registry_tag WHERE manifest =
             (SELECT id FROM registry_manifest WHERE repository = ? AND digest = ?)",
        );
        let tags = size(&tags.bind(repository).bind(digest.to_string()).fetch_one(&mut *tx).await?, 0);
        let delete = sqlx::query("DELETE FROM registry_manifest WHERE repository = ? AND digest = ?");
        let done = delete.bind(repository).bind(digest.to_string()).execute(&mut *tx).await?;
        match holder {
            _ if done.rows_affected() == 0 => Ok(Gone::Missing),
            Some(holder) => Ok(Gone::PartOf(hex(holder.get(0))?)),
            None => {
                tx.commit().await?;
                Ok(Gone::Yes(Deleted { tags, manifests: 1 }))
            }
        }
    }

    /// Removes all tags and manifests of a repository.
    pub async fn remove_registry_repository(&self, repository: &str) -> Result<Deleted, StoreError> {
        let mut tx = self.write.begin().await?;
        let mut counts = [0; 2];
        let statements =
            ["DELETE FROM registry_tag WHERE repository = ?", "DELETE FROM registry_manifest WHERE repository = ?"];
        for (count, sql) in counts.iter_mut().zip(statements) {
            *count = sqlx::query(sql).bind(repository).execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(Deleted { tags: counts[0], manifests: counts[1] })
    }

    /// Puts dates right after the clock was set; how many. Those that lie ahead are of now. When it was set `forward`, those of
    /// the last day before are younger by that, and none is later than now; what is older is no push under way.
    pub async fn set_registry_dates(&self, now: OffsetDateTime, forward: Duration) -> Result<u64, StoreError> {
        let since = if forward.is_zero() { now } else { now - Duration::DAY };
        let by = i64::try_from(forward.whole_milliseconds()).unwrap_or(i64::MAX);
        let mut tx = self.write.begin().await?;
        let mut changed = 0;
        for sql in [
            "UPDATE registry_blob SET used = min(used + ?1, ?2) WHERE used + ?1 > ?3",
            "UPDATE registry_manifest SET pushed = min(pushed + ?1, ?2) WHERE pushed + ?1 > ?3",
        ] {
            let update = sqlx::query(sql).bind(by).bind(millis(now)).bind(millis(since));
            changed += update.execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(changed)
    }

    /// Digests of all blobs that any repository holds.
    pub async fn registry_digests(&self) -> Result<BTreeSet<Sha256Digest>, StoreError> {
        let rows = sqlx::query("SELECT DISTINCT digest FROM registry_blob").fetch_all(&self.read).await?;
        rows.iter().map(|row| hex(row.get(0))).collect()
    }

    /// Blobs that no manifest of their repository refers to and nobody has used since `before`. With `untagged`,
    /// manifests that are older go first: those that no tag, no index and no subject leads to. `dry_run`: none goes.
    pub async fn unused_in_registry(
        &self,
        before: OffsetDateTime,
        untagged: bool,
        dry_run: bool,
    ) -> Result<Unused, StoreError> {
        let mut tx = self.write.begin().await?;
        let mut unused = Unused::default();
        if untagged {
            // What was in an index is led to by nothing when the index is gone.
            loop {
                let dropped = drop_untagged(&mut tx, before).await?;
                unused.manifests += dropped;
                if dropped == 0 {
                    break;
                }
            }
        }
        let rows = sqlx::query(
            "WITH unused AS (
               SELECT repository, digest, size FROM registry_blob b WHERE used < ? AND NOT EXISTS
                 (SELECT 1 FROM registry_reference r WHERE r.repository = b.repository AND r.digest = b.digest))
             SELECT repository, digest, size, EXISTS (
               SELECT 1 FROM registry_blob o WHERE o.digest = unused.digest AND NOT EXISTS
                 (SELECT 1 FROM unused u WHERE u.repository = o.repository AND u.digest = o.digest))
             FROM unused",
        )
        .bind(millis(before))
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let (repository, digest, shared) = (row.get(0), hex(row.get(1))?, row.get(3));
            unused.blobs.push(HeldBlob { repository, digest, size: size(row, 2), shared });
        }
        if !dry_run {
            tx.commit().await?;
        }
        Ok(unused)
    }

    /// Repositories no longer have these blobs.
    pub async fn drop_registry_blobs(&self, blobs: &[HeldBlob]) -> Result<(), StoreError> {
        let pairs: Vec<(&str, String)> = blobs.iter().map(|b| (b.repository.as_str(), b.digest.to_string())).collect();
        sqlx::query(
            "DELETE FROM registry_blob WHERE (repository, digest) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
        )
        .bind(encode("blobs", &pairs)?)
        .execute(&self.write)
        .await?;
        Ok(())
    }
}

/// A manifest that its tag is about to leave is as one that was pushed now: somebody may be pulling it, who has asked for the
/// tag and will ask for its parts.
async fn left_by_tag(
    tx: &mut Transaction<'_, Sqlite>,
    repository: &str,
    tag: &str,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let renew = sqlx::query(
        "UPDATE registry_manifest SET pushed = max(pushed, ?) WHERE id =
         (SELECT manifest FROM registry_tag WHERE repository = ? AND name = ?)",
    );
    renew.bind(millis(now)).bind(repository).bind(tag).execute(&mut **tx).await?;
    Ok(())
}

async fn drop_untagged(tx: &mut Transaction<'_, Sqlite>, before: OffsetDateTime) -> Result<u64, StoreError> {
    let dropped = sqlx::query(
        "DELETE FROM registry_manifest AS m WHERE pushed < ?
         AND NOT EXISTS (SELECT 1 FROM registry_tag t WHERE t.manifest = m.id)
         AND NOT EXISTS (SELECT 1 FROM registry_reference r WHERE r.repository = m.repository AND r.digest = m.digest)
         AND NOT EXISTS (SELECT 1 FROM registry_manifest s WHERE s.repository = m.repository AND s.digest = m.subject)",
    );
    Ok(dropped.bind(millis(before)).execute(&mut **tx).await?.rows_affected())
}

fn manifest(row: &SqliteRow) -> Result<StoredManifest, StoreError> {
    Ok(StoredManifest { digest: hex(row.get(0))?, media_type: row.get(1), body: row.get(2), artifact_type: row.get(3) })
}

fn names_and_digests(rows: &[SqliteRow]) -> Result<Vec<(String, Sha256Digest)>, StoreError> {
    rows.iter().map(|row| Ok((row.get(0), hex(row.get(1))?))).collect()
}

fn hex(text: &str) -> Result<Sha256Digest, StoreError> {
    let wrong = |error| StoreError::Document { what: "digest", source: serde::de::Error::custom(error) };
    text.parse().map_err(wrong)
}

fn size(row: &SqliteRow, column: usize) -> u64 {
    u64::try_from(row.get::<i64, _>(column)).unwrap_or(0)
}

fn number(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
