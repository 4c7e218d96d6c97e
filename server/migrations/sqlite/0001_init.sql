-- State of the service. Times are Unix milliseconds, identities are UUIDs in text, documents are JSON.
CREATE TABLE machine (
  id       TEXT PRIMARY KEY,
  name     TEXT NOT NULL UNIQUE,
  doc      TEXT NOT NULL,
  revision INTEGER NOT NULL
) STRICT;

-- What a machine is recognised by. A UUID or serial may stand on more than one machine: a clash is said, not guessed.
CREATE TABLE machine_key (
  kind    TEXT NOT NULL,
  value   TEXT NOT NULL,
  machine TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
  PRIMARY KEY (kind, value, machine)
) STRICT, WITHOUT ROWID;
CREATE INDEX machine_key_machine ON machine_key (machine);
CREATE UNIQUE INDEX machine_key_mac ON machine_key (value) WHERE kind = 'mac';

CREATE TABLE event (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  machine TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
  at      INTEGER NOT NULL,
  kind    TEXT NOT NULL,
  phase   TEXT NOT NULL,
  message TEXT NOT NULL,
  cause   TEXT NOT NULL
) STRICT;
CREATE INDEX event_machine ON event (machine, id);

-- One row for each boot script with a configuration behind it; the configuration is sealed with the key file.
CREATE TABLE boot (
  id         TEXT PRIMARY KEY,
  machine    TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
  generation INTEGER NOT NULL,
  purpose    TEXT NOT NULL,
  image      TEXT NOT NULL,
  created    INTEGER NOT NULL,
  overlay    BLOB NOT NULL,
  config     BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX boot_machine ON boot (machine, created);

-- Single-use tokens, by digest. `scope` is `config` (fetch one configuration) or `enroll` (buy one certificate).
-- `used_by` is the digest of the public key that the certificate was made for: the same key may ask again, because the
-- first answer may have been lost. `superseded` is set when a later boot of the same machine has tokens of its own.
CREATE TABLE token (
  hash       BLOB PRIMARY KEY,
  scope      TEXT NOT NULL,
  machine    TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
  generation INTEGER NOT NULL,
  purpose    TEXT NOT NULL,
  boot       TEXT,
  expires    INTEGER NOT NULL,
  used       INTEGER,
  used_by    BLOB,
  superseded INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX token_machine ON token (machine);

-- Reports already counted: the same report sent twice counts once.
CREATE TABLE report (
  id      TEXT PRIMARY KEY,
  machine TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
  at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX report_at ON report (at);

CREATE TABLE lease (
  ip  TEXT PRIMARY KEY,
  doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- CA keys and the like, sealed with the key file.
CREATE TABLE secret (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE user_account (
  name    TEXT PRIMARY KEY,
  role    TEXT NOT NULL,
  token   BLOB NOT NULL UNIQUE,
  created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
  id     INTEGER PRIMARY KEY AUTOINCREMENT,
  at     INTEGER NOT NULL,
  who    TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT NOT NULL,
  detail TEXT NOT NULL
) STRICT;

CREATE TABLE accept_rule (
  name TEXT PRIMARY KEY,
  doc  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
