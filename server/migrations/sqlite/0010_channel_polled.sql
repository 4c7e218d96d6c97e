-- When a system that asks for the update graph ran a release last, to the hour: such systems are no machines of ours.
CREATE TABLE channel_polled (
  channel   TEXT NOT NULL,
  commit_id TEXT NOT NULL,
  node      TEXT NOT NULL,
  last_at   INTEGER NOT NULL,
  PRIMARY KEY (channel, commit_id)
) STRICT, WITHOUT ROWID;
