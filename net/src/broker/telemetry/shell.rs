//! Carries requests to shard 0, where subscriptions, instances and series are; decompresses and reads pushes before.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use millrace_engine::{
    batch::{Codec, DecompressError, decompress},
    engine::Engine,
    stats::Counter,
};
use uuid::Uuid;

use super::{
    instances::{Caller, Granted, Instances, PushRequest, TELEMETRY_BYTES_MAX, expiry_ms},
    otlp::{self, Pushed},
    series::{Pusher, Series},
    subscription::Subscription,
};
use crate::{
    broker::{metrics::Page, settings::client_metrics::KEPT},
    coordinator::runtime::Clock,
    kafka_uuid::kafka_uuid,
};

/// See the module. On shard 0 only.
pub(crate) struct Telemetry {
    engine: Engine,
    clock: Clock,
    /// The broker's settings when subscriptions were looked at last, and the subscriptions among them.
    seen: RefCell<Rc<BTreeMap<String, String>>>,
    known: RefCell<BTreeMap<String, BTreeMap<String, String>>>,
    instances: RefCell<Instances>,
    series: RefCell<Series>,
    pushes: Counter,
    /// When series are looked at for expired ones.
    next_look_ms: Cell<i64>,
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TelemetryReading {
    pub(crate) instances: u64,
    pub(crate) series: u64,
    pub(crate) pushes: u64,
    pub(crate) dropped_points: u64,
}

/// A client's push.
pub(crate) struct Push {
    pub(crate) subscription_id: i32,
    pub(crate) is_terminating: bool,
    pub(crate) compression: i8,
    pub(crate) metrics: Bytes,
}

impl Telemetry {
    /// Attaches it to the engine.
    pub(crate) fn attach(engine: &Engine) -> Rc<Telemetry> {
        let telemetry = Rc::new(Telemetry {
            engine: engine.clone(),
            clock: Clock::start(),
            seen: RefCell::default(),
            known: RefCell::default(),
            instances: RefCell::default(),
            series: RefCell::default(),
            pushes: Counter::default(),
            next_look_ms: Cell::new(0),
        });
        engine.attach(telemetry.clone());
        telemetry
    }

    /// A second has gone by.
    pub(crate) fn on_tick(&self) {
        /// Between looks at all series.
        const LOOK_MS: i64 = 10_000;
        let now_ms = self.clock.now_ms();
        self.instances.borrow_mut().handle_time(now_ms);
        if now_ms >= self.next_look_ms.get() {
            self.next_look_ms.set(now_ms + LOOK_MS);
            self.series.borrow_mut().handle_time(now_ms);
        }
    }

    /// Numbers for the page.
    pub(crate) fn read(&self) -> TelemetryReading {
        let series = self.series.borrow();
        TelemetryReading {
            instances: self.instances.borrow().count() as u64,
            series: series.count() as u64,
            pushes: self.pushes.count(),
            dropped_points: series.dropped(),
        }
    }

    /// Writes all that was pushed.
    pub(crate) async fn write(&self, page: &mut Page) {
        let mut last = String::new();
        loop {
            {
                let series = self.series.borrow();
                let Some(next) = series.next_family(&last).map(str::to_owned) else { return };
                series.write(&next, page);
                last = next;
            }
            glommio::yield_if_needed().await;
        }
    }

    /// Instances, told of subscriptions that have changed.
    fn instances(&self) -> std::cell::RefMut<'_, Instances> {
        let settings = self.engine.broker_settings();
        let mut instances = self.instances.borrow_mut();
        if !Rc::ptr_eq(&settings, &self.seen.borrow()) {
            let all = KEPT.all(&self.engine);
            if *self.known.borrow() != all {
                let parse = |(name, own): (&String, &BTreeMap<String, String>)| match Subscription::parse(own) {
                    Ok(subscription) => Some((name.clone(), subscription)),
                    Err(error) => {
                        tracing::warn!(name, reason = ?error.message, "a subscription of client metrics is left out");
                        None
                    }
                };
                instances.handle_subscriptions(all.iter().filter_map(parse).collect());
                self.known.replace(all);
            }
            self.seen.replace(settings);
        }
        instances
    }
}

/// Shard 0's part.
fn here(engine: &Engine) -> Rc<Telemetry> {
    engine.attached::<Telemetry>().expect("it is attached before connections are served")
}

/// A client asks for its subscription. `make_caller` tells who it is once its id is known.
pub(crate) async fn get(
    engine: &Engine,
    id: Uuid,
    make_caller: impl FnOnce(Uuid) -> Caller,
) -> Result<(Uuid, Granted), ResponseError> {
    let id = if id.is_nil() { new_id() } else { id };
    let caller = make_caller(id);
    let granted = engine.on_shard(0, move |engine: Engine| async move {
        let telemetry = here(&engine);
        telemetry.instances().handle_get(telemetry.clock.now_ms(), id, &caller)
    });
    Ok((id, granted.await?))
}

/// A random id whose text does not begin with a dash, as Kafka's: people put it on command lines.
fn new_id() -> Uuid {
    loop {
        let id = Uuid::new_v4();
        if !kafka_uuid(id).starts_with('-') {
            return id;
        }
    }
}

/// A client pushes.
pub(crate) async fn push(engine: &Engine, id: Uuid, caller: Caller, push: Push) -> Result<(), ResponseError> {
    let request = PushRequest {
        subscription_id: push.subscription_id,
        is_terminating: push.is_terminating,
        compression: push.compression,
        bytes: push.metrics.len(),
    };
    let pusher = Pusher {
        client_instance_id: id,
        client_instance_name: kafka_uuid(id),
        client_id: caller.attributes.client_id.clone().unwrap_or_default(),
    };
    let checked = engine.on_shard(0, move |engine: Engine| async move {
        let telemetry = here(&engine);
        telemetry.instances().handle_push(telemetry.clock.now_ms(), id, &caller, request)
    });
    let interval_ms = checked.await?;
    if push.metrics.is_empty() {
        return Ok(());
    }
    let read = read(push.compression, &push.metrics);
    engine
        .on_shard(0, move |engine: Engine| async move {
            let telemetry = here(&engine);
            match read {
                Ok(pushed) => {
                    let expires_ms = telemetry.clock.now_ms() + expiry_ms(interval_ms);
                    telemetry.pushes.add(1);
                    telemetry.series.borrow_mut().handle_push(&pusher, pushed, expires_ms);
                    Ok(())
                }
                Err(error) => {
                    telemetry.instances.borrow_mut().on_refused(id, error);
                    Err(error)
                }
            }
        })
        .await
}

/// Kafka 4.3 answers INVALID_RECORD to what decompresses to too much, upon which clients push never again; later ones
/// answer TELEMETRY_TOO_LARGE, as it is done here.
fn read(compression: i8, metrics: &[u8]) -> Result<Pushed, ResponseError> {
    let codec = Codec::from_attributes(compression.into()).map_err(|_| ResponseError::UnsupportedCompressionType)?;
    let metrics = decompress(codec, metrics, TELEMETRY_BYTES_MAX).map_err(|error| match error {
        DecompressError::TooLarge => ResponseError::TelemetryTooLarge,
        DecompressError::Damaged(_) => ResponseError::InvalidRecord,
    })?;
    otlp::decode(&metrics).map_err(|_| ResponseError::InvalidRecord)
}

/// A connection over which a client asked or pushed was closed.
pub(crate) async fn on_closed(engine: &Engine, connection: (usize, u64)) {
    engine
        .on_shard(0, move |engine: Engine| async move {
            here(&engine).instances.borrow_mut().on_closed(connection);
        })
        .await;
}
