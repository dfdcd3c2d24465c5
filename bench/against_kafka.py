"""Apache Kafka and millrace in turn, on one machine, under the same load.

    bench/against-kafka --peers DIR [--tool perf|bench] [--classes R D X] [--partitions 1 100] [--repeat 5] ...

DIR holds the script `kafka/kafka`, which starts a real Kafka with its own defaults and runs its tools; nothing is measured
without it. The load is Kafka's own kafka-producer-perf-test with its defaults (perf), or millrace-bench (bench), which also
takes --rates for percentiles at equal rates, and reads everything back.

With --read, what is measured is reading back by Kafka's own kafka-consumer-perf-test with its defaults what perf produced:
warm, at once, from what the brokers and the kernel have in memory, and cold, after --pause seconds, with both brokers'
files dropped from the kernel's cache.

Classes: R, neither side flushes before it acknowledges. D, both do (Kafka: flush.messages=1). X, millrace does and Kafka
does not. Both brokers run all the time, one is under load at a time, turn and turn about; every repetition has a topic of
its own; the first, which warms up, does not count. What the device and loopback do by themselves stands beside it.

Writes a JSON file (every run, with median, least and largest; machine, kernel, commit, configuration) and a Markdown table.
"""
import argparse, datetime, json, os, platform, re, resource, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# s; a clock that is only slewed to another stays below
CLOCK_STEP_MIN = 0.1
PERF = re.compile(r"([\d.]+) records/sec \(([\d.]+) MB/sec\), ([\d.]+) ms avg latency, ([\d.]+) ms max latency, "
                  r"(\d+) ms 50th, (\d+) ms 95th, (\d+) ms 99th, (\d+) ms 99.9th")
