"""Kafka's verifiable share consumers, two of one share group on three nodes, while the leaders of its partitions are ended without
a word. In the end each acknowledged record was shown, and its acceptance is acknowledged too; a member that was told so is never
shown that record again."""

import json
import os
import random

import rig
from verifiable import Producer

NAME = "share"
MEMBERS = 2
RECORDS = 3_000


class Member:
    """One share consumer, which says what it is shown and what it has acknowledged."""

    def __init__(self, programs, address, topic, group, number):
        self.log = os.path.join(programs.folder, f"member-{number}.log")
        self.process = programs.begin("class", "org.apache.kafka.tools.VerifiableShareConsumer", "--bootstrap-server", address,
                                      "--topic", topic, "--group-id", group, "--verbose", "--acknowledgement-mode", "sync",
                                      heap="128m", log=f"member-{number}")

    def said(self):
        """All that it has said, but for a last line that is not whole."""
        if self.process.poll() is not None:
            raise RuntimeError(f"a member ended with {self.process.returncode}: see {self.log}")
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return [json.loads(line) for line in log if line.startswith("{") and line.endswith("}\n")]


def accepted(line):
    """The places whose acceptance a line tells of."""
    if line["name"] != "offsets_acknowledged" or not line["success"]:
        return set()
    return {(one["partition"], offset) for one in line["partitions"] for offset in one["offsets"]}


def judge(log, members):
    """What is wrong with what members were shown and told, one line each."""
    wrong, shown, done = [], {}, set()
    for number, said in enumerate(members):
        mine = set()
        for line in said:
            if line["name"] == "record_data":
                place = (line["partition"], line["offset"])
                shown[place] = line["value"]
                if place in mine:
                    wrong.append(f"member {number} was shown {place} after its acceptance was acknowledged")
            mine |= accepted(line)
        done |= mine
    there = {(partition, offset): value for partition, rows in log.items() for offset, value in rows}
    differs = [place for place, value in there.items() if shown.get(place) != value]
    if differs:
        wrong.append(f"{len(differs)} of {len(there)} records were not shown, or others in their place: {sorted(differs)[:3]}")
    if not_done := set(there) - done:
        wrong.append(f"{len(not_done)} of {len(there)} records were never accepted: {sorted(not_done)[:3]}")
    return wrong[:6] if there else ["nothing was written"]


def run(brokers, programs, arguments):
    """Ends leaders, one after the other."""
    chance, topic, group = random.Random(arguments.seed), "shared", "sharers"
    programs.create(topic, 3, len(brokers.nodes), *(["min.insync.replicas=2"] if len(brokers.nodes) == 3 else []))
    programs.run("tool", "kafka-configs", "--bootstrap-server", brokers.address, "--alter", "--entity-type", "groups",
                 "--entity-name", group, "--add-config", "share.auto.offset.reset=earliest")
    producer = Producer(programs, topic)
    members = [Member(programs, brokers.address, topic, group, number) for number in range(MEMBERS)]

    def everything():
        return set().union(*(accepted(line) for member in members for line in member.said()))
    try:
        producer.await_more(RECORDS // 3)
        rig.wait_for("members to accept", lambda: len(everything()) > RECORDS // 6, every=1)
        for _ in range(arguments.bounces):
            node = rig.partitions(brokers.address, topic)[chance.randrange(3)]["leader"]
            brokers.bounce(node, True)
            producer.await_more(RECORDS // 3)
        log, wrong = producer.finish()
        places = {(partition, offset) for partition, rows in log.items() for offset, _ in rows}
        try:
            rig.wait_for("all to be accepted", lambda: places <= everything(), 2 * rig.PATIENCE, 1)
        except RuntimeError:
            pass  # what is wrong is said below
        yield NAME, wrong + judge(log, [member.said() for member in members])
    finally:
        producer.program.kill()
        for member in members:
            member.process.kill()
