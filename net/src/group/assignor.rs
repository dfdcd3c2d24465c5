//! The server-side assignors of consumer groups (KIP-848).

/// A built-in assignor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// Every member the same number of partitions, moving as few as possible.
    Uniform,
    /// Every topic split into ranges, so that members get the same ranges of topics with as many partitions.
    Range,
}

/// All of them; the first one is the default.
pub(crate) const ASSIGNORS: &[Assignor] = &[Assignor::Uniform, Assignor::Range];

impl Assignor {
    /// Kafka's name.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    /// The assignor of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        ASSIGNORS
            .iter()
            .copied()
            .find(|assignor| assignor.name() == name)
    }
}
