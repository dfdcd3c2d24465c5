"""Hours of short loads: run --binary PATH --bench PATH [--seconds N] [--bound SECONDS] [--seed N] [--folder PATH].

Several lives, one after the other, each of a broker on an empty folder with settings of its own. In each, clients of
several makes come for a second or two, pause, delete and create topics, read slowly, and send large requests, beside a
topic with a record now and then and a group that commits now and then. What counts is the longest time for which
somebody waited for an answer, and that the broker itself saw nothing stand still. Prints a line for each life.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from http.client import HTTPException

from broker import OLDEST, STALLED, STALLS, Broker
from loads import LARGE_BYTES, Clients, Quiet, SlowReader
from waits import Waits

# What a life's broker is started with. The first finds soonest what goes wrong when the log's files are used again.
LIVES = {
    "one-shard-small-log": ["--shards", "1", "--wal-bytes", "96MiB"],
    "two-shards": ["--shards", "2"],
    "two-shards-small-log": ["--shards", "2", "--wal-bytes", "96MiB", "--memory", "192MiB"],
    "one-shard": ["--shards", "1"],
}
LIFE_SECONDS = 600
LARGE_TOPIC = "large"


class Watch(threading.Thread):
    """Reads the page of metrics each second, and looks whether a wait is too long already."""

    def __init__(self, broker, waits, bound):
        super().__init__(daemon=True)
        self.broker, self.waits, self.bound = broker, waits, bound
        self.wrong, self.over, self.rss, self.looks, self.untold = None, threading.Event(), 0.0, 0, set()

    def run(self):
        while self.wrong is None and not self.over.wait(1):
            try:
                self.wrong = self.look()
            except (OSError, HTTPException, ValueError) as error:
                self.wrong = f"the page of metrics cannot be read: {error}"

    def look(self):
        """What is wrong now, or None."""
        waited, who = self.waits.oldest()
        if waited > self.bound:
            return f"{who} has been waiting for {waited:.0f} s"
        with self.waits.answer("page of metrics"):
            page = self.broker.metrics()
        self.looks += 1
        self.rss = max(self.rss, *page["process_resident_memory_bytes"])
        for name, most in ((STALLED, 0), (STALLS, 0), (OLDEST, self.bound)):
            if not page[name]:
                self.untold.add(name)
            elif max(page[name]) > most:
                return f"{name} is {max(page[name]):.0f}"
        return None

    def stop(self):
        """Ends it."""
        self.over.set()
        self.join()


class Life:
    """One broker and what is done to it."""

    def __init__(self, clients, chance, deadline, watch):
        self.clients, self.random, self.deadline, self.watch = clients, chance, deadline, watch
        self.topics = {}  # (kind, partitions): name
        self.rounds, self.made, self.slow = 0, 0, []

    def run(self):
        """Rounds until the time is up, or the watch saw something."""
        self.clients.create(Quiet.TOPIC, Quiet.PARTITIONS, {})
        self.clients.create(LARGE_TOPIC, 1, {"max.message.bytes": str(2 * LARGE_BYTES)})
        quiet = Quiet(self.clients)
        try:
            while self.watch.wrong is None and time.monotonic() < self.deadline:
                self.round(quiet)
                self.rounds += 1
            quiet.commit()
        finally:
            for reader in self.slow:
                reader.stop()
            quiet.close()

    def round(self, quiet):
        """A load, and now and then something more."""
        # each rests for as long as it likes: between two records of some, the log came around to the same file again
        for partition in range(Quiet.PARTITIONS):
            if self.random.random() < 0.3:
                quiet.record(partition)
        if self.random.random() < 0.4:
            quiet.commit()
        kinds = (self.clients.java, self.clients.librdkafka, self.clients.lean, self.clients.lean)
        kind, partitions = kinds[self.rounds % len(kinds)], self.random.choice((1, 100))
        topic = self.topic(kind.__name__, partitions)
        if self.random.random() < 0.3:
            self.read_slowly(topic)
        size, began = self.random.choice((100, 1000, 1000, 10_000)), time.monotonic()
        kind(topic, 1 + self.random.random(), size)
        say(f"{time.monotonic() - began:6.1f} s  {topic}, records of {size} bytes")
        if self.random.random() < 0.2:
            self.clients.large(LARGE_TOPIC, self.random.randint(1, 3))
        if self.random.random() < 0.3:
            # from now on its name is another's: a client that still knows the old one learns that there
            self.clients.delete(self.topics.pop((kind.__name__, partitions)))
        if self.random.random() < 0.4:
            time.sleep(self.random.choice((0.5, 1, 4)))

    def topic(self, kind, partitions):
        """The topic of these loads; one that has to be created may ask for a codec."""
        key = (kind, partitions)
        if key not in self.topics:
            self.made += 1
            self.topics[key] = f"{kind}-{partitions}-{self.made}"
            self.clients.create(self.topics[key], partitions, self.random.choice(({}, {}, {"compression.type": "lz4"})))
        return self.topics[key]

    def read_slowly(self, topic):
        """Four of them at most; the oldest goes."""
        if len(self.slow) == 4:
            self.slow.pop(0).stop()
        self.slow.append(SlowReader(self.clients.address, topic))
        self.slow[-1].start()


def say(line):
    """What happens meanwhile."""
    print(line, file=sys.stderr, flush=True)


def live(name, arguments, folder, seconds, chance):
    """One life; answers what is wrong with it, one string each."""
    broker = Broker(arguments.binary, os.path.join(folder, name), LIVES[name] + arguments.option)
    waits, wrong = Waits(), []
    try:
        broker.start()
        watch = Watch(broker, waits, arguments.bound)
        life = Life(Clients(broker.address, arguments.bench, waits, chance), chance, time.monotonic() + seconds, watch)
        watch.start()
        try:
            life.run()
        except Exception as error:  # whatever a client says is wrong
            wrong.append(f"{type(error).__name__}: {error}")
        watch.stop()
        wrong += [watch.wrong] if watch.wrong else []
        wrong += [] if watch.looks else ["the page of metrics was never read"]
        wrong += [f"the page of metrics does not tell {name}" for name in sorted(watch.untold)]
        if waits.longest > arguments.bound:
            wrong.append(f"{waits.who} waited for {waits.longest:.1f} s")
        ended = broker.stop()
        wrong += [ended] if ended else []
        # nothing that happens here is worth a warning, a stop while somebody waits for records included
        wrong += [f"the broker logged {count} times: {alarm}" for alarm, count in broker.alarms().most_common(10)]
        print(f"{name}: {life.rounds} rounds, {life.made} topics, longest wait {waits.longest:.1f} s ({waits.who}), "
              f"{watch.looks} looks at its metrics, RSS up to {watch.rss / (1 << 20):.0f} MiB", flush=True)
        if wrong:
            wrong.append(f"the broker's last words:\n{broker.last_words()}")
        return wrong, waits
    finally:
        broker.kill()
        shutil.rmtree(broker.folder, ignore_errors=True)


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the broker")
    parser.add_argument("--bench", required=True, help="millrace-bench")
    parser.add_argument("--seconds", type=float, default=80, help="of loads, over all lives")
    parser.add_argument("--bound", type=float, default=10, help="seconds that an answer may take")
    parser.add_argument("--seed", type=int, default=None, help="of what is done when")
    parser.add_argument("--folder", default=None, help="where the data goes")
    parser.add_argument("--life", action="append", choices=LIVES, help="only these lives")
    parser.add_argument("--option", action="append", default=[], help="one more word for the broker's command line")
    return parser.parse_args()


def main():
    """Lives for as long as asked; exits with 1 when something was wrong with one."""
    arguments = parse()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    chance, names, folder = random.Random(seed), arguments.life or list(LIVES), tempfile.mkdtemp(dir=arguments.folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    longest, failed, began, count = (0.0, "nobody"), False, time.monotonic(), 0
    # a short soak has two lives, a long one as many as there is time for
    each = min(LIFE_SECONDS, arguments.seconds / min(2, len(names)))
    try:
        while not failed and time.monotonic() - began < arguments.seconds - each / 2:
            name = names[count % len(names)]
            count += 1
            wrong, waits = live(name, arguments, folder, each, chance)
            longest = max(longest, (waits.longest, f"{waits.who}, {name}"))
            failed = bool(wrong)
            for line in wrong:
                print(f"    {line}".replace("\n", "\n    "), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"longest wait {longest[0]:.1f} s ({longest[1]}) of at most {arguments.bound:.0f} s")
    print(f"{'FAILED' if failed else 'passed'} soak (seed {seed})", flush=True)
    os._exit(failed)  # threads of a client that waits for ever must not hold us


if __name__ == "__main__":
    main()
