//! Every metric of the broker: name, kind, what it says, where it comes from. To add one is to add a line.

use std::collections::BTreeMap;

use millrace_client::error_code_name;
use millrace_engine::timing::Durations;

use super::{
    reading::{NodeReading, ShardReading},
    text::{Kind, Page, seconds},
};
use crate::{broker::shard::BrokerShard, wire::service::Service};
use millrace_replica::shell::{FollowerReport, Promotion, ReplicationReport};

/// One metric.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
    read: Read,
}

/// Where its samples come from.
enum Read {
    /// One for each shard, labelled so.
    Shard(fn(&ShardReading) -> u64),
    /// One.
    Node(fn(&NodeReading) -> f64),
    /// As many as it gives itself.
    Own(fn(&NodeReading, &mut Page)),
}

const fn shard_counter(name: &'static str, help: &'static str, read: fn(&ShardReading) -> u64) -> Metric {
    Metric { name, kind: Kind::Counter, help, read: Read::Shard(read) }
}

const fn shard_gauge(name: &'static str, help: &'static str, read: fn(&ShardReading) -> u64) -> Metric {
    Metric { name, kind: Kind::Gauge, help, read: Read::Shard(read) }
}

const fn node(name: &'static str, kind: Kind, help: &'static str, read: fn(&NodeReading) -> f64) -> Metric {
    Metric { name, kind, help, read: Read::Node(read) }
}

const fn own(name: &'static str, kind: Kind, help: &'static str, read: fn(&NodeReading, &mut Page)) -> Metric {
    Metric { name, kind, help, read: Read::Own(read) }
}

