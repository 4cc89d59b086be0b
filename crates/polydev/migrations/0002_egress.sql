-- How a user's traffic leaves. Without a row it is the controller's own setting.
CREATE TABLE egress_policies (
    user_id          TEXT PRIMARY KEY REFERENCES users (id),
    policy           TEXT NOT NULL CHECK (policy IN ('deny', 'direct', 'upstream')),
    -- Counts up; the sealed upstream belongs to exactly one.
    version          INTEGER NOT NULL,
    -- The upstream proxy's address and credentials, sealed by the vault.
    upstream         BLOB,
    -- SHA-256 of what opens the user's proxy port.
    proxy_token_hash BLOB NOT NULL,
    updated_unix_ms  INTEGER NOT NULL,
    CHECK ((policy = 'upstream') = (upstream IS NOT NULL))
) STRICT;

-- A port belongs to one user until that user is removed; afterwards it rests before another user gets it.
CREATE TABLE proxy_ports (
    port             INTEGER PRIMARY KEY,
    user_id          TEXT UNIQUE REFERENCES users (id),
    released_unix_ms INTEGER,
    CHECK ((user_id IS NULL) = (released_unix_ms IS NOT NULL))
) STRICT;
