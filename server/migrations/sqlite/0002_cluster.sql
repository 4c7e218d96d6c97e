-- Clusters: what they are to be and how far they have come, as JSON. Their keys are sealed in `secret`, `cluster/<id>/...`.
CREATE TABLE cluster (
  id       TEXT PRIMARY KEY,
  name     TEXT NOT NULL UNIQUE,
  doc      TEXT NOT NULL,
  revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE cluster_event (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  cluster TEXT NOT NULL REFERENCES cluster (id) ON DELETE CASCADE,
  at      INTEGER NOT NULL,
  message TEXT NOT NULL,
  cause   TEXT NOT NULL
) STRICT;
CREATE INDEX cluster_event_cluster ON cluster_event (cluster, id);
