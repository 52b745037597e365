-- Nodes that run the start task of their pool; the task stands in the settings of the pool.

ALTER TABLE node ADD COLUMN reason TEXT;                     -- of one that is `starting` or `start_failed`
