-- Leases of the right to restart, as one JSON document: they are few, and decided on together.
CREATE TABLE fleet_lock (
  id  INTEGER PRIMARY KEY CHECK (id = 1),
  doc TEXT NOT NULL
) STRICT;
