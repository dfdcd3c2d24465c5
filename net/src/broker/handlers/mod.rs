//! One file per API: its entry in the table, and its handler.

pub(crate) mod admin;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod group;
pub(crate) mod security;
pub(crate) mod share;
pub(crate) mod telemetry;
pub(crate) mod transaction;
