//! The commands besides `serve`, a file each.

pub(crate) mod api;
mod broker;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod consume;
pub(crate) mod doctor;
mod etcd;
pub(crate) mod group;
pub(crate) mod log;
pub(crate) mod produce;
pub(crate) mod promote;
mod record_format;
pub(crate) mod topic;
pub(crate) mod txn;
