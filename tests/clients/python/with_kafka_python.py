"""kafka-python against a broker."""

import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from steps import BROKER, GROUPS, RUN, expect, run_steps

admin = KafkaAdminClient(bootstrap_servers=BROKER)


def new_topic(name, partitions=1, config=None):
    topic = f"kafka-python-{RUN}-{name}"
    admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1, topic_configs=config or {})])
    return topic


def produce(topic, records, **config):
    producer = KafkaProducer(bootstrap_servers=BROKER, linger_ms=20, **config)
    futures = [
        producer.send(topic, value=value, key=key, headers=headers, partition=0, timestamp_ms=timestamp)
        for key, value, headers, timestamp in records
    ]
    offsets = [future.get(timeout=60).offset for future in futures]
    producer.close()
    return offsets


def read(topic, start, count, partition=0):
    consumer = KafkaConsumer(bootstrap_servers=BROKER, group_id=None, enable_auto_commit=False)
    part = TopicPartition(topic, partition)
    consumer.assign([part])
    consumer.seek(part, start)
    messages = []
    deadline = time.time() + 60
    while len(messages) < count and time.time() < deadline:
        for batch in consumer.poll(timeout_ms=1000).values():
            messages.extend(batch)
    consumer.close()
    return messages[:count]


def values(n, size=200):
    return [(f"k{i}".encode(), f"{i}-".encode() + b"x" * size, [], None) for i in range(n)]


def codec(name):
    def step():
        topic = new_topic(f"codec-{name}")
        records = values(1000)
        produce(topic, records, compression_type=None if name == "none" else name)
        back = [(m.offset, m.key, m.value) for m in read(topic, 0, len(records))]
        expect(back, [(i, r[0], r[1]) for i, r in enumerate(records)])

    return step


def keys_and_headers():
    topic = new_topic("headers")
    records = [
        (b"key", b"value", [("a", b"1"), ("b", b"\x00\xff"), ("a", b"2")], None),
        (None, b"no key", [], None),
        (b"no value", None, [], None),
    ]
    produce(topic, records)
    back = [(m.key, m.value, list(m.headers)) for m in read(topic, 0, len(records))]
    expect(back, [record[:3] for record in records])


def by_offset():
    topic = new_topic("offset")
    expect(produce(topic, values(100)), list(range(100)))
    expect([m.offset for m in read(topic, 57, 3)], [57, 58, 59])


def by_timestamp():
    topic = new_topic("timestamp")
    base = int(time.time() * 1000) - 100_000
    produce(topic, [(None, b"x", [], base + i * 1000) for i in range(20)])
    consumer = KafkaConsumer(bootstrap_servers=BROKER, group_id=None)
    part = TopicPartition(topic, 0)
    found = consumer.offsets_for_times({part: base + 4_001})[part]
    expect((found.offset, found.timestamp), (5, base + 5_000))
    expect(consumer.offsets_for_times({part: base + 19_001})[part], None)
    expect((consumer.beginning_offsets([part])[part], consumer.end_offsets([part])[part]), (0, 20))
    consumer.close()


def idempotent():
    topic = new_topic("idempotent")
    records = values(2000, 20)
    expect(produce(topic, records, enable_idempotence=True, batch_size=1000), list(range(2000)))
    expect([m.value for m in read(topic, 0, 2000)], [r[1] for r in records])


def administration():
    topic = new_topic("admin", 3)
    try:
        new_topic("admin", 3)
        raise AssertionError("a topic was created twice")
    except TopicAlreadyExistsError:
        pass
    [found] = admin.describe_topics([topic])
    expect(len(found["partitions"]), 3)
    admin.delete_topics([topic])
    deadline = time.time() + 30
    while topic in admin.list_topics():
        if time.time() > deadline:
            raise AssertionError("a deleted topic is still there")
        time.sleep(0.1)


def too_large_is_refused():
    topic = new_topic("large", config={"max.message.bytes": "10000"})
    try:
        produce(topic, [(None, b"x" * 50_000, [], None)], retries=0)
    except KafkaError:
        return
    raise AssertionError("a record above max.message.bytes was taken")


def group():
    topic = new_topic("group", 4)
    producer = KafkaProducer(bootstrap_servers=BROKER)
    for i in range(200):
        producer.send(topic, str(i).encode(), partition=i % 4)
    producer.flush()
    seen = []
    for count in (120, 80):
        consumer = KafkaConsumer(topic, bootstrap_servers=BROKER, group_id=f"kafka-python-{RUN}", auto_offset_reset="earliest", enable_auto_commit=False, max_poll_records=10)
        deadline = time.time() + 60
        taken = 0
        while taken < count and time.time() < deadline:
            for batch in consumer.poll(timeout_ms=1000).values():
                seen += [int(m.value) for m in batch]
                taken += len(batch)
            consumer.commit()
        consumer.close()
    expect(sorted(seen), list(range(200)))


STEPS = [
    ("admin", administration),
    *[(f"codec-{name}", codec(name)) for name in ("none", "gzip", "snappy", "lz4", "zstd")],
    ("keys-and-headers", keys_and_headers),
    ("by-offset", by_offset),
    ("by-timestamp", by_timestamp),
    ("idempotent", idempotent),
    ("too-large-is-refused", too_large_is_refused),
]
if "classic" in GROUPS:
    STEPS.append(("group-classic", group))
run_steps("kafka-python", STEPS)
