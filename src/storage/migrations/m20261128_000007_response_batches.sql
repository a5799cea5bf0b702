-- Which account made a response, as it is written: batch behind batch, and read only at a start. A row for
-- every response had its place by a hash in a tree, so that nearly every request changed a page of its own.

CREATE TABLE response_batches (
    id       INTEGER NOT NULL PRIMARY KEY,
    bindings INTEGER NOT NULL,                 -- how many there are in it
    newest   INTEGER NOT NULL,                 -- the last use of any of them
    -- For each: group (8 bytes), key (16), account (8), last use (8); big endian, written by
    -- storage/responses.rs. Of a key that stands in several batches the last use counts.
    content  BLOB NOT NULL CHECK (length(content) = bindings * 40)
) STRICT;
