-- Smaller rows and fewer indexes: authors and tags become numbers, the first log entry of an event is
-- its own row, and what was deleted leaves a tombstone.
--
-- `tags` is filled again by the program, which then sets `tags_version` in `state`.

CREATE TABLE state (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The log's newest position. Positions are never given twice, even when the newest event is removed.
INSERT INTO state (name, value)
    SELECT 'head', coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'log'), 0);

CREATE TABLE authors (
    author INTEGER PRIMARY KEY,
    pubkey BLOB NOT NULL UNIQUE
) STRICT;

INSERT INTO authors (pubkey) SELECT DISTINCT pubkey FROM events;

CREATE TABLE new_events (
    -- The log position at which it was first stored.
    row        INTEGER PRIMARY KEY,
    author     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    kind       INTEGER NOT NULL,
    -- The topic of its first log entry, if any, and where it came from.
    topic      INTEGER,
    origin     INTEGER NOT NULL,
    -- 1 while it is in private topics alone.
    private    INTEGER NOT NULL,
    -- NIP-40, Unix seconds.
    expires_at INTEGER,
    -- The `d` tag of an addressable event, '' for a replaceable one, NULL for the others.
    identifier TEXT,
    id         BLOB    NOT NULL,
    -- The canonical JSON, as it goes to clients and into frames.
    json       TEXT    NOT NULL
) STRICT;

INSERT INTO new_events
    SELECT row, author, created_at, kind, log.topic, log.origin, 0, expires_at, identifier, id, json
    FROM events
    JOIN authors USING (pubkey)
    JOIN log ON log.seq = events.row;

-- An event's later log entries: it became part of a further topic.
CREATE TABLE joins (
    seq    INTEGER PRIMARY KEY,
    event  INTEGER NOT NULL,
    topic  INTEGER NOT NULL,
    origin INTEGER NOT NULL
) STRICT;

INSERT INTO joins SELECT seq, event, topic, origin FROM log
    WHERE seq <> event AND topic IS NOT NULL AND event IN (SELECT row FROM events);

DROP TABLE log;
DROP TABLE events;
DROP TABLE tags;
DROP INDEX memberships_by_event;
ALTER TABLE new_events RENAME TO events;

CREATE INDEX events_by_id ON events (substr(id, 1, 8));
CREATE INDEX events_by_time ON events (created_at, kind, author);
CREATE INDEX events_by_kind ON events (kind, created_at);
CREATE INDEX events_by_author ON events (author, kind, created_at);
CREATE UNIQUE INDEX events_by_address ON events (author, kind, identifier)
    WHERE identifier IS NOT NULL;
CREATE INDEX events_by_expiry ON events (expires_at) WHERE expires_at IS NOT NULL;

-- Single-letter tags. `key` is the letter and 56 bits of the value; the query checks the value on the
-- event.
CREATE TABLE tags (
    key        INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    event      INTEGER NOT NULL,
    PRIMARY KEY (key, created_at, event)
) STRICT, WITHOUT ROWID;

-- Deleted by id (NIP-09). It holds against an event of this author, or a gift wrap for it.
CREATE TABLE deleted_ids (
    id     BLOB NOT NULL,
    pubkey BLOB NOT NULL,
    PRIMARY KEY (id, pubkey)
) STRICT, WITHOUT ROWID;

-- Deleted by address (NIP-09), up to and including a time.
CREATE TABLE deleted_addresses (
    pubkey     BLOB    NOT NULL,
    kind       INTEGER NOT NULL,
    identifier TEXT    NOT NULL,
    until      INTEGER NOT NULL,
    PRIMARY KEY (pubkey, kind, identifier)
) STRICT, WITHOUT ROWID;

-- Authors who asked to be forgotten (NIP-62), up to and including a time.
CREATE TABLE vanished (
    pubkey BLOB    PRIMARY KEY,
    until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
