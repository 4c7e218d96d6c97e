-- Snapshots of the etcd of clusters, as JSON; the sealed files lie beside the database.
CREATE TABLE etcd_snapshot (
  id         TEXT PRIMARY KEY,
  cluster    TEXT NOT NULL REFERENCES cluster (id) ON DELETE CASCADE,
  ordered_at INTEGER NOT NULL,
  doc        TEXT NOT NULL
) STRICT;
CREATE INDEX etcd_snapshot_cluster ON etcd_snapshot (cluster, ordered_at);
