-- Upgrades of clusters, the running one and its history, as JSON.
CREATE TABLE upgrade (
  cluster  TEXT NOT NULL REFERENCES cluster (id) ON DELETE CASCADE,
  number   INTEGER NOT NULL,
  doc      TEXT NOT NULL,
  revision INTEGER NOT NULL,
  PRIMARY KEY (cluster, number)
) STRICT, WITHOUT ROWID;
