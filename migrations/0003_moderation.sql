-- What the operator bans and allows while the gateway runs (NIP-86), and what he calls the relay.
CREATE TABLE moderation (
    -- The names of the lists stand in the program.
    list TEXT NOT NULL,
    -- A public key, an event id, a kind, a network, or the name of a field.
    item TEXT NOT NULL,
    -- The reason, or the value of the field.
    text TEXT NOT NULL,
    PRIMARY KEY (list, item)
) STRICT, WITHOUT ROWID;
