"""Kafka's TransactionalMessageCopier, as Kafka's own system test runs it: two of them copy a topic exactly once, each
transaction with the offsets that it read, aborting some by chance, while brokers or copiers are ended, without a word or
cleanly. In the end each record is there once and in its order."""

import json
import os
import random

import rig

NAME = "copiers"
SIZE, TRANSACTION = 20_000, 250


class Copier:
    """One of them over its lives: it has the same transactional id in each."""

    def __init__(self, run, number, arguments):
        self.run, self.number, self.arguments = run, number, arguments
        self.begin()

    def begin(self):
        """Starts it."""
        self.process = self.run.programs.begin("tool", "transactional-message-copier", *self.arguments, log=f"copier-{self.number}")

    def is_done(self):
        """Whether it has ended well; one that ended badly is an error, and kept."""
        status = self.process.poll()
        if status not in (None, 0):
            raise RuntimeError(f"copier {self.number} ended with {status}: see its log")
        return status == 0

    def bounce(self, hard):
        """Ends it and starts it again."""
        if hard:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(rig.PATIENCE)
        self.begin()


class Run:
    """One run with one way of disturbing."""

    def __init__(self, brokers, programs, what, hard, group_mode):
        self.brokers, self.programs, self.what, self.hard = brokers, programs, what, hard
        word = f"{what}-{'hard' if hard else 'clean'}{'-group' if group_mode else ''}"
        self.input, self.output, self.group = f"in-{word}", f"out-{word}", f"copy-{word}"
        self.group_mode, self.word = group_mode, word

    def copier(self, number):
        """Starts the copier of a partition, or a member of the group."""
        mode = ["--group-mode", "--use-group-metadata"] if self.group_mode else []
        return Copier(self, f"{self.word}-{number}", [
            "--broker-list", self.brokers.address, "--transactional-id", f"{self.group}-{number}", "--input-topic", self.input,
            "--input-partition", str(number), "--output-topic", self.output, "--consumer-group", self.group,
            "--transaction-size", str(TRANSACTION), "--transaction-timeout", "40000", "--max-messages", "-1",
            "--enable-random-aborts", *mode])

    def disturb(self, copiers, chance):
        """Ends one of what is to be disturbed."""
        if self.what == "brokers":
            self.brokers.bounce(chance.choice(self.brokers.nodes), self.hard)
        else:
            chance.choice(copiers).bounce(self.hard)

    def check(self):
        """What is wrong with the copy, one line each."""
        copied = {0: [], 1: [], 2: []}
        for partition, value in rig.read(self.brokers.address, self.output):
            copied[int(partition)].append(int(value))
        wrong = []
        for partition in (0, 1):
            expected, found = list(range(partition, SIZE, 2)), copied[partition]
            if sorted(found) != expected:
                wrong.append(f"partition {partition}: {len(found)} records, {len(set(found))} different, for {len(expected)}")
            elif found != expected:
                wrong.append(f"partition {partition}: not in order")
        return wrong

    def go(self, bounces, chance):
        """Runs it; what is wrong, one line each."""
        copies = len(self.brokers.nodes)
        settings = ["min.insync.replicas=2"] if copies == 3 else []
        self.programs.create(self.input, 2, copies, *settings)
        self.programs.create(self.output, 3, copies, *settings)
        for partition in (0, 1):
            rig.write(self.brokers.address, self.input, map(str, range(partition, SIZE, 2)), partition)
        copiers = [self.copier(number) for number in (0, 1)]
        try:
            for _ in range(bounces):
                self.sleep(copiers, 2 + 6 * chance.random())
                self.disturb(copiers, chance)
            rig.wait_for("the copiers to end", lambda: all([copier.is_done() for copier in copiers]), 2 * rig.PATIENCE)
        finally:
            for copier in copiers:
                copier.process.kill()
        return self.check()

    @staticmethod
    def sleep(copiers, seconds):
        """Waits, and hears of a copier that ends badly meanwhile."""
        for _ in range(int(seconds / 0.1)):
            if any([copier.is_done() for copier in copiers]):
                return
            copiers[0].run.programs.pause(0.1)


def run(brokers, programs, arguments):
    """All ways of disturbing: yields the name of each and what is wrong."""
    chance = random.Random(arguments.seed)
    for what in ("brokers", "copiers"):
        for hard in (True, False):
            for group_mode in (False, True):
                one = Run(brokers, programs, what, hard, group_mode)
                if arguments.only and arguments.only not in one.word:
                    continue
                yield f"{NAME}-{one.word}", one.go(arguments.bounces, chance)


def progress(folder, number):
    """What a copier says of itself, for whoever looks into a failure."""
    with open(os.path.join(folder, f"copier-{number}.log"), errors="replace") as log:
        return [json.loads(line) for line in log if line.startswith("{")]
