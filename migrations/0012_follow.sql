-- Who is asked for at which relay by streams that follow public keys. At most 16,384 rows; those not
-- written for the longest time are forgotten. A URL is in its normal form.
CREATE TABLE upstream_groups (
    stream     TEXT    NOT NULL,
    url        TEXT    NOT NULL,
    -- 0: asked for what the stream's filter says. 1: asked for lists of follows and relays.
    lists      INTEGER NOT NULL,
    -- The part of upstream_down is made from it.
    id         INTEGER NOT NULL,
    -- Whether the relay is open: its authors stay there after a restart.
    open       INTEGER NOT NULL,
    -- 32 bytes each.
    authors    BLOB    NOT NULL,
    -- Unix seconds.
    written_at INTEGER NOT NULL,
    PRIMARY KEY (stream, url, lists, id)
) STRICT, WITHOUT ROWID;
