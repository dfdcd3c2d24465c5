//! What the control thread leaves for a shard: the newest image. The only thing that they share.
//!
//! An image that was not taken before the next one came is never seen: every image says all.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
    task::{Poll, Waker},
};

use crate::cluster::{image::Image, model::Member};

/// Whether etcd answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdState {
    /// It does.
    There,
    /// It does not.
    Away,
}

/// An image, and who this node is in it.
#[derive(Clone, Debug)]
pub struct OwnImage {
    /// The image.
    pub image: Image,
    /// This node's present life; none while it has none.
    pub me: Option<Member>,
}

/// Between one thread that puts and one task that takes. Clones share it.
#[derive(Clone, Default)]
pub struct ImageFeed(Arc<Mutex<Feed>>);

#[derive(Default)]
struct Feed {
    newest: Option<OwnImage>,
    /// Whether the control thread has an answer from etcd.
    is_away: bool,
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
            let mut feed = self.0.lock().expect("no panic while locked");
            feed.newest = Some(image);
            feed.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Says whether etcd answers.
    pub fn note_etcd(&self, etcd: EtcdState) {
        self.0.lock().expect("no panic while locked").is_away = etcd == EtcdState::Away;
    }

    /// Whether etcd does not answer.
    pub fn is_away(&self) -> bool {
        self.0.lock().expect("no panic while locked").is_away
    }

    /// Puts an image back that could not be made use of, unless a newer one came meanwhile.
    pub fn put_unless_newer(&self, image: OwnImage) {
        let mut feed = self.0.lock().expect("no panic while locked");
        feed.newest.get_or_insert(image);
    }

    /// Waits for the next image and takes it.
    pub async fn next(&self) -> OwnImage {
        poll_fn(|cx| {
            let mut feed = self.0.lock().expect("no panic while locked");
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
