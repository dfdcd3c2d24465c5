"""Transactions while the broker is killed: run --binary PATH [--cluster] | --broker HOST:PORT [--seconds N] [--kills N]
[--seed N].

Writers of two makes, librdkafka (which adds partitions by asking) and Java (which adds them by producing), commit and abort
transactions over the partitions of one topic; three stages copy what another producer writes, each exactly once, with the
offsets of its group in the transaction. Readers of committed records watch. The broker is killed meanwhile, without
a word; of a cluster of three, one node at a time, or it stands still for longer than its lease. In the end everything is read, and `checker` says what is wrong. Prints "passed transactions" or "FAILED transactions".
"""

import argparse
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from confluent_kafka import Consumer, IsolationLevel, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "soak")]

from broker import Broker, die_with_parent  # noqa: E402
from checker import COMMITTED, UNKNOWN, Seen, Transaction, check  # noqa: E402
from cluster import NODES, Cluster  # noqa: E402

PARTITIONS = 4
STAGES = 3
# An open transaction of a worker that was stopped is aborted after ten seconds, and looked for as often.
PATIENCE = 90
# A stage of librdkafka that has copied nothing for so long is killed, and another one takes its ids over: this client may
# wait for ever for a group's coordinator that went away while offsets were sent to it. Longer than a member's session.
STUCK = 20


