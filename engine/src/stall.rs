//! Tells what stands still from what is slow. Pure: who waits, and for what, goes in now and then; when a stall begins
//! and when it is over comes out.
//!
//! Whoever waits shows a mark that changes with every step of what it waits for. It is stalled once it has shown the
//! same mark for longer than its patience. So a queue that moves is no stall however long it is, and neither is a slow
//! disk: the bytes that are under way add to the patience. Nothing here makes anything move again.

use std::time::Duration;

/// Bytes per second of the slowest disk that is not taken for one that stands still.
pub const SLOWEST_BYTES_PER_S: u64 = 1 << 20;

/// Time between two looks that counts at most: while nobody looks (a process that was stopped, a machine that slept)
/// nothing can be seen to move.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Somebody who waits, as one look finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait<W> {
    /// Who.
    pub who: W,
    /// Changes whenever what it waits for has moved.
    pub mark: [u64; 3],
    /// Bytes under way that it may be waiting for.
    pub bytes: u64,
}

/// What a look found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<W> {
    /// Nothing has moved for somebody, for that long.
    Begun {
        /// Who waits longest.
        who: W,
        /// For how long.
        waited: Duration,
    },
    /// Nobody is stalled any more.
    Over {
        /// Who it was.
        who: W,
        /// From the last move before the stall.
        lasted: Duration,
    },
}

/// Looks for stalls of one shard. Call [`Detector::look`] about every second.
#[derive(Debug)]
pub struct Detector<W> {
    patience: Duration,
    looked: Option<Duration>,
    seen: Vec<Seen<W>>,
    /// Who is stalled, and since when.
    stalled: Option<(W, Duration)>,
    stalls: u64,
}

#[derive(Debug)]
struct Seen<W> {
    wait: Wait<W>,
    waited: Duration,
}

impl<W: Copy + PartialEq> Detector<W> {
    /// One that lets everybody wait that long, and longer for many bytes.
    pub fn new(patience: Duration) -> Self {
        Self { patience, looked: None, seen: Vec::new(), stalled: None, stalls: 0 }
    }

    /// Everybody who waits at the moment `now`, each once. Moments are since anything, and never go back.
    pub fn look(&mut self, now: Duration, waits: Vec<Wait<W>>) -> Option<Change<W>> {
        let since_last = self.looked.replace(now).map_or(Duration::ZERO, |last| now.saturating_sub(last).min(LOOK_MAX));
        let before = std::mem::take(&mut self.seen);
        let waited = |wait: &Wait<W>| {
            let known = before.iter().find(|seen| seen.wait.who == wait.who && seen.wait.mark == wait.mark);
            known.map_or(Duration::ZERO, |seen| seen.waited + since_last)
        };
        self.seen = waits.into_iter().map(|wait| Seen { waited: waited(&wait), wait }).collect();
        let overdue = self.seen.iter().filter(|seen| seen.waited >= self.patience_for(seen.wait.bytes));
        let longest = overdue.max_by_key(|seen| seen.waited).map(|seen| (seen.wait.who, seen.waited));
        match (self.stalled, longest) {
            (None, Some((who, waited))) => {
                self.stalled = Some((who, now.saturating_sub(waited)));
                self.stalls += 1;
                Some(Change::Begun { who, waited })
            }
            (Some((who, since)), None) => {
                self.stalled = None;
                Some(Change::Over { who, lasted: now.saturating_sub(since) })
            }
            (None, None) | (Some(_), Some(_)) => None,
        }
    }

    fn patience_for(&self, bytes: u64) -> Duration {
        self.patience + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S)
    }

    /// Whether somebody is stalled, as of the last look.
    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Stalls that began.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// For how long nothing has moved for somebody, as of the last look.
    pub fn waited(&self, who: W) -> Duration {
        self.seen.iter().find(|seen| seen.wait.who == who).map_or(Duration::ZERO, |seen| seen.waited)
    }
}

