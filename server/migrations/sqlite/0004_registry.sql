-- The OCI registry. Bytes of blobs are files of the blob store; what repositories hold of them stands here, so that one
-- transaction decides what is there. Digests are SHA-256 in hex.
CREATE TABLE registry_blob (
  repository TEXT NOT NULL,
  digest     TEXT NOT NULL,
  size       INTEGER NOT NULL,
  -- When somebody pushed it, or asked for it in order to push.
  used       INTEGER NOT NULL,
  PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX registry_blob_digest ON registry_blob (digest);

CREATE TABLE registry_manifest (
  id            INTEGER PRIMARY KEY,
  repository    TEXT NOT NULL,
  digest        TEXT NOT NULL,
  media_type    TEXT NOT NULL,
  body          BLOB NOT NULL,
  -- Bytes of everything that it is made of.
  total         INTEGER NOT NULL,
  subject       TEXT,
  artifact_type TEXT,
  pushed        INTEGER NOT NULL,
  UNIQUE (repository, digest)
) STRICT;
CREATE INDEX registry_manifest_subject ON registry_manifest (repository, subject) WHERE subject IS NOT NULL;

-- Blobs and manifests that a manifest is made of.
CREATE TABLE registry_reference (
  manifest   INTEGER NOT NULL REFERENCES registry_manifest (id) ON DELETE CASCADE,
  repository TEXT NOT NULL,
  digest     TEXT NOT NULL,
  PRIMARY KEY (manifest, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX registry_reference_digest ON registry_reference (repository, digest);

CREATE TABLE registry_tag (
  repository TEXT NOT NULL,
  name       TEXT NOT NULL,
  manifest   INTEGER NOT NULL REFERENCES registry_manifest (id) ON DELETE CASCADE,
  changed    INTEGER NOT NULL,
  PRIMARY KEY (repository, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX registry_tag_manifest ON registry_tag (manifest);
