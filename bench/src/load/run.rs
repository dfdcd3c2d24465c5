//! The loop that drives producers and their links, and what it found out.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use hdrhistogram::Histogram;
use millrace_client::error_code_name;

use crate::{
    batch::{BatchShape, BatchTemplate},
    client::{self, Leaders},
    clock::{self, Clock},
    ledger::Acknowledged,
    load::{
        link::{Entry, Form, Link, QUEUE_MAX, Sent},
        schedule::{Partitioner, Schedule},
    },
    sys,
};

/// A load to generate.
#[derive(Debug, Clone)]
pub struct Load {
    /// Topic to produce to.
    pub topic: String,
    /// Where its partitions are led.
    pub leaders: Leaders,
    /// Shape of each batch.
    pub shape: BatchShape,
    /// Producers; each has one connection per broker.
    pub producers: u32,
    /// Threads that drive them.
    pub threads: u32,
    /// Requests in flight per connection at most.
    pub in_flight: usize,
    /// Batches of different partitions per request at most.
    pub batches_per_request: usize,
    /// -1, 1 or 0. With 0 nothing is answered and no latency is measured.
    pub acks: i16,
    /// Use producer ids and sequences as Kafka's clients do by default.
    pub idempotent: bool,
    /// How partitions are picked.
    pub partitioner: Partitioner,
    /// Records per second over all producers; 0 is a closed loop bounded by `in_flight`.
    pub records_per_second: u64,
    /// Time before anything is measured.
    pub warmup: Duration,
    /// Time that is measured.
    pub duration: Duration,
    /// Time after the end in which what is due may still be sent and answered.
    pub drain: Duration,
    /// A request unanswered for that long ends the run.
    pub request_timeout: Duration,
    /// Mark of this run in every record.
    pub run: u64,
}

/// How far a load has come, for readers on other threads.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of values acknowledged so far.
    pub acked_bytes: AtomicU64,
    /// Which of the two histograms latencies go to: 0 or 1.
    pub phase: AtomicUsize,
}

/// The measured part of a run, on its [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Start in ns.
    pub start_ns: u64,
    /// End in ns.
    pub end_ns: u64,
}

/// What a load found out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Everything acknowledged, in the window or not.
    pub acknowledged: Acknowledged,
    /// Latency in us per batch whose intended time lies in the window, by phase.
    pub latency_us: [Histogram<u64>; 2],
    /// Records acknowledged within the window.
    pub window_records: u64,
    /// Batches acknowledged within the window.
    pub window_batches: u64,
    /// Answers within the window.
    pub window_requests: u64,
    /// Batches refused, by error; and batches that were due but never sent or never answered.
    pub errors: BTreeMap<String, u64>,
    /// Why the run ended early, if it did.
    pub failure: Option<String>,
}

impl Outcome {
    fn new() -> Outcome {
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("legal bounds");
        Outcome {
            acknowledged: Acknowledged::default(),
            latency_us: [histogram(), histogram()],
            window_records: 0,
            window_batches: 0,
            window_requests: 0,
            errors: BTreeMap::new(),
            failure: None,
        }
    }

    /// Errors of all kinds.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Both phases' latencies together.
    pub fn latency_us_all(&self) -> Histogram<u64> {
        let mut all = self.latency_us[0].clone();
        all.add(&self.latency_us[1]).expect("same bounds");
        all
    }

    fn merge(&mut self, other: Outcome) {
        self.acknowledged.merge(other.acknowledged);
        for (own, other) in self.latency_us.iter_mut().zip(&other.latency_us) {
            own.add(other).expect("same bounds");
        }
        self.window_records += other.window_records;
        self.window_batches += other.window_batches;
        self.window_requests += other.window_requests;
        other.errors.into_iter().for_each(|(error, n)| *self.errors.entry(error).or_default() += n);
        self.failure = self.failure.take().or(other.failure);
    }

    fn error(&mut self, what: String, n: u64) {
        if n > 0 {
            *self.errors.entry(what).or_default() += n;
        }
    }
}

