"""Three nodes and an etcd, of which one at a time is killed, or stands still for a while."""

import os
import shutil
import signal
import subprocess
import time
import urllib.request

from broker import PATIENCE, Broker, die_with_parent, free_port

NODES = 3
# Longer than a node's lease: it is no member any more when it goes on.
PAUSE = 5


class Cluster:
    """A cluster over the lives of its nodes: to those who use it, one broker that is killed and started again."""

    def __init__(self, binary, folder, options, chance):
        os.makedirs(folder)
        with free_port() as a, free_port() as b:
            client, peer = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in (a, b))
        self.chance, self.away, self.folder = chance, None, folder
        self.etcd_command = ["etcd", "--name", "one", "--data-dir", os.path.join(folder, "etcd"),
                             "--listen-client-urls", client, "--advertise-client-urls", client,
                             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                             "--initial-cluster", f"one={peer}", "--logger", "zap", "--log-outputs", "stderr",
                             "--log-level", "error"]
        self.etcd, self.client, self.nodes = None, client, []
        for node in range(1, NODES + 1):
            with free_port() as held:
                channel = f"127.0.0.1:{held.getsockname()[1]}"
            own = ["--cluster", "tested", "--etcd", client, "--node-id", str(node), "--peer-listen", channel]
            self.nodes.append(Broker(binary, os.path.join(folder, f"node-{node}"), [*own, *options]))
        self.address = ",".join(node.address for node in self.nodes)

    def start(self):
        """Starts what does not run."""
        if self.etcd is None:
            self._start_etcd()
            for node in self.nodes:
                node.start()
        elif self.away is not None:
            node, is_paused = self.away
            if is_paused:
                time.sleep(PAUSE)
                node.process.send_signal(signal.SIGCONT)
            else:
                node.start()
            self.away = None

    def _start_etcd(self):
        if shutil.which(self.etcd_command[0]) is None:
            raise RuntimeError("there is no etcd here (Debian: etcd-server)")
        with open(os.path.join(self.folder, "etcd.log"), "ab") as log:
            self.etcd = subprocess.Popen(self.etcd_command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                         preexec_fn=die_with_parent)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{self.client}/health", timeout=2).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def kill(self):
        """Takes one node away: most often it is killed, now and then it only stands still. In the end, all of them."""
        if self.away is not None:
            self.start()
        node = self.chance.choice(self.nodes)
        if self.chance.random() < 0.25:
            node.process.send_signal(signal.SIGSTOP)
            self.away = (node, True)
        else:
            node.kill()
            self.away = (node, False)

    def end(self):
        """Ends everything without a word."""
        for process in [*(node.process for node in self.nodes), self.etcd]:
            if process is not None:
                process.kill()
                process.wait()

    def stop(self):
        """SIGTERM to all nodes, one after the other; what is wrong with how they end, or None."""
        wrong = [f"{node.address}: {ended}" for node in self.nodes if (ended := node.stop())]
        self.etcd.kill()
        return "; ".join(wrong) or None

    def last_words(self):
        """The ends of all logs."""
        return "\n".join(f"{node.address}:\n{node.last_words()}" for node in self.nodes)
