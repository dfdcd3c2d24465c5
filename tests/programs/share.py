"""Kafka's verifiable share consumers, two of one share group on three nodes, while the leaders of its partitions are ended
without a word. In the end each acknowledged record was shown and accepted, if need be without an answer that a broker took with
it; a member that was told that its acceptance stands is never shown that record again, and nobody else is told the same."""

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


def told(line, success):
    """The places whose acceptance a line says to stand, or not to be known to."""
    if line["name"] != "offsets_acknowledged" or line["success"] != success:
        return set()
    return {(one["partition"], offset) for one in line["partitions"] for offset in one["offsets"]}


def left(places, members, starts):
    """Those that no member has accepted. Of an acceptance whose answer went with its broker nobody knows whether it stands: where
    the group, by `starts`, begins after such a place, it does."""
    lines = [line for said in members for line in said]
    done, doubtful = (set().union(*(told(line, success) for line in lines)) for success in (True, False))
    return {place for place in places - done if place not in doubtful or starts.get(place[0], 0) <= place[1]}


def starts(programs, group):
    """Where the group begins in each partition."""
    said = programs.run("tool", "kafka-share-groups", "--bootstrap-server", programs.address, "--describe", "--offsets", "--group",
                        group, check=False)
    rows = [line.split() for line in said.splitlines() if line.startswith(group)]
    return {int(row[2]): int(row[3]) for row in rows if row[3].isdigit()}


def judge(log, members, starts):
    """What is wrong with what members were shown and told, one line each. `starts`: where the group begins in the end."""
    wrong, shown, done = [], {}, {}
    for number, said in enumerate(members):
        mine = set()
        for line in said:
            if line["name"] == "record_data":
                place = (line["partition"], line["offset"])
                shown[place] = line["value"]
                if place in mine:
                    wrong.append(f"member {number} was shown {place} after its acceptance was acknowledged")
            # what one member has accepted the brokers must not hand out again; when another one was shown it says little, as that
            # may have been before, and its program may print it late: that it could accept it too says all
            for place in told(line, True):
                if place in done:
                    wrong.append(f"member {number} was told that its acceptance of {place} stands, and so was {done[place]} before")
                done[place] = number
                mine.add(place)
    there = {(partition, offset): value for partition, rows in log.items() for offset, value in rows}
    differs = [place for place, value in there.items() if shown.get(place) != value]
    if differs:
        wrong.append(f"{len(differs)} of {len(there)} records were not shown, or others in their place: {sorted(differs)[:3]}")
    if not_done := left(set(there), members, starts):
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

    def said():
        return [member.said() for member in members]

    def is_done(places):
        """Asks where the group begins only when nothing else can say more: that takes a while."""
        beyond = {partition: offset + 1 for partition, offset in sorted(places)}
        return not left(places, said(), beyond) and not left(places, said(), starts(programs, group))
    try:
        producer.await_more(RECORDS // 3)
        rig.wait_for("members to accept",
                     lambda: sum(len(told(line, True)) for lines in said() for line in lines) > RECORDS // 6, every=1)
        for _ in range(arguments.bounces):
            partition = chance.randrange(3)
            brokers.bounce(rig.who(lambda p=partition: rig.leader(brokers.address, topic, p)), True)
            producer.await_more(RECORDS // 3)
        log, wrong = producer.finish()
        places = {(partition, offset) for partition, rows in log.items() for offset, _ in rows}
        try:
            rig.wait_for("all to be accepted", lambda: is_done(places), 2 * rig.PATIENCE, 1)
        except RuntimeError:
            pass  # what is wrong is said below
        yield NAME, wrong + judge(log, said(), starts(programs, group))
    finally:
        producer.program.kill()
        for member in members:
            member.process.kill()
