"""Kafka's own system tests of replication, with its verifiable producer and consumer on three nodes: leaders and the
controller shut down and bounced, a follower that is away, partitions moved while brokers are bounced, fetches from the
follower in the consumer's rack, and a log that is cut after an unclean election. The scenarios are those of Kafka 4's
tests/kafkatest/tests/core: replication_test, replication_replica_failure_test, round_trip_fault_test, reassign_partitions_test,
fetch_from_follower_test and truncation_test. In the end each acknowledged record is there once, at its offset, in its order, and
the consumer was shown all of it (verifiable.py).
"""

import json
import os
import random
import re
import time

import rig
from verifiable import Load

NAME = "replication"
SETTINGS = ["min.insync.replicas=2"]
# Kafka's tests wait so long for records before and after a fault.
RECORDS = 3_000


class Run:
    """One scenario: a topic, its load, and what is done to the nodes."""

    def __init__(self, brokers, programs, word, arguments):
        self.brokers, self.programs, self.topic, self.bounces = brokers, programs, f"rep-{word}", arguments.bounces
        self.chance = random.Random(f"{arguments.seed} {word}")

    def create(self, partitions=3, replicas=3, settings=(), assignment=None):
        """Makes the topic."""
        if assignment is None:
            self.programs.create(self.topic, partitions, replicas, *settings)
        else:
            options = [word for setting in settings for word in ("--config", setting)]
            self.tool("kafka-topics", "--create", "--topic", self.topic, "--replica-assignment", assignment, *options)
        rig.wait_for("leaders", lambda: self.partitions() and all(p["leader"] > 0 for p in self.partitions().values()))

    def tool(self, name, *arguments, check=True):
        """What a tool says."""
        return self.programs.run("tool", name, "--bootstrap-server", self.brokers.address, *arguments, check=check)

    def partitions(self):
        """The topic's partitions as they are now."""
        return rig.partitions(self.brokers.address, self.topic)

    def leader(self):
        """Who leads partition 0."""
        return rig.leader(self.brokers.address, self.topic, 0)

    def controller(self):
        """Who is controller."""
        found = re.search(r"LeaderId:\s+(\d+)", self.tool("kafka-metadata-quorum", "describe", "--status", check=False))
        return int(found[1]) if found else -1

    def await_moved(self, role, node):
        """Waits until another one has the role of a node."""
        rig.wait_for(f"another one in the place of {node}", lambda: role() not in (-1, node))

    def await_in_sync(self):
        """Waits until all replicas are in sync."""
        rig.wait_for("all replicas in sync", lambda: self.partitions() and all(
            sorted(p["replicas"]) == p["in sync"] and p["leader"] in p["replicas"] for p in self.partitions().values()))

    def under_load(self, disturb, protocol="classic", **options):
        """Has records written and read while the nodes are disturbed; what is wrong, one line each."""
        load = Load(self.programs, self.topic, protocol, **options)
        try:
            load.producer.await_more(RECORDS // 3)
            disturb()
            load.producer.await_more(RECORDS // 3)
            self.await_in_sync()
            return load.finish()
        finally:
            load.kill()

    def shutdown(self, role, hard):
        """A node ends, and is not there for the rest of the load."""
        node = rig.who(role)
        self.brokers.stop(node, hard)
        self.await_moved(role, node)
        time.sleep(5)
        self.brokers.start(node)

    def bounce(self, role, hard):
        """Whoever has the role is bounced, several times."""
        for _ in range(self.bounces):
            node = rig.who(role)
            self.brokers.stop(node, hard)
            if hard:  # as Kafka's test: not back before another one has the role
                self.await_moved(role, node)
            self.brokers.start(node)
            self.await_in_sync()

    def reassign(self, during):
        """Moves all partitions, has something done meanwhile, and waits until they have moved."""
        plan = {p: self.chance.sample(self.brokers.nodes, len(one["replicas"])) for p, one in self.partitions().items()}
        path = os.path.join(self.programs.folder, f"{self.topic}.json")
        with open(path, "w", encoding="utf-8") as out:
            json.dump({"version": 1, "partitions": [{"topic": self.topic, "partition": p, "replicas": r} for p, r in plan.items()]},
                      out)
        said = self.tool("kafka-reassign-partitions", "--execute", "--reassignment-json-file", path)
        if "Successfully started" not in said:
            raise RuntimeError(said[-1000:])
        during()
        rig.wait_for("partitions to move", lambda: {p: one["replicas"] for p, one in self.partitions().items()} == plan)
        said = self.tool("kafka-reassign-partitions", "--verify", "--reassignment-json-file", path)
        if said.count("is completed") != len(plan):
            raise RuntimeError(said[-1000:])

    def clean_bounces(self):
        """Every other node, one after the other."""
        for node in self.brokers.nodes[::2]:
            self.brokers.bounce(node, False)


def broker_failure(role, way, hard):
    """replication_test: the leader's node, or the controller's, ends."""
    def go(run):
        run.create(settings=SETTINGS)
        of = run.leader if role == "leader" else run.controller
        return run.under_load(lambda: getattr(run, way)(of, hard), "consumer" if way == "bounce" else "classic")
    return f"{role}-{'hard' if hard else 'clean'}-{way}", go


def replica_failure(run):
    """A follower is away: it leaves those in sync, acknowledgements go on, and it comes back and catches up."""
    run.create(assignment="1:2:3", settings=SETTINGS)

    def away():
        run.brokers.stop(3, True)
        rig.wait_for("3 to be out of sync", lambda: run.partitions()[0]["in sync"] == [1, 2])
        time.sleep(10)
        run.brokers.start(3)
    return run.under_load(away)


def leader_pause(run):
    """round_trip_fault_test: the leader stands still for longer than anybody waits for it, and goes on."""
    run.create(settings=SETTINGS)
    return run.under_load(lambda: [run.brokers.pause(rig.who(run.leader), 15) for _ in range(2)])


def reassign(bounces, from_start):
    """reassign_partitions_test: all partitions move, also when nodes are bounced, also of a log with a start of its own."""
    def go(run):
        run.create(partitions=10, replicas=2, settings=SETTINGS)
        if not from_start:
            for partition in range(10):
                rig.write(run.brokers.address, run.topic, map(str, range(-100, 0)), partition)
            path = os.path.join(run.programs.folder, f"{run.topic}-delete.json")
            with open(path, "w", encoding="utf-8") as out:
                json.dump({"version": 1, "partitions": [{"topic": run.topic, "partition": p, "offset": -1} for p in range(10)]}, out)
            run.tool("kafka-delete-records", "--offset-json-file", path)
        return run.under_load(lambda: run.reassign(run.clean_bounces if bounces else lambda: None), "consumer", keys=100)
    return f"reassign{'-bounces' if bounces else ''}{'' if from_start else '-later-start'}", go


def follower_fetch(run):
    """fetch_from_follower_test: a consumer reads from the replica in its rack, from the leader while that is away, and from it
    again; the consumer itself says from whom."""
    run.create(assignment="1:2:3", settings=SETTINGS)
    wrong = []

    def watched():
        for what, away, preferred in (("at first", False, 2), ("while it is away", True, -1), ("when it is back", False, 2)):
            if away:
                run.brokers.stop(2, True)
            elif what != "at first":
                run.brokers.start(2)
            try:
                rig.wait_for("the replica", lambda wanted=preferred: load.consumer.preferred() == wanted, every=2)
            except RuntimeError:
                wrong.append(f"{what}: it reads from {load.consumer.preferred()} and not from {preferred}")
            load.consumer.await_more(RECORDS // 3)
    load = Load(run.programs, run.topic, "classic", rack="rack-2")
    try:
        load.producer.await_more(RECORDS // 3)
        watched()
        run.await_in_sync()
        return wrong + load.finish()
    finally:
        load.kill()


def truncation(run):
    """truncation_test: what only the leader had is lost by an unclean election. The other replica's log is the truth from then
    on: it is cut to that, and a consumer that had read more goes on."""
    run.create(assignment="1:2", settings=["unclean.leader.election.enable=true"])
    load = Load(run.programs, run.topic, "classic")
    try:
        load.producer.await_more(RECORDS // 3)
        run.brokers.stop(2, True)
        rig.wait_for("1 to be alone", lambda: run.partitions()[0]["in sync"] == [1])
        load.producer.await_more(RECORDS // 3)
        run.brokers.stop(1, True)
        run.brokers.start(2)
        rig.wait_for("2 to lead", lambda: run.leader() == 2)
        load.producer.await_more(RECORDS // 3)
        run.brokers.start(1)
        run.await_in_sync()
        load.producer.program.end()  # while it writes, who reads comes to no end
        first = rig.read(run.brokers.address, run.topic, form="%p\t%o\t%s\n")
        run.brokers.stop(2, False)
        run.await_moved(run.leader, 2)
        second = rig.read(run.brokers.address, run.topic, form="%p\t%o\t%s\n")
        run.brokers.start(2)
        run.await_in_sync()
        wrong = [] if first == second and first else ["the replicas differ"]
        return wrong + load.finish(cut=True)
    finally:
        load.kill()


def scenarios():
    """All of them, by name."""
    for role in ("leader", "controller"):
        for way in ("shutdown", "bounce"):
            for hard in (False, True):
                if (role, way) != ("controller", "shutdown"):
                    yield broker_failure(role, way, hard)
    yield "replica-failure", replica_failure
    yield "leader-pause", leader_pause
    for bounces in (False, True):
        for from_start in (True, False):
            yield reassign(bounces, from_start)
    yield "follower-fetch", follower_fetch
    yield "truncation", truncation


def run(brokers, programs, arguments):
    """Each of them on the same nodes: yields its name and what is wrong."""
    if len(brokers.nodes) != 3:
        raise RuntimeError("replication is for --nodes 3")
    for word, go in scenarios():
        if arguments.only and arguments.only not in word:
            continue
        try:
            wrong = go(Run(brokers, programs, word, arguments))
        except Exception as error:  # whatever a program or a client says is wrong, and the others still have their turn
            wrong = [f"{type(error).__name__}: {error}"]
            brokers.start_again()
        yield f"{NAME}-{word}", wrong
