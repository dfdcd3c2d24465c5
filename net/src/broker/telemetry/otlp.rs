//! Reads pushed metrics: OpenTelemetry's `MetricsData` in protobuf, as samples of Prometheus. Pure.
//!
//! The bytes are foreign. They are walked in place, so that what is allocated is what is kept: a decoder that builds the
//! message first would make a hundred times its size of a push of empty points, and two dozen fields are all there is to
//! know. Field numbers: opentelemetry-proto 1.x, metrics/v1/metrics.proto, common.proto, resource.proto.

/// Kinds that a family of pushed metrics may have.
pub(crate) use crate::broker::metrics::Kind;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// The family's name.
    pub(crate) family: String,
    pub(crate) kind: Kind,
    /// What follows the family's name.
    pub(crate) suffix: &'static str,
    /// Labels, in the order of the push.
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
    /// The value is to be added to the one before.
    pub(crate) is_delta: bool,
}

/// What a push holds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pushed {
    pub(crate) samples: Vec<Sample>,
    /// Points left out: too many, too large, or of no kind that can be shown.
    pub(crate) dropped: u64,
}

/// The push is no `MetricsData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the metrics are no protobuf message of OpenTelemetry")]
pub(crate) struct Malformed;

/// Samples of one push at most.
pub(crate) const SAMPLES_MAX: usize = 4_096;
/// Points of one push that are looked at, at most.
const POINTS_MAX: usize = 65_536;
/// Bytes of a name or a label's value at most.
const TEXT_BYTES_MAX: usize = 256;
/// Labels of a point at most.
const LABELS_MAX: usize = 32;

/// Reads a push.
pub(crate) fn decode(metrics_data: &[u8]) -> Result<Pushed, Malformed> {
    let mut reading = Reading::default();
    for resource_metrics in Fields(metrics_data).messages(1) {
        let resource_metrics = resource_metrics?;
        let mut resource = Vec::new();
        for message in Fields(resource_metrics).messages(1) {
            push_attributes(&mut resource, Fields(message?).messages(1))?;
        }
        for scope_metrics in Fields(resource_metrics).messages(2) {
            for metric in Fields(scope_metrics?).messages(2) {
                reading.metric(metric?, &resource)?;
            }
        }
    }
    Ok(reading.pushed)
}

#[derive(Default)]
struct Reading {
    pushed: Pushed,
    points: usize,
}

/// A metric's data: where its points are and what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Gauge,
    Sum,
    Histogram,
    ExponentialHistogram,
    Summary,
}

type Labels = Vec<(String, String)>;

impl Reading {
    fn metric(&mut self, metric: &[u8], resource: &Labels) -> Result<(), Malformed> {
        let mut name = "";
        let mut data = None;
        for field in Fields(metric) {
            let shape = match field? {
                (1, Value::Bytes(bytes)) => {
                    name = text(bytes)?;
                    continue;
                }
                (5, Value::Bytes(bytes)) => (Shape::Gauge, bytes),
                (7, Value::Bytes(bytes)) => (Shape::Sum, bytes),
                (9, Value::Bytes(bytes)) => (Shape::Histogram, bytes),
                (10, Value::Bytes(bytes)) => (Shape::ExponentialHistogram, bytes),
                (11, Value::Bytes(bytes)) => (Shape::Summary, bytes),
                _ => continue,
            };
            data = Some(shape);
        }
        let Some((shape, data)) = data else { return Ok(()) };
        let (mut is_delta, mut is_monotonic) = (false, false);
        for field in Fields(data) {
            match field? {
                (2, Value::Varint(temporality)) if shape != Shape::Summary => is_delta = temporality == DELTA,
                (3, Value::Varint(flag)) if shape == Shape::Sum => is_monotonic = flag != 0,
                _ => {}
            }
        }
        let kind = match shape {
            Shape::Sum if is_monotonic => Kind::Counter,
            Shape::Sum | Shape::Gauge => Kind::Gauge,
            Shape::Histogram | Shape::ExponentialHistogram => Kind::Histogram,
            Shape::Summary => Kind::Summary,
        };
        let family = (!name.is_empty() && name.len() <= TEXT_BYTES_MAX).then(|| family_name(name, kind));
        for point in Fields(data).messages(1) {
            let point = point?;
            self.points += 1;
            let Some(family) = family.as_ref().filter(|_| self.points <= POINTS_MAX) else {
                self.pushed.dropped += 1;
                continue;
            };
            let first = self.pushed.samples.len();
            let mut made = Samples { family, kind, is_delta, labels: resource.clone(), out: &mut self.pushed.samples };
            let is_whole = match shape {
                Shape::Gauge | Shape::Sum => made.number(point)?,
                Shape::Histogram => made.histogram(point)?,
                Shape::ExponentialHistogram => made.exponential_histogram(point)?,
                Shape::Summary => made.summary(point)?,
            };
            if !is_whole || self.pushed.samples.len() > SAMPLES_MAX {
                self.pushed.samples.truncate(first);
                self.pushed.dropped += 1;
            }
        }
        Ok(())
    }
}

