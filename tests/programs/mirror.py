"""MirrorMaker 2 between the brokers and an Apache Kafka, both ways, with checkpoints and offsets of groups: records are
compared byte by byte, and a group goes on at the other side where it was. Its sources are exactly-once, and the brokers and
MirrorMaker are ended without a word meanwhile."""

import os
import random
import subprocess
import time

import rig

NAME = "mirror"
PARTITIONS, RECORDS = 3, 3_000
EVERY = 2


def properties(folder, here, there):
    """MirrorMaker's file, for the cluster `here` and the Kafka `there`."""
    copies = {"here": len(here.nodes), "there": 1}
    lines = ["clusters=here,there", f"here.bootstrap.servers={here.address}", f"there.bootstrap.servers={there.address}",
             "replication.policy.separator=.", "sync.group.offsets.enabled=true", "offset.lag.max=0",
             f"emit.checkpoints.interval.seconds={EVERY}", f"sync.group.offsets.interval.seconds={EVERY}",
             f"refresh.topics.interval.seconds={EVERY}", f"refresh.groups.interval.seconds={EVERY}",
             "session.timeout.ms=10000", "heartbeat.interval.ms=2000", "scheduled.rebalance.max.delay.ms=1000",
             "offset.flush.interval.ms=1000"]
    for source, target in (("here", "there"), ("there", "here")):
        way = f"{source}->{target}"
        lines += [f"{way}.enabled=true", f"{way}.topics=from-{source}.*", f"{way}.groups=group-{source}.*",
                  f"{way}.replication.factor={copies[target]}",
                  f"{way}.heartbeats.topic.replication.factor={copies[target]}",
                  f"{way}.checkpoints.topic.replication.factor={copies[target]}",
                  f"{way}.offset-syncs.topic.replication.factor={copies[source]}"]
        lines += [f"{source}.{name}.storage.replication.factor={copies[source]}" for name in ("offset", "status", "config")]
        lines.append(f"{source}.exactly.once.source.support=enabled")
    lines += ["dedicated.mode.enable.internal.rest=true", f"listeners=http://127.0.0.1:{rig.port()}"]
    path = os.path.join(folder, "mirror.properties")
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")
    return path


def fill(address, topic, first, count, chance):
    """Writes records with keys, values of many sizes and a header; numbers say which is which."""
    for partition in range(PARTITIONS):
        text = "".join(f"k{n}\t{n}-{'x' * chance.randrange(400)}\n" for n in range(first, first + count))
        subprocess.run(["kcat", "-b", address, "-P", "-t", topic, "-p", str(partition), "-K", "\t", "-H", f"part={partition}",
                        "-X", "enable.idempotence=true", "-z", chance.choice(["none", "gzip", "lz4"])],
                       input=text, text=True, check=True, timeout=rig.PATIENCE)


def content(address, topic):
    """Everything committed, by partition: time, headers, key and value of each."""
    rows = rig.read(address, topic, form="%p\t%T\t%h\t%k\t%s\n")
    return {partition: [row[1:] for row in rows if row[0] == str(partition)] for partition in range(PARTITIONS)}


def consume(programs, address, topic, group, count):
    """Has a group read some and commit."""
    programs.run("tool", "kafka-console-consumer", "--bootstrap-server", address, "--topic", topic, "--group", group,
                 "--from-beginning", "--max-messages", str(count), "--timeout-ms", "60000")


def offsets(programs, address, group):
    """What a group has committed: offset by (topic, partition)."""
    said = programs.run("tool", "kafka-consumer-groups", "--bootstrap-server", address, "--describe", "--group", group, check=False)
    rows = [line.split() for line in said.splitlines() if line.startswith(group)]
    return {(row[1], int(row[2])): int(row[3]) for row in rows if row[3].isdigit()}


def compare(source, target, topic, alias):
    """What is wrong with a copy, one line each."""
    try:
        wrong, (a, b) = [], (content(source, topic), content(target, f"{alias}.{topic}"))
    except subprocess.CalledProcessError as error:
        return [f"{alias}.{topic}: {error}"]
    for partition in range(PARTITIONS):
        if a[partition] != b[partition]:
            place = next((i for i, (x, y) in enumerate(zip(a[partition], b[partition])) if x != y), len(b[partition]))
            wrong.append(f"{alias}.{topic} {partition}: {len(b[partition])} records for {len(a[partition])}, the same up to {place}")
    return wrong if any(a.values()) else ["nothing was written"]


def translated(programs, source, target, topic, alias, group):
    """What is wrong with a group's offsets at the other side: it must be shown all that it has not read, and little more."""
    wrong, mine, theirs = [], offsets(programs, source, group), offsets(programs, target, group)
    a, b = content(source, topic), content(target, f"{alias}.{topic}")
    with_offsets = rig.read(target, f"{alias}.{topic}", form="%p\t%o\t%k\n")
    for (_, partition), offset in mine.items():
        there = theirs.get((f"{alias}.{topic}", partition))
        rows = [row for row in rig.read(source, topic, form="%p\t%o\t%k\n") if row[0] == str(partition) and int(row[1]) < offset]
        read_there = None if there is None else [r for r in with_offsets if r[0] == str(partition) and int(r[1]) < there]
        if read_there is None or len(read_there) != len(rows):
            wrong.append(f"{group} {partition}: {offset} here ({len(rows)} of {len(a[partition])} records) is {there} there "
                         f"({len(read_there or [])} of {len(b[partition])})")
    return wrong if mine else [f"{group} has committed nothing"]


def run(brokers, programs, arguments):
    """Both ways at once."""
    chance = random.Random(arguments.seed)
    kafka = rig.Kafka(arguments.peers, os.path.join(programs.folder, "there"), 1, rig.port())
    os.makedirs(os.path.join(programs.folder, "there"), exist_ok=True)
    kafka.start()
    sides, maker = [("here", brokers.address, kafka.address), ("there", kafka.address, brokers.address)], None
    try:
        for name, source, _ in sides:
            copies = len(brokers.nodes) if name == "here" else 1
            rig.Programs(arguments.peers, source, programs.folder).create(f"from-{name}", PARTITIONS, copies)
            fill(source, f"from-{name}", 0, RECORDS // 2, chance)
        path = properties(programs.folder, brokers, kafka)
        maker = programs.keep("tool", "connect-mirror-maker", path, heap="512m", log="mirror")
        rig.bounce_in_turn(brokers, maker, chance, arguments.bounces, lambda: time.sleep(15 + 10 * chance.random()))
        for name, source, _ in sides:
            fill(source, f"from-{name}", RECORDS // 2, RECORDS // 2, chance)
            consume(programs, source, f"from-{name}", f"group-{name}", PARTITIONS * RECORDS)
        for name, source, target in sides:
            try:
                rig.wait_for(f"the copy of from-{name}", lambda s=source, t=target, n=name: not compare(s, t, f"from-{n}", n),
                             2 * rig.PATIENCE, 4)
                rig.wait_for("the group", lambda s=source, t=target, n=name:
                             not translated(programs, s, t, f"from-{n}", n, f"group-{n}"),
                             every=4)
            except RuntimeError:
                pass  # what is wrong is asked once more
            topic, group = f"from-{name}", f"group-{name}"
            yield f"{NAME}-from-{name}", [*compare(source, target, topic, name),
                                          *translated(programs, source, target, topic, name, group)]
    finally:
        if maker:
            maker.end()
        kafka.end()
