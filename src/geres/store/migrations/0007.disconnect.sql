-- What becomes of tasks whose node has lost contact: run (NULL), stop or keep.

ALTER TABLE spec ADD COLUMN on_disconnect TEXT;              -- what its tasks say
ALTER TABLE node ADD COLUMN on_disconnect TEXT;              -- of tasks that say nothing