/// AGGREGATION_TEMPORALITY_DELTA.
const DELTA: u64 = 1;
/// The flag of a point that says that there is no value.
const NO_RECORDED_VALUE: u64 = 1;

/// Makes the samples of one point. Each method answers whether the point can be shown.
struct Samples<'a> {
    family: &'a str,
    kind: Kind,
    is_delta: bool,
    labels: Labels,
    out: &'a mut Vec<Sample>,
}

impl Samples<'_> {
    fn push(&mut self, suffix: &'static str, more: Option<(&str, f64)>, value: f64, is_delta: bool) {
        let mut labels = self.labels.clone();
        labels.extend(more.map(|(name, value)| (name.to_owned(), number_text(value))));
        let (family, kind) = (self.family.to_owned(), self.kind);
        self.out.push(Sample { family, kind, suffix, labels, value, is_delta });
    }

    fn number(&mut self, point: &[u8]) -> Result<bool, Malformed> {
        let mut value = None;
        for field in Fields(point) {
            match field? {
                (4, Value::Fixed64(bits)) => value = Some(f64::from_bits(bits)),
                (6, Value::Fixed64(bits)) => value = Some(bits.cast_signed() as f64),
                (8, Value::Varint(flags)) if flags & NO_RECORDED_VALUE != 0 => return Ok(true),
                _ => {}
            }
        }
        let labelled = push_attributes(&mut self.labels, Fields(point).messages(7))?;
        let Some(value) = value.filter(|_| labelled) else { return Ok(false) };
        self.push("", None, value, self.is_delta);
        Ok(true)
    }

    fn histogram(&mut self, point: &[u8]) -> Result<bool, Malformed> {
        let (mut counts, mut bounds) = (Vec::new(), Vec::new());
        for field in Fields(point) {
            match field? {
                (6, value) => fixed64s(value, &mut counts)?,
                (7, value) => fixed64s(value, &mut bounds)?,
                _ => {}
            }
        }
        if !push_attributes(&mut self.labels, Fields(point).messages(9))? || counts.len() > bounds.len() + 1 {
            return Ok(false);
        }
        let mut up_to = 0.0;
        for (bound, count) in bounds.iter().zip(&counts) {
            up_to += *count as f64;
            self.push("_bucket", Some(("le", f64::from_bits(*bound))), up_to, self.is_delta);
        }
        self.total(point, true)
    }

    /// Only how many there were and their sum: its buckets have no bounds that two points share.
    fn exponential_histogram(&mut self, point: &[u8]) -> Result<bool, Malformed> {
        Ok(push_attributes(&mut self.labels, Fields(point).messages(1))? && self.total(point, true)?)
    }

    fn summary(&mut self, point: &[u8]) -> Result<bool, Malformed> {
        if !push_attributes(&mut self.labels, Fields(point).messages(7))? {
            return Ok(false);
        }
        for at in Fields(point).messages(6) {
            let (mut quantile, mut value) = (0.0, 0.0);
            for field in Fields(at?) {
                match field? {
                    (1, Value::Fixed64(bits)) => quantile = f64::from_bits(bits),
                    (2, Value::Fixed64(bits)) => value = f64::from_bits(bits),
                    _ => {}
                }
            }
            self.push("", Some(("quantile", quantile)), value, false);
        }
        self.total(point, false)
    }

    /// Count and sum, which have the same numbers in all three shapes.
    fn total(&mut self, point: &[u8], has_buckets: bool) -> Result<bool, Malformed> {
        let (mut count, mut sum) = (0.0, 0.0);
        for field in Fields(point) {
            match field? {
                (4, Value::Fixed64(bits)) => count = bits as f64,
                (5, Value::Fixed64(bits)) => sum = f64::from_bits(bits),
                _ => {}
            }
        }
        if has_buckets {
            self.push("_bucket", Some(("le", f64::INFINITY)), count, self.is_delta);
        }
        self.push("_sum", None, sum, self.is_delta);
        self.push("_count", None, count, self.is_delta);
        Ok(true)
    }
}

