"""Brokers that programs run against, and Kafka's own programs: millrace or Apache Kafka, one node or three."""

import base64
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "clients", "soak"))

from broker import Broker, die_with_parent, free_port  # noqa: E402

PATIENCE = 180
# Consumers that say so read from the replica in their rack; node N is in rack-N.
SELECTOR = "replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector"


class One:
    """A millrace that is alone."""

    nodes = [1]

    def __init__(self, binary, folder, options=()):
        self.broker = Broker(binary, os.path.join(folder, "millrace"), ["--num-partitions", "4", *options])
        self.address = self.broker.address

    def start(self, _node=None):
        """Starts it."""
        self.broker.start()

    def bounce(self, _node, hard):
        """Ends it, without a word or cleanly, and starts it again."""
        wrong = self.broker.kill() if hard else self.broker.stop()
        if wrong:
            raise RuntimeError(wrong)
        self.broker.start()

    def end(self):
        """Ends it for good."""
        self.broker.kill()


class Commanded:
    """Nodes that a script starts and ends; knows which of them it has ended."""

    def __init__(self, nodes, address, kill, stop, start, environment=None):
        self.nodes, self.address, self.away = nodes, address, set()
        self.commands = {"kill": kill, "stop": stop, "start": start}
        self.environment = os.environ | (environment or {})

    def do(self, what, *node):
        """Has the script do something to all nodes, or to one."""
        subprocess.run([*self.commands[what], *map(str, node)], env=self.environment, check=True, timeout=PATIENCE,
                       stdout=subprocess.DEVNULL)

    def start(self, *node):
        """Starts all nodes, or one."""
        self.do("start", *node)
        self.away -= set(node or self.nodes)

    def start_again(self):
        """Starts whatever was ended and not started since."""
        if self.away:
            self.start(*sorted(self.away))

    def of(self, node):
        """A node's address."""
        return self.address.split(",")[node - 1]

    def kill(self, node):
        """Ends a node without a word."""
        self.stop(node, True)

    def pid(self, node):
        """A node's process."""
        with open(self.pids.format(node), encoding="utf-8") as file:
            return int(file.read())

    def stop(self, node, hard):
        """Ends a node, without a word or cleanly."""
        self.away.add(node)
        self.do("kill" if hard else "stop", node)

    def bounce(self, node, hard):
        """Ends a node, without a word or cleanly, and starts it again."""
        self.stop(node, hard)
        self.start(node)

    def pause(self, node, seconds):
        """Has a node stand still for a while."""
        pid = self.pid(node)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def end(self):
        """Ends them for good."""
        self.do("clean")


class Three(Commanded):
    """A millrace cluster, by tuning/cluster."""

    name = "millrace"

    def __init__(self, binary, folder, ports, options=()):
        script = os.path.join(HERE, "..", "..", "tuning", "cluster")
        environment = {"MILLRACE": binary, "CLUSTER_DIR": os.path.join(folder, "cluster"), "CLUSTER_PORTS": ports,
                       "CLUSTER_OPTIONS": " ".join(["--rack rack-@ --replication-setting", SELECTOR, *options])}
        address = ",".join(f"127.0.0.1:{ports}{500 + node}" for node in (1, 2, 3))
        super().__init__([1, 2, 3], address, *([script, what] for what in ("kill", "stop", "start")), environment)
        self.commands["clean"], self.pids = [script, "clean"], os.path.join(folder, "cluster", "node-{}.pid")
        self.folder = folder

    def etcd(self):
        """The process of its etcd."""
        with open(os.path.join(self.folder, "cluster", "etcd.pid"), encoding="utf-8") as file:
            return int(file.read())

    def end(self):
        """Ends them for good; what they have logged stays for whoever looks into a failure."""
        for log in glob.glob(os.path.join(self.folder, "cluster", "*.log")):
            shutil.copy(log, self.folder)
        super().end()


class Kafka(Commanded):
    """Apache Kafka, one node or three, by the script that runs it."""

    name = "Kafka"

    def __init__(self, peers, folder, nodes, port):
        script, self.folder = os.path.join(peers, "kafka", "kafka"), os.path.join(folder, "kafka")
        where = ["--dir", self.folder, "--port", str(port)]
        of = where if nodes == 1 else [*where, "--nodes", str(nodes), "--node"]
        address = ",".join(f"127.0.0.1:{port + 10 * i}" for i in range(nodes))
        super().__init__(list(range(1, nodes + 1)), address, *([script, what, *of] for what in ("kill", "stop", "start")))
        self.commands["clean"], self.pids = [script, "kill", *where], os.path.join(self.folder, "{}", "pid")
        self.single = nodes == 1

    def do(self, what, *node):
        """As it is, but that one of one has no number."""
        super().do(what, *(() if self.single or what == "clean" else node))

    def start(self, *node):
        """Starts all nodes, or one: each has its rack, and none serves before there is a majority."""
        if self.single:
            super().start()
            return
        os.makedirs(self.folder, exist_ok=True)
        cluster = os.path.join(self.folder, "cluster-id")
        if not os.path.exists(cluster):
            with open(cluster, "w", encoding="utf-8") as file:
                file.write("A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22])
        started = [self.begin(one) for one in node or self.nodes]
        if any([one.wait(PATIENCE) for one in started]):
            raise RuntimeError(f"Kafka does not start; see {self.folder}")
        self.away -= set(node or self.nodes)

    def begin(self, node):
        """Begins to start a node. Waits for its data's folder: before it makes that, the script writes the file with the cluster's
        id anew, and another one that reads it at that moment finds it empty."""
        command = [*self.commands["start"], str(node), "--set", SELECTOR, "--set", f"broker.rack=rack-{node}"]
        begun = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)
        made = os.path.join(self.folder, str(node), "data", "meta.properties")
        wait_for(f"node {node} to be formatted", lambda: os.path.exists(made) or begun.poll() is not None, every=0.1)
        return begun


