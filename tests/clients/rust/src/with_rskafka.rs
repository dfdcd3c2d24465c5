//! rskafka: no groups, no idempotence, batches exactly as the caller hands them over.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use rskafka::{
    client::{
        Client, ClientBuilder,
        partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling},
    },
    record::{Record, RecordAndOffset},
};

use crate::{Steps, expect};

pub async fn all(steps: &mut Steps) {
    let s = steps.clone();
    steps.step("admin", administration(&s)).await;
    let codecs = [
        ("none", Compression::NoCompression),
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ];
    for (name, compression) in codecs {
        steps.step(&format!("codec-{name}"), codec(&s, name, compression)).await;
    }
    steps.step("keys-and-headers", keys_and_headers(&s)).await;
    steps.step("by-offset", by_offset(&s)).await;
    steps.step("by-timestamp", by_timestamp(&s)).await;
    steps.step("delete-records", delete_records(&s)).await;
}

async fn client(steps: &Steps) -> anyhow::Result<Client> {
    Ok(ClientBuilder::new(vec![steps.broker.clone()]).build().await?)
}

async fn new_topic(steps: &Steps, name: &str) -> anyhow::Result<PartitionClient> {
    let (client, topic) = (client(steps).await?, steps.topic(name));
    client.controller_client()?.create_topic(&topic, 1, 1, 30_000).await?;
    Ok(client.partition_client(topic, 0, UnknownTopicHandling::Retry).await?)
}

fn record(key: &str, value: &str, timestamp_ms: i64) -> Record {
    Record {
        key: Some(key.into()),
        value: Some(value.into()),
        headers: BTreeMap::new(),
        timestamp: DateTime::from_timestamp_millis(timestamp_ms).expect("a legal time"),
    }
}

fn records(n: usize, size: usize) -> Vec<Record> {
    let now = Utc::now().timestamp_millis();
    (0..n).map(|i| record(&format!("k{i}"), &format!("{i}-{}", "x".repeat(size)), now)).collect()
}

async fn read(partition: &PartitionClient, from: i64, count: usize) -> anyhow::Result<Vec<RecordAndOffset>> {
    let mut back: Vec<RecordAndOffset> = Vec::new();
    while back.len() < count {
        let next = back.last().map_or(from, |record| record.offset + 1);
        back.extend(partition.fetch_records(next, 1..100_000, 1_000).await?.0);
    }
    back.truncate(count);
    Ok(back)
}

async fn codec(steps: &Steps, name: &str, compression: Compression) -> anyhow::Result<()> {
    let partition = new_topic(steps, &format!("codec-{name}")).await?;
    let sent = records(1_000, 200);
    for (i, batch) in sent.chunks(100).enumerate() {
        let offsets = partition.produce(batch.to_vec(), compression).await?;
        expect(offsets, (i as i64 * 100..(i as i64 + 1) * 100).collect())?;
    }
    let back = read(&partition, 0, sent.len()).await?;
    let expected = sent.into_iter().enumerate().map(|(i, record)| RecordAndOffset { record, offset: i as i64 });
    expect(back, expected.collect())
}

async fn keys_and_headers(steps: &Steps) -> anyhow::Result<()> {
    let partition = new_topic(steps, "headers").await?;
    let mut sent = records(3, 5);
    sent[0].headers =
        BTreeMap::from([("a".into(), b"1".to_vec()), ("b".into(), vec![0, 255]), (String::new(), vec![])]);
    sent[1].key = None;
    sent[2].value = None;
    partition.produce(sent.clone(), Compression::NoCompression).await?;
    let back = read(&partition, 0, 3).await?;
    expect(back.into_iter().map(|back| back.record).collect(), sent)
}

async fn by_offset(steps: &Steps) -> anyhow::Result<()> {
    let partition = new_topic(steps, "offset").await?;
    partition.produce(records(100, 10), Compression::NoCompression).await?;
    let back = read(&partition, 57, 3).await?;
    expect(back.iter().map(|back| back.offset).collect(), vec![57, 58, 59])?;
    expect(partition.get_offset(OffsetAt::Earliest).await?, 0)?;
    expect(partition.get_offset(OffsetAt::Latest).await?, 100)
}

async fn by_timestamp(steps: &Steps) -> anyhow::Result<()> {
    let partition = new_topic(steps, "timestamp").await?;
    let base = Utc::now().timestamp_millis() - 100_000;
    let sent = (0..20).map(|i| record("k", "v", base + i * 1_000)).collect();
    partition.produce(sent, Compression::NoCompression).await?;
    let at = |ms| OffsetAt::Timestamp(DateTime::from_timestamp_millis(base + ms).expect("a legal time"));
    expect(partition.get_offset(at(4_001)).await?, 5)?;
    expect(partition.get_offset(at(0)).await?, 0)
}

async fn delete_records(steps: &Steps) -> anyhow::Result<()> {
    let partition = new_topic(steps, "delete-records").await?;
    partition.produce(records(100, 10), Compression::NoCompression).await?;
    partition.delete_records(40, 30_000).await?;
    expect(partition.get_offset(OffsetAt::Earliest).await?, 40)
}

async fn administration(steps: &Steps) -> anyhow::Result<()> {
    let (client, topic) = (client(steps).await?, steps.topic("admin"));
    let controller = client.controller_client()?;
    controller.create_topic(&topic, 3, 1, 30_000).await?;
    anyhow::ensure!(controller.create_topic(&topic, 3, 1, 30_000).await.is_err(), "created twice");
    while !client.list_topics().await?.iter().any(|found| found.name == topic && found.partitions.len() == 3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    controller.delete_topic(&topic, 30_000).await?;
    while client.list_topics().await?.iter().any(|found| found.name == topic) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
