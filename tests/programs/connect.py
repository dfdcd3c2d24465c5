"""Connect with exactly.once.source.support=enabled: FileStreamSource copies the lines of a file, while brokers and the
worker are ended without a word. In the end each line is in the topic once, in its order; and FileStreamSink, which promises
less, has written each of them to another file, in order but for what it wrote again."""

import json
import os
import random
import re
import time
import urllib.error
import urllib.request

import rig

NAME = "connect"
LINES = 4_000


def worker_properties(folder, address, copies, rest):
    """The worker's file."""
    path = os.path.join(folder, "worker.properties")
    converters = "".join(f"{kind}.converter=org.apache.kafka.connect.storage.StringConverter\n" for kind in ("key", "value"))
    topics = "".join(f"{name}.storage.topic=connect-{name}\n{name}.storage.replication.factor={copies}\n"
                     for name in ("offset", "config", "status"))
    with open(path, "w", encoding="utf-8") as out:
        out.write(f"bootstrap.servers={address}\ngroup.id=connect\nexactly.once.source.support=enabled\n{converters}{topics}"
                  f"offset.storage.partitions=4\nlisteners=http://127.0.0.1:{rest}\noffset.flush.interval.ms=1000\n"
                  "scheduled.rebalance.max.delay.ms=1000\nsession.timeout.ms=10000\nheartbeat.interval.ms=2000\n")
    return path


def put(rest, name, config):
    """Makes a connector; whether the worker took it."""
    request = urllib.request.Request(f"http://127.0.0.1:{rest}/connectors/{name}/config", json.dumps(config).encode(),
                                     {"Content-Type": "application/json"}, method="PUT")
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


def values(address, topic):
    """What is committed."""
    return [value for _, value in rig.read(address, topic)]


def wrong_topic(found, written):
    """What is wrong with the lines in the topic, given how many were written."""
    expected = [f"line {n}" for n in range(written)]
    place = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
    return [] if found == expected else [f"{len(found)} lines of {written}; from place {place}: {found[place:place + 3]}"]


def wrong_sink(path, written):
    """What is wrong with the file of the sink: it goes back to what it wrote before, and never over a line."""
    if not os.path.exists(path):
        return ["the sink has written nothing"]
    with open(path, encoding="utf-8") as file:
        numbers = [int(number) for number in re.findall(r"line (\d+)\n", file.read())]  # a kill may cut a line short
    over = next((place for place, (a, b) in enumerate(zip([-1, *numbers], numbers)) if b > a + 1), None)
    wrong = [] if over is None else [f"the sink went over lines at place {over}: {numbers[max(0, over - 1):over + 2]}"]
    return wrong if set(numbers) == set(range(written)) else [*wrong, f"the sink has {len(set(numbers))} lines of {written}"]


def run(brokers, programs, arguments):
    """One run with both kinds of ends."""
    chance, copies, rest = random.Random(arguments.seed), len(brokers.nodes), rig.port()
    programs.create("lines", 1, copies)
    path = worker_properties(programs.folder, brokers.address, copies, rest)
    source = os.path.join(programs.folder, "source.txt")
    open(source, "w", encoding="utf-8").close()

    worker = programs.keep("tool", "connect-distributed", path, heap="384m", log="worker")
    try:
        wrong = copied(brokers, worker, rest, source, arguments.bounces, chance)
    finally:
        worker.end()
    yield NAME, wrong


def copied(brokers, worker, rest, source, bounces, chance):
    """Has a source and a sink copy lines while brokers and the worker are ended; what is wrong, one line each."""
    config = {"connector.class": "org.apache.kafka.connect.file.FileStreamSourceConnector", "file": source, "topic": "lines",
              "tasks.max": "1", "transaction.boundary": "poll", "exactly.once.support": "requested"}
    rig.wait_for("the worker to take a connector", lambda: put(rest, "source", config))
    sink = os.path.join(os.path.dirname(source), "sink.txt")
    config = {"connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "file": sink, "topics": "lines",
              "tasks.max": "1", "consumer.override.isolation.level": "read_committed"}
    rig.wait_for("the worker to take another", lambda: put(rest, "sink", config))
    written = 0

    def write(lines):
        nonlocal written
        with open(source, "a", encoding="utf-8") as out:
            out.writelines(f"line {n}\n" for n in range(written, written + lines))
        written += lines

    def go_on():
        for _ in range(20):
            write(LINES // bounces // 40)
            time.sleep(0.1 + 0.3 * chance.random())

    rig.bounce_in_turn(brokers, worker, chance, 2 * bounces, go_on)
    try:
        rig.wait_for("every line to arrive", lambda: len(values(brokers.address, "lines")) >= written, 2 * rig.PATIENCE, 3)
        rig.wait_for("every line to be written", lambda: not wrong_sink(sink, written), every=3)
    except RuntimeError:
        pass  # what is missing is said below
    time.sleep(3)
    worker.end()  # else it may still add to what is looked at
    return wrong_topic(values(brokers.address, "lines"), written) + wrong_sink(sink, written)