def broker_of(arguments, folder):
    """What the command line asks for, started."""
    if arguments.kafka:
        made = Kafka(arguments.peers, folder, arguments.nodes, int(f"{arguments.ports}092"))
    elif arguments.nodes == 3:
        made = Three(arguments.binary, folder, arguments.ports, arguments.option)
    else:
        made = One(arguments.binary, folder, arguments.option)
    try:
        made.start()
    except BaseException:  # some of its nodes may run
        made.end()
        raise
    return made


class Programs:
    """Kafka's own programs against the broker."""

    def __init__(self, peers, address, folder):
        self.script, self.address, self.folder = os.path.join(peers, "kafka", "kafka"), address, folder

    def run(self, kind, name, *arguments, heap="128m", text=None, check=True):
        """Runs a tool or a class to its end; what it says."""
        done = subprocess.run([self.script, kind, name, *arguments], env=os.environ | {"HEAP": heap}, input=text, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * PATIENCE, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stdout[-2000:]}")
        return done.stdout

    def begin(self, kind, name, *arguments, heap="256m", log=None, environment=None):
        """Starts one in the background; it ends with us."""
        path = os.path.join(self.folder, f"{log or name}.log")
        with open(path, "ab") as out:
            return subprocess.Popen([self.script, kind, name, *arguments], env=os.environ | {"HEAP": heap} | (environment or {}),
                                    stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def keep(self, kind, name, *arguments, heap="256m", log=None):
        """The same, over all its lives."""
        return Kept(lambda: self.begin(kind, name, *arguments, heap=heap, log=log))

    @staticmethod
    def pause(seconds):
        """Lets them go on."""
        time.sleep(seconds)

    def create(self, topic, partitions, replicas, *settings):
        """Makes a topic."""
        options = [word for setting in settings for word in ("--config", setting)]
        self.run("tool", "kafka-topics", "--bootstrap-server", self.address, "--create", "--topic", topic,
                 "--partitions", str(partitions), "--replication-factor", str(replicas), *options)


class Kept:
    """A program in the background that is ended and begun again."""

    def __init__(self, begin):
        self.begin, self.process = begin, begin()

    def bounce(self):
        """Ends it without a word, and begins another one."""
        self.end()
        self.process = self.begin()

    def end(self):
        """Ends it without a word."""
        self.process.kill()
        self.process.wait()


def bounce_in_turn(brokers, program, chance, times, meanwhile):
    """Ends a broker and a program without a word, in turn; each goes on at once, for as long as `meanwhile` takes."""
    for bounce in range(times):
        meanwhile()
        if bounce % 2 == 0:
            brokers.bounce(chance.choice(brokers.nodes), True)
        else:
            program.bounce()


def write(address, topic, lines, partition):
    """Writes lines to a partition, once each, with acks=all."""
    subprocess.run(["kcat", "-b", address, "-P", "-t", topic, "-p", str(partition), "-X", "enable.idempotence=true"],
                   input="\n".join(lines) + "\n", text=True, check=True, timeout=PATIENCE)


def read(address, topic, isolation="read_committed", form="%p\t%s\n"):
    """What a topic holds up to its ends, in the order of its partitions: lists of the fields of `form`."""
    done = subprocess.run(["kcat", "-b", address, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", form,
                           "-X", f"isolation.level={isolation}"], text=True, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
    return [line.split("\t") for line in done.stdout.splitlines()]


def partitions(address, topic):
    """A topic's partitions as the cluster has them now: what each says of its leader, replicas and those in sync."""
    done = subprocess.run(["kcat", "-b", address, "-L", "-J", "-t", topic], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False)
    found = json.loads(done.stdout)["topics"][0]["partitions"] if done.returncode == 0 else []
    return {one["partition"]: {"leader": one["leader"], "replicas": [r["id"] for r in one["replicas"]],
                               "in sync": sorted(r["id"] for r in one["isrs"])} for one in found}


def leader(address, topic, partition):
    """The node that leads a partition, -1 when there is none or nobody says."""
    return partitions(address, topic).get(partition, {}).get("leader", -1)


def who(role):
    """Whoever has a role now: waits while nobody has it, as in an election."""
    found = []
    wait_for("somebody in the role", lambda: found.append(role()) or found[-1] > 0)
    return found[-1]


def wait_for(what, holds, seconds=PATIENCE, every=0.5):
    """Waits until something is so; an error when it is not within the time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds} s for {what}")
        time.sleep(every)


def wipe(folder):
    """Removes a folder."""
    shutil.rmtree(folder, ignore_errors=True)


def serves(port):
    """Whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def port():
    """A free port."""
    with free_port() as held:
        return held.getsockname()[1]
