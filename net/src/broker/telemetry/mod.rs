//! Metrics that clients push (KIP-714): who is to push what, and what was pushed, for the page of metrics.
//!
//! Shard 0 knows subscriptions and clients, as one broker does; other shards ask it. What decides ([`subscription`],
//! [`instances`], [`otlp`], [`series`]) is plain and synchronous. Served only where there is a page to show it on
//! (`--metrics`), as Kafka does only with a receiver plugin.

mod instances;
mod otlp;
mod series;
mod shell;
pub(crate) mod subscription;

pub(crate) use instances::{Caller, TELEMETRY_BYTES_MAX};
#[cfg(feature = "fuzzing")]
pub(crate) use otlp::{PUSHED_BY_JAVA, PUSHED_BY_LIBRDKAFKA, SAMPLES_MAX, Sample, decode};
pub(crate) use shell::{Push, Telemetry, TelemetryReading, get, on_closed, push};
pub(crate) use subscription::Attributes;
