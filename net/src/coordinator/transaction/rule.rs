//! The rules that keep transactions whole: each is a place where leaving something out tears one, loses one, or tells of one
//! too early. Tests take one out at a time and must see the model under power cuts find it; nothing else can.

/// One rule, named by what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A coordinator that finds a transaction ongoing asks its partitions for the markers of a commit before it does
    /// anything with it.
    MarkersDecide,
    /// Markers go beside the decision only when all that the transaction includes is on stable storage.
    AddsFirst,
    /// Markers go beside the decision only if that is to commit: who is loaded next asks for those of a commit, and would let a
    /// transaction go on that is aborted in some partitions.
    CommitsOnly,
    /// Who asks for an end is answered when every partition has its marker.
    AnsweredWhenMarked,
    /// Only who has the epoch of now ends a transaction.
    EpochOfEnd,
    /// A transaction that took too long has its producer fenced.
    TimeoutFences,
}

/// Which rules hold: all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    #[cfg(test)]
    off: Option<Rule>,
}

impl Rules {
    /// All but one.
    #[cfg(test)]
    pub(crate) fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }

    /// Whether it is taken out. Never outside tests.
    #[cfg(test)]
    pub(crate) fn is_off(self, rule: Rule) -> bool {
        self.off == Some(rule)
    }

    /// Whether it is taken out. Never outside tests.
    #[cfg(not(test))]
    pub(crate) fn is_off(self, _: Rule) -> bool {
        false
    }
}
