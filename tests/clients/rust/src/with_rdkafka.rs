//! rdkafka: librdkafka as Rust programs use it.

use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::future::try_join_all;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer, StreamConsumer},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord, Producer},
};

use crate::{Steps, expect};

const WAIT: Duration = Duration::from_secs(30);

pub async fn all(steps: &mut Steps, groups: bool) {
    let s = steps.clone();
    steps.step("admin", administration(&s)).await;
    for name in ["none", "gzip", "snappy", "lz4", "zstd"] {
        steps.step(&format!("codec-{name}"), codec(&s, name)).await;
    }
    steps.step("keys-and-headers", keys_and_headers(&s)).await;
    steps.step("by-timestamp", by_timestamp(&s)).await;
    steps.step("idempotent", idempotent(&s)).await;
    if groups {
        steps.step("group-classic", group(&s)).await;
    }
}

fn config(steps: &Steps) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &steps.broker).set("linger.ms", "20");
    config.set("group.id", format!("rdkafka-{}", steps.run)).set("enable.auto.commit", "false");
    config
}

async fn new_topic(steps: &Steps, name: &str, partitions: i32) -> anyhow::Result<String> {
    let admin: AdminClient<DefaultClientContext> = config(steps).create()?;
    let topic = steps.topic(name);
    let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
    for result in admin.create_topics(&[new], &AdminOptions::new().operation_timeout(Some(WAIT))).await? {
        result.map_err(|(topic, code)| anyhow!("create {topic}: {code}"))?;
    }
    Ok(topic)
}

async fn produce(config: &ClientConfig, topic: &str, values: &[String]) -> anyhow::Result<Vec<i64>> {
    let producer: FutureProducer = config.create()?;
    let send = |value: &String| {
        let record = FutureRecord::to(topic).partition(0).key("key").payload(value);
        let sent = producer.send_result(record).map_err(|(error, _)| error);
        async move { sent?.await?.map_err(|(error, _)| anyhow::Error::from(error)) }
    };
    let done = try_join_all(values.iter().map(send)).await?;
    producer.flush(WAIT)?;
    Ok(done.iter().map(|delivery| delivery.offset).collect())
}

async fn read(steps: &Steps, topic: &str, from: Offset, count: usize) -> anyhow::Result<Vec<OwnedMessage>> {
    let consumer: StreamConsumer = config(steps).create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, from)?;
    consumer.assign(&assignment)?;
    let mut back = Vec::new();
    while back.len() < count {
        back.push(consumer.recv().await?.detach());
    }
    Ok(back)
}

fn values(n: usize, size: usize) -> Vec<String> {
    (0..n).map(|i| format!("{i}-{}", "x".repeat(size))).collect()
}

fn payloads(messages: &[OwnedMessage]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8_lossy(m.payload().unwrap_or_default()).into_owned()).collect()
}

async fn codec(steps: &Steps, name: &str) -> anyhow::Result<()> {
    let topic = new_topic(steps, &format!("codec-{name}"), 1).await?;
    let sent = values(2_000, 200);
    let offsets = produce(config(steps).set("compression.type", name), &topic, &sent).await?;
    expect(offsets, (0..2_000).collect())?;
    expect(payloads(&read(steps, &topic, Offset::Beginning, sent.len()).await?), sent)
}

async fn keys_and_headers(steps: &Steps) -> anyhow::Result<()> {
    let topic = new_topic(steps, "headers", 1).await?;
    let producer: FutureProducer = config(steps).create()?;
    let header = |key, value| Header { key, value };
    let headers = OwnedHeaders::new().insert(header("a", Some("1"))).insert(header("a", Some("2")));
    let headers = headers.insert(header("none", None::<&str>));
    let first = FutureRecord::to(&topic).partition(0).key("key").payload("value").headers(headers);
    producer.send(first, WAIT).await.map_err(|(error, _)| error)?;
    let second: FutureRecord<'_, str, str> = FutureRecord::to(&topic).partition(0);
    producer.send(second, WAIT).await.map_err(|(error, _)| error)?;
    let back = read(steps, &topic, Offset::Beginning, 2).await?;
    let headers = back[0].headers().context("headers")?;
    let seen: Vec<_> = headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    let wanted = [("a", Some("1")), ("a", Some("2")), ("none", None)];
    expect(seen, wanted.map(|(key, value)| (key.to_owned(), value.map(|v: &str| v.into()))).into())?;
    expect((back[0].key(), back[0].payload()), (Some(&b"key"[..]), Some(&b"value"[..])))?;
    expect((back[1].key(), back[1].payload()), (None, None))
}

async fn by_timestamp(steps: &Steps) -> anyhow::Result<()> {
    let topic = new_topic(steps, "timestamp", 1).await?;
    let producer: FutureProducer = config(steps).create()?;
    let base = chrono::Utc::now().timestamp_millis() - 100_000;
    for i in 0..20 {
        let record = FutureRecord::to(&topic).partition(0).key("k").payload("v").timestamp(base + i * 1_000);
        producer.send(record, WAIT).await.map_err(|(error, _)| error)?;
    }
    let config = config(steps);
    let found = tokio::task::spawn_blocking(move || -> anyhow::Result<Offset> {
        let consumer: BaseConsumer = config.create()?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(&topic, 0, Offset::Offset(base + 4_001))?;
        let found = consumer.offsets_for_times(asked, WAIT)?;
        Ok(found.find_partition(&topic, 0).context("an answer")?.offset())
    });
    expect(found.await??, Offset::Offset(5))
}

async fn idempotent(steps: &Steps) -> anyhow::Result<()> {
    let topic = new_topic(steps, "idempotent", 1).await?;
    let sent = values(5_000, 20);
    let mut config = config(steps);
    let offsets = produce(config.set("enable.idempotence", "true").set("batch.num.messages", "50"), &topic, &sent);
    expect(offsets.await?, (0..5_000).collect())?;
    expect(payloads(&read(steps, &topic, Offset::Beginning, sent.len()).await?), sent)
}

async fn administration(steps: &Steps) -> anyhow::Result<()> {
    let topic = new_topic(steps, "admin", 3).await?;
    anyhow::ensure!(new_topic(steps, "admin", 3).await.is_err(), "created twice");
    let admin: AdminClient<DefaultClientContext> = config(steps).create()?;
    let partitions = |admin: &AdminClient<DefaultClientContext>| -> anyhow::Result<Option<usize>> {
        let metadata = admin.inner().fetch_metadata(None, WAIT)?;
        Ok(metadata.topics().iter().find(|found| found.name() == topic).map(|found| found.partitions().len()))
    };
    while partitions(&admin)? != Some(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for result in admin.delete_topics(&[&topic], &AdminOptions::new().operation_timeout(Some(WAIT))).await? {
        result.map_err(|(topic, code)| anyhow!("delete {topic}: {code}"))?;
    }
    while partitions(&admin)?.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn group(steps: &Steps) -> anyhow::Result<()> {
    let topic = new_topic(steps, "group", 1).await?;
    let sent = values(200, 1);
    produce(&config(steps), &topic, &sent).await?;
    let mut seen = Vec::new();
    for count in [120, 80] {
        let consumer: StreamConsumer = config(steps).set("auto.offset.reset", "earliest").create()?;
        consumer.subscribe(&[&topic])?;
        for _ in 0..count {
            let message = consumer.recv().await?;
            consumer.commit_message(&message, CommitMode::Sync)?;
            seen.push(message.detach());
        }
    }
    expect(payloads(&seen), sent)
}
