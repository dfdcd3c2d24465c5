//! Settings as clients see and change them. What the node is started with is [`super::config`].
//!
//! [`entries`] how one setting is shown, and those of topics; [`broker`] those of the broker, [`group`] those of single
//! groups, [`client_metrics`] those of subscriptions to clients' metrics; [`resource`] finds the resource that a request
//! means, and changes its settings. What the settings of groups mean is the coordinators' to know
//! (`coordinator/group/settings.rs`, `coordinator/share/settings.rs`).

pub(crate) mod broker;
pub(crate) mod client_metrics;
pub(crate) mod entries;
pub(crate) mod group;
pub(crate) mod replication;
pub(crate) mod resource;