/// How long anything of a shard's log may stand still.
pub(crate) const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// Who waits in a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The oldest commit group.
    Group,
    /// A file of the shared log that is being made or wiped.
    LogFile,
    /// The keeper, at its work.
    Keeper,
    /// The flush of what was only written.
    Flush,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Group => "a commit group",
            Self::LogFile => "a file of the write-ahead log in the making",
            Self::Keeper => "a round of materialisation",
            Self::Flush => "a flush of written records",
        })
    }
}

/// Counts writes and flushes that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Of groups, and of wiping files.
    pub(crate) log: u64,
    /// Of what was only written.
    pub(crate) flushes: u64,
    /// Of segments and of the manifest.
    pub(crate) segments: u64,
    /// Of files in the making.
    pub(crate) making: u64,
}

impl Steps {
    /// Of all that a group may wait for.
    fn all(&self) -> u64 {
        self.log + self.flushes + self.segments + self.making
    }
}

/// What one look finds in a shard's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Writes and flushes that have ended.
    pub(crate) steps: Steps,
    /// Number of the oldest group that is not done, written or not.
    pub(crate) oldest_group: Option<u64>,
    /// Groups being written and their bytes.
    pub(crate) in_flight: usize,
    pub(crate) in_flight_bytes: u64,
    /// Bytes that a file in the making lacks, and its size.
    pub(crate) making: Option<(u64, u64)>,
    /// Files being wiped.
    pub(crate) wiping: usize,
    /// Counts what the keeper has begun to do.
    pub(crate) keeper_turns: u64,
    /// It is at work, and does not wait for space on the disk.
    pub(crate) keeper_works: bool,
    /// Bytes that the keeper writes in one step.
    pub(crate) keeper_bytes: u64,
    /// What was only written is being flushed.
    pub(crate) flushing: bool,
    /// The disk is full: who waits for room waits for that, and that was told.
    pub(crate) full: bool,
}

