-- Upstream repositories that channels follow, with how far that is, as JSON.
CREATE TABLE channel_mirror (
  name     TEXT PRIMARY KEY,
  doc      TEXT NOT NULL,
  revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
