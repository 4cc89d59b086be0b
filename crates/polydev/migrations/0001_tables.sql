CREATE TABLE users (
    id              TEXT PRIMARY KEY,
    created_unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE vms (
    id                TEXT PRIMARY KEY,
    kind              TEXT NOT NULL CHECK (kind IN ('browser', 'cli')),
    user_id           TEXT NOT NULL REFERENCES users (id),
    session_id        TEXT,
    slot              INTEGER,
    state             TEXT NOT NULL CHECK (state IN ('creating', 'running', 'failed', 'destroyed')),
    created_unix_ms   INTEGER NOT NULL,
    destroyed_unix_ms INTEGER
) STRICT;
CREATE INDEX vms_by_state ON vms (state);
-- A user has one CLI VM at a time.
CREATE UNIQUE INDEX vms_one_cli_per_user ON vms (user_id) WHERE kind = 'cli' AND state IN ('creating', 'running');

CREATE TABLE auth_sessions (
    id              TEXT PRIMARY KEY,
    user_id         TEXT NOT NULL REFERENCES users (id),
    provider        TEXT NOT NULL,
    state           TEXT NOT NULL,
    final           INTEGER NOT NULL,
    snapshot        TEXT NOT NULL,
    idempotency_key TEXT,
    created_unix_ms INTEGER NOT NULL,
    ended_unix_ms   INTEGER
) STRICT;
CREATE INDEX auth_sessions_open ON auth_sessions (final) WHERE final = 0;
CREATE UNIQUE INDEX auth_sessions_idempotency ON auth_sessions (user_id, provider, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE credentials (
    id              TEXT PRIMARY KEY,
    user_id         TEXT NOT NULL REFERENCES users (id),
    provider        TEXT NOT NULL,
    version         INTEGER NOT NULL,
    -- The newest version that reached the user's CLI VM.
    delivered_version INTEGER NOT NULL DEFAULT 0,
    sealed          BLOB NOT NULL,
    files           TEXT NOT NULL,
    created_unix_ms INTEGER NOT NULL,
    updated_unix_ms INTEGER NOT NULL,
    UNIQUE (user_id, provider)
) STRICT;

CREATE TABLE vm_cleanup_tasks (
    vm_id           TEXT PRIMARY KEY,
    attempts        INTEGER NOT NULL DEFAULT 0,
    last_error      TEXT,
    created_unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE audit_log (
    id         INTEGER PRIMARY KEY,
    at_unix_ms INTEGER NOT NULL,
    action     TEXT NOT NULL,
    user_id    TEXT,
    subject    TEXT,
    detail     TEXT
) STRICT;
