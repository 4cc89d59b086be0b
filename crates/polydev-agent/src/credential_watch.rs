//! credential_watch
