-- Private topics: all that is no secret. Secrets are in the secret store.
CREATE TABLE private_topics (
    name      TEXT    PRIMARY KEY,
    -- Unix seconds.
    joined_at INTEGER NOT NULL,
    -- Rosters, admissions and public keys.
    state     BLOB    NOT NULL,
    -- Endpoints to begin with, as in discovery.peers, one on each line.
    peers     TEXT    NOT NULL,
    -- When members were last spoken with: their ids, 32 bytes, each with 8 bytes of Unix seconds.
    seen      BLOB    NOT NULL,
    -- 1 once it was left: its events stay private.
    is_left   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
