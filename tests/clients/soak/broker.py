"""A broker's process, what its page of metrics says, and what it logs."""

import collections
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request

# Bounds a start and a stop: neither does anything that could take longer than a fraction of it.
PATIENCE = 60
STALLED, STALLS, OLDEST = "millrace_stalled", "millrace_stalls_total", "millrace_oldest_group_seconds"
_prctl = ctypes.CDLL(None).prctl


def die_with_parent():
    """For a child between fork and exec: it ends with this process, however that ends."""
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Broker:
    """PATH serve over all its lives in one folder; it chooses its ports once, and keeps them."""

    def __init__(self, binary, folder, options):
        self.folder, self.log = folder, os.path.join(folder, "log")
        os.makedirs(folder)
        with free_port() as a, free_port() as b:
            ports = [s.getsockname()[1] for s in (a, b)]
        self.address, self.page = (f"127.0.0.1:{port}" for port in ports)
        self.command = [binary, "serve", "--data", os.path.join(folder, "data"), "--listen", self.address,
                        "--metrics", self.page, "--group-setting", "group.initial.rebalance.delay.ms=0", *options]
        self.process = None

    def start(self):
        """Starts it, and waits until it takes connections."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            preexec_fn=die_with_parent)
        deadline = time.monotonic() + PATIENCE
        host, port = self.address.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the broker does not start: {self.last_words()}")
                time.sleep(0.02)

    def kill(self):
        """Ends it without a word."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self):
        """Ends it, whatever it does."""
        self.kill()

    def stop(self):
        """SIGTERM; what is wrong with how it ends, or None."""
        self.process.terminate()
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"SIGTERM did not end the broker within {PATIENCE} s"
        return None if status == 0 else f"the broker ended with status {status}"

    def metrics(self):
        """The page: a list of values, one for each shard or other label, by name."""
        with urllib.request.urlopen(f"http://{self.page}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        values = collections.defaultdict(list)
        for name, value in re.findall(r"^([a-z_]+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
            values[name].append(float(value))
        return values

    def alarms(self):
        """Lines of the log above INFO, without time and numbers, and how often each came."""
        with open(self.log, errors="replace") as log:
            lines = [line.strip() for line in log if re.search(r" WARN |ERROR|panicked", line)]
        return collections.Counter(re.sub(r"[0-9]+", "N", line.partition(" ")[2])[:200] for line in lines)

    def last_words(self):
        """The end of its log."""
        with open(self.log, errors="replace") as log:
            return "".join(log.readlines()[-15:])


def free_port():
    """A socket that holds a port which nobody else has.

    It is below those that Linux gives to outgoing connections: one of them may take a port that a broker gave up for the
    moment of a restart. Whoever draws one by chance hardly draws what another program drew before it listened.
    """
    for _ in range(1000):
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", random.randrange(10_000, 32_000)))
            return held
        except OSError:
            held.close()
    raise RuntimeError("no free port")
