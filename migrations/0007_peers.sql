-- Other gateways that were reached before: a way into a topic after a restart. At most 64 of a topic
-- and 4,096 in all; those not reached for the longest time are forgotten.
CREATE TABLE peers (
    topic      TEXT    NOT NULL,
    -- The endpoint id, 32 bytes.
    peer       BLOB    NOT NULL,
    -- Where it was reached, one a line: IP:PORT, or the URL of an iroh relay. Hints, no more.
    addresses  TEXT    NOT NULL,
    -- The step of discovery that had found it, as `status` names it.
    found_by   TEXT    NOT NULL,
    -- 1 when it was reached over an iroh relay alone.
    over_relay INTEGER NOT NULL,
    -- Unix seconds.
    reached_at INTEGER NOT NULL,
    -- How often it was looked for in vain since.
    failures   INTEGER NOT NULL,
    PRIMARY KEY (topic, peer)
) STRICT, WITHOUT ROWID;

CREATE INDEX peers_by_time ON peers (reached_at);
