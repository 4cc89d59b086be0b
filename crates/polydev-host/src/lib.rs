//! Host side of polydev.
