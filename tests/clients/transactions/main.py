"""Transactions while brokers and clients are killed and stand still: run --binary PATH [--cluster] | --broker HOST:PORT
[--seconds N] [--kills N] [--pauses N] [--seed N].

Writers of three makes, librdkafka (which adds partitions by asking), Java and franz-go (which add them by producing), commit
and abort transactions over the partitions of one topic; another one moves money between accounts (`bank`), which is counted
meanwhile; three stages, one of each make, copy what another producer writes, each exactly once, with the offsets of its group
in the transaction. Readers of committed records watch. The broker is killed meanwhile, without a word, or stands still
(SIGSTOP); of a cluster of three, one node at a time. So do clients, for longer than their transactions may take. In the end
everything is read, and `checker` says what is wrong. What was counted is judged where the broker was started here: of another
it is not known that an answered commit can be read at once (Apache Kafka answers before it writes its markers). Prints
"passed transactions" or "FAILED transactions".
"""

import argparse
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from confluent_kafka import Consumer, IsolationLevel, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "soak")]

from bank import Audit, check_bank  # noqa: E402
from broker import Broker, die_with_parent  # noqa: E402
from checker import COMMITTED, UNKNOWN, Seen, Transaction, check  # noqa: E402
from cluster import NODES, Cluster  # noqa: E402
import reading  # noqa: E402

PARTITIONS = 4
STAGES = 3
# An open transaction of a worker that was stopped is aborted after ten seconds, and looked for as often.
PATIENCE = 90
# Clients stand still for so long at most: longer than a transaction may take, and than a member of a group may be silent.
STANDSTILL = 13
# A stage of librdkafka that has copied nothing for so long is killed, and another one takes its ids over: this client may
# wait for ever for a group's coordinator that went away while offsets were sent to it. A standstill, and then longer than a
# member's session, so that no stage is killed for having been stopped.
STUCK = STANDSTILL + 20
# Members of groups may be silent for six seconds, the least that brokers allow unless told otherwise. Classic ones say so
# themselves; for the others, the Java stage among them, the broker says it, and how often they have to be heard of.
SESSION = [word for name, value in {"session.timeout.ms": 6000, "min.session.timeout.ms": 6000, "heartbeat.interval.ms": 2000,
                                    "min.heartbeat.interval.ms": 2000}.items()
           for word in ("--group-setting", f"group.consumer.{name}={value}")]
