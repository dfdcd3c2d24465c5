//! An image that follows the store: read once, then watched, and now and then read anew in case the watch lost something.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Snapshot, Work};
use crate::cluster::{
    image::{Changed, Image},
    store::{Change, StoreError},
};

/// How often everything is read anew: old versions of etcd lose events of a watch.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long a watch may be behind the store before another one is begun, at first and at most: what it is behind of may be
/// keys of somebody else.
const BEHIND_MIN: Duration = Duration::from_secs(2);
const BEHIND_MAX: Duration = Duration::from_secs(16);
/// Watches that end without having brought anything, until everything is read anew: the first answer may be one that is too
/// large to be read.
const FRUITLESS_MAX: u32 = 3;
/// Changes that are kept while everything is read anew; with more, that is given up for this time.
const KEPT_CHANGES_MAX: usize = 200_000;

/// What came of what was heard.
pub(super) enum Seen {
    /// The image is as it was.
    Nothing,
    /// The image changed.
    Changed(Vec<Changed>),
    /// It holds what this version does not understand.
    Unreadable(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// None, and when to begin one.
    From(Instant),
    /// That one.
    Running(u64),
}

pub(super) struct Mirror {
    image: Image,
    defaults: Arc<BTreeMap<String, String>>,
    /// Everything was read once.
    is_read: bool,
    reading: bool,
    read_at: Instant,
    /// Changes since everything began to be read anew.
    kept: Option<Vec<Change>>,
    watch: Watch,
    watches: u64,
    fruitless: u32,
    /// A revision that the store had then, and that the image has not reached.
    behind: Option<(i64, Instant)>,
    behind_max: Duration,
}

impl Mirror {
    pub(super) fn new(defaults: Arc<BTreeMap<String, String>>, now: Instant) -> Self {
        Self {
            image: Image::new(defaults.clone()),
            defaults,
            is_read: false,
            reading: false,
            read_at: now,
            kept: None,
            watch: Watch::From(now),
            watches: 0,
            fruitless: 0,
            behind: None,
            behind_max: BEHIND_MIN,
        }
    }

    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// Whether the image follows the store.
    pub(super) fn is_live(&self) -> bool {
        self.is_read && matches!(self.watch, Watch::Running(_))
    }

    pub(super) fn advance(&mut self, now: Instant, work: &mut VecDeque<Work>) {
        if !self.reading && self.read_at <= now {
            self.reading = true;
            self.kept = Some(Vec::new());
            work.push_back(Work::ReadAll);
        }
        if let Watch::From(at) = self.watch
            && self.is_read
            && at <= now
        {
            self.watches += 1;
            self.watch = Watch::Running(self.watches);
            work.push_back(Work::Watch(self.watches, self.image.revision + 1));
        }
    }

    pub(super) fn on_read(&mut self, snapshot: Snapshot, now: Instant) -> Seen {
        self.reading = false;
        self.read_at = now + READ_AGAIN_AFTER;
        let Some(kept) = self.kept.take() else { return Seen::Nothing };
        let mut image = match Image::read(self.defaults.clone(), snapshot.revision, &snapshot.entries) {
            Ok(image) => image,
            Err(error) => return Seen::Unreadable(error.to_string()),
        };
        if let Err(error) = image.apply(&kept) {
            return Seen::Unreadable(error.to_string());
        }
        let was_read = std::mem::replace(&mut self.is_read, true);
        // a read that is behind what was seen already is worth nothing
        if was_read && image.revision < self.image.revision {
            return Seen::Nothing;
        }
        let changed = image.differences(&self.image);
        match changed.is_empty() {
            true => {
                // keeps what both share, and moves on
                self.image.revision = image.revision;
                if was_read { Seen::Nothing } else { Seen::Changed(Vec::new()) }
            }
            false => {
                self.image = image;
                Seen::Changed(changed)
            }
        }
    }

    pub(super) fn on_read_failed(&mut self, now: Instant) {
        self.reading = false;
        self.kept = None;
        self.read_at = now + RETRY_AFTER;
    }

    pub(super) fn on_changes(&mut self, number: u64, changes: &[Change], now: Instant) -> Seen {
        if self.watch != Watch::Running(number) {
            return Seen::Nothing;
        }
        match &mut self.kept {
            Some(kept) if kept.len() + changes.len() > KEPT_CHANGES_MAX => self.kept = None,
            Some(kept) => kept.extend_from_slice(changes),
            None => {}
        }
        if self.reading && self.kept.is_none() {
            self.read_at = now + READ_AGAIN_AFTER;
        }
        self.behind_max = BEHIND_MIN;
        self.fruitless = 0;
        match self.image.apply(changes) {
            Ok(changed) if changed.is_empty() => Seen::Nothing,
            Ok(changed) => Seen::Changed(changed),
            Err(error) => Seen::Unreadable(error.to_string()),
        }
    }

    pub(super) fn on_watch_ended(&mut self, number: u64, error: &StoreError, now: Instant) {
        if self.watch != Watch::Running(number) {
            return;
        }
        self.watch = Watch::From(now + RETRY_AFTER);
        self.fruitless += 1;
        if matches!(error, StoreError::Compacted(_)) || self.fruitless >= FRUITLESS_MAX {
            self.fruitless = 0;
            // what happened in between is lost: only reading all of it tells
            self.read_at = now;
            self.is_read = false;
        }
    }

    /// The store told its revision. If the image does not get there, the watch may hang on a dead connection.
    pub(super) fn note_revision(&mut self, revision: i64, now: Instant) {
        match self.behind {
            Some((then, since)) if self.image.revision < then => {
                if now.duration_since(since) >= self.behind_max {
                    self.behind = Some((revision, now));
                    self.behind_max = (2 * self.behind_max).min(BEHIND_MAX);
                    self.doubt_watch(now);
                }
            }
            _ if revision > self.image.revision => self.behind = Some((revision, now)),
            _ => self.behind = None,
        }
    }

    /// Begins another watch: the present one may hang.
    pub(super) fn doubt_watch(&mut self, now: Instant) {
        if matches!(self.watch, Watch::Running(_)) {
            self.watch = Watch::From(now + RETRY_AFTER);
        }
    }

    /// Loses a topic, as an old etcd's watch may.
    #[cfg(test)]
    pub(super) fn forget_for_test(&mut self, topic: millrace_engine::api::TopicId) {
        self.image.topics.remove(&topic);
    }
}
