"""confluent-kafka against a broker."""

import time

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    OFFSET_BEGINNING,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)
from steps import BROKER, GROUPS, RUN, expect, run_steps

admin = AdminClient({"bootstrap.servers": BROKER})


def wait(futures):
    return {name: future.result(30) for name, future in futures.items()}


def new_topic(name, partitions=1, config=None):
    topic = f"confluent-{RUN}-{name}"
    wait(admin.create_topics([NewTopic(topic, partitions, 1, config=config or {})]))
    return topic


def produce(topic, records, **config):
    """Produces (key, value, headers, timestamp) to partition 0; answers the offsets."""
    offsets = []

    def delivered(error, message):
        if error is not None:
            raise KafkaException(error)
        offsets.append(message.offset())

    producer = Producer({"bootstrap.servers": BROKER, "linger.ms": 20, **{k.replace("_", "."): v for k, v in config.items()}})
    for key, value, headers, timestamp in records:
        producer.produce(topic, value, key, partition=0, headers=headers, timestamp=timestamp, on_delivery=delivered)
        producer.poll(0)
    expect(producer.flush(60), 0)
    return offsets


def read(topic, start, count, partition=0):
    consumer = Consumer({"bootstrap.servers": BROKER, "group.id": f"unused-{RUN}", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, start)])
    messages = []
    deadline = time.time() + 60
    while len(messages) < count and time.time() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        messages.append(message)
    consumer.close()
    expect(len(messages), count)
    return messages


def values(n, size=200):
    return [(f"k{i}".encode(), f"{i}-".encode() + b"x" * size, None, 0) for i in range(n)]


def codec(name):
    def step():
        topic = new_topic(f"codec-{name}")
        records = values(2000)
        produce(topic, records, compression_type=name)
        back = [(m.offset(), m.key(), m.value()) for m in read(topic, OFFSET_BEGINNING, len(records))]
        expect(back, [(i, r[0], r[1]) for i, r in enumerate(records)])

    return step


def keys_and_headers():
    topic = new_topic("headers")
    records = [
        (b"key", b"value", [("a", b"1"), ("b", b"\x00\xff"), ("a", b"2"), ("none", None), ("", b"")], 0),
        (None, b"no key", None, 0),
        (b"no value", None, None, 0),
        (b"", b"", [], 0),
        ("schlüssel".encode(), "wert €".encode(), [("kopf", "zeile ü".encode())], 0),
    ]
    produce(topic, records)
    back = [(m.key(), m.value(), m.headers() or []) for m in read(topic, OFFSET_BEGINNING, len(records))]
    expect(back, [(key, value, headers or []) for key, value, headers, _ in records])


def by_offset():
    topic = new_topic("offset")
    expect(produce(topic, values(100)), list(range(100)))
    expect([m.offset() for m in read(topic, 57, 3)], [57, 58, 59])


def by_timestamp():
    topic = new_topic("timestamp")
    base = int(time.time() * 1000) - 100_000
    produce(topic, [(None, str(i).encode(), None, base + i * 1000) for i in range(10)])
    produce(topic, [(None, str(i).encode(), None, base + i * 1000) for i in range(10, 20)])
    consumer = Consumer({"bootstrap.servers": BROKER, "group.id": "unused"})
    for asked, found in [(base, 0), (base + 4_001, 5), (base + 15_000, 15), (base - 5_000, 0), (base + 19_001, -1)]:
        [answer] = consumer.offsets_for_times([TopicPartition(topic, 0, asked)], timeout=30)
        expect((asked - base, answer.offset), (asked - base, found))
    consumer.close()
    [message] = read(topic, 5, 1)
    expect(message.timestamp()[1], base + 5_000)


def list_offsets():
    topic = new_topic("list-offsets")
    base = int(time.time() * 1000) - 50_000
    produce(topic, [(None, b"x", None, base + 1000 * ((i * 7) % 10)) for i in range(10)])
    part = TopicPartition(topic, 0)
    for spec, offset in [(OffsetSpec.earliest(), 0), (OffsetSpec.latest(), 10), (OffsetSpec.max_timestamp(), 7)]:
        [result] = wait(admin.list_offsets({part: spec})).values()
        expect(result.offset, offset)


def idempotent():
    topic = new_topic("idempotent")
    records = values(5000, 50)
    expect(produce(topic, records, enable_idempotence=True, batch_num_messages=50), list(range(5000)))
    expect([m.value() for m in read(topic, OFFSET_BEGINNING, 5000)], [r[1] for r in records])