/// A number as Prometheus writes it in a label.
fn number_text(value: f64) -> String {
    if value == f64::INFINITY { "+Inf".to_owned() } else { value.to_string() }
}

/// Adds attributes as labels; `false` if there are too many, or one cannot be a label.
fn push_attributes<'a>(
    labels: &mut Labels,
    attributes: impl Iterator<Item = Result<&'a [u8], Malformed>>,
) -> Result<bool, Malformed> {
    for attribute in attributes {
        let (mut key, mut value) = ("", Some(String::new()));
        for field in Fields(attribute?) {
            match field? {
                (1, Value::Bytes(bytes)) => key = text(bytes)?,
                (2, Value::Bytes(any)) => value = any_value(any)?,
                _ => {}
            }
        }
        let Some(value) = value.filter(|value| value.len() <= TEXT_BYTES_MAX) else { return Ok(false) };
        if key.is_empty() || key.len() > TEXT_BYTES_MAX || labels.len() >= LABELS_MAX {
            return Ok(false);
        }
        let name = label_name(key);
        match labels.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => labels.push((name, value)),
        }
    }
    Ok(true)
}

/// A value as text; `None` for lists, maps and bytes.
fn any_value(any: &[u8]) -> Result<Option<String>, Malformed> {
    let mut value = Some(String::new());
    for field in Fields(any) {
        value = match field? {
            (1, Value::Bytes(bytes)) => Some(text(bytes)?.to_owned()),
            (2, Value::Varint(flag)) => Some((flag != 0).to_string()),
            (3, Value::Varint(number)) => Some(number.cast_signed().to_string()),
            (4, Value::Fixed64(bits)) => Some(f64::from_bits(bits).to_string()),
            _ => None,
        };
    }
    Ok(value)
}

/// The name of a family: Kafka's with underscores. Others are set apart, so that nobody pushes what looks like ours.
fn family_name(name: &str, kind: Kind) -> String {
    const KAFKA: &str = "org.apache.kafka.";
    const TOTAL: &str = "_total";
    let mut family = if name.starts_with(KAFKA) { String::new() } else { "client_".to_owned() };
    family.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }));
    if kind == Kind::Counter && !family.ends_with(TOTAL) {
        family.push_str(TOTAL);
    }
    family
}

/// The name of a label: no digit first, and no two underscores, which are Prometheus's own. What a sample has of its own
/// cannot be taken.
fn label_name(key: &str) -> String {
    const TAKEN: [&str; 4] = ["client_id", "client_instance_id", "le", "quantile"];
    let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let is_taken = TAKEN.contains(&name.as_str()) || name.starts_with("__");
    if is_taken || name.starts_with(|c: char| c.is_ascii_digit()) { format!("label_{name}") } else { name }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

/// A packed list, or one element of a list that is not.
fn fixed64s(value: Value<'_>, out: &mut Vec<u64>) -> Result<(), Malformed> {
    match value {
        Value::Fixed64(bits) => out.push(bits),
        Value::Bytes(packed) => {
            let (elements, rest) = packed.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(Malformed);
            }
            out.extend(elements.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        }
        Value::Varint(_) | Value::Fixed32 => return Err(Malformed),
    }
    Ok(())
}

/// A field's value as it is on the wire.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// Of no field that is read.
    Fixed32,
}

/// The fields of a message, in the order of the wire: number and value. Ends at the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Only the messages of one field.
    fn messages(self, number: u64) -> impl Iterator<Item = Result<&'a [u8], Malformed>> {
        self.filter_map(move |field| match field {
            Ok((found, Value::Bytes(bytes))) if found == number => Some(Ok(bytes)),
            Ok(_) => None,
            Err(malformed) => Some(Err(malformed)),
        })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (taken, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(taken)
            }
            5 => {
                self.fixed::<4>()?;
                Value::Fixed32
            }
            // groups, which OpenTelemetry has none of
            _ => return None,
        };
        (key >> 3 != 0).then_some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

