"""What three nodes cost and what is seen when one goes: millrace as a cluster, alone, and Apache Kafka with three nodes.

    bench/cluster MEASUREMENT... [--peers DIR] [--binary PATH] [--bench PATH] [--seconds N] [--repeat N] [--out DIR]

MEASUREMENT is one or more of

    light       a lone record of 1 KiB with acks=all, replicated three times and not at all, in turn, and beside them what
                the device and loopback take for it without a broker                                      (3 min)
    throughput  100 partitions with acks=all: three replicas here, on Kafka with flush.messages=1 and with its defaults,
                in turn; needs --peers                                                                    (6 min)
    leader      gap that an acks=all producer sees when its leader is killed; with --peers on Kafka too    (5 min each)
    pause       the same when the leader's process stands still (as a machine that is cut off)            (5 min)
    follower    the same when a follower is killed                                                        (5 min)
    follower-pause  the same when a follower's process stands still                                       (5 min)
    pause-both  the same when the leader's process and the etcd that it runs, which leads the others, stand still; needs
                etcdctl                                                                                   (5 min)
    drain       SIGTERM to a node that leads --leaders partitions, and the gap of the partitions it led   (3 min)
    elections   kill of a node that leads --elections partitions, until all have another leader           (4 min)
    catch-up    a follower that was away for --backlog-mb comes back: its rate, alone and beside a producer, whose p99, and
                what the disk writes and copies, and what both take without a broker                      (2 min each)
    idle        --idle partitions with three replicas and no clients: CPU of each node, memory            (5 min)

All nodes are on this machine and say so in the result: nothing here crosses a network. Nodes and their etcd are started by
tuning/cluster in a folder of their own and removed at the end. Gaps are those of a librdkafka producer with one record in
flight; rates and latencies are those of millrace-bench. Prints a Markdown table and writes a JSON file with every repetition.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "tests", folder) for folder in ("programs", "compatibility")]
sys.dont_write_bytecode = True

import raw  # noqa: E402
import rig  # noqa: E402
from result import keep, measured  # noqa: E402

NODES = (1, 2, 3)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", nargs="+", choices=list(MEASUREMENTS))
    parser.add_argument("--peers", help="folder with kafka/kafka, to measure a real Kafka beside")
    parser.add_argument("--binary", default=os.path.join(ROOT, "target/release/millrace"))
    parser.add_argument("--bench", default=os.path.join(ROOT, "target/release/millrace-bench"))
    parser.add_argument("--seconds", type=float, default=5, help="length of one run of a load")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--leaders", type=int, default=1000)
    parser.add_argument("--elections", type=int, default=10_000)
    parser.add_argument("--backlog-mb", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--commit", help="what the binary was built from, for the file; ./do bench-cluster tells its own")
    parser.add_argument("--out", help="folder for the JSON file; nothing is written without")
    return parser.parse_args()


class Tools:
    """Clients: millrace's commands, millrace-bench, and librdkafka."""

    def __init__(self, args):
        self.args = args
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient
        self.producer, self.admin = Producer, AdminClient

    def topic(self, address, name, partitions, replicas, *settings, leader=None):
        """Makes a topic; with a leader, all partitions have that node first."""
        from confluent_kafka.admin import NewTopic
        config = dict(setting.split("=", 1) for setting in settings)
        if leader:
            rest = [node for node in NODES if node != leader]
            assignment = [[leader, *(rest if p % 2 else reversed(rest))] for p in range(partitions)]
            new = NewTopic(name, partitions, replica_assignment=assignment, config=config)
        else:
            new = NewTopic(name, partitions, replication_factor=replicas, config=config)
        admin = self.admin({"bootstrap.servers": address, "log_level": 0})
        for future in admin.create_topics([new], request_timeout=120, operation_timeout=100).values():
            future.result(130)
        end = time.monotonic() + 60
        while any(set(p.isrs) != set(p.replicas) or p.leader < 0 for p in self.partitions(admin, name)):
            if time.monotonic() > end:
                raise RuntimeError(f"{name} does not come into sync")
            time.sleep(0.2)
        return admin

    @staticmethod
    def partitions(admin, name):
        """What a topic's partitions are now, as any node says."""
        return list(admin.list_topics(name, timeout=30).topics[name].partitions.values())

    def load(self, address, topic, partitions, *options):
        """One run of millrace-bench produce."""
        return self.measure("produce", "--brokers", address.split(",")[0], "--topic", topic, "--partitions", str(partitions),
                          "--duration", str(self.args.seconds), "--warmup", "1", *options)

    def floor(self, folder, *options):
        """Figures of a record with replicas without any broker."""
        return self.measure("replicas", "--dir", folder, "--seconds", str(self.args.seconds), *options)["figures"]

    def measure(self, *words):
        """One run of millrace-bench."""
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run([self.args.bench, *words, "--out", out],
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            files = os.listdir(out)
            if done.returncode != 0 or not files:
                raise RuntimeError(f"millrace-bench: {done.stdout[-1500:]}")
            with open(os.path.join(out, files[0]), encoding="utf-8") as file:
                return json.load(file)


class Gap(threading.Thread):
    """A producer with one record in flight, to one partition after the other; knows the longest time without an answer."""

    def __init__(self, tools, address, topic, partitions):
        super().__init__(daemon=True)
        self.topic, self.partitions, self.over = topic, partitions, threading.Event()
        self.longest, self.last, self.written, self.failed = 0.0, None, 0, 0
        self.producer = tools.producer({
            "bootstrap.servers": address, "acks": "all", "enable.idempotence": True, "linger.ms": 0, "log_level": 0,
            "retry.backoff.ms": 20, "retry.backoff.max.ms": 100, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100,
            "topic.metadata.refresh.fast.interval.ms": 50, "socket.timeout.ms": 3000, "request.timeout.ms": 3000})
        self.start()

    def run(self):
        while not self.over.is_set():
            self.producer.produce(self.topic, b"x" * 100, partition=self.written % self.partitions, on_delivery=self.delivered)
            self.producer.flush(60)

    def delivered(self, error, _message):
        """An answer came."""
        now = time.monotonic()
        if error:
            self.failed += 1
        if self.last is not None:
            self.longest = max(self.longest, now - self.last)
        self.last, self.written = now, self.written + 1

    def reset(self):
        """Only what comes from now on counts."""
        self.longest = 0.0

    def stop(self):
        self.over.set()
        self.join(120)


def spread(values, unit):
    """Median, least and largest."""
    values = [round(value, 3) for value in values]
    return f"{statistics.median(values):.3g} {unit} ({min(values):.3g}-{max(values):.3g}, {len(values)} times)"


class Bench:
    """One run of this program: who is measured, and what came out."""

    def __init__(self, args, folder):
        self.args, self.folder, self.tools, self.rows = args, folder, Tools(args), []
        self.log, self.topics = [], 0

    def both(self):
        """The cluster, and Kafka where it is asked for."""
        return [three(self)] + ([rig.Kafka(self.args.peers, self.folder, 3, 25092)] if self.args.peers else [])

    def fresh(self):
        """A topic's name that was not used yet."""
        self.topics += 1
        return f"bench-{self.topics}"

    def say(self, what, goal, values, unit):
        """One row of the table."""
        self.rows.append({"what": what, "goal": goal, "values": values, "unit": unit})
        print(f"| {what} | {goal} | {spread(values, unit)} |", flush=True)

    def in_turn(self, sides, options, also=lambda: None):
        """Loads of (name, address, topic, partitions) in turn, and something else; figures by name. The first round warms up."""
        found = {name: [] for name, *_ in sides}
        for repetition in range(self.args.repeat + 1):
            for name, address, topic, partitions in sides:
                run = self.tools.load(address, topic, partitions, *options)
                if repetition > 0:
                    found[name].append({key: value["median"] for key, value in run["figures"].items()})
                    self.log.append(run | {"side": name})
            also()
        return found

    def tell(self, found, goals, columns):
        """Rows of loads that ran in turn."""
        for name, runs in found.items():
            for column, unit in columns:
                self.say(f"{name}: {column}", goals, [run[column] for run in runs], unit)


def three(bench):
    """A cluster that was not started yet."""
    return rig.Three(bench.args.binary, bench.folder, "25")


def light(bench):
    """A lone record, in a cluster and alone."""
    cluster = three(bench)
    one = rig.One(bench.args.binary, bench.folder, ["--shards", "1", "--memory", "128MiB", "--wal-bytes", "64MiB"])
    try:
        cluster.start()
        one.start()
        bench.tools.topic(cluster.address, "light", 1, 3, "min.insync.replicas=2", leader=1)
        bench.tools.topic(one.address, "light", 1, 1)
        sides = [("three replicas", cluster.address, "light", 1), ("one replica", one.address, "light", 1)]
        floor = []
        found = bench.in_turn(sides, ["--records-per-batch", "1", "--in-flight", "1"],
                              lambda: floor.append(bench.tools.floor(bench.folder)))
        columns = [("produce latency p50 ms", "ms"), ("produce latency p99 ms", "ms"), ("produce records/s", "/s")]
        bench.tell(found, "p50 2x, p99 3x of one replica", columns)
        for replicas in (3, 1):
            for column in ("p50", "p99"):
                times = [run[f"{replicas} replicas {column} us"]["median"] / 1000 for run in floor[1:]]
                bench.say(f"no broker, {replicas} replica(s): {column}", "", times, "ms")
    finally:
        cluster.end()
        one.end()


def throughput(bench):
    """100 partitions, all replicated, beside Kafka's."""
    if not bench.args.peers:
        sys.exit("throughput needs --peers")
    cluster, kafka = bench.both()
    try:
        cluster.start()
        kafka.start()
        sides = [("millrace", cluster, ()), ("Kafka, flush.messages=1", kafka, ("flush.messages=1",)),
                 ("Kafka, its defaults", kafka, ())]
        for number, (_, side, settings) in enumerate(sides):
            bench.tools.topic(side.address, f"wide-{number}", 100, 3, "min.insync.replicas=2", *settings)
        named = [(name, side.address, f"wide-{number}", 100) for number, (name, side, _) in enumerate(sides)]
        found = bench.in_turn(named, ["--connections", "4", "--records-per-batch", "16"])
        columns = [("produce MB/s", "MB/s"), ("produce latency p99 ms", "ms")]
        bench.tell(found, "5x and p99 1/5 of the flushing one, 1x of the other", columns)
    finally:
        cluster.end()
        kafka.end()


def gaps(bench, goal, what, disturb, mend):
    """Gaps of a producer over one partition while something happens to node 1 or 2, on each side."""
    for side in bench.both():
        try:
            side.start()
            values, failed = [], 0
            for _ in range(bench.args.repeat):
                topic = bench.fresh()
                admin = bench.tools.topic(side.address, topic, 1, 3, "min.insync.replicas=2", leader=1)
                gap = Gap(bench.tools, side.address, topic, 1)
                time.sleep(3)
                gap.reset()
                disturb(side)
                time.sleep(10 if side.name == "millrace" else 40)
                gap.stop()
                values.append(gap.longest)
                failed += gap.failed
                mend(side)
                rig.wait_for("all replicas to be in sync",
                             lambda: all(len(p.isrs) == 3 for p in bench.tools.partitions(admin, topic)), 120)
            bench.say(f"{side.name}: {what}" + (f", {failed} records failed" if failed else ""), goal, values, "s")
        finally:
            side.end()


def leader(bench):
    """The leader's process is killed."""
    gaps(bench, "1 s", "gap when the leader is killed", lambda side: side.kill(1), lambda side: side.start(1))


def pause(bench):
    """The leader's process stands still, and goes on after the gap."""
    gaps(bench, "5 s", "gap when the leader stands still", lambda side: os.kill(side.pid(1), signal.SIGSTOP),
         lambda side: os.kill(side.pid(1), signal.SIGCONT))


def follower(bench):
    """A follower's process is killed."""
    gaps(bench, "1.5 s", "gap when a follower is killed", lambda side: side.kill(2), lambda side: side.start(2))


def follower_pause(bench):
    """A follower's process stands still, and goes on after the gap."""
    gaps(bench, "5 s", "gap when a follower stands still", lambda side: os.kill(side.pid(2), signal.SIGSTOP),
         lambda side: os.kill(side.pid(2), signal.SIGCONT))


class Managed:
    """Three nodes that each run an etcd as their child."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.nodes = binary, os.path.join(folder, "managed"), {}
        self.etcds = [f"127.0.0.1:{port}" for port in (25610, 25620, 25630)]
        self.addresses = [f"127.0.0.1:{port}" for port in (25601, 25602, 25603)]
        self.address = ",".join(self.addresses)

    def start(self):
        """Starts the nodes and waits for them."""
        os.makedirs(self.folder)
        members = ",".join(f"{node}={etcd}" for node, etcd in zip(NODES, self.etcds))
        for node in NODES:
            command = [self.binary, "serve", "--cluster", "managed", "--node-id", str(node), "--etcd", "managed", "--etcd-members",
                       members, "--data", os.path.join(self.folder, str(node)), "--listen", self.addresses[node - 1],
                       "--peer-listen", f"127.0.0.1:{25650 + node}", "--shards", "1", "--memory", "128MiB", "--wal-bytes", "64MiB"]
            with open(os.path.join(self.folder, f"{node}.log"), "wb") as log:
                self.nodes[node] = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=rig.die_with_parent)
        for address in self.addresses:
            rig.wait_for(f"{address} to serve", lambda address=address: subprocess.run(
                [self.binary, "topic", "list", "--broker", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                check=False).returncode == 0, 60)

    def etcd_leader(self):
        """The node whose etcd leads the others."""
        asked = subprocess.run(["etcdctl", "--endpoints", ",".join(self.etcds), "endpoint", "status", "-w", "json"],
                               env=os.environ | {"ETCDCTL_API": "3"}, text=True, stdout=subprocess.PIPE, check=True)
        for answer in json.loads(asked.stdout):
            if answer["Status"]["leader"] == answer["Status"]["header"]["member_id"]:
                return self.etcds.index(answer["Endpoint"].removeprefix("http://")) + 1
        raise RuntimeError("no etcd leads")

    def send(self, node, sent):
        """Sends a signal to a node and its etcd."""
        pid = self.nodes[node].pid
        children = subprocess.run(["pgrep", "-P", str(pid)], text=True, stdout=subprocess.PIPE, check=True).stdout.split()
        for each in (pid, *map(int, children)):
            os.kill(each, sent)

    def end(self):
        """Ends them for good."""
        for node, process in self.nodes.items():
            if process.poll() is None:
                self.send(node, signal.SIGKILL)
                process.wait()


def pause_both(bench):
    """The leader's node and its etcd, which leads the others, stand still, and go on after the gap."""
    values, failed = [], 0
    cluster = Managed(bench.args.binary, bench.folder)
    try:
        cluster.start()
        for _ in range(bench.args.repeat):
            topic, node = bench.fresh(), cluster.etcd_leader()
            admin = bench.tools.topic(cluster.address, topic, 1, 3, "min.insync.replicas=2", leader=node)
            gap = Gap(bench.tools, cluster.address, topic, 1)
            time.sleep(3)
            gap.reset()
            cluster.send(node, signal.SIGSTOP)
            time.sleep(16)
            gap.stop()
            values.append(gap.longest)
            failed += gap.failed
            cluster.send(node, signal.SIGCONT)
            rig.wait_for("all replicas to be in sync",
                         lambda: all(len(p.isrs) == 3 for p in bench.tools.partitions(admin, topic)), 120)
    finally:
        cluster.end()
    what = "managed: gap when the leader and its etcd, which leads the others, stand still"
    bench.say(what + (f", {failed} records failed" if failed else ""), "8 s", values, "s")


def moved(bench, admin, topics, node):
    """How many partitions of the topics are led by another node than that."""
    return sum(p.leader not in (node, -1) for topic in topics for p in bench.tools.partitions(admin, topic))


def leaders(node, topic):
    """Leaders of a topic's partitions, as a node says to whom a connection is (Metadata, version 1)."""
    answer = node.call(3, 1, raw.array(raw.text(topic.encode())))
    for _ in range(answer.count()):
        answer.i32(), answer.text(), answer.i32(), answer.text()
    answer.i32(), answer.count(), answer.i16(), answer.text(), answer.i8()
    found = []
    for _ in range(answer.count()):
        answer.i16(), answer.i32()
        found.append(answer.i32())
        for _ in ("replicas", "in sync"):
            [answer.i32() for _ in range(answer.count())]
    return found


def await_moved(nodes, topics, node):
    """Waits until each of some nodes says that all partitions are led by another one than that. Asks about one topic until all of it
    has moved, then about the next, as who asks about all of them again and again takes the cores that the nodes need."""
    left, end = [(asked, topic) for topic in topics for asked in nodes], time.monotonic() + 120
    while left:
        if not {node, -1} & set(leaders(*left[0])):
            left.pop(0)
            continue
        if time.monotonic() > end:
            raise RuntimeError(f"{len(left)} of {len(topics) * len(nodes)} answers are not there after 120 s")
        time.sleep(0.01)


def led_by_one(bench, cluster, count):
    """Topics of 500 partitions that node 1 leads, and somebody to ask about them who is not node 1."""
    topics = []
    for first in range(0, count, 500):
        topics.append(bench.fresh())
        bench.tools.topic(cluster.address, topics[-1], min(500, count - first), 3, leader=1)
    return topics, bench.tools.admin({"bootstrap.servers": cluster.of(2), "log_level": 0})


def drain(bench):
    """SIGTERM to a node that leads many partitions."""
    times, longest, ended = [], [], []
    for _ in range(bench.args.repeat):
        cluster = three(bench)
        try:
            cluster.start()
            topics, admin = led_by_one(bench, cluster, bench.args.leaders)
            gap = Gap(bench.tools, cluster.address, topics[0], min(500, bench.args.leaders))
            time.sleep(3)
            gap.reset()
            pid, began = cluster.pid(1), time.monotonic()
            os.kill(pid, signal.SIGTERM)
            rig.wait_for("the leaders to move", lambda: moved(bench, admin, topics, 1) >= bench.args.leaders, 60, 0.02)
            times.append(time.monotonic() - began)
            rig.wait_for("the process to end", lambda: not running(pid), 60, 0.02)
            ended.append(time.monotonic() - began)
            time.sleep(2)
            gap.stop()
            longest.append(gap.longest)
        finally:
            cluster.end()
    bench.say(f"drain of {bench.args.leaders} leaders", "2 s", times, "s")
    bench.say("... until the process has ended", "", ended, "s")
    bench.say("... longest gap of a producer meanwhile", "0.1 s", longest, "s")


def stat(pid):
    """Fields of a process from its state on, as proc(5) lists them."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()


def running(pid):
    """Whether a process is there and no zombie."""
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


def elections(bench):
    """Kill of a node that leads many partitions, until both that are left tell of the last election. What counts begins with the kill:
    when the first election was seen says nothing, as nobody can ask often enough for that without being in the way. Each node is asked
    by a connection of its own: librdkafka, which knows the dead one too, told half a second late now and then."""
    whole, etcd, nodes = [], [], []
    for _ in range(bench.args.repeat):
        cluster = three(bench)
        try:
            cluster.start()
            topics, _ = led_by_one(bench, cluster, bench.args.elections)
            nodes_left = [raw.Client(cluster.of(node)) for node in (2, 3)]
            time.sleep(5)  # what making them left to do
            pids = [cluster.etcd(), cluster.pid(2), cluster.pid(3)]
            before = [usage(pid)[0] for pid in pids]
            began = time.monotonic()
            os.kill(cluster.pid(1), signal.SIGKILL)
            await_moved(nodes_left, topics, 1)
            whole.append(time.monotonic() - began)
            for client in nodes_left:
                client.close()
            used = [usage(pid)[0] - seconds for pid, seconds in zip(pids, before)]
            etcd.append(used[0])
            nodes += used[1:]
        finally:
            cluster.end()
    bench.say(f"{bench.args.elections} elections after a kill, from the kill until both others told of the last", "1 s", whole, "s")
    bench.say("... CPU of etcd meanwhile", "", etcd, "s")
    bench.say("... CPU of each node that is left meanwhile", "", nodes, "s")


def held(admin, topic):
    """Records that a topic's partitions hold in all."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import OffsetSpec
    asked = {TopicPartition(topic, p.id): OffsetSpec.latest() for p in Tools.partitions(admin, topic)}
    return sum(future.result(30).offset for future in admin.list_offsets(asked).values())


def fall_behind(bench, cluster, admin):
    """Node 3 is away while the backlog is written; how many MB it lacks then, records alone."""
    before = held(admin, "backlog")
    cluster.kill(3)
    lacks = 0.0
    while lacks < bench.args.backlog_mb:
        bench.tools.load(cluster.address, "backlog", 4, "--records-per-batch", "64", "--connections", "4")
        lacks = (held(admin, "backlog") - before) * 1024 / 1e6
    return lacks


def come_back(bench, cluster, admin, lacks, beside=None):
    """Starts node 3 and waits until it lacks nothing; MB/s, with a load beside if one is given."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        cluster.start(3)
        load = pool.submit(beside) if beside else None
        rig.wait_for("the follower to catch up",
                     lambda: all(len(p.isrs) == 3 for p in bench.tools.partitions(admin, "backlog")), 300, 0.1)
        rate = lacks / (time.monotonic() - began)
        if load:
            load.result()
    return rate


def disk_rate(folder):
    """MB/s of the disk: pieces of 1 MiB, each written and flushed before the next."""
    path = os.path.join(folder, "disk")
    began = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=400", "oflag=direct,dsync"], check=True,
                   stderr=subprocess.DEVNULL)
    rate = 400 * 1.048576 / (time.monotonic() - began)
    os.remove(path)
    return rate


def copy_rate(folder):
    """MB/s of a copy on the disk: four files of 256 MiB at once, pieces of 1 MiB, each read, written and flushed before the next."""
    paths = [os.path.join(folder, f"copied-{n}") for n in range(4)]
    try:
        for path in paths:
            subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=256", "oflag=direct"], check=True,
                           stderr=subprocess.DEVNULL)
        os.sync()
        began = time.monotonic()
        copies = [subprocess.Popen(["dd", f"if={path}", f"of={path}-copy", "bs=1M", "iflag=direct", "oflag=direct,dsync"],
                                   stderr=subprocess.DEVNULL) for path in paths]
        if any([copy.wait() for copy in copies]):
            raise RuntimeError("dd cannot copy there")
        return 4 * 256 * 1.048576 / (time.monotonic() - began)
    finally:
        for path in paths:
            for made in (path, f"{path}-copy"):
                if os.path.exists(made):
                    os.remove(made)


def catch_up(bench):
    """A follower comes back to a backlog: with a lone producer beside, then with nobody."""
    rates, alone, lacked, disk, copy, before, meanwhile = [], [], [], [], [], [], []
    floor, beside, floor_rate = [], [], []
    lone = ["--records-per-batch", "1", "--in-flight", "1", "--rate", "200"]
    for _ in range(bench.args.repeat):
        cluster = three(bench)
        try:
            cluster.start()
            admin = bench.tools.topic(cluster.address, "backlog", 4, 3, leader=1)
            bench.tools.topic(cluster.address, "lone", 1, 3, leader=1)

            def produce(into, address=cluster.address):
                run = bench.tools.load(address, "lone", 1, *lone)
                into.append(run["figures"]["produce latency p99 ms"]["median"])

            produce(before)
            with_producer = fall_behind(bench, cluster, admin)
            rates.append(come_back(bench, cluster, admin, with_producer, lambda: produce(meanwhile)))
            lacks = fall_behind(bench, cluster, admin)
            alone.append(come_back(bench, cluster, admin, lacks))
            lacked += [with_producer, lacks]
        finally:
            cluster.end()
        disk.append(disk_rate(bench.folder))
        copy.append(copy_rate(bench.folder))
        figures = bench.tools.floor(bench.folder, "--replicas", "3", "--rate", "200", "--copy-kb", "512")
        floor.append(figures["3 replicas p99 us"]["median"] / 1000)
        beside.append(figures["3 replicas beside a copy p99 us"]["median"] / 1000)
        floor_rate.append(figures["3 replicas beside a copy: copied MB/s"]["median"])
    bench.say(f"catch-up of {bench.args.backlog_mb} MB and more, nobody else, its start included", "70 % of disk or loopback",
              alone, "MB/s")
    bench.say("... what it lacked, beside a producer and alone in turn", "", lacked, "MB")
    bench.say("... the disk, 1 MiB written and flushed after the other", "", disk, "MB/s")
    bench.say("... the disk, as much read from it as written to it", "", copy, "MB/s")
    bench.say("... catch-up with a lone producer beside", "", rates, "MB/s")
    bench.say("... its p99 before", "", before, "ms")
    bench.say("... and meanwhile", "1.5x", meanwhile, "ms")
    bench.say("no broker, 3 replicas, as many records: p99", "", floor, "ms")
    bench.say("... beside a copy of that kind: p99", "", beside, "ms")
    bench.say("... and its rate", "", floor_rate, "MB/s")


def usage(pid):
    """CPU seconds and resident bytes of a process."""
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def idle(bench):
    """Many partitions that nobody uses."""
    for side in bench.both():
        try:
            side.start()
            empty = [usage(side.pid(node))[1] for node in NODES]
            for _ in range(0, bench.args.idle, 500):
                bench.tools.topic(side.address, bench.fresh(), 500, 3)
            time.sleep(30)
            then = [usage(side.pid(node)) for node in NODES]
            time.sleep(60)
            now = [usage(side.pid(node)) for node in NODES]
            cores = [100 * (b[0] - a[0]) / 60 for a, b in zip(then, now)]
            memory = [(b[1] - a) / bench.args.idle / 1024 for a, b in zip(empty, now)]
            bench.say(f"{side.name}: {bench.args.idle} idle partitions, CPU of each node", "1 % of a core", cores, "%")
            bench.say("... memory of an idle partition on each node", "told", memory, "KiB")
        finally:
            side.end()


MEASUREMENTS = {"light": light, "throughput": throughput, "leader": leader, "pause": pause, "follower": follower,
                "follower-pause": follower_pause, "pause-both": pause_both, "drain": drain,
                "elections": elections, "catch-up": catch_up, "idle": idle}


def checkout():
    """The working copy's commit, with a plus when it has changes: the one of this program."""
    git = ["git", "-C", ROOT]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], text=True, stdout=subprocess.PIPE, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], text=True, stdout=subprocess.PIPE, check=False).stdout
    return head + ("+" if changed else "")


def main():
    """Runs what is asked for; the table goes out row by row."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nodes of a cluster outlive us otherwise
    folder = tempfile.mkdtemp(prefix="bench-cluster-")
    bench, binary, began = Bench(args, folder), measured(args.binary, args.commit), datetime.datetime.now()
    print("All nodes on one machine, over loopback.\n\n| what | goal | measured |\n|---|---|---|")
    try:
        for name in args.measurement:
            MEASUREMENTS[name](bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.out:
        keep(args.out, f"cluster-{'-'.join(args.measurement)}", began, kind="cluster", binary=binary, checkout=checkout(),
             nodes="one machine", repeat=args.repeat, seconds=args.seconds, rows=bench.rows, loads=bench.log)


main()
