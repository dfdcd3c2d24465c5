//! How much of a shard bulk copies may take while others wait for its disk: all of it when nobody does, else one piece at a
//! time, and as long a pause after it as it took. What others write earns copies more: who lags must get there in the end.

/// For so long after a live group others may come: a lone producer waits for its answer before it sends again.
pub(crate) const BUSY_MS: u64 = 1_000;
/// One piece while others wait. Not less: the engine writes runs of 256 KiB and more to their segments at once, and smaller
/// ones twice.
pub(crate) const PIECE_BYTES: usize = 512 << 10;
/// One piece when nobody does.
pub(crate) const PIECE_BYTES_MAX: usize = 1 << 20;
/// Bytes of pieces on their way to one follower when nobody waits: as many groups as its engine writes at once, and as many
/// again that are read, or on the network.
pub(crate) const UNDER_WAY_BYTES_MAX: u64 = 8 << 20;
/// The same while others write, and what those can earn copies at most: who comes then does not find much before it.
const EARNED_BYTES_MAX: u64 = 4 << 20;
/// The longest pause after a piece.
const PAUSE_MS_MAX: u64 = 100;

/// One shard's. Times are of the channel's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// When a live group was seen last.
    live_ms: Option<u64>,
    /// What pieces may have without a pause.
    earned_bytes: u64,
    /// When the last piece began; none if none is on its way.
    began_ms: Option<u64>,
    /// No piece begins before, but one that was earned.
    free_ms: u64,
}

impl Pace {
    /// A live group of so many bytes is on its way to the disk.
    pub(crate) fn note_live(&mut self, now_ms: u64, bytes: u64) {
        self.live_ms = Some(now_ms);
        // half more than comes live, or a copy of what grows would never end
        self.earned_bytes = (self.earned_bytes + bytes + bytes / 2).min(EARNED_BYTES_MAX);
    }

    /// Whether others wait for the disk now, or may soon.
    pub(crate) fn is_busy(&self, now_ms: u64) -> bool {
        self.live_ms.is_some_and(|live| now_ms.saturating_sub(live) < BUSY_MS)
    }

    /// Bytes of the piece that may begin now; none if it is to wait. So many are on their way to one follower, and so many that
    /// others wait for are on their way to all: these count only while somebody writes.
    pub(crate) fn next_piece(&self, now_ms: u64, under_way_bytes: u64, of_all_bytes: u64) -> Option<usize> {
        if !self.is_busy(now_ms) {
            return (under_way_bytes < UNDER_WAY_BYTES_MAX).then_some(PIECE_BYTES_MAX);
        }
        if self.earned_bytes >= PIECE_BYTES_MAX as u64 {
            return (under_way_bytes < EARNED_BYTES_MAX).then_some(PIECE_BYTES_MAX);
        }
        // many small ones are as good as one
        let is_alone = of_all_bytes < PIECE_BYTES as u64 / 2;
        // one that nobody waits for any more keeps no others of its follower; several of them are a disk that is slow
        let has_room = under_way_bytes < PIECE_BYTES_MAX as u64;
        (is_alone && has_room && self.free_ms <= now_ms).then_some(PIECE_BYTES)
    }

    /// A piece of so many bytes at most begins. Answers how many of them were earned, and are so no more.
    pub(crate) fn begin(&mut self, now_ms: u64, bytes: usize) -> u64 {
        self.began_ms = Some(now_ms);
        let spent = self.earned_bytes.min(bytes as u64);
        self.earned_bytes -= spent;
        spent
    }

    /// A piece turned out to be smaller than what was spent on it, by so much.
    pub(crate) fn refund(&mut self, bytes: u64) {
        self.earned_bytes = (self.earned_bytes + bytes).min(EARNED_BYTES_MAX);
    }

    /// All pieces that others wait for are where they belong.
    pub(crate) fn end(&mut self, now_ms: u64) {
        if let Some(began_ms) = self.began_ms.take() {
            self.free_ms = now_ms + now_ms.saturating_sub(began_ms).clamp(1, PAUSE_MS_MAX);
        }
    }

