-- Topics that are joined without standing in the configuration.
CREATE TABLE joined_topics (
    name      TEXT    PRIMARY KEY,
    -- 'command' or 'visit'.
    how       TEXT    NOT NULL,
    -- Unix seconds.
    joined_at INTEGER NOT NULL,
    private   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