/// What kafka-producer-perf-test of Kafka 4.3.1 pushed last.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const PUSHED_BY_JAVA: &[u8] = include_bytes!("testdata/java-4.3.1.otlp");
/// What a consumer of librdkafka 2.16.0 pushed.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const PUSHED_BY_LIBRDKAFKA: &[u8] = include_bytes!("testdata/librdkafka-2.16.0.otlp");

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field of bytes.
    pub(crate) fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
        assert!(value.len() < 1 << 14, "two bytes say how long it is");
        let length = value.len();
        [&[number << 3 | 2, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8], value].concat()
    }

    fn varint(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn fixed64(number: u8, bits: u64) -> Vec<u8> {
        [&[number << 3 | 1][..], &bits.to_le_bytes()].concat()
    }

    fn attribute(number: u8, key: &str, value: &str) -> Vec<u8> {
        bytes(number, &[bytes(1, key.as_bytes()), bytes(2, &bytes(1, value.as_bytes()))].concat())
    }

    /// A push of metrics with one resource.
    fn metrics_data(resource: &[u8], metrics: &[Vec<u8>]) -> Vec<u8> {
        let metrics: Vec<u8> = metrics.iter().flat_map(|metric| bytes(2, metric)).collect();
        bytes(1, &[bytes(1, resource), bytes(2, &metrics)].concat())
    }

    fn metric(name: &str, shape: u8, data: &[u8]) -> Vec<u8> {
        [bytes(1, name.as_bytes()), bytes(shape, data)].concat()
    }

    /// A push of one sum.
    pub(crate) fn sum(name: &str, value: f64, is_delta: bool) -> Vec<u8> {
        let point = [attribute(7, "topic", "t"), fixed64(4, value.to_bits())].concat();
        let temporality = if is_delta { 1 } else { 2 };
        let data = [bytes(1, &point), varint(2, temporality), varint(3, 1)].concat();
        metrics_data(&[], &[metric(name, 7, &data)])
    }

    fn shown(samples: &[Sample]) -> Vec<String> {
        let label = |(name, value): &(String, String)| format!("{name}={value}");
        let labels = |sample: &Sample| sample.labels.iter().map(label).collect::<Vec<_>>().join(",");
        let show = |sample: &Sample| {
            let sign = if sample.is_delta { "+" } else { "" };
            format!("{}{}{{{}}} {sign}{}", sample.family, sample.suffix, labels(sample), sample.value)
        };
        samples.iter().map(show).collect()
    }

    #[test]
    fn numbers_are_read_with_their_labels() {
        let int = fixed64(6, (-3_i64).cast_unsigned());
        let gauge = bytes(1, &[attribute(7, "node.id", "7"), int].concat());
        let resource = attribute(1, "group_id", "g");
        let push = [metrics_data(&resource, &[metric("org.apache.kafka.a-b", 5, &gauge)]), sum("x.y", 1.5, true)];
        let pushed = decode(&push.concat()).unwrap();
        let expected = ["org_apache_kafka_a_b{group_id=g,node_id=7} -3", "client_x_y_total{topic=t} +1.5"];
        assert_eq!(shown(&pushed.samples), expected);
        assert_eq!(pushed.samples.iter().map(|sample| sample.kind).collect::<Vec<_>>(), [Kind::Gauge, Kind::Counter]);
        assert_eq!(pushed.dropped, 0);
    }

    #[test]
    fn histograms_and_summaries_are_read() {
        let counts: Vec<u8> = [1_u64, 2, 4].iter().flat_map(|count| count.to_le_bytes()).collect();
        let bounds: Vec<u8> = [0.5_f64, 1.0].iter().flat_map(|bound| bound.to_le_bytes()).collect();
        let total = [fixed64(4, 7), fixed64(5, 9.5_f64.to_bits())].concat();
        let histogram = bytes(1, &[bytes(6, &counts), bytes(7, &bounds), total.clone()].concat());
        let quantile = [fixed64(1, 0.5_f64.to_bits()), fixed64(2, 3.0_f64.to_bits())].concat();
        let summary = bytes(1, &[total.clone(), bytes(6, &quantile)].concat());
        let exponential = [bytes(1, &total), varint(2, 1)].concat();
        let metrics = [metric("h", 9, &histogram), metric("s", 11, &summary), metric("e", 10, &exponential)];
        let pushed = decode(&metrics_data(&[], &metrics)).unwrap();
        let expected = [
            "client_h_bucket{le=0.5} 1",
            "client_h_bucket{le=1} 3",
            "client_h_bucket{le=+Inf} 7",
            "client_h_sum{} 9.5",
            "client_h_count{} 7",
            "client_s{quantile=0.5} 3",
            "client_s_sum{} 9.5",
            "client_s_count{} 7",
            "client_e_bucket{le=+Inf} +7",
            "client_e_sum{} +9.5",
            "client_e_count{} +7",
        ];
        assert_eq!(shown(&pushed.samples), expected);
    }

    #[test]
    fn real_clients_are_understood() {
        let java = decode(PUSHED_BY_JAVA).unwrap();
        assert_eq!((java.samples.len(), java.dropped), (108, 0));
        let sent = java.samples.iter().filter(|sample| sample.family.ends_with("_record_send_total")).cloned();
        let expected = [
            "org_apache_kafka_producer_record_send_total{} +690",
            "org_apache_kafka_producer_topic_record_send_total{topic=perf} +690",
        ];
        assert_eq!(shown(&sent.collect::<Vec<_>>()), expected);
        let librdkafka = decode(PUSHED_BY_LIBRDKAFKA).unwrap();
        assert_eq!((librdkafka.samples.len(), librdkafka.dropped), (15, 0));
        assert!(librdkafka.samples.iter().all(|sample| sample.labels[0] == ("group_id".to_owned(), "g".to_owned())));
    }

    #[test]
    fn what_cannot_be_shown_is_left_out_and_counted() {
        let value = fixed64(4, 1.0_f64.to_bits());
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        let list = bytes(7, &[bytes(1, b"list"), bytes(2, &bytes(5, &[]))].concat());
        let many: Vec<u8> = (0..=LABELS_MAX).flat_map(|at| attribute(7, &format!("l{at}"), "")).collect();
        let points = [vec![], attribute(7, "a", &long), attribute(7, &long, "a"), list, many];
        let gauge: Vec<u8> =
            points.iter().flat_map(|labels| bytes(1, &[labels.clone(), value.clone()].concat())).collect();
        let metrics = [metric("m", 5, &gauge), metric(&long, 5, &bytes(1, &value)), metric("none", 5, &bytes(1, &[]))];
        let pushed = decode(&metrics_data(&[], &metrics)).unwrap();
        assert_eq!((pushed.samples.len(), pushed.dropped), (1, 6));
        let bomb = metrics_data(&[], &[metric("m", 5, &bytes(1, &value).repeat(900))]).repeat(6);
        let pushed = decode(&bomb).unwrap();
        assert_eq!((pushed.samples.len(), pushed.dropped), (SAMPLES_MAX, 6 * 900 - SAMPLES_MAX as u64));
    }

    #[test]
    fn labels_have_names_that_are_free() {
        for (key, name) in [
            ("node.id", "node_id"),
            ("7up", "label_7up"),
            ("__name__", "label___name__"),
            ("client_id", "label_client_id"),
            ("le", "label_le"),
            ("é", "_"),
        ] {
            assert_eq!(label_name(key), name);
        }
        assert_eq!(family_name("millrace_connections", Kind::Gauge), "client_millrace_connections");
        assert_eq!(family_name("org.apache.kafka.x.total", Kind::Counter), "org_apache_kafka_x_total");
    }

    #[test]
    fn every_cut_of_a_push_is_refused_or_read() {
        let whole = sum("org.apache.kafka.x", 1.0, false);
        assert!(decode(&whole).is_ok());
        for length in 1..whole.len() {
            assert_eq!(decode(&whole[..length]), Err(Malformed), "cut to {length}");
        }
        assert_eq!(decode(&[0x0b]), Err(Malformed), "a group");
        assert_eq!(decode(&[0xff; 11]), Err(Malformed), "a number without end");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any_outcome_is_fine = decode(&bytes);
        }
    }
}