/// Runs a load to its end. `at_window` is called, on the calling thread, at the window's start and at its end.
pub fn generate(
    load: &Load,
    clock: Clock,
    progress: &Progress,
    mut at_window: impl FnMut(WindowEdge),
) -> anyhow::Result<(Outcome, Window)> {
    let form = Form {
        topic: load.topic.clone(),
        template: BatchTemplate::new(load.shape),
        acks: load.acks,
        request_timeout: load.request_timeout,
        batches_per_request: load.batches_per_request,
        in_flight: load.in_flight,
        run: load.run,
    };
    let mut threads = Vec::new();
    let share = load.producers.div_ceil(load.threads.max(1));
    for first in (0..load.producers).step_by(share.max(1) as usize) {
        threads.push(connect(load, first..(first + share).min(load.producers))?);
    }
    let start_ns = clock.now_ns() + 10_000_000;
    let window = Window {
        start_ns: start_ns + load.warmup.as_nanos() as u64,
        end_ns: start_ns + (load.warmup + load.duration).as_nanos() as u64,
    };
    let schedule = Schedule {
        start_ns,
        end_ns: window.end_ns,
        records_per_second: load.records_per_second,
        records_per_batch: load.shape.records as u64,
        producers: u64::from(load.producers),
    };
    let outcome = std::thread::scope(|scope| {
        let handles: Vec<_> = threads
            .into_iter()
            .map(|producers| {
                let driver = Driver { load, form: &form, clock, schedule, window, progress, outcome: Outcome::new() };
                scope.spawn(move || driver.run(producers))
            })
            .collect();
        clock.sleep_until(window.start_ns);
        at_window(WindowEdge::Start);
        clock.sleep_until(window.end_ns);
        at_window(WindowEdge::End);
        let mut outcome = Outcome::new();
        for handle in handles {
            outcome.merge(handle.join().expect("a load thread panicked"));
        }
        outcome
    });
    Ok((outcome, window))
}

/// The edges of the measured window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowEdge {
    /// Measuring starts.
    Start,
    /// Measuring ends; answers may still be coming in.
    End,
}

#[derive(Debug)]
struct Producer {
    id: u32,
    links: Vec<Link>,
    /// Index of the link of each partition.
    link_of: Vec<usize>,
    /// Next sequence of each partition's stream.
    sequences: Vec<u64>,
    /// Entries taken from the schedule.
    taken: u64,
    done: bool,
    idempotence: Option<(i64, i16)>,
}

fn connect(load: &Load, ids: Range<u32>) -> anyhow::Result<Vec<Producer>> {
    let by_address = load.leaders.by_address();
    let addresses: Vec<_> = by_address.keys().copied().collect();
    let mut link_of = vec![0; load.leaders.by_partition.len()];
    for (link, partitions) in by_address.values().enumerate() {
        partitions.iter().for_each(|&partition| link_of[partition as usize] = link);
    }
    ids.map(|id| {
        let idempotence = match load.idempotent {
            true => {
                let mut connection = client::connect(addresses[0], load.request_timeout)?;
                Some(client::await_producer_id(&mut connection, load.request_timeout)?)
            }
            false => None,
        };
        Ok(Producer {
            id,
            links: addresses.iter().map(|&address| Link::connect(address)).collect::<anyhow::Result<_>>()?,
            link_of: link_of.clone(),
            sequences: vec![0; link_of.len()],
            taken: 0,
            done: false,
            idempotence,
        })
    })
    .collect()
}

struct Driver<'a> {
    load: &'a Load,
    form: &'a Form,
    clock: Clock,
    schedule: Schedule,
    window: Window,
    progress: &'a Progress,
    outcome: Outcome,
}

