-- Ids of events that were verified and are not held, by topic: refused, banned, replaced, deleted, of
-- an author who vanished, evicted. When gateways compare what they have, these count as held.
CREATE TABLE gone (
    topic      INTEGER NOT NULL,
    -- 0: requests to delete and to vanish; 1: profiles and lists; 2: everything else.
    part       INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    -- The numbers stand in the program.
    cause      INTEGER NOT NULL,
    PRIMARY KEY (topic, part, created_at, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX gone_by_id ON gone (substr(id, 1, 8));
