//! How far a partition's log is: its marks, and the order in which they stand. Pure; owned by the partition.
//!
//! What always holds, and is asserted wherever a mark moves:
//!
//! - `log_start <= materialised <= kept <= end`,
//! - `log_start <= high_watermark <= kept`,
//! - `durable <= written <= end`,
//! - no mark goes back, but by a cut of the log's end.
//!
//! *Kept* is what the log on this disk has as safely as its topic asks. Segments hold nothing above it: that is made true
//! by who brings batches to segments, the keeper and large runs. Of a partition without replicas elsewhere the high
//! watermark is the same. Of one with replicas it lies below, until others have what is kept here too; the shared log does
//! not wait for them, so segments may hold what nobody has confirmed, and a cut may have to take it off again. So readers
//! must not rest on what segments hold: each has an end of its own, which is the high watermark or less.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    log_start: i64,
    materialised: i64,
    kept: i64,
    high_watermark: i64,
    durable: i64,
    written: i64,
    end: i64,
}

impl Marks {
    /// Those of a log that was found, or cut off, to end at `end`: segments hold everything below `materialised`, and
    /// consumers may see what is below `high_watermark`.
    pub(super) fn cut(log_start: i64, materialised: i64, high_watermark: i64, end: i64) -> Self {
        let marks = Self { log_start, materialised, kept: end, high_watermark, durable: end, written: end, end };
        assert!(marks.is_in_order(), "marks are out of order: {marks:?}");
        marks
    }

    /// The first offset that readers may ask for.
    pub(crate) fn log_start(&self) -> i64 {
        self.log_start
    }

    /// Segments hold everything below; the manifest may lag behind.
    pub(crate) fn materialised(&self) -> i64 {
        self.materialised
    }

    /// The log here has everything below as safely as its topic asks.
    pub(crate) fn kept(&self) -> i64 {
        self.kept
    }

    /// The end of what consumers may see.
    pub(crate) fn high_watermark(&self) -> i64 {
        self.high_watermark
    }

    /// Below is on stable storage.
    pub(crate) fn durable(&self) -> i64 {
        self.durable
    }

    /// Below is written.
    pub(crate) fn written(&self) -> i64 {
        self.written
    }

    /// The next offset to assign.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// Offsets up to here are given away.
    pub(super) fn assign(&mut self, end: i64) {
        self.update(|marks| marks.end = end);
    }

    /// The shared log has everything below these. It may have said more before: flushes overtake each other.
    pub(super) fn log_has(&mut self, written: i64, durable: i64) {
        self.update(|marks| {
            marks.written = marks.written.max(written);
            marks.durable = marks.durable.max(durable);
        });
    }

    /// The log here has everything below as safely as its topic asks.
    pub(super) fn keep(&mut self, kept: i64) {
        self.update(|marks| marks.kept = kept);
    }

    /// Consumers may see everything below.
    pub(super) fn show(&mut self, high_watermark: i64) {
        self.update(|marks| marks.high_watermark = high_watermark);
    }

    /// Segments hold everything below.
    pub(super) fn materialise(&mut self, end: i64) {
        self.update(|marks| marks.materialised = end);
    }

    /// The log begins here.
    pub(super) fn trim(&mut self, log_start: i64) {
        self.update(|marks| marks.log_start = log_start);
    }

    /// A start found the log to reach up to here. Whether others have it too is not known yet: who may see it is said by
    /// [`Marks::show`].
    pub(super) fn recover(&mut self, end: i64) {
        self.update(|marks| (marks.kept, marks.durable, marks.written, marks.end) = (end, end, end, end));
    }

    /// The only way by which marks move, but for a cut.
    fn update(&mut self, change: impl FnOnce(&mut Self)) {
        let before = *self;
        change(self);
        assert!(
            self.is_in_order() && !self.goes_back_from(&before),
            "marks are out of order: {self:?} after {before:?}"
        );
    }

    fn is_in_order(&self) -> bool {
        self.log_start <= self.materialised
            && self.materialised <= self.kept
            && self.kept <= self.end
            && self.log_start <= self.high_watermark
            && self.high_watermark <= self.kept
            && self.durable <= self.written
            && self.written <= self.end
    }

    fn goes_back_from(&self, before: &Self) -> bool {
        self.log_start < before.log_start
            || self.materialised < before.materialised
            || self.kept < before.kept
            || self.high_watermark < before.high_watermark
            || self.durable < before.durable
            || self.written < before.written
            || self.end < before.end
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    fn is_refused(change: impl FnOnce(&mut Marks) + std::panic::UnwindSafe) -> bool {
        let mut marks = Marks::cut(10, 20, 20, 20);
        marks.assign(50);
        marks.log_has(40, 30);
        marks.keep(30);
        marks.show(25);
        catch_unwind(move || change(&mut marks)).is_err()
    }

    #[test]
    fn marks_pass_each_other_never() {
        assert!(is_refused(|marks| marks.trim(21)), "the log begins in a segment or at their end");
        assert!(is_refused(|marks| marks.materialise(31)), "segments hold what is kept");
        assert!(is_refused(|marks| marks.keep(51)));
        assert!(is_refused(|marks| marks.show(31)), "consumers see what is kept");
        assert!(is_refused(|marks| marks.log_has(51, 30)));
        assert!(is_refused(|marks| marks.log_has(40, 41)));
    }

    #[test]
    fn marks_do_not_go_back() {
        assert!(is_refused(|marks| marks.trim(9)));
        assert!(is_refused(|marks| marks.materialise(19)));
        assert!(is_refused(|marks| marks.keep(29)));
        assert!(is_refused(|marks| marks.show(24)));
        assert!(is_refused(|marks| marks.assign(49)));
        assert!(is_refused(|marks| marks.recover(49)));
    }

    #[test]
    fn marks_go_on_each_by_itself() {
        let mut marks = Marks::cut(10, 20, 20, 20);
        marks.assign(50);
        marks.log_has(50, 20);
        marks.log_has(30, 30); // a flush of what was written earlier
        assert_eq!((marks.written(), marks.durable()), (50, 30));
        marks.keep(50);
        marks.materialise(45);
        marks.show(45);
        marks.trim(45);
        marks.assign(60);
        marks.recover(60);
        assert_eq!(marks.high_watermark(), 45, "others need not have what was found");
        marks.show(60);
        assert_eq!((marks.log_start(), marks.materialised(), marks.high_watermark(), marks.end()), (45, 45, 60, 60));
    }

    #[test]
    fn a_cut_takes_marks_back() {
        let marks = Marks::cut(10, 20, 25, 30);
        assert_eq!((marks.kept(), marks.written(), marks.durable(), marks.end()), (30, 30, 30, 30));
        assert!(catch_unwind(|| Marks::cut(10, 20, 31, 30)).is_err());
        assert!(catch_unwind(|| Marks::cut(10, 9, 30, 30)).is_err());
    }
}
