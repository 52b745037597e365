-- What operators do to nodes: taking them away, starting their machines again, reviving silent ones.

ALTER TABLE node ADD COLUMN going TEXT;                      -- remove, reboot, rebooting: once no task is on it
ALTER TABLE node ADD COLUMN going_why TEXT;                  -- as the operator said
ALTER TABLE node ADD COLUMN removed_at INTEGER;              -- NULL: it may connect
ALTER TABLE node ADD COLUMN kicked_at INTEGER;               -- when the last try to revive it began
ALTER TABLE node ADD COLUMN kick_count INTEGER NOT NULL DEFAULT 0;  -- tries since it was heard last
ALTER TABLE node ADD COLUMN address TEXT;                    -- where its connection came from
-- nodes_going
CREATE INDEX node_going ON node (id) WHERE going IS NOT NULL;