NEVER = "flush.messages=9223372036854775807"  # Kafka's default
ALWAYS = "flush.messages=1"
FLUSH = {"R": {"kafka": NEVER, "millrace": NEVER}, "D": {"kafka": ALWAYS, "millrace": ALWAYS},
         "X": {"kafka": NEVER, "millrace": ALWAYS}}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="folder with kafka/kafka")
    parser.add_argument("--binary", default=os.path.join(ROOT, "target/release/millrace"))
    parser.add_argument("--bench", default=os.path.join(ROOT, "target/release/millrace-bench"))
    parser.add_argument("--tool", choices=["perf", "bench"], default="perf")
    parser.add_argument("--classes", nargs="+", default=["R", "D"], choices=list(FLUSH))
    parser.add_argument("--read", action="store_true", help="measure reading back")
    parser.add_argument("--pause", type=float, default=5, help="seconds before a cold reading")
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--record-size", type=int, default=1024)
    parser.add_argument("--records", type=int, default=500_000, help="records of one run of perf")
    parser.add_argument("--warmup-records", type=int, default=0,
                        help="of those of perf, how many at first do not count: the tool's own start-up")
    parser.add_argument("--rates", type=int, nargs="+", default=[0], help="records/s of bench; 0: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=10, help="length of one run of bench")
    parser.add_argument("--load", default="", help="further options of millrace-bench produce, as one string")
    parser.add_argument("--serve", default="", help="further options of millrace serve, as one string")
    parser.add_argument("--server-cpus", help="CPUs of both brokers, such as 0")
    parser.add_argument("--client-cpus", help="CPUs of the load, such as 1")
    parser.add_argument("--heap", default="1g", help="Kafka's heap")
    parser.add_argument("--dir", help="folder for both brokers' data [default: the system's for temporary files]")
    parser.add_argument("--out", default=os.path.join(ROOT, "bench/runs"))
    parser.add_argument("--name", default="against-kafka")
    args = parser.parse_args()
    if args.read and args.tool != "perf":
        parser.error("--read takes Kafka's tools: --tool perf")
    args.kafka = os.path.join(args.peers, "kafka", "kafka")
    for path, what in [(args.kafka, "a real Kafka and its tools: give their folder by --peers"),
                       (args.binary, "cargo build --release"), (args.bench, "cargo build --release --workspace")]:
        if not os.access(path, os.X_OK):
            sys.exit(f"against-kafka: {path} is missing; this comparison needs {what}")
    return args


def pinned(cpus, command):
    return (["taskset", "-c", cpus] if cpus else []) + command


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def usage(pid):
    """CPU seconds so far of a process, and its resident bytes: now and at most so far."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    status = open(f"/proc/{pid}/status").read()
    now, peak = (int(re.search(rf"{name}:\s+(\d+) kB", status).group(1)) * 1024 for name in ("VmRSS", "VmHWM"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), now, peak


class Brokers:
    """Both brokers, each on a folder and a port of its own."""

    def __init__(self, args, work):
        self.args, self.work, self.folder = args, work, os.path.join(work, "kafka")
        port = free_port()
        serve = [args.binary, "serve", "--data", os.path.join(work, "millrace"), "--listen", f"127.0.0.1:{port}"]
        log = open(os.path.join(work, "millrace.log"), "w")
        self.ours = subprocess.Popen(pinned(args.server_cpus, serve + args.serve.split()), stdout=log, stderr=log)
        self.address = {"millrace": f"127.0.0.1:{port}"}
        # Kafka takes the next port as well
        port = next(p for p in iter(free_port, None) if p < 65000 and p + 1 != port)
        start = [args.kafka, "start", "--dir", self.folder, "--port", str(port), "--heap", args.heap]
        subprocess.run(start + (["--cpus", args.server_cpus] if args.server_cpus else []), check=True, stdout=sys.stderr)
        self.address["kafka"] = f"127.0.0.1:{port}"
        pid = subprocess.check_output([args.kafka, "pid", "--dir", self.folder])
        self.pid = {"millrace": self.ours.pid, "kafka": int(pid)}

    def topic(self, side, verb, *options):
        subprocess.run([self.args.binary, "topic", verb, *options, "--broker", self.address[side]], check=True,
                       stdout=subprocess.DEVNULL)

    def drop_cached(self):
        """Of both brokers' files nothing stays in the kernel's cache but what is not written yet."""
        for folder, _, names in os.walk(self.work):
            for name in names:
                try:
                    file = os.open(os.path.join(folder, name), os.O_RDONLY)
                except FileNotFoundError:
                    continue  # it went meanwhile
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)

    def stop(self):
        self.ours.send_signal(signal.SIGTERM)
        subprocess.run([self.args.kafka, "stop", "--dir", self.folder])
        self.ours.wait(60)


def run_tool(args, *command):
    """A run of one of Kafka's tools. They reckon with the wall clock: if that was stepped meanwhile, as it is where a guest was
    halted, what they tell is of no use, and they run again."""
    wall_ahead = lambda: time.time() - time.monotonic()
    while True:
        before = wall_ahead()
        done = subprocess.run(pinned(args.client_cpus, [args.kafka, "tool", *command]), capture_output=True, text=True, timeout=1800)
        step = wall_ahead() - before
        if abs(step) < CLOCK_STEP_MIN:
            return done
        print(f"{command[0]} runs again: the wall clock was stepped by {step:.1f} s", file=sys.stderr, flush=True)


def perf(args, address, topic, *options):
    """One run of kafka-producer-perf-test: figures and bytes sent."""
    command = ["kafka-producer-perf-test", "--bootstrap-server", address, "--topic", topic, "--num-records", str(args.records),
               "--record-size", str(args.record_size), "--throughput", "-1", *options]
    if args.warmup_records:
        command += ["--warmup-records", str(args.warmup_records)]
    done = run_tool(args, *command)
    found = PERF.findall(done.stdout)
    if not found or done.returncode:
        sys.exit(f"kafka-producer-perf-test failed:\n{done.stdout[-800:]}\n{done.stderr[-800:]}")
    rate, _, average, largest, p50, p95, p99, p999 = map(float, found[-1])
    sent = args.records * args.record_size
    return {"records/s": rate, "MB/s": rate * args.record_size / 1e6, "avg ms": average, "max ms": largest, "p50 ms": p50,
            "p95 ms": p95, "p99 ms": p99, "p99.9 ms": p999}, sent


def perf_read(args, address, topic, *options):
    """One run of kafka-consumer-perf-test from the topic's beginning: figures and bytes read."""
    done = run_tool(args, "kafka-consumer-perf-test", "--bootstrap-server", address, "--topic", topic, "--num-records",
                    str(args.records), "--timeout", "60000", *options)
    # start, end, MiB, MiB/s, records, records/s, ms until partitions were assigned, ms of fetching, MiB/s of that, ...
    fields = done.stdout.strip().rsplit("\n", 1)[-1].split(", ")
    if done.returncode or len(fields) < 10 or int(fields[4]) < args.records:
        sys.exit(f"kafka-consumer-perf-test failed:\n{done.stdout[-800:]}\n{done.stderr[-800:]}")
    figures = {"MB/s": float(fields[8]) * (1 << 20) / 1e6, "MB/s with start": float(fields[3]) * (1 << 20) / 1e6}
    return figures, args.records * args.record_size


def bench(args, address, topic, rate):
    """One run of millrace-bench produce: figures and bytes sent within its window."""
    with tempfile.TemporaryDirectory() as out:
        command = [args.bench, "produce", "--brokers", address, "--topic", topic, "--rate", str(rate), "--out", out,
                   "--record-size", str(args.record_size), "--duration", str(args.seconds), *args.load.split()]
        done = subprocess.run(pinned(args.client_cpus, command), capture_output=True, text=True, timeout=1800)
        if done.returncode:
            sys.exit(f"millrace-bench produce failed against {address}:\n{done.stdout[-800:]}\n{done.stderr[-800:]}")
        run = json.load(open(os.path.join(out, os.listdir(out)[0])))
    medians = {name: figure["median"] for name, figure in run["figures"].items()}
    figures = {name: medians[f"produce {name}"] for name in ("records/s", "MB/s", "errors")}
    for label in ("p50", "p90", "p99", "p99.9", "max"):
        figures[f"{label} ms"] = medians[f"produce latency {label} ms"]
    figures["client share of its core"] = medians["client share of its cores"]
    return figures, medians["verified records"] * args.record_size


def metered(brokers, side, load):
    """Figures of a load, with what server and clients took for it."""
    cpu, *_ = usage(brokers.pid[side])
    mine = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures, moved = load(brokers.address[side])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_after, resident, peak = usage(brokers.pid[side])
    figures["server CPU s/GB"] = (cpu_after - cpu) / moved * 1e9
    figures["server RSS MB"] = resident / 1e6
    figures["server peak RSS MB"] = peak / 1e6
    client = after.ru_utime + after.ru_stime - mine.ru_utime - mine.ru_stime
    figures["client CPU s/GB"] = client / moved * 1e9
    return figures


def measure(args, brokers, kind, partitions, rate, side, turn):
    """Figures of one turn, by class."""
    topic = f"{kind}-{partitions}-{rate}-{turn}"
    brokers.topic(side, "create", topic, "--partitions", str(partitions), "--config", FLUSH[kind][side])
    produce = perf if args.tool == "perf" else lambda *of: bench(*of, rate)
    found = {kind: metered(brokers, side, lambda address: produce(args, address, topic))}
    if args.read:
        read = lambda address: perf_read(args, address, topic)
        found = {f"{kind}, read warm": metered(brokers, side, read)}
        time.sleep(args.pause)
        brokers.drop_cached()
        found[f"{kind}, read cold"] = metered(brokers, side, read)
    brokers.topic(side, "delete", topic)
    return found


def ceilings(args, work):
    """What the device and loopback do by themselves, on this machine, now."""
    result = {}
    device = ["device", "--dir", work, "--depth", "1,2", "--files", "128", "--appends-in-flight", "64", "--seconds", "1"]
    for command in (device, ["loopback", "--seconds", "1"]):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([args.bench, *command, "--out", out], check=True, stdout=subprocess.DEVNULL)
            run = json.load(open(os.path.join(out, os.listdir(out)[0])))
        result[command[0]] = {name: figure["median"] for name, figure in run["figures"].items()}
    return result


def summed_up(runs):
    return {name: {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}
            for name in runs[0] for values in [[run[name] for run in runs]]}


def table(args, cells, limits):
    """The Markdown table: a line per cell, and how many times Kafka's median ours is."""
    columns = ["MB/s"] + ([] if args.read else ["p50 ms", "p99 ms", "p99.9 ms"])
    columns += ["server CPU s/GB", "client CPU s/GB", "server RSS MB", "server peak RSS MB"]
    lines = ["| class | partitions | rate | broker | " + " | ".join(columns) + " |", "|---" * (len(columns) + 4) + "|"]
    by_cell = {}
    for cell in cells:
        key = (cell["class"], cell["partitions"], cell["rate"])
        by_cell.setdefault(key, {})[cell["side"]] = cell["figures"]
    for (kind, partitions, rate), sides in by_cell.items():
        start = f"| {kind} | {partitions} | {rate or 'as fast as it goes'} |"
        for side, figures in sides.items():
            show = [f"{f['median']:.4g} ({f['min']:.4g}-{f['max']:.4g})" for f in (figures[name] for name in columns)]
            lines.append(f"{start} {side} | " + " | ".join(show) + " |")
        ours, theirs = sides["millrace"], sides["kafka"]
        ratios = [f"{ours[name]['median'] / theirs[name]['median']:.2f}x" if theirs[name]["median"] else "-" for name in columns]
        lines.append(f"{start} ours / Kafka's | " + " | ".join(ratios) + " |")
    device = limits["device"]
    flushed = {name: value for name, value in device.items() if name.startswith("overwrite+Fdatasync") and name.endswith("MB/s")}
    lines += ["", "The device by itself, " + ", ".join(f"{name[20:-5].strip()}: {value:.0f} MB/s" for name, value in flushed.items())
              + f". Loopback by itself: {max(limits['loopback'].values()):.0f} MB/s."]
    return "\n".join(lines)


def main():
    args = arguments()
    work = tempfile.mkdtemp(prefix="against-kafka-", dir=args.dir)
    brokers, cells = None, []
    rates = args.rates if args.tool == "bench" else [0]
    try:
        limits = ceilings(args, work)
        brokers = Brokers(args, work)
        for kind, partitions, rate in [(k, p, r) for k in args.classes for p in args.partitions for r in rates]:
            runs = {}
            for turn in range(args.repeat + 1):
                for side in brokers.address:
                    for name, figures in measure(args, brokers, kind, partitions, rate, side, turn).items():
                        if turn:  # the first one warms up
                            runs.setdefault((name, side), []).append(figures)
                        print(name, partitions, rate, side, turn or "warm-up",
                              {k: round(v, 2) for k, v in figures.items()}, file=sys.stderr, flush=True)
            cells += [{"class": name, "partitions": partitions, "rate": rate, "side": side, "figures": summed_up(of)}
                      for (name, side), of in runs.items()]
    finally:
        if brokers:
            brokers.stop()
        shutil.rmtree(work, ignore_errors=True)
    write(args, cells, limits)


def write(args, cells, limits):
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    memory = re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read())
    places = {"peers", "kafka", "binary", "bench", "out", "dir"}  # where things are on this machine tells nobody anything
    date = datetime.date.today().isoformat()
    result = {"kind": "against-kafka", "name": args.name, "date": date, "commit": commit or "unknown",
              "machine": {"cpu_model": cpu.group(1) if cpu else "", "cpus": os.cpu_count(), "kernel": platform.release(),
                          "memory_bytes": int(memory.group(1)) * 1024},
              "network": "loopback", "config": {k: v for k, v in vars(args).items() if k not in places},
              "kafka": "its defaults, one node, replication factor 1", "ceilings": limits, "cells": cells}
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, f"{date}-{args.name}")
    text = table(args, cells, limits)
    json.dump(result, open(path + ".json", "w"), indent=1)
    open(path + ".md", "w").write(text + "\n")
    print(f"{text}\n\nwritten to {path}.json and .md")


if __name__ == "__main__":
    main()
