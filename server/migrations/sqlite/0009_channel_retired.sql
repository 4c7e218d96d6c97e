-- Commits of releases that have left their channels and lie in the repository still, for those who read them.
CREATE TABLE channel_retired (
  profile    TEXT NOT NULL,
  commit_id  TEXT NOT NULL,
  retired_at INTEGER NOT NULL,
  PRIMARY KEY (profile, commit_id)
) STRICT, WITHOUT ROWID;
