"""Readers of what is committed, from the start to the ends of all partitions."""

import time

from confluent_kafka import Consumer, KafkaError, TopicPartition


def settings(broker):
    """Settings of a reader of committed records that is in no group."""
    return {"bootstrap.servers": broker, "group.id": "unused", "enable.auto.commit": False, "log_level": 0,
            "isolation.level": "read_committed", "auto.offset.reset": "earliest", "reconnect.backoff.max.ms": 500}


def read(broker, topics, partitions, patience, take):
    """Hands everything that is committed to `take`: topic, partition, offset and value. RuntimeError when the ends are not
    reached within the time."""
    consumer = Consumer({**settings(broker), "enable.partition.eof": True})
    left = {(topic, partition) for topic in topics for partition in range(partitions)}
    consumer.assign([TopicPartition(*place, 0) for place in left])
    deadline = time.monotonic() + patience
    try:
        while left and time.monotonic() < deadline:
            for message in consumer.consume(1000, 1):
                if message.error() and message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard((message.topic(), message.partition()))
                elif not message.error():
                    take(message.topic(), message.partition(), message.offset(), message.value().decode())
    finally:
        consumer.close()
    if left:
        raise RuntimeError(f"{sorted(left)} cannot be read to their ends")


def read_all(broker, topics, partitions, patience):
    """Everything that is committed: (offset, value) by (topic, partition)."""
    log = {(topic, partition): [] for topic in topics for partition in range(partitions)}
    read(broker, topics, partitions, patience, lambda topic, partition, *record: log[topic, partition].append(record))
    return log
