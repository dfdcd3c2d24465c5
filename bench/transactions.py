"""What transactions cost: beside Apache Kafka with the same client, and beside records that are in none.

    bench/transactions MEASUREMENT... --peers DIR [--binary PATH] [--bench PATH] [--seconds N] [--repeat N] [--out DIR]

MEASUREMENT is one or more of

    beside     1 producer and 64, a record of 1 KiB in each transaction, here and on Kafka in turn: Kafka with
               log.flush.interval.messages=1 (class D), then with its defaults (class X)             (3 min)
    perf       kafka-producer-perf-test with transactions of 100 ms and without, here, in turn        (2 min)
    isolation  kafka-consumer-perf-test with read_committed and without, of a topic without transactions, here, in turn; then
               the lean client the same, whose own start does not count                              (2 min)
    aborted    --aborted transactions that were aborted in one partition: start after a kill, memory, and reading all of it
               with read_committed and without, in turn                                              (3 min)

DIR holds the script `kafka/kafka` (see bench/against-kafka). The first turn of each warms up and does not count. Prints a
Markdown table and writes a JSON file with every repetition.
"""
import argparse, datetime, json, os, re, shutil, signal, statistics, subprocess, sys, tempfile, time
import urllib.request

import against_kafka
from against_kafka import FLUSH, ROOT, free_port, perf
from result import keep, measured