/// In the order of the page.
pub(crate) static TABLE: &[Metric] = &[
    own("millrace_info", Kind::Gauge, "Version of the broker.", |_, page| {
        page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    }),
    node("millrace_uptime_seconds", Kind::Gauge, "Time since the node began to serve.", |node| node.uptime_seconds),
    shard_gauge("millrace_connections", "Open connections.", |shard| shard.connections),
    shard_counter("millrace_connections_accepted_total", "Connections that were accepted.", |shard| {
        shard.connections_accepted
    }),
    shard_counter("millrace_connections_refused_total", "Connections refused because of a limit.", |shard| {
        shard.connections_refused
    }),
    shard_counter("millrace_connections_moved_total", "Connections that went on on another shard.", |shard| {
        shard.connections_moved
    }),
    shard_counter("millrace_received_bytes_total", "Bytes received from clients.", |shard| shard.received_bytes),
    shard_counter("millrace_sent_bytes_total", "Bytes sent to clients.", |shard| shard.sent_bytes),
    shard_counter("millrace_malformed_requests_total", "Requests that ended their connection.", |shard| {
        shard.malformed_requests
    }),
    own("millrace_requests_total", Kind::Counter, "Requests read, by API.", requests),
    own("millrace_errors_total", Kind::Counter, "Errors told in answers, by API; one for each partition.", errors),
    own(
        "millrace_request_seconds",
        Kind::Histogram,
        "Time from the last byte of a request to the last of its answer handed to the socket, by API.",
        |node, page| by_api(node, |api, durations| page.durations(&[("api", &api)], durations)),
    ),
    own(
        "millrace_request_recent_seconds",
        Kind::Summary,
        "Quantiles of the same over the last one to two minutes; NaN when there was no request.",
        |node, page| by_api(node, |api, durations| quantiles(page, &api, durations)),
    ),
    shard_counter("millrace_produced_records_total", "Records appended, to internal topics too.", |shard| {
        shard.engine.produced_records
    }),
    shard_counter("millrace_produced_batches_total", "Record batches appended.", |shard| shard.engine.produced_batches),
    shard_counter("millrace_produced_bytes_total", "Bytes of the batches appended.", |shard| {
        shard.engine.produced_bytes
    }),
    shard_counter("millrace_recompressed_batches_total", "Batches recompressed as their topics ask.", |shard| {
        shard.engine.recompressed_batches
    }),
    shard_counter("millrace_recompressed_bytes_total", "Bytes of those batches as they were sent.", |shard| {
        shard.engine.recompressed_bytes
    }),
    shard_counter("millrace_fetched_bytes_total", "Bytes of records in answers to fetches.", |shard| {
        shard.fetched_bytes
    }),
    shard_counter("millrace_wal_groups_total", "Commit groups given to the write-ahead log.", |shard| {
        shard.engine.wal_groups
    }),
    shard_counter("millrace_wal_bytes_total", "Bytes written to the write-ahead log, padding included.", |shard| {
        shard.engine.wal_bytes
    }),
    own(
        "millrace_wal_seconds",
        Kind::Histogram,
        "Time of one operation on the write-ahead log: durable_write is write and flush in one, write is without flush.",
        wal,
    ),
    shard_gauge("millrace_wal_unmaterialised_bytes", "Bytes in the write-ahead log that are in no segment.", |shard| {
        shard.engine.unmaterialised_bytes
    }),
    own("millrace_memory_used_bytes", Kind::Gauge, "Memory in use: for requests, tail cache, reads.", |node, page| {
        memory(node, page, |budget| budget.used);
    }),
    own("millrace_memory_limit_bytes", Kind::Gauge, "What it may be at most.", |node, page| {
        memory(node, page, |budget| budget.limit);
    }),
    node("millrace_topics", Kind::Gauge, "Topics.", |node| node.topics as f64),
    shard_gauge("millrace_partitions", "Partitions.", |shard| shard.engine.partitions),
    shard_gauge("millrace_log_bytes", "Bytes of all logs.", |shard| shard.engine.log_bytes),
    own("millrace_groups", Kind::Gauge, "Groups by type and state, of coordinators that are loaded.", groups),
    own(
        "millrace_transactional_ids",
        Kind::Gauge,
        "Transactional ids by the state of their transactions, of coordinators that are loaded.",
        transactional_ids,
    ),
    shard_gauge("millrace_transactional_id_bytes", "Memory that transactional ids take, estimated.", |shard| {
        shard.transactional_ids.used
    }),
    shard_gauge("millrace_transactional_id_limit_bytes", "What it may be: new ids are refused beyond.", |shard| {
        shard.transactional_ids.limit
    }),
    own("millrace_partitions_led", Kind::Gauge, "Of a cluster: partitions that this node leads.", |node, page| {
        replication(node, page, |report| report.led);
    }),
    own("millrace_partitions_followed", Kind::Gauge, "Of a cluster: partitions that it follows.", |node, page| {
        replication(node, page, |report| report.followed);
    }),
    own(
        "millrace_partitions_detached",
        Kind::Gauge,
        "Those of them that wait for their leader, or for the logs to be found to match.",
        |node, page| replication(node, page, |report| report.detached),
    ),
    own(
        "millrace_partitions_under_replicated",
        Kind::Gauge,
        "Led partitions with fewer replicas in sync than they have.",
        |node, page| replication(node, page, |report| report.under_replicated),
    ),
    own(
        "millrace_partitions_under_min_isr",
        Kind::Gauge,
        "Led partitions that refuse acks=all for lack of replicas in sync.",
        |node, page| replication(node, page, |report| report.under_min_isr),
    ),
    own("millrace_channel_connections", Kind::Gauge, "Connections to shards of other nodes.", |node, page| {
        replication(node, page, |report| report.links);
    }),
    own(
        "millrace_follower_lag_records",
        Kind::Gauge,
        "Records that a node lacks of the partitions that this one leads.",
        |node, page| followers(node, page, |report| report.lag_records as f64),
    ),
    own("millrace_follower_lag_bytes", Kind::Gauge, "About how many bytes those records have.", |node, page| {
        followers(node, page, |report| report.lag_bytes as f64)
    }),
    own(
        "millrace_follower_lag_seconds",
        Kind::Gauge,
        "The longest time for which it has lacked records of one of them.",
        |node, page| followers(node, page, |report| report.lag_ms as f64 / 1000.0),
    ),
    own(
        "millrace_follower_promotable",
        Kind::Gauge,
        "1 if it is in sync with all of them: it may lead them without the loss of what was acknowledged; by reason.",
        followers_promotable,
    ),
    own("millrace_cluster_nodes", Kind::Gauge, "Nodes that live, as far as this one knows.", |node, page| {
        of_cluster(node, page, |report| report.nodes);
    }),
    own("millrace_cluster_controller", Kind::Gauge, "1 if this node is controller.", |node, page| {
        of_cluster(node, page, |report| u64::from(report.is_controller));
    }),
    own(
        "millrace_etcd_away",
        Kind::Gauge,
        "1 while etcd does not answer: nobody is elected and no topic is created meanwhile.",
        |node, page| of_cluster(node, page, |report| u64::from(report.is_etcd_away)),
    ),
    own(
        "millrace_promotable",
        Kind::Gauge,
        "Of the follower of two nodes without an etcd: 1 if it was in sync with all when it heard of the leader last, by reason.",
        promotable,
    ),
    node("millrace_disk_total_bytes", Kind::Gauge, "Size of the file system with the data.", |node| {
        node.volume.0 as f64
    }),
    node("millrace_disk_free_bytes", Kind::Gauge, "Usable bytes of that.", |node| node.volume.1 as f64),
    shard_gauge("millrace_disk_full", "1 if produce is refused for lack of space.", |shard| {
        u64::from(shard.engine.is_full)
    }),
    shard_gauge("millrace_log_failed", "1 if a write failed and no records are taken until a restart.", |shard| {
        u64::from(shard.engine.is_failed)
    }),
    shard_counter("millrace_stalls_total", "Times that the log, or requests, stood still for seconds.", |shard| {
        shard.engine.stalls + shard.request_stalls.0
    }),
    shard_gauge("millrace_stalled", "1 while something stands still; the log says who waits for whom.", |shard| {
        u64::from(shard.engine.is_stalled || shard.request_stalls.1)
    }),
    shard_gauge("millrace_oldest_group_seconds", "Time that nothing has moved for the oldest commit group.", |shard| {
        shard.engine.oldest_group_seconds
    }),
    node("millrace_client_instances", Kind::Gauge, "Clients that asked which metrics to push (KIP-714).", |node| {
        node.telemetry.instances as f64
    }),
    node("millrace_client_pushes_total", Kind::Counter, "Pushes of metrics by clients that were taken.", |node| {
        node.telemetry.pushes as f64
    }),
    node("millrace_client_series", Kind::Gauge, "Series that clients pushed, on this page.", |node| {
        node.telemetry.series as f64
    }),
    node(
        "millrace_client_dropped_points_total",
        Kind::Counter,
        "Points that clients pushed and that were left out: too many, too large or of an unknown kind.",
        |node| node.telemetry.dropped_points as f64,
    ),
    node("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", |node| node.process.resident_bytes as f64),
    node("process_cpu_seconds_total", Kind::Counter, "User and system CPU time.", |node| {
        node.process.cpu.as_secs_f64()
    }),
];

