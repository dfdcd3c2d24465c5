"""Kafka's StreamsSmokeTest with exactly_once_v2: it writes records, its application counts, sums and windows them, and it
checks every result, while the broker or the application is ended without a word. Its check begins by asking for the ends of
topics twice, and takes an application that still works for a fault ("larger than topic endOffset"): what it copied, counted
and summed is checked here as well, when nothing comes any more, and decides then.
"""

import collections
import os
import random
import subprocess
import time

import rig

NAME = "streams"
DRIVER = "org.apache.kafka.streams.tests.StreamsSmokeTest"
TOPICS = ["data", "echo", "max", "min", "min-suppressed", "min-raw", "dif", "sum", "sws-raw", "sws-suppressed", "cnt", "avg", "wcnt",
          "tagg", "fk"]


def properties(folder, address, copies, state):
    """The file that it reads; each life of an application may have another state directory."""
    path = os.path.join(folder, f"{state}.properties")
    with open(path, "w", encoding="utf-8") as out:
        out.write(f"bootstrap.servers={address}\nstate.dir={os.path.join(folder, state)}\nprocessing.guarantee=exactly_once_v2\n"
                  f"replication.factor={copies}\nnum.stream.threads=2\nsession.timeout.ms=10000\nacks=all\n")
    return path


def verdict(said):
    """What is wrong with what the driver says, one line each."""
    if "is larger than topic endOffset" in said:
        return []
    wrong = [] if "\nSUCCESS" in said else ["no success"]
    for word in ("ALL-RECORDS-DELIVERED", "PROCESSED-MORE-THAN-GENERATED", "PROCESSED-LESS-THAN-GENERATED"):
        if (word in said) == word.startswith("PROCESSED"):
            wrong.append(word if word in said else f"{word} is missing")
    return wrong + ([said[-1500:]] if wrong else [])


def numbers(address, topic, kind):
    """All that is committed in a topic of numbers: (partition, key, number). Those that end the windows are left out."""
    done = subprocess.run(["kcat", "-b", address, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-s", f"value={kind}",
                           "-f", "%p\t%k\t%s\n", "-X", "isolation.level=read_committed"],
                          stdout=subprocess.PIPE, text=True, check=True, timeout=rig.PATIENCE)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return [(int(partition), key, int(value)) for partition, key, value in rows if key not in ("", "flush")]


def expected(key):
    """What the application makes of a key, which says the first and the last number that are written for it."""
    low, high = map(int, key.split("-"))
    return {"min": low, "max": high, "dif": high - low, "sum": (low + high) * (high - low + 1) // 2, "cnt": high - low + 1}


def settle(address):
    """Waits until nothing is added for a while."""
    last, since = None, time.monotonic()
    deadline = since + 3 * rig.PATIENCE
    while time.monotonic() < min(since + 20, deadline):
        now = [len(rig.read(address, topic, form="%p\\n")) for topic in ("echo", "cnt", "sum")]
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(2)


def wrong_results(address):
    """What is wrong with what was copied and counted, one line each."""
    wrong, data = [], numbers(address, "data", ">i")
    by_key = collections.defaultdict(list)
    for _, key, value in data:
        by_key[key].append(value)
    for key, values in by_key.items():
        low, high = map(int, key.split("-"))
        if sorted(values) != list(range(low, high + 1)):
            wrong.append(f"data: {len(values)} values of {key}, {len(set(values))} different")
    copied = numbers(address, "echo", ">i")
    for partition in range(5):
        a, b = ([row for row in rows if row[0] == partition] for rows in (data, copied))
        if a != b:
            wrong.append(f"echo {partition}: {len(b)} records for {len(a)}, or in another order")
    for topic, kind in {"min": ">i", "max": ">i", "dif": ">i", "sum": ">q", "cnt": ">q"}.items():
        last = {key: value for _, key, value in numbers(address, topic, kind)}
        wrong += [f"{topic} of {key}: {last.get(key)} for {expected(key)[topic]}" for key in by_key
                  if last.get(key) != expected(key)[topic]]
    return wrong if by_key else ["nothing was written"]


def run(brokers, programs, arguments):
    """Ends brokers, then applications."""
    chance, copies = random.Random(arguments.seed), len(brokers.nodes)
    for topic in TOPICS:
        programs.create(topic, 5, copies)
    lives = 0

    def application():
        nonlocal lives
        lives += 1
        path = properties(programs.folder, brokers.address, copies, f"life-{lives % 2}")
        return programs.begin("class", DRIVER, path, "process", heap="384m", log="application")

    applications = [application(), application()]
    driver = programs.begin("class", DRIVER, properties(programs.folder, brokers.address, copies, "driver"), "run", log="driver")
    time.sleep(20)
    for bounce in range(2 * arguments.bounces):
        time.sleep(3 + 6 * chance.random())
        if bounce % 2 == 0:
            brokers.bounce(chance.choice(brokers.nodes), True)
        else:
            applications[0].kill()
            applications[0].wait()
            applications = [applications[1], application()]
    driver.wait(6 * rig.PATIENCE)
    settle(brokers.address)
    for one in applications:
        one.kill()
    with open(os.path.join(programs.folder, "driver.log"), errors="replace") as log:
        yield NAME, verdict(log.read()) + wrong_results(brokers.address)
