-- Events, what they are found by, and the log that every consumer follows.
--
-- An event's row number is the log position at which it was first stored. Log positions are never
-- reused (AUTOINCREMENT), so neither are row numbers, and a log entry whose event is gone can not
-- point at another event.

CREATE TABLE events (
    row        INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE,
    pubkey     BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    kind       INTEGER NOT NULL,
    -- The `d` tag of an addressable event, '' for a replaceable one, NULL for the others.
    identifier TEXT,
    -- NIP-40, Unix seconds.
    expires_at INTEGER,
    -- The canonical JSON, as it goes to clients and into frames.
    json       TEXT    NOT NULL
) STRICT;

CREATE INDEX events_by_time ON events (created_at);
CREATE INDEX events_by_kind ON events (kind, created_at);
CREATE INDEX events_by_author ON events (pubkey, created_at);
CREATE INDEX events_by_author_kind ON events (pubkey, kind, created_at);
CREATE UNIQUE INDEX events_by_address ON events (pubkey, kind, identifier)
    WHERE identifier IS NOT NULL;

-- Single-letter tags. `value` is the 32 bytes that 64 hexadecimal digits stand for, or the first
-- bytes of any other text; the query checks the whole value on the event.
CREATE TABLE tags (
    letter     INTEGER NOT NULL,
    value      BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    event      INTEGER NOT NULL,
    PRIMARY KEY (letter, value, created_at, event)
) STRICT, WITHOUT ROWID;

CREATE TABLE topics (
    topic INTEGER PRIMARY KEY,
    name  TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE memberships (
    topic      INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    event      INTEGER NOT NULL,
    PRIMARY KEY (topic, created_at, event)
) STRICT, WITHOUT ROWID;

CREATE INDEX memberships_by_event ON memberships (event, topic);

-- Where events came from: 'client', 'topic/NAME', 'upstream/NAME'.
CREATE TABLE origins (
    origin INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

-- One entry for each event and each topic that it became part of. An entry with seq = event is the
-- event's first.
CREATE TABLE log (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    event  INTEGER NOT NULL,
    topic  INTEGER,
    origin INTEGER NOT NULL
) STRICT;
