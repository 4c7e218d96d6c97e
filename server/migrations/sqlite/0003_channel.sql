-- Channels with their releases, as JSON. The key that signs them is sealed in `secret`, `channel/signing-key`.
CREATE TABLE channel (
  name     TEXT PRIMARY KEY,
  doc      TEXT NOT NULL,
  revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
