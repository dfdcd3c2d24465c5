//! What the control thread leaves for shards: the newest image, and how long the node's life may be trusted to last. The only
//! things that they share.
//!
//! An image that was not taken before the next one came is never seen: every image says all.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::Instant,
};

use crate::cluster::{image::Image, model::Member};

/// An image, and who this node is in it.
#[derive(Clone, Debug)]
pub struct OwnImage {
    /// The image.
    pub image: Image,
    /// This node's present life; none while it has none.
    pub me: Option<Member>,
}

/// Between one thread that puts and one task that takes. Clones share it.
#[derive(Clone)]
pub struct ImageFeed {
    feed: Arc<Mutex<Feed>>,
    life: Arc<Life>,
}

/// How long the node's present life lasts. Written by one thread.
struct Life {
    /// What time is counted from.
    began: Instant,
    /// In ms, 0 between two lives; [`NOT_SAID`] as long as nobody said so.
    until_ms: AtomicU64,
    /// Which life that is. Changes between two lives.
    epoch: AtomicI64,
}

/// A node without leases leads as it is told.
const NOT_SAID: u64 = u64::MAX;

impl Default for ImageFeed {
    fn default() -> Self {
        let life = Life { began: Instant::now(), until_ms: AtomicU64::new(NOT_SAID), epoch: AtomicI64::new(0) };
        Self { feed: Arc::default(), life: Arc::new(life) }
    }
}

#[derive(Default)]
struct Feed {
    newest: Option<OwnImage>,
    /// Why etcd does not do what the control thread asks, and what to do about it.
    etcd_trouble: Option<String>,
    waker: Option<Waker>,
}

impl std::fmt::Debug for ImageFeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ImageFeed")
    }
}

impl ImageFeed {
    /// Puts a newer image in place of the one that waits.
    pub fn put(&self, image: OwnImage) {
        let waker = {
            let mut feed = self.feed.lock().expect("no panic while locked");
            feed.newest = Some(image);
            feed.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Says until when the node's present life may be trusted to last; what was said before counts no more.
    pub fn trust_until(&self, me: Member, until: Instant) {
        if self.life.epoch.load(Ordering::Relaxed) != me.epoch {
            self.end_life();
            self.life.epoch.store(me.epoch, Ordering::Release);
        }
        let until = until.saturating_duration_since(self.life.began).as_millis();
        self.life.until_ms.store(u64::try_from(until).unwrap_or(NOT_SAID), Ordering::Release);
    }

    /// The life is over: it is trusted no more.
    pub fn end_life(&self) {
        self.life.until_ms.store(0, Ordering::Release);
    }

    /// Whether a life of this node is trusted to last, by its clock.
    pub(super) fn trusts(&self, me: Option<Member>) -> bool {
        let until_ms = self.life.until_ms.load(Ordering::Acquire);
        let is_present = || me.is_some_and(|me| me.epoch == self.life.epoch.load(Ordering::Acquire));
        until_ms == NOT_SAID || (is_present() && self.life.began.elapsed().as_millis() < u128::from(until_ms))
    }

    /// Says why etcd does not do what it is asked, in words for people; none if it does.
    pub fn note_etcd(&self, trouble: Option<String>) {
        self.feed.lock().expect("no panic while locked").etcd_trouble = trouble;
    }

    /// That.
    pub(super) fn etcd_trouble(&self) -> Option<String> {
        self.feed.lock().expect("no panic while locked").etcd_trouble.clone()
    }

    /// Puts an image back that could not be made use of, unless a newer one came meanwhile.
    pub fn put_unless_newer(&self, image: OwnImage) {
        let mut feed = self.feed.lock().expect("no panic while locked");
        feed.newest.get_or_insert(image);
    }

    /// Waits for the next image and takes it.
    pub async fn next(&self) -> OwnImage {
        poll_fn(|cx| {
            let mut feed = self.feed.lock().expect("no panic while locked");
            match feed.newest.take() {
                Some(image) => Poll::Ready(image),
                None => {
                    feed.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_life_is_trusted_until_it_is_over_by_the_clock_or_by_word() {
        let feed = ImageFeed::default();
        let [first, second] = [4, 9].map(|epoch| Member { node: 1, epoch });
        let later = || Instant::now() + Duration::from_secs(600);
        assert!(feed.trusts(None), "nobody spoke of leases");
        feed.trust_until(first, later());
        assert!(feed.clone().trusts(Some(first)) && !feed.trusts(None));
        feed.end_life();
        assert!(!feed.clone().trusts(Some(first)));
        feed.trust_until(second, later());
        assert!(feed.trusts(Some(second)));
        assert!(!feed.trusts(Some(first)), "who has not heard of the next life does not go on with the former");
        feed.trust_until(second, Instant::now());
        assert!(!feed.trusts(Some(second)), "the process slept");
    }
}
