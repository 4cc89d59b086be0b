//! tcp_table
