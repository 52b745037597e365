-- How machines join: join tokens, and credentials that are good for one node.

CREATE TABLE join_token (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id   INTEGER NOT NULL REFERENCES tenant (id),
    hash        TEXT NOT NULL UNIQUE,                        -- SHA-256, hexadecimal
    pool        TEXT,                                        -- the pool of its nodes; NULL: what the agent says
    uses        INTEGER NOT NULL DEFAULT 1,                  -- how many nodes may join with it
    used        INTEGER NOT NULL DEFAULT 0,
    created_by  TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    revoked_at  INTEGER,
    CHECK (used <= uses)
);
-- list_join_tokens
CREATE INDEX join_token_newest ON join_token (tenant_id, id);

ALTER TABLE token ADD COLUMN node_name TEXT;                 -- of a node's: the one node; NULL: any
ALTER TABLE token ADD COLUMN pool TEXT;                      -- of a node's: the one pool; NULL: any
ALTER TABLE token ADD COLUMN join_token_id INTEGER;
-- tokens_of_node
CREATE INDEX token_of_node ON token (tenant_id, node_name) WHERE node_name IS NOT NULL;

ALTER TABLE node ADD COLUMN instance TEXT;                   -- which agent it is: of its folder, and of the boot