/// Quantiles that are shown.
const QUANTILES: [(&str, f64); 5] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)];

impl Metric {
    /// Writes its family.
    pub(crate) fn write(&self, node: &NodeReading, page: &mut Page) {
        page.family(self.name, self.kind, self.help);
        match self.read {
            Read::Shard(read) => by_shard(node, |index, shard| page.sample(&[("shard", index)], read(shard) as f64)),
            Read::Node(read) => page.sample(&[], read(node)),
            Read::Own(read) => read(node, page),
        }
    }
}

fn by_shard(node: &NodeReading, mut each: impl FnMut(&str, &ShardReading)) {
    for (index, shard) in node.shards.iter().enumerate() {
        each(&index.to_string(), shard);
    }
}

fn api_name(place: usize) -> String {
    format!("{:?}", BrokerShard::table()[place].key)
}

/// One sample for each shard of a node in a cluster.
fn replication(node: &NodeReading, page: &mut Page, read: fn(&ReplicationReport) -> u64) {
    for (shard, reading) in node.shards.iter().enumerate() {
        if let Some(report) = &reading.replication {
            page.sample(&[("shard", &shard.to_string())], read(report) as f64);
        }
    }
}

/// One sample for each node that follows this one.
fn followers(node: &NodeReading, page: &mut Page, read: fn(&FollowerReport) -> f64) {
    for (id, report) in followers_of(node) {
        page.sample(&[("node", &id.to_string())], read(&report));
    }
}

