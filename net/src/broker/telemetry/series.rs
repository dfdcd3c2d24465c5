//! What clients pushed, as it is shown: families of series with their last values. Pure.
//!
//! Owned by shard 0. A series goes when it was not pushed for three intervals, not with its client's connection: what is
//! pushed last must still be read. Bounded in number and bytes; what does not fit is left out and counted.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::otlp::{Pushed, Sample};
use crate::broker::metrics::{Kind, Page, render_labels};

/// Series of all clients at most.
const SERIES_MAX: usize = 50_000;
/// Series of one client at most.
const SERIES_PER_INSTANCE_MAX: usize = 2_048;
/// Bytes of all labels and names at most.
const BYTES_MAX: usize = 16 << 20;

/// One series of a family: its instance, what follows the family's name, its labels as the page shows them.
type Key = (Uuid, &'static str, Box<str>);

struct Family {
    kind: Kind,
    values: BTreeMap<Key, Value>,
}

struct Value {
    value: f64,
    expires_ms: i64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Series {
    families: BTreeMap<String, Family>,
    /// Series of each client; none has none.
    per_instance: HashMap<Uuid, usize>,
    count: usize,
    bytes: usize,
    dropped: u64,
}

/// Whose push it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pusher {
    pub(crate) client_instance_id: Uuid,
    /// The id as Kafka writes it.
    pub(crate) client_instance_name: String,
    pub(crate) client_id: String,
}

impl Series {
    /// Takes a push in; its series are kept until `expires_ms`.
    pub(crate) fn handle_push(&mut self, pusher: &Pusher, pushed: Pushed, expires_ms: i64) {
        self.dropped += pushed.dropped;
        for sample in pushed.samples {
            if !self.put(pusher, sample, expires_ms) {
                self.dropped += 1;
            }
        }
    }

    fn put(&mut self, pusher: &Pusher, sample: Sample, expires_ms: i64) -> bool {
        let id = pusher.client_instance_id;
        let own = [("client_id", pusher.client_id.as_str()), ("client_instance_id", &pusher.client_instance_name)];
        let pushed = sample.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let labels = render_labels(own.into_iter().chain(pushed));
        let bytes = sample.family.len() + labels.len();
        let key = (id, sample.suffix, labels.into_boxed_str());
        let of_instance = self.per_instance.get(&id).copied().unwrap_or(0);
        let is_full =
            self.count >= SERIES_MAX || self.bytes + bytes > BYTES_MAX || of_instance >= SERIES_PER_INSTANCE_MAX;
        if is_full && !self.families.get(&sample.family).is_some_and(|family| family.values.contains_key(&key)) {
            return false;
        }
        let new = || Family { kind: sample.kind, values: BTreeMap::new() };
        let family = self.families.entry(sample.family).or_insert_with(new);
        if family.kind != sample.kind {
            return false; // two clients do not agree on what this is
        }
        let is_new = !family.values.contains_key(&key);
        let known = family.values.entry(key).or_insert(Value { value: 0.0, expires_ms });
        known.value = if sample.is_delta { known.value + sample.value } else { sample.value };
        known.expires_ms = expires_ms;
        if is_new {
            self.per_instance.insert(id, of_instance + 1);
            self.count += 1;
            self.bytes += bytes;
        }
        true
    }

    /// Forgets what has expired. Looks at every series: not to be called for every request.
    pub(crate) fn handle_time(&mut self, now_ms: i64) {
        let Series { families, per_instance, count, bytes, .. } = self;
        families.retain(|name, family| {
            family.values.retain(|(owner, _, labels), value| {
                if value.expires_ms > now_ms {
                    return true;
                }
                *count -= 1;
                *bytes -= name.len() + labels.len();
                if let Some(of_owner) = per_instance.get_mut(owner) {
                    *of_owner -= 1;
                }
                false
            });
            !family.values.is_empty()
        });
        per_instance.retain(|_, series| *series > 0);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Points left out so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The name of the family that follows `after`.
    pub(crate) fn next_family(&self, after: &str) -> Option<&str> {
        let bounds = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.families.range::<str, _>(bounds).next().map(|(name, _)| name.as_str())
    }

    /// Writes a family.
    pub(crate) fn write(&self, name: &str, page: &mut Page) {
        let Some(family) = self.families.get(name) else { return };
        page.family(name, family.kind, "Pushed by clients (KIP-714).");
        for ((_, suffix, labels), value) in &family.values {
            page.rendered(suffix, labels, value.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::otlp::{decode, tests::sum},
        *,
    };

    const NOW: i64 = 1_000;

    fn pusher(id: u128) -> Pusher {
        Pusher {
            client_instance_id: Uuid::from_u128(id),
            client_instance_name: format!("i{id}"),
            client_id: "a\"b".to_owned(),
        }
    }

    fn push(series: &mut Series, id: u128, data: &[u8]) {
        series.handle_push(&pusher(id), decode(data).unwrap(), NOW);
    }

    fn page(series: &Series) -> String {
        let mut page = Page::default();
        let mut last = String::new();
        while let Some(name) = series.next_family(&last).map(str::to_owned) {
            series.write(&name, &mut page);
            last = name;
        }
        page.finish()
    }

    fn sample(family: &str, label: usize) -> Sample {
        let labels = vec![("l".to_owned(), label.to_string())];
        Sample { family: family.to_owned(), kind: Kind::Gauge, suffix: "", labels, value: 1.0, is_delta: false }
    }

    #[test]
    fn deltas_add_up_and_other_values_replace() {
        let mut series = Series::default();
        for value in [1.0, 2.5] {
            push(&mut series, 7, &sum("org.apache.kafka.delta.total", value, true));
            push(&mut series, 7, &sum("org.apache.kafka.cumulative.total", value, false));
        }
        let labels = "{client_id=\"a\\\"b\",client_instance_id=\"i7\",topic=\"t\"}";
        let text = page(&series);
        assert!(text.contains(&format!("org_apache_kafka_delta_total{labels} 3.5\n")), "{text}");
        assert!(text.contains(&format!("org_apache_kafka_cumulative_total{labels} 2.5\n")), "{text}");
        assert!(text.contains("# TYPE org_apache_kafka_delta_total counter\n"), "{text}");
        assert_eq!(series.count(), 2);
    }

    #[test]
    fn series_go_when_their_client_is_silent() {
        let mut series = Series::default();
        push(&mut series, 1, &sum("x", 1.0, true));
        series.handle_push(&pusher(2), decode(&sum("x", 1.0, true)).unwrap(), NOW + 5);
        series.handle_time(NOW - 1);
        assert_eq!(series.count(), 2);
        series.handle_time(NOW);
        assert_eq!(series.count(), 1);
        series.handle_push(&pusher(2), decode(&sum("y", 1.0, true)).unwrap(), NOW + 7);
        series.handle_time(NOW + 5);
        assert_eq!(series.count(), 1, "what its client pushes no more goes too");
        series.handle_time(NOW + 7);
        assert_eq!((series.count(), series.bytes, series.families.len(), series.per_instance.len()), (0, 0, 0, 0));
    }

    #[test]
    fn a_client_has_its_share_and_no_more() {
        let mut series = Series::default();
        let samples = (0..SERIES_PER_INSTANCE_MAX + 3).map(|label| sample("m", label)).collect();
        series.handle_push(&pusher(1), Pushed { samples, dropped: 2 }, NOW);
        assert_eq!((series.count(), series.dropped()), (SERIES_PER_INSTANCE_MAX, 5));
        series.handle_push(&pusher(1), Pushed { samples: vec![sample("m", 0)], dropped: 0 }, NOW);
        assert_eq!(series.dropped(), 5, "what is there can be pushed on");
        for id in 2..100 {
            let samples = (0..SERIES_PER_INSTANCE_MAX).map(|label| sample("m", label)).collect();
            series.handle_push(&pusher(id), Pushed { samples, dropped: 0 }, NOW);
        }
        assert_eq!(series.count(), SERIES_MAX);
        assert!(series.per_instance.len() < 30, "who has no series is not remembered");
    }

    #[test]
    fn a_family_has_one_kind() {
        let mut series = Series::default();
        let samples = vec![sample("m", 0), Sample { kind: Kind::Counter, ..sample("m", 1) }];
        series.handle_push(&pusher(1), Pushed { samples, dropped: 0 }, NOW);
        assert_eq!((series.count(), series.dropped()), (1, 1));
    }
}
