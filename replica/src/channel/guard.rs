//! The guards of the protocol: each is a place where leaving something out loses or splits acknowledged records, breaks a limit, or
//! says that records are deleted that are not. Tests switch one off at a time and must see the simulator find it; nothing
//! else can.

/// One guard, named by what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Guard {
    /// A follower joins the ISR only if it has all up to the start of the leader's epoch.
    EpochStart,
    /// Only what a follower confirmed in the leader's present epoch counts.
    HeardInEpoch,
    /// The high watermark waits for the larger of the committed ISR and the one that is being asked for.
    MaximalIsr,
    /// At attach a follower counts with what is as safe as the topic asks, not with all that it has.
    ConfirmedAtAttach,
    /// A change of which nobody knows the outcome may have happened.
    UnknownOutcome,
    /// A follower whose log diverges is cut before anything is appended to it.
    TruncateBeforeAppend,
    /// A run is taken only if it is of the follower's epoch and attempt, and begins where its log ends.
    RunsFit,
    /// A follower confirms what is written and flushed as the topic asks, not what it received.
    ConfirmDurable,
    /// The high watermark stands while fewer than min.insync.replicas are in sync (KIP-966).
    InSyncMin,
    /// A follower joins the ISR only with all up to the high watermark.
    JoinAtHighWatermark,
    /// A follower that attaches is asked for its last epoch, not only for its end.
    LastEpochAtAttach,
    /// A leader sends followers that are not in sync no more than its limit allows.
    LeaderLimit,
    /// A follower that is over its limit says that no more is to come.
    FollowerLimit,
    /// A leader reads nothing for a follower that said so.
    HoldHeeded,
    /// A follower whose limit is paid for has more come.
    HoldEnds,
    /// A follower tells where its log begins once that is durable, not when its leader says so.
    LogStartDurable,
    /// A follower tells whenever its log begins later than its leader knows.
    LogStartTold,
    /// A replica whose node lives and that is not heard may have everything that a deletion is about.
    LowWatermarkOfAll,
    /// Nothing is acknowledged before its flush unless the partition's key says that it may be.
    PromiseNoted,
    /// The key says so until all that was acknowledged is flushed wherever it has to be.
    PromiseKept,
}

impl Guard {
    /// Every one.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 20] = [
        Self::EpochStart,
        Self::HeardInEpoch,
        Self::MaximalIsr,
        Self::ConfirmedAtAttach,
        Self::UnknownOutcome,
        Self::TruncateBeforeAppend,
        Self::RunsFit,
        Self::ConfirmDurable,
        Self::InSyncMin,
        Self::JoinAtHighWatermark,
        Self::LastEpochAtAttach,
        Self::LeaderLimit,
        Self::FollowerLimit,
        Self::HoldHeeded,
        Self::HoldEnds,
        Self::LogStartDurable,
        Self::LogStartTold,
        Self::LowWatermarkOfAll,
        Self::PromiseNoted,
        Self::PromiseKept,
    ];
}

/// Which guards hold: all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Guards {
    #[cfg(test)]
    off: Option<Guard>,
}

impl Guards {
    /// All but one.
    #[cfg(test)]
    pub(crate) fn without(guard: Guard) -> Self {
        Self { off: Some(guard) }
    }

    /// Whether it is switched off. Never outside tests.
    #[cfg(test)]
    pub(crate) fn is_off(self, guard: Guard) -> bool {
        self.off == Some(guard)
    }

    /// Whether it is switched off. Never outside tests.
    #[cfg(not(test))]
    pub(crate) fn is_off(self, _: Guard) -> bool {
        false
    }
}