/// Whether each of these may lead what this node leads, and why not.
fn followers_promotable(node: &NodeReading, page: &mut Page) {
    for (id, report) in followers_of(node) {
        let (reason, value) = match report.in_sync {
            in_sync if in_sync == report.partitions => ("in sync", 1.0),
            0 => ("in sync with no partition", 0.0),
            _ => ("not in sync with some partitions", 0.0),
        };
        page.sample(&[("node", &id.to_string()), ("reason", reason)], value);
    }
}

/// What each node lacks, of all shards.
fn followers_of(node: &NodeReading) -> BTreeMap<i32, FollowerReport> {
    let mut by_node: BTreeMap<i32, FollowerReport> = BTreeMap::new();
    for (id, report) in node.shards.iter().flat_map(|shard| &shard.replication).flat_map(|report| &report.followers) {
        by_node.entry(*id).or_default().add(report);
    }
    by_node
}

/// What all shards of a node in a cluster know alike.
fn of_cluster(node: &NodeReading, page: &mut Page, read: fn(&ReplicationReport) -> u64) {
    if let Some(report) = node.shards.first().and_then(|shard| shard.replication.as_ref()) {
        page.sample(&[], read(report) as f64);
    }
}

/// Whether a person may make this node the leader, and nothing that was acknowledged is lost by that.
fn promotable(node: &NodeReading, page: &mut Page) {
    let report = node.shards.first().and_then(|shard| shard.replication.as_ref());
    let Some(promotion) = report.and_then(|report| report.promotion) else { return };
    let (reason, value) = match promotion {
        Promotion { behind: 0, elsewhere: 0 } => ("in sync", 1.0),
        Promotion { behind: 0, .. } => ("partitions without a replica here", 0.0),
        Promotion { .. } => ("not in sync", 0.0),
    };
    page.sample(&[("reason", reason)], value);
}

fn requests(node: &NodeReading, page: &mut Page) {
    let mut sums = vec![0; BrokerShard::table().len()];
    for api in node.shards.iter().flat_map(|shard| &shard.apis) {
        sums[api.api] += api.requests;
    }
    for (place, sum) in sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0) {
        page.sample(&[("api", &api_name(place))], sum as f64);
    }
}

fn by_api(node: &NodeReading, mut each: impl FnMut(String, &Durations)) {
    let mut merged: Vec<Option<Durations>> = vec![None; BrokerShard::table().len()];
    for api in node.shards.iter().flat_map(|shard| &shard.apis) {
        merged[api.api].get_or_insert_default().merge(&api.durations);
    }
    for (place, durations) in merged.into_iter().enumerate() {
        if let Some(durations) = durations {
            each(api_name(place), &durations);
        }
    }
}

fn quantiles(page: &mut Page, api: &str, durations: &Durations) {
    for (name, quantile) in QUANTILES {
        let value = durations.recent_us(quantile).map_or(f64::NAN, seconds);
        page.sample(&[("api", api), ("quantile", name)], value);
    }
}

fn errors(node: &NodeReading, page: &mut Page) {
    let mut sums = BTreeMap::new();
    for (key, count) in node.shards.iter().flat_map(|shard| &shard.errors) {
        *sums.entry(*key).or_insert(0) += count;
    }
    for ((place, code), count) in sums {
        page.sample(&[("api", &api_name(place)), ("error", &error_code_name(code))], count as f64);
    }
}

fn wal(node: &NodeReading, page: &mut Page) {
    by_shard(node, |index, shard| {
        let engine = &shard.engine;
        for (operation, durations) in [
            ("durable_write", &engine.wal_durable_writes),
            ("write", &engine.wal_writes),
            ("flush", &engine.wal_flushes),
        ] {
            page.durations(&[("shard", index), ("operation", operation)], durations);
        }
    });
}

fn memory(node: &NodeReading, page: &mut Page, read: fn(&millrace_engine::stats::Budget) -> u64) {
    by_shard(node, |index, shard| {
        let pools = [("requests", &shard.receive), ("tail", &shard.engine.cache), ("reads", &shard.engine.reads)];
        for (pool, budget) in pools {
            page.sample(&[("shard", index), ("pool", pool)], read(budget) as f64);
        }
    });
}

fn groups(node: &NodeReading, page: &mut Page) {
    let mut sums = BTreeMap::new();
    for (key, count) in node.shards.iter().flat_map(|shard| &shard.groups) {
        *sums.entry(key).or_insert(0) += count;
    }
    for ((kind, state), count) in sums {
        page.sample(&[("type", kind), ("state", state)], count as f64);
    }
}

