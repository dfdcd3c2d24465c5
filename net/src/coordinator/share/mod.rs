//! Share groups (KIP-932): consumers that share the records of a partition, each record acknowledged by itself.
//!
//! Two parts of three: *membership* is one more kind of group of the group coordinator (`group/share`); it says which
//! members read which partitions. A *share partition* is a partition as one group sees it; it lives on the shard that
//! owns the partition and gives its records out. Its *state* is kept in `__share_group_state`, by the shard that owns the
//! partition of that topic to which the share partition belongs; acknowledgements are answered when it is durable there.

pub(crate) mod partition;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod shell;
pub(crate) mod state;

pub(crate) use settings::{GroupSettings, SHARE_SETTING_KEYS, Settings};
pub(crate) use shell::{Shares, StateKind, States};