    /// When a piece may begin that waits for nothing but a pause; none if it does not.
    pub(crate) fn wake_ms(&self, now_ms: u64) -> Option<u64> {
        (self.is_busy(now_ms) && self.free_ms > now_ms).then_some(self.free_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = PIECE_BYTES as u64;

    #[test]
    fn a_copy_has_the_disk_to_itself_as_long_as_nobody_else_comes() {
        let mut pace = Pace::default();
        assert_eq!(pace.next_piece(0, 0, 0), Some(PIECE_BYTES_MAX));
        assert_eq!(pace.next_piece(0, UNDER_WAY_BYTES_MAX - 1, UNDER_WAY_BYTES_MAX), Some(PIECE_BYTES_MAX));
        assert_eq!(
            pace.next_piece(0, UNDER_WAY_BYTES_MAX, UNDER_WAY_BYTES_MAX),
            None,
            "nobody shall find more before it"
        );
        pace.note_live(10, 100);
        assert_eq!(pace.next_piece(10 + BUSY_MS - 1, PIECE, PIECE), None);
        assert_eq!(pace.next_piece(10 + BUSY_MS, PIECE, PIECE), Some(PIECE_BYTES_MAX), "they have gone");
    }

    #[test]
    fn while_others_write_one_piece_goes_at_a_time_and_rests_as_long_as_it_took() {
        let mut pace = Pace::default();
        pace.note_live(100, 100);
        assert_eq!(pace.next_piece(100, 0, PIECE), None, "one for all followers");
        assert_eq!(pace.next_piece(100, 0, 1_000), Some(PIECE_BYTES), "small ones do not count as one");
        assert_eq!(pace.next_piece(100, 0, 0), Some(PIECE_BYTES));
        pace.begin(100, PIECE_BYTES);
        pace.end(107);
        pace.end(110);
        assert_eq!((pace.next_piece(113, 0, 0), pace.wake_ms(113)), (None, Some(114)));
        assert_eq!((pace.next_piece(114, 0, 0), pace.wake_ms(114)), (Some(PIECE_BYTES), None));
    }

    #[test]
    fn who_does_not_get_on_keeps_others_from_nothing() {
        let mut pace = Pace::default();
        pace.note_live(100, 100);
        pace.begin(100, PIECE_BYTES);
        assert_eq!(pace.next_piece(100, PIECE, PIECE), None);
        assert_eq!(pace.next_piece(100, PIECE, 0), Some(PIECE_BYTES), "one of its pieces does not get on");
        assert_eq!(pace.next_piece(100, 2 * PIECE, 0), None, "nothing gets on there");
    }

    #[test]
    fn a_piece_costs_what_it_had() {
        let mut pace = Pace::default();
        pace.note_live(0, 700_000);
        assert_eq!(pace.next_piece(0, 0, PIECE), Some(PIECE_BYTES_MAX));
        assert_eq!(pace.next_piece(0, EARNED_BYTES_MAX, PIECE), None, "what others write goes before it");
        pace.begin(0, PIECE_BYTES_MAX);
        assert_eq!(pace.next_piece(0, 0, PIECE), None, "it is spent");
        pace.refund(PIECE_BYTES_MAX as u64 - 100);
        pace.note_live(0, 100);
        assert_eq!(pace.next_piece(0, 0, PIECE), Some(PIECE_BYTES_MAX));
    }

    #[test]
    fn a_copy_of_what_grows_fast_grows_faster() {
        let mut pace = Pace::default();
        let (mut live, mut copied) = (0, 0);
        for now_ms in 0..1_000 {
            pace.note_live(now_ms, 200_000);
            live += 200_000;
            while let Some(bytes) = pace.next_piece(now_ms, 0, PIECE) {
                pace.begin(now_ms, bytes);
                copied += bytes;
            }
        }
        assert!(copied > live && copied < 2 * live, "{copied} of {live}");
    }
}
