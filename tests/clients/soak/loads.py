"""What clients of several makes do to a broker; whoever waits for answers tells Waits."""

import os
import re
import socket
import struct
import subprocess
import threading
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from broker import die_with_parent

JAVA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "java", "run")
# A client gives up long after the bound of a wait: what is measured is the broker, not the client's patience.
PATIENCE = 60
LARGE_BYTES = 8 << 20


class Wrong(Exception):
    """A client got what it should not have got."""


class Clients:
    """Everything that one life of the soak starts, on one broker."""

    def __init__(self, address, bench, waits, random):
        self.address, self.bench, self.waits, self.random = address, bench, waits, random
        self.config = {"bootstrap.servers": address, "broker.address.ttl": 1000, "log_level": 0}
        self.admin = AdminClient(self.config)

    def create(self, topic, partitions, config):
        """A topic with settings."""
        with self.waits.answer("create topic"):
            self.admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(PATIENCE)

    def delete(self, topic):
        """A topic goes, with all that it holds."""
        with self.waits.answer("delete topic"):
            self.admin.delete_topics([topic])[topic].result(PATIENCE)

    def java(self, topic, seconds, size):
        """Kafka's own producer."""
        said = self._run("java", seconds, [JAVA, self.address, "Load", topic, f"{seconds:.1f}", str(size)])
        self._note("java", said, r"longest wait ([0-9]+) ms")

    def lean(self, topic, seconds, size):
        """millrace-bench: no client library between the measurement and the socket."""
        said = self._run("lean", seconds, [
            self.bench, "produce", "--brokers", self.address, "--topic", topic, "--connections", "4", "--in-flight", "5",
            "--warmup", "0", "--duration", f"{seconds:.1f}", "--record-size", str(size),
            "--records-per-batch", str(max(4, 16_000 // size)), "--timeout", str(PATIENCE),
            "--drain", str(PATIENCE), "--no-verify"])
        self._note("lean", said, r"latency max ms +([0-9.]+)")
        if not re.search(r"produce errors +0\b", said):
            raise Wrong(f"millrace-bench had requests refused:\n{said}")

    def librdkafka(self, topic, seconds, size):
        """confluent-kafka: produces, and reads back what became of it, in order."""
        with self.waits.flow("librdkafka") as flow:
            firsts, counts = self._produce(topic, seconds, size, flow)
        self._read_back(topic, firsts, counts)

    def _produce(self, topic, seconds, size, flow):
        """Answers first offset and number of records by partition."""
        firsts, counts, wrong = {}, {}, []

        def delivered(error, message):
            flow.answered()
            partition, offset = message.partition(), message.offset()
            if error is not None:
                wrong.append(str(error))
            elif offset != firsts.setdefault(partition, offset) + counts.get(partition, 0):
                wrong.append(f"offset {offset} of {topic}-{partition} out of order")
            counts[partition] = counts.get(partition, 0) + 1

        producer = Producer({**self.config, "linger.ms": 5, "enable.idempotence": True,
                             "queue.buffering.max.kbytes": 16 << 10, "delivery.timeout.ms": PATIENCE * 1000})
        partitions = len(producer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions)
        padding, sent, end = os.urandom(size), [0] * partitions, time.monotonic() + seconds
        while time.monotonic() < end:
            partition = self.random.randrange(partitions)
            try:
                producer.produce(topic, b"%d-%b" % (sent[partition], padding), partition=partition, on_delivery=delivered)
            except BufferError:
                producer.poll(0.1)
                continue
            sent[partition] += 1
            flow.sent()
            producer.poll(0)
        if producer.flush(PATIENCE) != 0:
            raise Wrong(f"librdkafka waits for {flow.due} records after {PATIENCE} s")
        if wrong:
            raise Wrong(f"librdkafka: {len(wrong)} records, {wrong[0]}")
        return firsts, counts

    def _read_back(self, topic, firsts, counts):
        consumer = Consumer({**self.config, "group.id": "unused", "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in firsts.items()])
            due, got = sum(counts.values()), dict.fromkeys(counts, 0)
            while due > 0:
                with self.waits.answer("librdkafka reading"):
                    messages = consumer.consume(min(1000, due), PATIENCE)
                if not messages:
                    raise Wrong(f"{due} acknowledged records of {topic} cannot be read")
                for message in messages:
                    if message.error():
                        raise KafkaException(message.error())
                    expected = got[message.partition()]
                    if expected < counts[message.partition()]:
                        if not message.value().startswith(b"%d-" % expected):
                            raise Wrong(f"record {expected} of {topic}-{message.partition()} is {message.value()[:9]}")
                        got[message.partition()] += 1
                        due -= 1
        finally:
            consumer.close()

    def large(self, topic, count):
        """A few requests that are as large as one of theirs may get."""
        producer = Producer({**self.config, "message.max.bytes": LARGE_BYTES * 2, "delivery.timeout.ms": PATIENCE * 1000})
        refused = []
        for _ in range(count):
            with self.waits.answer("large request"):
                producer.produce(topic, os.urandom(LARGE_BYTES), on_delivery=lambda error, _: error and refused.append(error))
                producer.flush(PATIENCE)
        if refused:
            raise Wrong(f"a large request is refused: {refused[0]}")

    def _run(self, who, seconds, command):
        """What a program says that has a load of that many seconds to do; one that fails has waited all the time beyond."""
        began, status = time.monotonic(), None
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              preexec_fn=die_with_parent) as process:
            try:
                said, _ = process.communicate(timeout=2 * PATIENCE)
                status = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
        if status != 0:
            self.waits.saw(who, time.monotonic() - began - seconds)
            raise Wrong(f"{who} " + ("got nowhere" if status is None else f"ended with status {status}") + f":\n{said[-2000:]}")
        return said

    def _note(self, who, said, pattern):
        found = re.search(pattern, said)
        if found is None:
            raise Wrong(f"{who} does not say how long it waited:\n{said[-2000:]}")
        self.waits.saw(who, float(found[1]) / 1000)


class Quiet:
    """A topic whose partitions get a record now and then, and a member of a group that commits now and then."""

    TOPIC, PARTITIONS = "quiet", 16

    def __init__(self, clients):
        self.clients = clients
        self.written, self.read = [0] * self.PARTITIONS, [0] * self.PARTITIONS
        self.producer = Producer({**clients.config, "enable.idempotence": True, "delivery.timeout.ms": PATIENCE * 1000})
        self.consumer = Consumer({**clients.config, "group.id": "quiet", "enable.auto.commit": False,
                                  "auto.offset.reset": "earliest"})
        self.consumer.subscribe([self.TOPIC])

    def record(self, partition):
        """One more."""
        refused, value = [], b"%d" % self.written[partition]
        with self.clients.waits.answer("quiet record"):
            self.producer.produce(self.TOPIC, value, partition=partition,
                                  on_delivery=lambda error, _: error and refused.append(error))
            left = self.producer.flush(PATIENCE)
        if left or refused:
            raise Wrong(f"a quiet record is not taken: {refused or 'no answer'}")
        self.written[partition] += 1

    def commit(self):
        """Reads what there is, and commits that if it is something new."""
        if self.read == self.written:
            return
        while self.read != self.written:
            with self.clients.waits.answer("group reading"):
                message = self.consumer.poll(PATIENCE)
            if message is None:
                raise Wrong(f"quiet records cannot be read: written {self.written}, read {self.read}")
            if message.error():
                raise KafkaException(message.error())
            partition, value = message.partition(), b"%d" % self.read[message.partition()]
            if message.value() != value:
                raise Wrong(f"quiet record {value} of partition {partition} is {message.value()}")
            self.read[partition] += 1
        with self.clients.waits.answer("commit"):
            self.consumer.commit(asynchronous=False)

    def close(self):
        """The member leaves."""
        self.consumer.close()


class SlowReader(threading.Thread):
    """Asks for much of a topic, again and again, and takes a little at a time off the socket."""

    def __init__(self, address, topic):
        super().__init__(daemon=True)
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        self.topic, self.over = topic.encode(), threading.Event()

    def run(self):
        try:
            self.socket.sendall(b"".join(self._fetch(i) for i in range(8)))
            while not self.over.wait(0.1) and self.socket.recv(16 << 10):
                pass
        except OSError:
            pass  # who reads like this may be disconnected
        finally:
            self.socket.close()

    def _fetch(self, correlation):
        """Fetch version 4 of partition 0 from its start."""
        topic = struct.pack(">h", len(self.topic)) + self.topic
        body = struct.pack(">iiiib", -1, 1000, 1, 32 << 20, 0) + struct.pack(">i", 1) + topic
        body += struct.pack(">iiqi", 1, 0, 0, 32 << 20)
        frame = struct.pack(">hhih", 1, 4, correlation, -1) + body
        return struct.pack(">i", len(frame)) + frame

    def stop(self):
        """Ends it, wherever it waits."""
        self.over.set()
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended by itself
        self.join()
