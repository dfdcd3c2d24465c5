//! Sets of partitions, by topic id.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// Partitions by topic id. A topic without partitions is left out.
pub(crate) type Assignment = BTreeMap<Uuid, BTreeSet<i32>>;