impl Look {
    /// Everybody who waits.
    pub(crate) fn waits(&self) -> Vec<Wait<Waiting>> {
        let waits_for_space = self.full && self.in_flight == 0;
        let group = self.oldest_group.filter(|_| !waits_for_space).map(|number| Wait {
            who: Waiting::Group,
            mark: [number, self.steps.all(), 0],
            bytes: self.in_flight_bytes + self.keeper_bytes,
        });
        let is_made = self.making.is_some() || self.wiping > 0;
        let file = is_made.then(|| Wait {
            who: Waiting::LogFile,
            mark: [self.steps.making, self.wiping as u64, if self.wiping > 0 { self.steps.log } else { 0 }],
            // at its end the whole file is flushed
            bytes: self.making.filter(|(unmade, _)| *unmade == 0).map_or(0, |(_, size)| size),
        });
        let keeper = self.keeper_works.then_some(Wait {
            who: Waiting::Keeper,
            mark: [self.keeper_turns, self.steps.segments, 0],
            bytes: self.keeper_bytes,
        });
        let flush = self.flushing.then_some(Wait { who: Waiting::Flush, mark: [self.steps.flushes, 0, 0], bytes: 0 });
        [group, file, keeper, flush].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Looks every second at what a function of the second says; answers what changed, and when.
    fn watch(seconds: u64, look: impl Fn(u64) -> Look) -> Vec<(u64, Change<Waiting>)> {
        let mut detector = Detector::new(LOG_PATIENCE);
        (0..=seconds).filter_map(|at| Some((at, detector.look(s(at), look(at).waits())?))).collect()
    }

    fn group(number: u64) -> Look {
        Look { oldest_group: Some(number), in_flight: 1, ..Look::default() }
    }

    #[test]
    fn a_stall_is_told_once_when_it_begins_and_once_when_it_is_over() {
        let told = watch(300, |at| if (10..250).contains(&at) { group(7) } else { Look::default() });
        let begun = Change::Begun { who: Waiting::Group, waited: s(5) };
        assert_eq!(told, [(15, begun), (250, Change::Over { who: Waiting::Group, lasted: s(240) })]);
    }

    #[test]
    fn what_moves_is_no_stall_however_slow_it_is() {
        let queue = |at: u64| group(at / 4);
        assert_eq!(watch(100, queue), [], "a group every four seconds");
        let steps = |at: u64| Look { steps: Steps { segments: at / 4, ..Steps::default() }, ..group(1) };
        assert_eq!(watch(100, steps), [], "one group, for which the keeper makes room");
        let file = |at: u64| Look {
            making: Some((100, 100)),
            in_flight: 0,
            steps: Steps { making: at / 4, ..Steps::default() },
            ..group(1)
        };
        assert_eq!(watch(100, file), [], "one group, for which a file is being filled");
        let keeper = |at: u64| Look { keeper_works: true, keeper_turns: at / 4, ..Look::default() };
        assert_eq!(watch(100, keeper), [], "many small things to keep");
    }

    #[test]
    fn many_bytes_may_take_their_time() {
        let fat = |at: u64| Look { in_flight_bytes: 16 << 20, ..group(u64::from(at >= 20)) };
        assert_eq!(watch(24, fat), []);
        let stuck = |_| Look { in_flight_bytes: 16 << 20, ..group(1) };
        assert_eq!(watch(24, stuck), [(21, Change::Begun { who: Waiting::Group, waited: s(21) })]);
        let flushed = |unmade| Look { making: Some((unmade, 32 << 20)), ..Look::default() };
        assert_eq!(watch(36, |_| flushed(0)), []);
        assert_eq!(watch(36, |_| flushed(1)), [(5, Change::Begun { who: Waiting::LogFile, waited: s(5) })]);
    }

    #[test]
    fn a_full_disk_is_no_stall_unless_a_write_does_not_end() {
        let starved = Look { full: true, in_flight: 0, ..group(1) };
        assert_eq!(watch(100, |_| starved.clone()), []);
        let writing = Look { full: true, ..group(1) };
        assert_eq!(watch(10, |_| writing.clone()).len(), 1);
        let space_again = |at: u64| Look { full: at < 50, ..starved.clone() };
        assert_eq!(watch(60, space_again), [(55, Change::Begun { who: Waiting::Group, waited: s(5) })]);
    }

    #[test]
    fn everybody_who_stands_still_is_seen() {
        let keeper = Look { keeper_works: true, ..Look::default() };
        let wiping = Look { wiping: 1, ..Look::default() };
        let flush = Look { flushing: true, ..Look::default() };
        for (look, who) in [(keeper, Waiting::Keeper), (wiping, Waiting::LogFile), (flush, Waiting::Flush)] {
            assert_eq!(watch(6, |_| look.clone()), [(5, Change::Begun { who, waited: s(5) })]);
        }
        assert_eq!(watch(100, |_| Look::default()), [], "nobody waits");
    }

    #[test]
    fn time_that_nobody_saw_does_not_count() {
        let mut detector = Detector::new(LOG_PATIENCE);
        assert_eq!(detector.look(s(0), group(1).waits()), None);
        assert_eq!(detector.look(s(3600), group(1).waits()), None, "the machine slept");
        assert_eq!((detector.waited(Waiting::Group), detector.is_stalled()), (LOOK_MAX, false));
        assert_eq!(detector.look(s(3601), group(2).waits()), None);
        assert_eq!(detector.stalls(), 0);
    }

    #[test]
    fn another_who_stalls_meanwhile_is_the_same_stall() {
        let told = watch(60, |at| match at {
            0..20 => group(1),
            20..40 => Look { keeper_works: true, ..group(1) },
            40..50 => Look { keeper_works: true, ..Look::default() },
            _ => Look::default(),
        });
        let over = Change::Over { who: Waiting::Group, lasted: s(50) };
        assert_eq!(told, [(5, Change::Begun { who: Waiting::Group, waited: s(5) }), (50, over)]);
    }
}