def administration():
    topic = new_topic("admin", 3, {"retention.ms": "7200000"})
    try:
        new_topic("admin")
        raise AssertionError("a topic was created twice")
    except KafkaException as error:
        expect(error.args[0].code(), KafkaError.TOPIC_ALREADY_EXISTS)
    expect(len(admin.list_topics(topic, timeout=30).topics[topic].partitions), 3)
    wait(admin.create_partitions([NewPartitions(topic, 5)]))
    expect(len(admin.list_topics(topic, timeout=30).topics[topic].partitions), 5)
    resource = ConfigResource(ResourceType.TOPIC, topic)
    [configs] = wait(admin.describe_configs([resource])).values()
    expect(configs["retention.ms"].value, "7200000")
    entry = ConfigEntry("max.message.bytes", "300000", incremental_operation=AlterConfigOpType.SET)
    wait(admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]))
    [configs] = wait(admin.describe_configs([resource])).values()
    expect((configs["retention.ms"].value, configs["max.message.bytes"].value), ("7200000", "300000"))
    wait(admin.delete_topics([topic]))
    deadline = time.time() + 30
    while topic in admin.list_topics(timeout=30).topics:
        if time.time() > deadline:
            raise AssertionError("a deleted topic is still there")
        time.sleep(0.1)


def delete_records():
    topic = new_topic("delete-records")
    produce(topic, values(100))
    [result] = wait(admin.delete_records([TopicPartition(topic, 0, 40)])).values()
    expect(result.low_watermark, 40)
    consumer = Consumer({"bootstrap.servers": BROKER, "group.id": "unused"})
    expect(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30), (40, 100))
    consumer.close()
    expect(read(topic, OFFSET_BEGINNING, 1)[0].offset(), 40)


def too_large_is_refused():
    topic = new_topic("large", config={"max.message.bytes": "10000"})
    try:
        produce(topic, [(None, b"x" * 50_000, None, 0)])
        raise AssertionError("a record above max.message.bytes was taken")
    except KafkaException as error:
        expect(error.args[0].code(), KafkaError.MSG_SIZE_TOO_LARGE)


def group(protocol):
    def step():
        topic = new_topic(f"group-{protocol}", 4)
        producer = Producer({"bootstrap.servers": BROKER})
        for i in range(200):
            producer.produce(topic, str(i), partition=i % 4)
        expect(producer.flush(30), 0)
        config = {"bootstrap.servers": BROKER, "group.id": f"confluent-{RUN}-{protocol}", "auto.offset.reset": "earliest", "enable.auto.commit": False, "group.protocol": protocol}
        seen = []
        for count in (120, 80):
            consumer = Consumer(config)
            consumer.subscribe([topic])
            deadline = time.time() + 60
            taken = 0
            while taken < count and time.time() < deadline:
                message = consumer.poll(1)
                if message is not None and not message.error():
                    seen.append(int(message.value()))
                    consumer.commit(message, asynchronous=False)
                    taken += 1
            consumer.close()
        expect(sorted(seen), list(range(200)))

    return step


def transactional(name, **config):
    producer = Producer({"bootstrap.servers": BROKER, "transactional.id": f"confluent-{RUN}-{name}", **config})
    producer.init_transactions(60)
    return producer


def send(producer, topic, numbers, partition=0):
    for number in numbers:
        producer.produce(topic, str(number), partition=partition)


