-- What servers know of each other, and wishes that outlive the server that they were told to.

ALTER TABLE server ADD COLUMN secret TEXT NOT NULL DEFAULT '';       -- other servers sign what they ask of it
ALTER TABLE server ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';  -- of its certificate, where it made one itself

-- What becomes of what runs while the job is disabled: cancel, requeue; NULL where it goes on.
ALTER TABLE job ADD COLUMN stop TEXT;

-- Attempts that the store has ended and that their node has not: it is told until it says so.
CREATE TABLE kill (
    node_id   INTEGER NOT NULL,
    task_id   INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    asked_at  INTEGER NOT NULL,
    PRIMARY KEY (node_id, task_id, attempt)
);
