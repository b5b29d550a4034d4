-- How far streams from and to other relays have come. At most 16,384 rows in each table; those not
-- written for the longest time are forgotten. A URL is in its normal form.
CREATE TABLE upstream_down (
    stream     TEXT    NOT NULL,
    url        TEXT    NOT NULL,
    -- What of the relay: the fingerprint of the filter that was asked, or of a group of authors.
    part       INTEGER NOT NULL,
    -- Spans of created_at of which all is here: 8 bytes each, big-endian, of the first and of the last second.
    complete   BLOB    NOT NULL,
    -- Unix seconds.
    written_at INTEGER NOT NULL,
    PRIMARY KEY (stream, url, part)
) STRICT, WITHOUT ROWID;

CREATE TABLE upstream_up (
    stream     TEXT    NOT NULL,
    url        TEXT    NOT NULL,
    -- The log position up to which every event was answered, or was not to go.
    seq        INTEGER NOT NULL,
    -- The log position at which the stream began. Of what is older, only events made since then go.
    began      INTEGER NOT NULL,
    since      INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    PRIMARY KEY (stream, url)
) STRICT, WITHOUT ROWID;

-- Events that a relay did not want, the last 100 of each stream.
CREATE TABLE upstream_dropped (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    stream TEXT    NOT NULL,
    url    TEXT    NOT NULL,
    id     BLOB    NOT NULL,
    -- Unix seconds.
    at     INTEGER NOT NULL,
    reason TEXT    NOT NULL
) STRICT;

CREATE INDEX upstream_dropped_of_stream ON upstream_dropped (stream, number);

-- Streams that the operator paused.
CREATE TABLE upstream_paused (
    stream TEXT    PRIMARY KEY,
    -- Unix seconds.
    since  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