fn transactional_ids(node: &NodeReading, page: &mut Page) {
    let mut sums = BTreeMap::new();
    for (state, count) in node.shards.iter().flat_map(|shard| &shard.transactions) {
        *sums.entry(state).or_insert(0) += count;
    }
    for (state, count) in sums {
        page.sample(&[("state", state.name())], count as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use kafka_protocol::messages::ApiKey;
    use millrace_engine::timing::Timings;

    use super::*;
    use crate::{
        coordinator::transaction::State,
        wire::{api::place, counters::ApiReading},
    };

    fn reading() -> NodeReading {
        let mut timings = Timings::default();
        timings.record(0, Duration::from_millis(4));
        let produce =
            ApiReading { api: place::<BrokerShard>(ApiKey::Produce), requests: 2, durations: timings.read(0) };
        let shard = |apis, code| ShardReading {
            apis,
            errors: [((place::<BrokerShard>(ApiKey::Produce), code), 1)].into(),
            groups: [(("classic".to_owned(), "Stable".to_owned()), 3)].into(),
            transactions: [(State::Ongoing, 2)].into(),
            connections: 5,
            ..ShardReading::default()
        };
        let shards = vec![shard(vec![produce.clone()], 3), shard(vec![produce], 9999)];
        NodeReading { shards, ..NodeReading::default() }
    }

    #[test]
    fn names_are_unique_and_as_prometheus_wants_them() {
        let names: BTreeSet<_> = TABLE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for Metric { name, kind, help, .. } in TABLE {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(name.starts_with("millrace_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.') && help.len() < 120, "{name}: {help}");
        }
    }

    #[test]
    fn the_readme_tells_of_every_metric() {
        let readme = include_str!("../../../../README.md");
        for metric in TABLE {
            assert!(readme.contains(&format!("`{}`", metric.name)), "{} is not in README.md", metric.name);
        }
    }

    #[test]
    fn why_a_follower_may_lead_or_not_is_said() {
        let follower = |partitions, in_sync| FollowerReport { partitions, in_sync, ..FollowerReport::default() };
        let shard = |followers| ShardReading {
            replication: Some(ReplicationReport { followers, ..ReplicationReport::default() }),
            ..ShardReading::default()
        };
        // what one shard knows of a node is not all
        let one = [(1, follower(2, 2)), (2, follower(2, 2)), (3, follower(1, 0))].into();
        let shards = vec![shard(one), shard([(2, follower(2, 1))].into())];
        let node = NodeReading { shards, ..NodeReading::default() };
        let mut page = Page::default();
        TABLE.iter().for_each(|metric| metric.write(&node, &mut page));
        let text = page.finish();
        for line in [
            "millrace_follower_promotable{node=\"1\",reason=\"in sync\"} 1",
            "millrace_follower_promotable{node=\"2\",reason=\"not in sync with some partitions\"} 0",
            "millrace_follower_promotable{node=\"3\",reason=\"in sync with no partition\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn shards_are_added_up_or_told_apart() {
        let mut page = Page::default();
        TABLE.iter().for_each(|metric| metric.write(&reading(), &mut page));
        let text = page.finish();
        for line in [
            "millrace_connections{shard=\"1\"} 5",
            "millrace_requests_total{api=\"Produce\"} 4",
            "millrace_request_seconds_count{api=\"Produce\"} 2",
            "millrace_request_seconds_sum{api=\"Produce\"} 0.008",
            "millrace_errors_total{api=\"Produce\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"} 1",
            "millrace_errors_total{api=\"Produce\",error=\"error code 9999\"} 1",
            "millrace_groups{type=\"classic\",state=\"Stable\"} 6",
            "millrace_transactional_ids{state=\"Ongoing\"} 4",
            "millrace_disk_full{shard=\"0\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let p50 = text.lines().find(|line| line.contains("_recent_seconds{api=\"Produce\",quantile=\"0.5\"}"));
        let p50: f64 = p50.and_then(|line| line.rsplit_once(' ')).expect("a sample").1.parse().expect("a number");
        assert!((0.0039..0.0041).contains(&p50), "{p50}");
    }
}