COMMITTED = ["--command-property", "isolation.level=read_committed"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", nargs="+", choices=list(MEASUREMENTS))
    parser.add_argument("--peers", required=True, help="folder with kafka/kafka")
    parser.add_argument("--binary", default=os.path.join(ROOT, "target/release/millrace"))
    parser.add_argument("--bench", default=os.path.join(ROOT, "target/release/millrace-bench"))
    parser.add_argument("--seconds", type=float, default=4, help="length of one run of the lean client")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--records", type=int, default=500_000, help="records of one run of Kafka's tools")
    parser.add_argument("--aborted", type=int, default=1_000_000)
    parser.add_argument("--commit", help="what the binary was built from, for the file")
    parser.add_argument("--out", help="folder for the JSON file; nothing is written without")
    args = parser.parse_args()
    args.kafka = os.path.join(args.peers, "kafka", "kafka")
    # what the functions of against_kafka want to know
    args.record_size, args.warmup_records, args.client_cpus = 1024, 0, None
    return args


class Millrace:
    """A broker on a folder of its own."""

    def __init__(self, bench):
        self.args, self.folder = bench.args, os.path.join(bench.folder, f"millrace-{free_port()}")
        self.port, self.metrics = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = open(self.folder + ".log", "w", encoding="utf-8")
        self.start()

    def start(self):
        """Starts it; seconds until it serves."""
        began = time.monotonic()
        command = [self.args.binary, "serve", "--data", self.folder, "--listen", self.address, "--metrics", f"127.0.0.1:{self.metrics}"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while subprocess.run([self.args.binary, "topic", "list", "--broker", self.address], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > began + 60:
                raise RuntimeError(f"it does not serve: {self.folder}.log")
            time.sleep(0.01)
        return time.monotonic() - began

    def topic(self, verb, *options):
        """millrace topic VERB."""
        done = subprocess.run([self.args.binary, "topic", verb, *options, "--broker", self.address], check=True, text=True,
                              stdout=subprocess.PIPE)
        return done.stdout

    def resident(self):
        """MB."""
        return int(re.search(r"VmRSS:\s+(\d+) kB", open(f"/proc/{self.process.pid}/status").read()).group(1)) * 1024 / 1e6

    def fetches(self):
        """Upper bounds of the broker's own histogram of fetches, ms, with how many took no longer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(r'^millrace_request_seconds_bucket\{api="Fetch",le="([^"]+)"\} (\d+)', text, re.M)
        return [(float(bound) * 1000, int(count)) for bound, count in found]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(60)


class Kafka:
    """Apache Kafka, one node."""

    def __init__(self, bench, *settings):
        self.args, self.folder = bench.args, os.path.join(bench.folder, f"kafka-{free_port()}")
        # Kafka takes the next port as well
        port = next(p for p in iter(free_port, None) if p < 65000)
        options = [part for setting in settings for part in ("--set", setting)]
        subprocess.run([self.args.kafka, "start", "--dir", self.folder, "--port", str(port), "--heap", "1g", *options], check=True,
                       stdout=sys.stderr)
        self.address = f"127.0.0.1:{port}"

    def end(self):
        subprocess.run([self.args.kafka, "stop", "--dir", self.folder], check=True)


class Bench:
    """One run of this program."""

    def __init__(self, args, folder):
        self.args, self.folder, self.rows, self.runs = args, folder, [], []

    def note(self, what, goal, measured, runs):
        """A row of the table."""
        print(f"| {what} | {goal} | {measured} |", flush=True)
        self.rows.append({"what": what, "goal": goal, "measured": measured, "runs": runs})

    def in_turn(self, sides):
        """Figures of each side, turn and turn about, without the first turn."""
        runs = {name: [] for name in sides}
        for turn in range(self.args.repeat + 1):
            for name, load in sides.items():
                figures = load(f"{name}-{turn}")
                print(name, turn or "warm-up", figures, file=sys.stderr, flush=True)
                if turn:
                    runs[name].append(figures)
        return runs

    def lean(self, *command):
        """A run of millrace-bench; the medians of its figures."""
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run([self.args.bench, *command, "--out", out], capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-800:]}\n{done.stderr[-800:]}")
            with open(os.path.join(out, os.listdir(out)[0]), encoding="utf-8") as file:
                return {name: figure["median"] for name, figure in json.load(file)["figures"].items()}


def median(runs, name):
    return statistics.median(run[name] for run in runs)


def spread(runs, name, unit):
    values = [run[name] for run in runs]
    return f"{statistics.median(values):.4g} {unit} ({min(values):.4g}-{max(values):.4g})"


def ratio(runs, one, other, name):
    return f"{median(runs[one], name) / median(runs[other], name):.2f}x"


def beside(bench):
    """The lean client on both brokers."""
    goals = {"D": "10x the rate, a fifth of p99", "X": "3x"}
    for kind, goal in goals.items():
        ours, theirs = Millrace(bench), Kafka(bench, *(["log.flush.interval.messages=1"] if kind == "D" else []))
        try:
            for producers in (1, 64):
                load = lambda broker: lambda _: bench.lean(
                    "transactions", "--brokers", broker.address, "--class", kind, "--producers", str(producers), "--partitions",
                    str(min(producers, 4)), "--duration", str(bench.args.seconds), "--warmup", "1")
                runs = bench.in_turn({"millrace": load(ours), "kafka": load(theirs)})
                rate, p99 = "transactions/s", "transaction latency p99 ms"
                bench.note(f"{kind}, {producers} producers", goal,
                           f"{spread(runs['millrace'], rate, '/s')} against {spread(runs['kafka'], rate, '/s')}: "
                           f"{ratio(runs, 'millrace', 'kafka', rate)}; p99 {spread(runs['millrace'], p99, 'ms')} against "
                           f"{spread(runs['kafka'], p99, 'ms')}: {ratio(runs, 'millrace', 'kafka', p99)}", runs)
        finally:
            ours.end()
            theirs.end()


def perf_with_transactions(bench):
    """Kafka's own producer tool, with transactions and without."""
    ours = Millrace(bench)
    try:
        def load(*options):
            def run(topic):
                ours.topic("create", topic, "--partitions", "4", "--config", FLUSH["D"]["millrace"])
                figures, _ = perf(bench.args, ours.address, topic, *options)
                ours.topic("delete", topic)
                return figures
            return run
        with_transactions = ["--transactional-id", "perf", "--transaction-duration-ms", "100"]
        runs = bench.in_turn({"transactions": load(*with_transactions), "plain": load()})
        bench.note("kafka-producer-perf-test, 4 partitions, transactions of 100 ms against none", "within 3 %",
                   f"{spread(runs['transactions'], 'MB/s', 'MB/s')} against {spread(runs['plain'], 'MB/s', 'MB/s')}: "
                   f"{ratio(runs, 'transactions', 'plain', 'MB/s')}", runs)
    finally:
        ours.end()


def isolation(bench):
    """What read_committed costs where nothing is in a transaction."""
    ours = Millrace(bench)
    try:
        ours.topic("create", "plain", "--partitions", "4")
        perf(bench.args, ours.address, "plain")
        read = lambda *options: lambda _: against_kafka.perf_read(bench.args, ours.address, "plain", *options)[0]
        runs = bench.in_turn({"committed": read(*COMMITTED), "uncommitted": read()})
        told = lambda runs: (f"{spread(runs['committed'], 'MB/s', 'MB/s')} against {spread(runs['uncommitted'], 'MB/s', 'MB/s')}: "
                             f"{ratio(runs, 'committed', 'uncommitted', 'MB/s')}")
        bench.note("kafka-consumer-perf-test, read_committed against read_uncommitted", "within 2 %", told(runs), runs)
        ours.topic("create", "lean", "--partitions", "4")
        done = subprocess.run([bench.args.bench, "produce", "--brokers", ours.address, "--topic", "lean", "--duration", "5", "--keep-topic"],
                              check=True, stdout=subprocess.PIPE, text=True)
        run = re.search(r"run (\d+) acknowledged", done.stdout).group(1)
        consume = lambda *options: lambda _: lean_read(bench, ours, "lean", run, *options)
        runs = bench.in_turn({"committed": consume("--committed"), "uncommitted": consume()})
        bench.note("the lean client, read_committed against read_uncommitted", "within 2 %", told(runs), runs)
    finally:
        ours.end()


def lean_read(bench, ours, topic, run, *options):
    """Reads a topic from start to end."""
    figures = bench.lean("consume", "--brokers", ours.address, "--topic", topic, "--run", run, *options)
    return {"MB/s": figures["consume MB/s"]}


def percentile(before, after, share):
    """Upper bound of a percentile of what came between two looks at a histogram, in ms."""
    old = dict(before)  # empty before the first fetch
    grown = [(bound, count - old.get(bound, 0)) for bound, count in after]
    return next(bound for bound, count in grown if count >= share * grown[-1][1])


def aborted(bench):
    """A partition full of aborted transactions."""
    ours = Millrace(bench)
    try:
        empty = []
        for _ in range(bench.args.repeat):
            ours.end(signal.SIGKILL)
            empty.append(ours.start())
        abort = ["transactions", "--brokers", ours.address, "--producers", "200", "--abort-share", "1", "--record-size", "100"]
        rate = bench.lean(*abort, "--duration", "3", "--warmup", "1")["transactions/s"]
        before = set(ours.topic("list").split())
        bench.lean(*abort, "--duration", str(bench.args.aborted * 1.02 / rate), "--warmup", "0", "--keep-topic")
        topic = next(name for name in ours.topic("list").split() if name not in before)
        runs = {"start": [], "read_committed": [], "read_uncommitted": []}
        for _ in range(bench.args.repeat):
            ours.end(signal.SIGKILL)
            start = {"s": ours.start(), "MB": ours.resident()}
            runs["start"].append(start)
            for name in ("read_uncommitted", "read_committed"):
                looked, began = ours.fetches(), time.monotonic()
                done = subprocess.run([bench.args.binary, "consume", topic, "--isolation", name, "--format", "%o\\n",
                                       "--broker", ours.address], stdout=subprocess.PIPE, check=True)
                after = ours.fetches()
                runs[name].append({"s": time.monotonic() - began, "records": done.stdout.count(b"\n"), "MB": ours.resident(),
                                   "fetch p99 ms": percentile(looked, after, 0.99), "fetch p50 ms": percentile(looked, after, 0.5)})
        print(runs, file=sys.stderr)
        runs["empty"] = [{"s": seconds} for seconds in empty]
        count = statistics.median(run["records"] for run in runs["read_uncommitted"])
        bench.note(f"{count:.0f} aborted transactions in one partition: start after a kill, against an empty node", "2 s more",
                   f"{spread(runs['start'], 's', 's')} against {spread(runs['empty'], 's', 's')}", runs)
        bench.note("its resident memory after the start, and after reading", "64 MiB",
                   f"{spread(runs['start'], 'MB', 'MB')}, {spread(runs['read_committed'], 'MB', 'MB')}", [])
        bench.note("p99 of a fetch (bound of the histogram), read_committed against read_uncommitted", "2x",
                   f"{spread(runs['read_committed'], 'fetch p99 ms', 'ms')} against {spread(runs['read_uncommitted'], 'fetch p99 ms', 'ms')}", [])
    finally:
        ours.end()


MEASUREMENTS = {"beside": beside, "perf": perf_with_transactions, "isolation": isolation, "aborted": aborted}


def main():
    args = arguments()
    folder = tempfile.mkdtemp(prefix="bench-transactions-")
    bench, began = Bench(args, folder), datetime.datetime.now()
    binary = measured(args.binary, args.commit)
    print("| what | goal | measured |\n|---|---|---|", flush=True)
    try:
        for name in args.measurement:
            MEASUREMENTS[name](bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.out:
        keep(args.out, f"transactions-{'-'.join(args.measurement)}", began, kind="transactions", binary=binary, repeat=args.repeat,
             seconds=args.seconds, records=args.records, rows=bench.rows)


if __name__ == "__main__":
    main()
