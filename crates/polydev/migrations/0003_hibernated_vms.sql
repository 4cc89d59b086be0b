-- CLI VMs sleep. SQLite cannot change a check, so the table is made anew.
CREATE TABLE vms_with_sleep (
    id                TEXT PRIMARY KEY,
    kind              TEXT NOT NULL CHECK (kind IN ('browser', 'cli')),
    user_id           TEXT NOT NULL REFERENCES users (id),
    session_id        TEXT,
    slot              INTEGER,
    state             TEXT NOT NULL CHECK (state IN ('creating', 'running', 'hibernated', 'failed', 'destroyed')),
    created_unix_ms   INTEGER NOT NULL,
    destroyed_unix_ms INTEGER
) STRICT;
INSERT INTO vms_with_sleep (id, kind, user_id, session_id, slot, state, created_unix_ms, destroyed_unix_ms)
    SELECT id, kind, user_id, session_id, slot, state, created_unix_ms, destroyed_unix_ms FROM vms;
DROP TABLE vms;
ALTER TABLE vms_with_sleep RENAME TO vms;
CREATE INDEX vms_by_state ON vms (state);
-- A user has one CLI VM at a time.
CREATE UNIQUE INDEX vms_one_cli_per_user ON vms (user_id)
    WHERE kind = 'cli' AND state IN ('creating', 'running', 'hibernated');