def read_all(topic, isolation, partition=0):
    """Values of everything up to the end that this isolation level shows."""
    config = {"bootstrap.servers": BROKER, "group.id": f"unused-{RUN}", "enable.auto.commit": False}
    consumer = Consumer({**config, "isolation.level": isolation, "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
    values, deadline = [], time.time() + 60
    while time.time() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error() and message.error().code() == KafkaError._PARTITION_EOF:
            consumer.close()
            return values
        if message.error():
            raise KafkaException(message.error())
        values.append(int(message.value()))
    raise AssertionError(f"no end after {len(values)} records")


def settled(topic, end, partition=0):
    """Kafka answers a commit before its markers are written: waits until they are."""
    deadline = time.time() + 30
    while time.time() < deadline:
        [found] = wait(admin.list_offsets({TopicPartition(topic, partition): OffsetSpec.latest()}, isolation_level=IsolationLevel.READ_COMMITTED)).values()
        if found.offset >= end:
            return
        time.sleep(0.02)
    raise AssertionError(f"offset {end} is never stable")


def transactions():
    topic = new_topic("transactions")
    producer = transactional("plain", **{"batch.num.messages": 20})
    producer.begin_transaction()
    send(producer, topic, range(100))
    producer.commit_transaction(60)
    producer.begin_transaction()
    send(producer, topic, range(100, 200))
    producer.flush(60)
    producer.abort_transaction(60)
    producer.begin_transaction()
    send(producer, topic, range(200, 300))
    producer.flush(60)
    settled(topic, 202)
    expect(read_all(topic, "read_committed"), list(range(100)))
    expect(read_all(topic, "read_uncommitted"), list(range(300)))
    producer.commit_transaction(60)
    settled(topic, 303)
    expect(read_all(topic, "read_committed"), [*range(100), *range(200, 300)])


def transactions_back_to_back():
    topic = new_topic("back-to-back", 3)
    producer, expected = transactional("back-to-back"), []
    for i in range(150):
        producer.begin_transaction()
        if i % 5 != 4:
            for partition in range(3):
                send(producer, topic, [i], partition)
        if i % 2 == 0:
            producer.commit_transaction(60)
            expected += [i] if i % 5 != 4 else []
        else:
            producer.abort_transaction(60)
    for partition in range(3):
        expect(read_all(topic, "read_committed", partition), expected)


def transactions_fenced():
    topic = new_topic("fenced")
    zombie = transactional("fenced")
    zombie.begin_transaction()
    send(zombie, topic, range(10))
    zombie.flush(60)
    successor = transactional("fenced")
    successor.begin_transaction()
    send(successor, topic, range(10, 20))
    successor.commit_transaction(60)
    try:
        send(zombie, topic, range(20, 30))
        zombie.commit_transaction(60)
        raise AssertionError("a producer committed whose id was another's already")
    except KafkaException as error:
        expect(error.args[0].code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError._STATE), True)
    settled(topic, 12)
    expect(read_all(topic, "read_committed"), list(range(10, 20)))


def transactions_group(protocol):
    """Every input once, though every third transaction is aborted and members come and go."""

    def step():
        source, sink = new_topic(f"in-{protocol}", 3), new_topic(f"out-{protocol}")
        feeder = Producer({"bootstrap.servers": BROKER})
        for i in range(300):
            feeder.produce(source, str(i), partition=i % 3)
        expect(feeder.flush(30), 0)
        config = {"bootstrap.servers": BROKER, "group.id": f"confluent-{RUN}-ctp-{protocol}", "auto.offset.reset": "earliest", "enable.auto.commit": False, "group.protocol": protocol, "isolation.level": "read_committed"}
        rounds, done = 0, 0
        for member in range(3):
            consumer, producer = Consumer(config), transactional(f"ctp-{protocol}")
            consumer.subscribe([source])
            # the first two members leave in the middle
            goal, deadline = done + 80 if member < 2 else 300, time.time() + 60
            while done < goal and time.time() < deadline:
                messages = [message for message in consumer.consume(20, 1) if not message.error()]
                if not messages:
                    continue
                producer.begin_transaction()
                for message in messages:
                    producer.produce(sink, message.value(), partition=0)
                offsets = consumer.position(consumer.assignment())
                producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 60)
                rounds += 1
                if rounds % 3 == 0:
                    producer.abort_transaction(60)
                    for committed in consumer.committed(consumer.assignment(), 30):
                        committed.offset = max(committed.offset, 0)
                        consumer.seek(committed)
                else:
                    producer.commit_transaction(60)
                    done += len(messages)
            consumer.close()
        expect(sorted(read_all(sink, "read_committed")), list(range(300)))

    return step


STEPS = [
    ("admin", administration),
    *[(f"codec-{name}", codec(name)) for name in ("none", "gzip", "snappy", "lz4", "zstd")],
    ("keys-and-headers", keys_and_headers),
    ("by-offset", by_offset),
    ("by-timestamp", by_timestamp),
    ("list-offsets", list_offsets),
    ("idempotent", idempotent),
    ("delete-records", delete_records),
    ("too-large-is-refused", too_large_is_refused),
    ("transactions", transactions),
    ("transactions-back-to-back", transactions_back_to_back),
    ("transactions-fenced", transactions_fenced),
]
STEPS += [(f"group-{protocol}", group(protocol)) for protocol in GROUPS]
STEPS += [(f"transactions-group-{protocol}", transactions_group(protocol)) for protocol in GROUPS]
run_steps("confluent-kafka", STEPS)
