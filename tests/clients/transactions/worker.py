"""One client of librdkafka: python worker.py write|transform BROKER NAME SEED [ARGUMENT...].

Says what it does on standard output, a JSON object a line, with the time by the system's monotonic clock. Ends when its
standard input does: what it has begun by then it ends. Millrace's `TransactionWorker` does the same in Java.

    write BROKER NAME SEED TOPIC PARTITIONS         transactions with a few values each, some of which are aborted
    transform BROKER NAME SEED SOURCE SINK          copies what is committed in SOURCE to the same partition of SINK
    transfer BROKER NAME SEED TOPIC PARTITIONS      moves money between accounts, as `bank` says; this client only
"""

import json
import random
import select
import sys
import time

from bank import ACCOUNTS, balances
from confluent_kafka import Consumer, KafkaException, Producer
from reading import read_all

PATIENCE = 60
# A broker that was killed is back within a second: nobody should wait for long to find that out.
QUICK = {"reconnect.backoff.max.ms": 500, "retry.backoff.max.ms": 500, "socket.connection.setup.timeout.ms": 2000}


def say(**fields):
    """A line of the history."""
    print(json.dumps({"at": time.monotonic(), **fields}), flush=True)


def is_over():
    """Whether the worker shall end."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Writer:
    """A transactional producer over all its lives."""

    def __init__(self, broker, name):
        self.config = {"bootstrap.servers": broker, "transactional.id": name, "transaction.timeout.ms": 10_000,
                       "message.timeout.ms": 10_000, "log_level": 0, **QUICK}
        self.producer = None

    def begin(self):
        """A transaction, of a producer that may be new."""
        while self.producer is None:
            producer = Producer(self.config)
            try:
                producer.init_transactions(PATIENCE)
            except KafkaException as error:
                say(note=f"init: {error}")
                time.sleep(0.1)
                continue
            self.producer = producer
        self.producer.begin_transaction()

    def run(self, name, writes, commit):
        """One transaction with these writes of (topic, partition, value), committed if that is wanted and they can be sent; how
        it ended, which is not said yet."""
        self.begin()
        say(transaction=name, writes=writes)
        try:
            for topic, partition, value in writes:
                self.producer.produce(topic, value, partition=partition)
                self.producer.poll(0)
            if not commit:
                self.producer.flush(10)
        except KafkaException as error:
            say(note=f"produce: {error}")
            commit = False
        if commit:
            say(transaction=name, state="committing")
        return self.end(commit)

    def end(self, commit):
        """Answers how the transaction ended."""
        try:
            if commit:
                self.retried(self.producer.commit_transaction)
                return "committed"
            self.retried(self.producer.abort_transaction)
            return "aborted"
        except KafkaException as error:
            say(note=f"end: {error}")
            if error.args[0].txn_requires_abort():
                try:
                    self.retried(self.producer.abort_transaction)
                    return "aborted"
                except KafkaException as late:
                    say(note=f"abort: {late}")
        self.producer = None
        # an abort was begun by nobody but us, so that it cannot have become a commit
        return "unknown" if commit else "aborted"

    @staticmethod
    def retried(call):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call(10)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise


def write(broker, name, seed, topic, partitions):
    """Values are NAME-TRANSACTION-PLACE."""
    chance, writer, number = random.Random(int(seed)), Writer(broker, name), 0
    while not is_over():
        number += 1
        writes = [[topic, chance.randrange(int(partitions)), f"{name}-{number}-{i}"] for i in range(chance.randint(1, 6))]
        state = writer.run(f"{name}-{number}", writes, chance.random() < 0.75)
        say(transaction=f"{name}-{number}", state=state)


def transfer(broker, name, seed, topic, partitions):
    """Values are NAME-TRANSACTION-PLACE:ACCOUNT:AMOUNT. Nobody else moves this money, so that what is there is known; but
    for a transfer of which nobody knows how it ended: then all that is committed is read."""
    chance, writer, number, partitions = random.Random(int(seed)), Writer(broker, name), 0, int(partitions)
    have = balances([])
    while not is_over():
        number += 1
        source = chance.choice([account for account in have if have[account] > 0])
        target = chance.choice([account for account in range(ACCOUNTS) if account != source])
        # often all of it: then a transfer that counts and should not is soon a debt
        amount = have[source] if chance.random() < 0.5 else chance.randint(1, have[source])
        legs = [(source, -amount), (target, amount)]
        writes = [[topic, account % partitions, f"{name}-{number}-{i}:{account}:{change}"]
                  for i, (account, change) in enumerate(legs)]
        state = writer.run(f"{name}-{number}", writes, chance.random() < 0.75)
        if state == "unknown":
            # a new producer begins when the transaction of the former one is over: only then is this transfer settled
            writer.begin()
            writer.end(False)
        say(transaction=f"{name}-{number}", state=state)
        if state == "unknown":
            have = balances(read_committed(broker, topic, partitions))
        elif state == "committed":
            for account, change in legs:
                have[account] += change


def read_committed(broker, topic, partitions):
    """All values, up to the ends, however long that takes."""
    while True:
        try:
            log = read_all(broker, [topic], partitions, PATIENCE)
            return [value for records in log.values() for _, value in records]
        except RuntimeError as error:
            say(note=str(error))


def transform(broker, name, _seed, source, sink):
    """Every committed value of the source once; which of them it takes when, groups decide."""
    writer = Writer(broker, name)
    consumer = Consumer({"bootstrap.servers": broker, "group.id": f"{name}-group", "auto.offset.reset": "earliest",
                         "enable.auto.commit": False, "isolation.level": "read_committed", "log_level": 0,
                         # the broker's minimum: another worker takes over soon where one was killed
                         "session.timeout.ms": 6000, **QUICK})
    consumer.subscribe([source])
    taken = 0
    while not is_over():
        messages = [message for message in consumer.consume(50, 0.5) if not message.error()]
        if not messages:
            continue
        writer.begin()
        try:
            for message in messages:
                writer.producer.produce(sink, message.value(), partition=message.partition())
            offsets = consumer.position(consumer.assignment())
            writer.retried(lambda seconds: writer.producer.send_offsets_to_transaction(
                [offset for offset in offsets if offset.offset >= 0], consumer.consumer_group_metadata(), seconds))
            state = writer.end(True)
        except KafkaException as error:
            say(note=f"transform: {error}")
            state = writer.end(False)
        if state == "committed":
            taken += len(messages)
            say(taken=taken)
            continue
        rewind(consumer)
    consumer.close()


def rewind(consumer):
    """To what is committed: it is not known what became of the last transaction, or it was aborted."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            for place in consumer.committed(consumer.assignment(), 10):
                place.offset = max(place.offset, 0)
                consumer.seek(place)
            return
        except KafkaException as error:
            say(note=f"rewind: {error}")
            time.sleep(0.1)


if __name__ == "__main__":
    {"write": write, "transform": transform, "transfer": transfer}[sys.argv[1]](*sys.argv[2:])
