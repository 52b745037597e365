-- What upgrades and the people who run nodes need.

ALTER TABLE server ADD COLUMN schema_version INTEGER NOT NULL DEFAULT 1;   -- the newest migration that its code has

ALTER TABLE node ADD COLUMN asked TEXT;                      -- reload, restart: asked of its agent, not told yet
