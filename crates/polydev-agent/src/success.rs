//! success
