-- What plugins remember (capability `kv`). The quota of a plugin's manifest bounds it.
CREATE TABLE plugin_kv (
    -- The plugin's id.
    plugin     TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      BLOB NOT NULL,
    -- Unix seconds; NULL for what stays.
    expires_at INTEGER,
    PRIMARY KEY (plugin, key)
) STRICT, WITHOUT ROWID;
