"""Kafka's verifiable producer and consumer on one topic, and what must be true of what both have said: each acknowledged record is
in the log once, at the offset that it was acknowledged with, those of a partition are in the order in which they were sent, and
the consumer was shown all of the log without a gap."""

import collections
import json
import os
import re

import rig

# Records a second, as in Kafka's tests; and for how long the producer tries to send one.
PACE, PATIENT = 1_000, 600_000
MBEAN = "kafka.consumer:type=consumer-fetch-manager-metrics,client-id=*,topic={},partition=0"


class Program:
    """A program that says in lines of JSON what it does."""

    def __init__(self, kind, process, log):
        self.kind, self.process, self.log = kind, process, log

    def said(self):
        """All that it has said, but for a last line that is not whole."""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return [json.loads(line) for line in log if line.startswith("{") and line.endswith("}\n")]

    def count(self, word):
        """How many lines of a kind it has said. It must run, as it does not end by itself."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the {self.kind} ended with {self.process.returncode}: see {self.log}")
        with open(self.log, "rb") as log:
            return log.read().count(f'"name":"{word}"'.encode())

    def end(self):
        """Ends it cleanly."""
        self.process.terminate()
        self.process.wait(rig.PATIENCE)

    def kill(self):
        """Ends it, whatever it does."""
        self.process.kill()
        self.process.wait()


def begin(programs, topic, kind, settings, *arguments, environment=None):
    """Starts the verifiable program of a kind."""
    path = os.path.join(programs.folder, f"{kind}-{topic}.properties")
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(settings) + "\n")
    process = programs.begin("tool", f"kafka-verifiable-{kind}", "--bootstrap-server", programs.address, "--topic", topic,
                             "--command-config", path, *arguments, heap="128m", log=f"{kind}-{topic}", environment=environment)
    return Program(kind, process, os.path.join(programs.folder, f"{kind}-{topic}.log"))


class Producer:
    """Idempotent, all replicas in sync asked for, and never tired of trying again."""

    def __init__(self, programs, topic, keys=None):
        self.programs, self.topic = programs, topic
        settings = ["enable.idempotence=true", "acks=all", "retries=2147483647", f"delivery.timeout.ms={PATIENT}"]
        more = ["--repeating-keys", str(keys)] if keys else []
        self.program = begin(programs, topic, "producer", settings, "--max-messages", "-1", "--throughput", str(PACE),
                             "--acks", "-1", *more)

    def acked(self):
        """How many records were acknowledged."""
        return self.program.count("producer_send_success")

    def await_acked(self, count):
        """Waits for acknowledgements."""
        rig.wait_for(f"{count} acknowledgements", lambda: self.acked() >= count)

    def await_more(self, count):
        """Waits for so many more of them."""
        self.await_acked(self.acked() + count)

    def finish(self):
        """Ends it. The log, and what is wrong with it, one line each."""
        self.program.end()
        log = by_partition(rig.read(self.programs.address, self.topic, form="%p\t%o\t%s\n"))
        return log, wrong_log(log, self.program.said())


class Consumer:
    """A member of a group, alone in it, that may stand in a rack and tell on a page from whom it reads."""

    def __init__(self, programs, topic, protocol, rack=None):
        self.programs, self.topic, self.page = programs, topic, rig.port() if rack else None
        settings = ["isolation.level=read_committed", "metadata.max.age.ms=3000", *([f"client.rack={rack}"] if rack else [])]
        jmx = "-Dcom.sun.management.jmxremote"
        page = {"JAVA_TOOL_OPTIONS": f"{jmx}.port={self.page} {jmx}.rmi.port={self.page} -Djava.rmi.server.hostname=127.0.0.1 "
                                     f"{jmx}.authenticate=false {jmx}.ssl=false"} if rack else None
        self.program = begin(programs, topic, "consumer", settings, "--group-id", f"group-{topic}", "--group-protocol", protocol,
                             "--reset-policy", "earliest", "--verbose", environment=page)

    def read(self):
        """How many records it was shown."""
        return self.program.count("record_data")

    def await_more(self, count):
        """Waits until it was shown more."""
        count += self.read()
        rig.wait_for(f"{count} records to be read", lambda: self.read() >= count)

    def preferred(self):
        """The replica that it was told to read from: -1 for the leader, None when it does not say."""
        said = self.programs.run("class", "org.apache.kafka.tools.JmxTool", "--one-time", "--jmx-url",
                                 f"service:jmx:rmi:///jndi/rmi://127.0.0.1:{self.page}/jmxrmi", "--object-name",
                                 MBEAN.format(self.topic), "--attributes", "preferred-read-replica", heap="64m", check=False)
        found = re.search(r"^\d{10,},(-?\d+)", said, re.MULTILINE)
        return int(found[1]) if found else None

    def finish(self, log, cut):
        """Waits until it has read to the end of a log, ends it, and says what is wrong with what it was shown. Of a log that was
        `cut` while it read it may be shown other records at places that it was shown before."""
        ends = {partition: rows[-1][0] for partition, rows in log.items()}

        def at_end():
            self.read()
            last = {line["partition"]: line["offset"] for line in self.program.said() if line["name"] == "record_data"}
            return all(last.get(partition, -1) >= end for partition, end in ends.items())
        rig.wait_for("the consumer to read to the end", at_end, every=1)
        self.program.end()
        return wrong_reads(log, self.program.said(), cut)


class Load:
    """One of each, which run until they are ended."""

    def __init__(self, programs, topic, protocol, keys=None, rack=None):
        self.producer, self.consumer = Producer(programs, topic, keys), Consumer(programs, topic, protocol, rack)

    def finish(self, cut=False):
        """Ends both; what is wrong, one line each. `cut`: an election may have lost some of what was acknowledged, so that what
        the producer was told says nothing."""
        log, wrong = self.producer.finish()
        return (sent_twice(log) if cut else wrong) + self.consumer.finish(log, cut)

    def kill(self):
        """Ends both, whatever they do."""
        self.producer.program.kill()
        self.consumer.program.kill()


def by_partition(rows):
    """A log: (offset, value) in order, by partition."""
    log = collections.defaultdict(list)
    for partition, offset, value in rows:
        log[int(partition)].append((int(offset), value))
    return log


def sent_twice(log):
    """Values that are in the log more than once."""
    counts = collections.Counter(value for rows in log.values() for _, value in rows)
    twice = sorted(value for value, count in counts.items() if count > 1)
    return [f"{len(twice)} values are there more than once, {twice[:3]} among them"] if twice else []


def wrong_log(log, said):
    """What is wrong with a log, given what the producer heard of it."""
    wrong = sent_twice(log)
    errors = [line for line in said if line["name"] == "producer_send_error"]
    if errors:
        wrong.append(f"{len(errors)} records were refused: {errors[0]}")
    acked = [line for line in said if line["name"] == "producer_send_success"]
    there = {(partition, offset): value for partition, rows in log.items() for offset, value in rows}
    lost = [line for line in acked if there.get((line["partition"], line["offset"])) != line["value"]]
    if lost or not acked:
        wrong.append(f"{len(lost)} of {len(acked)} acknowledged records are not where they were acknowledged: {lost[:2]}")
    for partition, rows in log.items():
        offsets, values = [offset for offset, _ in rows], [int(value) for _, value in rows]
        if offsets != list(range(offsets[0], offsets[0] + len(offsets))):
            wrong.append(f"partition {partition}: offsets with gaps")
        if values != sorted(values):
            wrong.append(f"partition {partition}: not in the order in which they were sent")
    return wrong


def wrong_reads(log, said, cut):
    """What is wrong with what the consumer was shown: after an assignment it may begin again further back, but not before what it
    was told is committed, nor further on; between two, offsets follow each other. Where a log was `cut`, it may also go back, as
    far as it has to."""
    wrong, expected, assigned = [], {partition: rows[0][0] for partition, rows in log.items()}, set()
    there = {(partition, offset): value for partition, rows in log.items() for offset, value in rows}
    shown, committed = {}, {}
    for line in said:
        if line["name"] == "partitions_assigned":
            assigned |= {one["partition"] for one in line["partitions"]}
        if line["name"] == "offsets_committed" and line["success"]:
            committed |= {one["partition"]: one["offset"] for one in line["offsets"]}
        if line["name"] != "record_data":
            continue
        partition, offset = line["partition"], line["offset"]
        last = expected.get(partition, 0)
        first = 0 if cut else committed.get(partition, 0) if partition in assigned else last
        if not first <= offset <= last:
            wrong.append(f"the consumer was shown {partition} {offset}, not one of {first} to {last}")
        expected[partition] = offset + 1
        assigned.discard(partition)
        shown[(partition, offset)] = line["value"]
    differs = [place for place, value in there.items() if shown.get(place) != value]
    if differs:
        wrong.append(f"the consumer was shown something else at {len(differs)} places, {differs[:3]} among them")
    return wrong[:5]