# A broker stands still for so long at most: some requests time out, and some do not.
BROKER_STANDSTILL = 7
# Pause between two counts of all money.
AUDIT_EVERY = 5


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

    def stand_still(self, seconds):
        """Stops it where it is, and lets it go on later."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

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
        self.consumer = Consumer(reading.settings(broker))
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


class Auditor(threading.Thread):
    """Counts all money now and then."""

    def __init__(self, broker, topic):
        super().__init__(daemon=True)
        self.broker, self.topic, self.audits, self.over = broker, topic, [], threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(AUDIT_EVERY):
            audit = Audit(time.monotonic())
            try:
                reading.read(self.broker, [self.topic], PARTITIONS, PATIENCE, audit.take)
                self.audits.append(audit)
            except RuntimeError as error:
                print(f"    an audit: {error}", file=sys.stderr)

    def stop(self):
        """Ends it."""
        self.over.set()
        self.join(2 * PATIENCE)


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


def stable(admin, topics):
    """Whether nothing is open: then everybody can read up to the end."""
    places = [TopicPartition(topic, p) for topic in topics for p in range(PARTITIONS)]
    ends = []
    for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
        found = admin.list_offsets({place: OffsetSpec.latest() for place in places}, isolation_level=level)
        ends.append([future.result(PATIENCE).offset for future in found.values()])
    return ends[0] == ends[1]


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
                transactions[number].state, transactions[number].ended_at = said["state"], said["at"]
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
        self.written, self.bank = f"{self.prefix}-written", f"{self.prefix}-bank"
        self.stages = [f"{self.prefix}-stage-{i}" for i in range(STAGES + 1)]

    def worker(self, make, kind, name, *rest):
        """A client's process, of a make."""
        name = f"{self.prefix}-{name}"
        seed = str(self.chance.getrandbits(31))
        if make == "franz-go":
            command = [os.path.join(HERE, "..", "go", "worker", "run"), kind, self.address, name, seed]
        elif make == "java":
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
        topics = [self.written, self.bank, *self.stages]
        new = [NewTopic(topic, PARTITIONS, replicas, config=settings) for topic in topics]
        for future in self.admin.create_topics(new).values():
            future.result(PATIENCE)
        readers = [Reader(f"reader-{i}", self.address, [self.written]) for i in range(2)]
        writers = [self.worker(make, "write", f"{make}-{i}", self.written, str(PARTITIONS))
                   for i in range(self.arguments.writers) for make in ("librdkafka", "java", "franz-go")]
        banker = self.worker("librdkafka", "transfer", "banker", self.bank, str(PARTITIONS))
        auditor = Auditor(self.address, self.bank)
        makes = ("librdkafka", "java", "franz-go")
        chain = [Stage(make, functools.partial(self.stage, make, i)) for i, make in enumerate(makes)]
        feeder = Feeder(self.address, self.stages[0])
        self.disturb(lambda: [*writers, banker, *(stage.worker for stage in chain)])
        wrong = feeder.stop()
        wrong += [ended for worker in [*writers, banker] if (ended := worker.stop())]
        self.await_that("the last stage to have everything", lambda: self.is_copied(feeder))
        for stage in chain:
            stage.stop()
        self.await_that("everything to be stable", lambda: stable(self.admin, topics))
        time.sleep(1)
        for watcher in [*readers, auditor]:
            watcher.stop()
        log = reading.read_all(self.address, topics, PARTITIONS, PATIENCE)
        transactions, transfers = history(writers), history([banker])
        counts = {state: sum(t.state == state for t in transactions.values()) for state in ("committed", "aborted", UNKNOWN)}
        moved = sum(t.state == COMMITTED for t in transfers.values())
        killed = sum(stage.killed for stage in chain)
        print(f"{counts}, {killed} stages killed, {len(feeder.acknowledged)} copied {STAGES} times, "
              f"{sum(len(r.seen) for r in readers)} seen, {moved} transfers counted {len(auditor.audits)} times")
        for worker in writers:
            if sum(t.state == COMMITTED for t in history([worker]).values()) < 3:
                wrong.append(f"{worker.name} has committed next to nothing, so that nothing was tested")
        if moved < 3 or not auditor.audits or not feeder.acknowledged:
            wrong.append("next to nothing was moved, counted or copied, so that nothing was tested")
        written = {place: records for place, records in log.items() if place[0] == self.written}
        wrong += check(transactions, written, [seen for reader in readers for seen in reader.seen])
        money = {place: records for place, records in log.items() if place[0] == self.bank}
        wrong += check(transfers, money) + check_bank(transfers, money, auditor.audits if self.broker else ())
        return wrong + check_chain(feeder.acknowledged, log, self.stages[1:])

    def disturb(self, clients):
        """Now and then the broker is killed or stands still, or one of the clients stands still, for as long as asked."""
        began, seconds = time.monotonic(), self.arguments.seconds
        kills = self.arguments.kills if self.broker else 0
        whats = [self.kill] * kills + [lambda: self.stop_client(clients())] * self.arguments.pauses
        for at, what in sorted(((self.chance.uniform(0.1, 0.95) * seconds, what) for what in whats), key=lambda it: it[0]):
            time.sleep(max(0, began + at - time.monotonic()))
            what()
        time.sleep(max(0, began + seconds - time.monotonic()))

    def kill(self):
        """Ends the broker, or has it stand still; of a cluster, one node."""
        if not self.arguments.cluster and self.chance.random() < 0.3:
            self.broker.process.send_signal(signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.2, BROKER_STANDSTILL))
            self.broker.process.send_signal(signal.SIGCONT)
            return
        self.broker.kill()
        time.sleep(self.chance.random())
        self.broker.start()

    def stop_client(self, workers):
        """One of the clients stands still, while others and the broker go on."""
        seconds = STANDSTILL if self.chance.random() < 0.5 else self.chance.uniform(0.1, 3)
        worker = self.chance.choice(workers)
        threading.Thread(target=worker.stand_still, args=[seconds], daemon=True).start()

    def is_copied(self, feeder):
        """Whether the last stage's topic has as much as was fed."""
        log = reading.read_all(self.address, self.stages[-1:], PARTITIONS, PATIENCE)
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
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=7, help="of the broker, or standstills of it")
    parser.add_argument("--pauses", type=int, default=5, help="standstills of clients")
    parser.add_argument("--writers", type=int, default=1, help="of each make")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="leaves the broker's folder when something is wrong")
    parser.add_argument("--option", action="append", default=[], help="one more word for the broker's command line")
    return parser.parse_args()


def main():
    """Exits with 1 when something was wrong."""
    arguments = parse()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    folder, broker, wrong = tempfile.mkdtemp(), None, []
    try:
        if arguments.binary:
            options = ["--memory", "256MiB", "--wal-bytes", "64MiB", *SESSION, *arguments.option]
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
        if wrong and arguments.keep:
            print(f"    all of it is in {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for line in wrong[:40]:
        print(f"    {line}".replace("\n", "\n    "), flush=True)
    print(f"{'FAILED' if wrong else 'passed'} transactions (seed {seed})", flush=True)
    os._exit(bool(wrong))  # threads of a client that waits for ever must not hold us


if __name__ == "__main__":
    main()
