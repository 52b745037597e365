-- Arrays that wait for others are not for servers that do not know of waiting; on SQLite there are none beside.

-- Tasks that run again while very many were skipped for them: a loop lets those wait again, a piece at a time.
CREATE TABLE reviving (
    parent_key      INTEGER NOT NULL PRIMARY KEY,            -- a task, or number 0 of a job
    after_child_id  INTEGER NOT NULL DEFAULT 0               -- children up to here have been looked at
);