class Worker(threading.Thread):
    """A client's process; what it says is kept."""

    def __init__(self, name, command):
        super().__init__(daemon=True)
        self.name, self.lines = name, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        preexec_fn=die_with_parent)
        self.start()

    def run(self):
        for line in self.process.stdout:
            said = json.loads(line)
            self.lines.append(said)
            if "note" in said:
                print(f"    {self.name}: {said['note'][:200]}", file=sys.stderr)

    def kill(self):
        """Ends it without a word."""
        self.process.kill()
        self.process.wait()
        self.join(PATIENCE)

    def stop(self):
        """Lets it end what it has begun; what is wrong with how it ends, or None."""
        try:
            self.process.stdin.write("end\n")
            self.process.stdin.close()
            status = self.process.wait(PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.process.kill()
            return f"{self.name} does not end: {error}"
        self.join(PATIENCE)
        return None if status == 0 else f"{self.name} ended with status {status}"


class Stage(threading.Thread):
    """Workers that copy, one after the other: one that gets stuck is killed, as it may be killed at any time."""

    def __init__(self, make, begin):
        super().__init__(daemon=True)
        self.make, self.begin, self.over, self.killed = make, begin, threading.Event(), 0
        self.worker, self.heard, self.at = begin(), 0, time.monotonic()
        self.start()

    def run(self):
        while not self.over.wait(0.5):
            if len(self.worker.lines) > self.heard:
                self.heard, self.at = len(self.worker.lines), time.monotonic()
            elif self.make == "librdkafka" and time.monotonic() - self.at > STUCK:
                self.worker.kill()
                self.killed += 1
                self.worker, self.heard, self.at = self.begin(), 0, time.monotonic()

    def stop(self):
        """Ends it in the middle of whatever it does: there is nothing left to copy."""
        self.over.set()
        self.join(PATIENCE)
        self.worker.kill()


class Reader(threading.Thread):
    """Watches what is committed."""

    def __init__(self, name, broker, topics):
        super().__init__(daemon=True)
        self.name, self.seen, self.over, self.topics = name, [], threading.Event(), topics
        self.consumer = Consumer({**reading(broker), "reconnect.backoff.max.ms": 500})
        self.start()

    def run(self):
        self.consumer.assign([TopicPartition(topic, p, 0) for topic in self.topics for p in range(PARTITIONS)])
        while not self.over.is_set():
            for message in self.consumer.consume(200, 0.2):
                if not message.error():
                    place = (message.topic(), message.partition(), message.offset(), message.value().decode())
                    self.seen.append(Seen(self.name, time.monotonic(), *place))
        self.consumer.close()

    def stop(self):
        """Ends it."""
        self.over.set()
        self.join(PATIENCE)


class Feeder(threading.Thread):
    """Writes what the first stage copies: a number at a time, each once."""

    def __init__(self, broker, topic):
        super().__init__(daemon=True)
        self.topic, self.acknowledged, self.over, self.failed = topic, [], threading.Event(), []
        self.producer = Producer({"bootstrap.servers": broker, "enable.idempotence": True, "log_level": 0,
                                  "message.timeout.ms": 120_000, "reconnect.backoff.max.ms": 500})
        self.start()

    def run(self):
        number = 0
        while not self.over.is_set():
            self.producer.produce(self.topic, f"in-{number}", partition=number % PARTITIONS, on_delivery=self.delivered)
            number += 1
            self.producer.poll(0.005)
        if self.producer.flush(PATIENCE):
            self.failed.append("some of what was fed was never acknowledged")

    def delivered(self, error, message):
        """It is in the log, or not."""
        if error is not None:
            self.failed.append(f"feeding: {error}")
        else:
            self.acknowledged.append((message.partition(), message.value().decode()))

    def stop(self):
        """Ends it; what is wrong, one line each."""
        self.over.set()
        self.join(2 * PATIENCE)
        return self.failed


def reading(broker):
    """Settings of a reader of committed records that is in no group."""
    return {"bootstrap.servers": broker, "group.id": "unused", "enable.auto.commit": False, "log_level": 0,
            "isolation.level": "read_committed", "auto.offset.reset": "earliest"}


def stable(admin, topics):
    """Whether nothing is open: then everybody can read up to the end."""
    places = [TopicPartition(topic, p) for topic in topics for p in range(PARTITIONS)]
    ends = []
    for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
        found = admin.list_offsets({place: OffsetSpec.latest() for place in places}, isolation_level=level)
        ends.append([future.result(PATIENCE).offset for future in found.values()])
    return ends[0] == ends[1]


def read_all(broker, topics):
    """Everything that is committed: (offset, value) by (topic, partition)."""
    consumer = Consumer({**reading(broker), "enable.partition.eof": True})
    left = {(topic, p) for topic in topics for p in range(PARTITIONS)}
    log = {place: [] for place in left}
    consumer.assign([TopicPartition(*place, 0) for place in left])
    deadline = time.monotonic() + PATIENCE
    while left and time.monotonic() < deadline:
        for message in consumer.consume(1000, 1):
            place = (message.topic(), message.partition())
            if message.error() and message.error().code() == KafkaError._PARTITION_EOF:
                left.discard(place)
            elif not message.error():
                log[place].append((message.offset(), message.value().decode()))
    consumer.close()
    if left:
        raise RuntimeError(f"{sorted(left)} cannot be read to their ends")
    return log


def history(workers):
    """The transactions that writers tell of, by name."""
    transactions = {}
    for worker in workers:
        for said in worker.lines:
            number = said.get("transaction")
            if "writes" in said:
                transactions[number] = Transaction(worker.name, [tuple(write) for write in said["writes"]])
            elif said.get("state") == "committing":
                transactions[number].committing_at = said["at"]
            elif number is not None:
                transactions[number].state = said["state"]
    return transactions


def check_chain(fed, log, topics):
    """Each stage has everything that was fed, once, in its partition, in its order."""
    wrong = []
    expected = {p: [value for partition, value in fed if partition == p] for p in range(PARTITIONS)}
    for topic in topics:
        for partition, values in expected.items():
            found = [value for _, value in log[topic, partition]]
            if found == values:
                continue
            place = next((i for i, (a, b) in enumerate(zip(found, values)) if a != b), min(len(found), len(values)))
            wrong.append(f"chain: {topic} {partition} has {len(found)} of {len(values)} values, and from place {place} on "
                         f"{found[place:place + 3]} instead of {values[place:place + 3]}")
    return wrong


class Run:
    """One run against one broker."""

    def __init__(self, arguments, chance, broker, address):
        self.arguments, self.chance, self.broker, self.address = arguments, chance, broker, address
        self.admin = AdminClient({"bootstrap.servers": address, "reconnect.backoff.max.ms": 500, "log_level": 0})
        self.prefix = f"transactions-{chance.getrandbits(32):08x}"
        self.written = f"{self.prefix}-written"
        self.stages = [f"{self.prefix}-stage-{i}" for i in range(STAGES + 1)]

    def worker(self, make, kind, name, *rest):
        """A client's process, of a make."""
        name = f"{self.prefix}-{name}"
        seed = str(self.chance.getrandbits(31))
        if make == "java":
            command = [os.path.join(HERE, "..", "java", "run"), self.address, "TransactionWorker", kind, name, seed]
        else:
            command = [sys.executable, os.path.join(HERE, "worker.py"), kind, self.address, name, seed]
        return Worker(name, [*command, *rest])

    def stage(self, make, place):
        """A worker that copies from one stage's topic to the next."""
        return self.worker(make, "transform", f"stage-{place}", *self.stages[place:place + 2])

    def run(self):
        """Answers what is wrong, one line each."""
        replicas, settings = (NODES, {"min.insync.replicas": "2"}) if self.arguments.cluster else (1, {})
        new = [NewTopic(topic, PARTITIONS, replicas, config=settings) for topic in [self.written, *self.stages]]
        for future in self.admin.create_topics(new).values():
            future.result(PATIENCE)
        readers = [Reader(f"reader-{i}", self.address, [self.written]) for i in range(2)]
        writers = [self.worker(make, "write", f"{make}-{i}", self.written, str(PARTITIONS))
                   for i in range(self.arguments.writers) for make in ("librdkafka", "java")]
        makes = ("librdkafka", "java", "librdkafka")
        chain = [Stage(make, functools.partial(self.stage, make, i)) for i, make in enumerate(makes)]
        feeder = Feeder(self.address, self.stages[0])
        self.disturb()
        wrong = feeder.stop()
        wrong += [ended for worker in writers if (ended := worker.stop())]
        self.await_that("the last stage to have everything", lambda: self.is_copied(feeder))
        for stage in chain:
            stage.stop()
        topics = [self.written, *self.stages]
        self.await_that("everything to be stable", lambda: stable(self.admin, topics))
        time.sleep(1)
        for reader in readers:
            reader.stop()
        log = read_all(self.address, topics)
        transactions = history(writers)
        counts = {state: sum(t.state == state for t in transactions.values()) for state in ("committed", "aborted", UNKNOWN)}
        killed = sum(stage.killed for stage in chain)
        print(f"{counts}, {killed} stages killed, {len(feeder.acknowledged)} copied {STAGES} times, {sum(len(r.seen) for r in readers)} seen")
        if counts[COMMITTED] < 10 or not feeder.acknowledged:
            wrong.append("next to nothing was committed, so that nothing was tested")
        written = {place: records for place, records in log.items() if place[0] == self.written}
        wrong += check(transactions, written, [seen for reader in readers for seen in reader.seen])
        return wrong + check_chain(feeder.acknowledged, log, self.stages[1:])

    def disturb(self):
        """Kills the broker now and then, for as long as asked."""
        end = time.monotonic() + self.arguments.seconds
        kills = sorted(self.chance.uniform(0.1, 0.95) * self.arguments.seconds for _ in range(self.arguments.kills))
        began = time.monotonic()
        for at in kills if self.broker else []:
            time.sleep(max(0, began + at - time.monotonic()))
            self.broker.kill()
            time.sleep(self.chance.random())
            self.broker.start()
        time.sleep(max(0, end - time.monotonic()))

    def is_copied(self, feeder):
        """Whether the last stage's topic has as much as was fed."""
        log = read_all(self.address, self.stages[-1:])
        return sum(len(records) for records in log.values()) >= len(feeder.acknowledged)

    @staticmethod
    def await_that(what, holds):
        """Waits until something is so, but not for ever: then the checks say what is missing."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if holds():
                return
            time.sleep(0.5)
        print(f"    waited {PATIENCE} s for {what}", file=sys.stderr)


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--binary", help="a broker, started and killed on an empty folder")
    which.add_argument("--broker", help="one that runs, of whatever make, and is left alone")
    parser.add_argument("--cluster", action="store_true", help="three nodes with replicas on all of them")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--writers", type=int, default=1, help="of each make")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--option", action="append", default=[], help="one more word for the broker's command line")
    return parser.parse_args()


def main():
    """Exits with 1 when something was wrong."""
    arguments = parse()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    folder, broker, wrong = tempfile.mkdtemp(), None, []
    try:
        if arguments.binary:
            options = ["--memory", "256MiB", "--wal-bytes", "64MiB", *arguments.option]
            place = os.path.join(folder, "broker")
            if arguments.cluster:
                broker = Cluster(arguments.binary, place, ["--shards", "1", *options], random.Random(seed))
            else:
                broker = Broker(arguments.binary, place, ["--shards", "2", *options])
            broker.start()
        wrong = Run(arguments, random.Random(seed), broker, broker.address if broker else arguments.broker).run()
        if broker:
            ended = broker.stop()
            wrong += [ended] if ended else []
            wrong += [f"the broker's last words:\n{broker.last_words()}"] if wrong else []
    except Exception as error:  # whatever a client says is wrong
        wrong.append(f"{type(error).__name__}: {error}")
        wrong += [f"the broker's last words:\n{broker.last_words()}"] if broker else []
    finally:
        if broker:
            broker.end()
        shutil.rmtree(folder, ignore_errors=True)
    for line in wrong[:40]:
        print(f"    {line}".replace("\n", "\n    "), flush=True)
    print(f"{'FAILED' if wrong else 'passed'} transactions (seed {seed})", flush=True)
    os._exit(bool(wrong))  # threads of a client that waits for ever must not hold us


if __name__ == "__main__":
    main()
