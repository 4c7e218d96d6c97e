-- The highest number of a release that a channel of this name has had. It outlives the channel: a number means one commit for ever.
CREATE TABLE channel_number (
  name TEXT PRIMARY KEY,
  last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- What is there, and what was taken off its channel before this was written down.
INSERT INTO channel_number (name, last)
  SELECT name, max(number) FROM (
    SELECT channel.name AS name, CAST(json_extract(release.value, '$.number') AS INTEGER) AS number
      FROM channel, json_each(channel.doc, '$.releases') AS release
    UNION ALL
    SELECT substr(target, 1, instr(target, ' ') - 1), CAST(substr(target, instr(target, ' ') + 1) AS INTEGER)
      FROM audit WHERE action = 'channel.retire' AND instr(target, ' ') > 1
  ) GROUP BY name;
