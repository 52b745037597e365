-- Tasks that have ended while very many others waited for them: a loop frees those, a piece at a time.

CREATE TABLE freeing (
    parent_task_id  INTEGER NOT NULL PRIMARY KEY
);