impl Driver<'_> {
    fn run(mut self, mut producers: Vec<Producer>) -> Outcome {
        sys::exact_timers();
        if let Err(error) = self.drive(&mut producers) {
            self.outcome.failure = Some(format!("{error:#}"));
        }
        for producer in &mut producers {
            let unfinished: usize = producer.links.iter().map(Link::unfinished).sum();
            self.outcome.error("unanswered".into(), unfinished as u64);
            let unsent = (producer.taken..).take_while(|&n| self.schedule.intended_ns(producer.id.into(), n).is_some());
            self.outcome.error("due but unsent".into(), unsent.count() as u64);
        }
        self.outcome
    }

    fn drive(&mut self, producers: &mut [Producer]) -> anyhow::Result<()> {
        let give_up_ns = self.window.end_ns + self.load.drain.as_nanos() as u64;
        let (mut interests, mut ready, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
        let per_producer = producers.first().map_or(0, |producer| producer.links.len());
        loop {
            let now_ns = self.clock.now_ns();
            let wall_ms = clock::wall_ms();
            let mut wake_ns = give_up_ns.min(now_ns + 100_000_000);
            let mut idle = true;
            interests.clear();
            for producer in producers.iter_mut() {
                wake_ns = wake_ns.min(self.take_due(producer, now_ns));
                self.send(producer, now_ns, wall_ms)?;
                idle &= producer.done && producer.links.iter().all(Link::is_idle);
                let interest = |link: &Link| sys::Interest { fd: link.fd(), writable: link.wants_write() };
                interests.extend(producer.links.iter().map(interest));
            }
            if idle || now_ns >= give_up_ns || self.outcome.failure.is_some() {
                return Ok(());
            }
            let timeout = Duration::from_nanos(wake_ns.saturating_sub(self.clock.now_ns()));
            sys::wait(&interests, timeout, &mut ready, &mut buffer)?;
            for &index in &ready {
                let producer = &mut producers[index / per_producer];
                self.on_ready(producer.id, &mut producer.links[index % per_producer])?;
            }
        }
    }

    /// Moves what is due into the links' queues; answers when to look again.
    fn take_due(&self, producer: &mut Producer, now_ns: u64) -> u64 {
        let partitions = producer.link_of.len() as u32;
        let closed = self.schedule.records_per_second == 0;
        let queue_max = if closed { self.form.batches_per_request } else { QUEUE_MAX };
        while !producer.done {
            let intended_ns = self.schedule.intended_ns(producer.id.into(), producer.taken);
            if (closed && now_ns >= self.schedule.end_ns) || (!closed && intended_ns.is_none()) {
                producer.done = true;
                break;
            }
            match intended_ns {
                Some(at) if at > now_ns => return at,
                None if now_ns < self.schedule.start_ns => return self.schedule.start_ns,
                _ => {}
            }
            let partition = self.load.partitioner.pick(producer.id.into(), producer.taken, partitions);
            let link = &mut producer.links[producer.link_of[partition as usize]];
            if link.queue.len() >= queue_max {
                break;
            }
            let sequence = &mut producer.sequences[partition as usize];
            link.queue.push_back(Entry { intended_ns, partition, first_sequence: *sequence });
            *sequence += self.load.shape.records as u64;
            producer.taken += 1;
        }
        if closed && producer.done {
            producer.links.iter_mut().for_each(|link| link.queue.clear());
        }
        u64::MAX
    }

    fn send(&mut self, producer: &mut Producer, now_ns: u64, wall_ms: i64) -> anyhow::Result<()> {
        let timeout_ns = self.load.request_timeout.as_nanos() as u64;
        loop {
            let mut sent_any = false;
            for link in &mut producer.links {
                link.flush()?;
                if link.oldest_sent_ns().is_some_and(|sent_ns| sent_ns + timeout_ns < now_ns) {
                    self.outcome.failure = Some(format!("a request was not answered within {timeout_ns} ns"));
                }
                while link.has_room(self.form) && !link.queue.is_empty() {
                    let fired = link.send_request(self.form, producer.id, producer.idempotence, now_ns, wall_ms)?;
                    link.flush()?;
                    sent_any = true;
                    if let Some(batches) = fired {
                        batches.iter().for_each(|_| self.on_fired(now_ns));
                        break;
                    }
                }
            }
            // a closed loop takes its entries as there is room for them
            if !sent_any || self.schedule.records_per_second > 0 || producer.done {
                return Ok(());
            }
            self.take_due(producer, now_ns);
        }
    }

    fn on_ready(&mut self, producer: u32, link: &mut Link) -> anyhow::Result<()> {
        link.flush()?;
        let now_ns = self.clock.now_ns();
        let requests = link.receive(|sent, code| self.on_answer(producer, sent, code, now_ns))?;
        if self.is_measured(now_ns) {
            self.outcome.window_requests += requests;
        }
        Ok(())
    }

    fn on_answer(&mut self, producer: u32, sent: Sent, code: i16, now_ns: u64) {
        if code != 0 {
            let what = error_code_name(code);
            if self.load.idempotent {
                self.outcome.failure = Some(format!("an idempotent producer was refused: {what}"));
            }
            self.outcome.error(what, 1);
            return;
        }
        let records = self.load.shape.records as u64;
        self.outcome.acknowledged.insert((producer, sent.partition), sent.first_sequence, records);
        if self.is_measured(sent.intended_ns) {
            let phase = self.progress.phase.load(Relaxed).min(1);
            let latency_us = (now_ns.saturating_sub(sent.intended_ns) / 1000).max(1);
            self.outcome.latency_us[phase].saturating_record(latency_us);
        }
        self.count(now_ns);
    }

    /// A batch sent with acks=0: gone, and nobody will tell how.
    fn on_fired(&mut self, now_ns: u64) {
        self.count(now_ns);
        if self.is_measured(now_ns) {
            self.outcome.window_requests += 1;
        }
    }

    fn count(&mut self, now_ns: u64) {
        let records = self.load.shape.records as u64;
        self.progress.acked_bytes.fetch_add(records * self.load.shape.value_bytes as u64, Relaxed);
        if self.is_measured(now_ns) {
            self.outcome.window_records += records;
            self.outcome.window_batches += 1;
        }
    }

    fn is_measured(&self, at_ns: u64) -> bool {
        (self.window.start_ns..self.window.end_ns).contains(&at_ns)
    }
}
