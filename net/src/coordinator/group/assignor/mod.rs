//! The server-side assignors of consumer groups (KIP-848): which member is to have which partitions.
//!
//! They are pure functions of the members in a fixed order, so that the same group always gets the same assignment.

mod range;
mod uniform;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::assignment::Assignment;

/// A built-in assignor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Assignor {
    /// Every member the same number of partitions, moving as few as possible.
    Uniform,
    /// Every topic split into ranges, so that members get the same ranges of topics with as many partitions.
    Range,
}

/// All of them; the first one is the default.
pub(crate) const ASSIGNORS: &[Assignor] = &[Assignor::Uniform, Assignor::Range];

/// A member as the assignors see it.
#[derive(Debug, Clone)]
pub(crate) struct Subscriber<'a> {
    /// Member id.
    pub(crate) id: &'a str,
    /// Instance id of a static member.
    pub(crate) instance_id: Option<&'a str>,
    /// Topics that it subscribes to, as far as they exist.
    pub(crate) topics: BTreeSet<Uuid>,
    /// What it was to have before.
    pub(crate) target: &'a Assignment,
}

/// Number of partitions of every subscribed topic.
pub(crate) type Partitions = BTreeMap<Uuid, i32>;

impl Assignor {
    /// Kafka's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    /// The assignor of that name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        ASSIGNORS.iter().copied().find(|assignor| assignor.name() == name)
    }

    /// Assigns every partition of every topic that somebody subscribes to. `members` are sorted by member id; one
    /// assignment for each comes back in their order.
    pub(crate) fn assign(self, members: &[Subscriber<'_>], partitions: &Partitions) -> Vec<Assignment> {
        match self {
            Assignor::Uniform => uniform::assign(members, partitions),
            Assignor::Range => range::assign(members, partitions),
        }
    }
}

#[cfg(test)]
mod tests;
