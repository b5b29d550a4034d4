-- To which part of a topic an event belongs, numbered as in `gone`: the two small parts of a topic are
-- found without reading those of all others.
ALTER TABLE memberships ADD COLUMN part INTEGER NOT NULL DEFAULT 2;

UPDATE memberships
    SET part = (SELECT CASE WHEN kind IN (5, 62) THEN 0 ELSE 1 END FROM events WHERE row = memberships.event)
    WHERE (SELECT kind FROM events WHERE row = memberships.event) IN (0, 3, 5, 62, 10002);

CREATE INDEX memberships_of_part ON memberships (topic, part, created_at, event) WHERE part < 2;
