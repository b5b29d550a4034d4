-- Rows of events that were removed and that the search index, a file of its own, may still know. A
-- trigger fills it while there is such an index, the index's thread empties it.

CREATE TABLE removed_rows (
    row INTEGER PRIMARY KEY
) STRICT;
