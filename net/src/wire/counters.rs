//! What one shard counts of connections and requests. Touched for every request, so nothing here allocates but for the
//! first request of an API and the first error of a kind.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use millrace_engine::{
    stats::Counter,
    timing::{Durations, Timings},
};

/// A request that was read: what of, and when its last byte came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// Place of its API in the table.
    pub(crate) api: usize,
    /// When its last byte was received.
    pub(crate) received: Instant,
}

/// See the module.
pub(crate) struct Counters {
    started: Instant,
    pub(crate) connections_accepted: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) connections_moved: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) malformed_requests: Counter,
    /// By place in the table.
    apis: Vec<ApiCounters>,
    /// By place in the table and error code.
    errors: RefCell<BTreeMap<(usize, i16), u64>>,
}

#[derive(Default)]
struct ApiCounters {
    requests: Counter,
    in_hand: Rc<InHand>,
    /// From the first answer on.
    timings: RefCell<Option<Box<Timings>>>,
}

/// Requests whose handlers have begun.
#[derive(Default)]
struct InHand {
    under_way: Cell<usize>,
    /// Those that came to an answer, and were not dropped.
    answered: Cell<u64>,
}

/// A request that is being handled; dropped with it.
pub(crate) struct UnderWay(Rc<InHand>);

impl UnderWay {
    /// There is an answer.
    pub(crate) fn answered(self) {
        self.0.answered.update(|answered| answered + 1);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.update(|requests| requests - 1);
    }
}

/// What was counted of one API.
#[derive(Debug, Clone)]
pub(crate) struct ApiReading {
    /// Place in the table.
    pub(crate) api: usize,
    pub(crate) requests: u64,
    pub(crate) durations: Durations,
}

impl Counters {
    /// Counters for a table of that many APIs.
    pub(crate) fn new(apis: usize) -> Counters {
        Counters {
            started: Instant::now(),
            connections_accepted: Counter::default(),
            connections_refused: Counter::default(),
            connections_moved: Counter::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            malformed_requests: Counter::default(),
            apis: std::iter::repeat_with(ApiCounters::default).take(apis).collect(),
            errors: RefCell::default(),
        }
    }

    /// Time since the shard began to serve.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// A request was read for the API at that place.
    pub(crate) fn on_request(&self, api: usize, received: Instant) -> Asked {
        self.apis[api].requests.add(1);
        Asked { api, received }
    }

    /// Its handler has begun, and did not end at once.
    pub(crate) fn begin(&self, asked: Asked) -> UnderWay {
        let in_hand = &self.apis[asked.api].in_hand;
        in_hand.under_way.update(|requests| requests + 1);
        UnderWay(in_hand.clone())
    }

    /// Requests of an API, by place in the table, that are being handled; how many came to an answer.
    pub(crate) fn under_way(&self, api: usize) -> (usize, u64) {
        let in_hand = &self.apis[api].in_hand;
        (in_hand.under_way.get(), in_hand.answered.get())
    }

    /// The last byte of its answer was handed to the socket, or it needs none.
    pub(crate) fn on_answered(&self, asked: Asked, now: Instant) {
        let minute = self.minute(now);
        let mut timings = self.apis[asked.api].timings.borrow_mut();
        timings.get_or_insert_default().record(minute, now.saturating_duration_since(asked.received));
    }

    /// Its answer tells of errors.
    pub(crate) fn on_errors(&self, asked: Asked, codes: &[i16]) {
        if codes.is_empty() {
            return;
        }
        let mut errors = self.errors.borrow_mut();
        for code in codes {
            *errors.entry((asked.api, *code)).or_default() += 1;
        }
    }

    /// Every API that was asked for.
    pub(crate) fn apis(&self) -> Vec<ApiReading> {
        let minute = self.minute(Instant::now());
        let asked = self.apis.iter().enumerate().filter(|(_, counters)| counters.requests.count() > 0);
        asked
            .map(|(api, counters)| {
                let mut timings = counters.timings.borrow_mut();
                let durations = timings.as_mut().map(|timings| timings.read(minute)).unwrap_or_default();
                ApiReading { api, requests: counters.requests.count(), durations }
            })
            .collect()
    }

    /// Errors by place in the table and code.
    pub(crate) fn errors(&self) -> BTreeMap<(usize, i16), u64> {
        self.errors.borrow().clone()
    }

    fn minute(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / 60
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_api_and_errors_by_code() {
        let (produce, metadata) = (0, 3);
        let counters = Counters::new(4);
        let received = Instant::now();
        let asked = counters.on_request(metadata, received);
        counters.on_errors(asked, &[3, 3, 5]);
        counters.on_answered(asked, received + Duration::from_millis(20));
        counters.on_request(produce, received);
        let apis = counters.apis();
        assert_eq!(apis.len(), 2);
        assert_eq!((apis[0].requests, apis[0].durations.count), (1, 0), "produce was not answered");
        assert_eq!(apis[1].api, metadata);
        assert_eq!(apis[1].durations.sum_us, 20_000);
        assert_eq!(counters.errors(), BTreeMap::from([((metadata, 3), 2), ((metadata, 5), 1)]));
    }
}
