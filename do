#!/usr/bin/env bash
# Every habit of working on millrace: ./do NAME [ARGUMENT...]
#
#   build                  the broker and the load tool, release build
#   run                    a broker of that build: the ARGUMENTs are those of millrace serve
#   cluster COMMAND        three nodes and an etcd of that build on this machine (tuning/cluster)
#   check                  whether everything compiles, tests included
#   lint                   format, clippy, documentation
#   tidy                   the rules of the text: sizes, arrows between rooms, dependencies (tests/tidy)
#   deny                   licences, versions, sources and advisories of dependencies (deny.toml)
#   format                 cargo fmt
#
#   test                   all tests, as ./test
#   unit                   unit, property, golden and crash tests, and the rules of the text
#   process                whole brokers, killed, stopped, filled up, confused
#   cluster                nodes of a cluster killed, paused, drained
#   clients                clients in six languages against a broker
#   groups                 consumer groups in trouble
#   soak                   short loads by real clients; transactions while brokers, nodes and clients are killed and stopped
#   powercut               power cuts under a broker and under nodes of a cluster on ext4 and XFS; as root, with FUSE
#   full [STEP...]         the same, in their long versions for a night
#   ci                     all that has to pass before a change goes in
#
#   crash SEED [TESTS]     the crash tests of one seed, or those whose names have TESTS in them
#   fuzz [INPUTS]          the decoders, with that many inputs each (100000)
#   suite ARGUMENT...      other people's test suites (tests/compatibility/run)
#   programs ARGUMENT...   Kafka's own programs, exactly once, while brokers are ended (tests/programs/run)
#   bless                  writes the console output of README.md, and figures of tests/tidy/ratchet.txt that fell
#   fixture                writes a data directory of today's format version; only when that has changed
#
#   smoke                  every benchmark at toy size
#   bench ARGUMENT...      a benchmark; without ARGUMENT their list
#   against-kafka ...      beside Apache Kafka, in turn (bench/against-kafka)
#   bench-cluster ...      what three nodes cost, and what is seen when one goes (bench/cluster)
#   bench-transactions ... what transactions cost, beside Kafka and beside plain records (bench/transactions)
#   profile PID [SECONDS]  where a process of the release build spends its time, with perf (10)
#
# Needs bash and cargo, and for some what their first lines say. `just` would be one more thing to install for no more.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
target=${CARGO_TARGET_DIR:-target}
name=${1:-list}
[ $# -eq 0 ] || shift

build() { cargo build --release --workspace --bins "$@"; }

profile() { # process, seconds
  perf record -q -F 499 --call-graph dwarf,16384 -p "$1" -o "$target/perf.data" -- sleep "${2:-10}"
  perf report --stdio --no-children -g none --percent-limit 0.5 -i "$target/perf.data" 2> /dev/null
  echo "the calls above each: perf report -i $target/perf.data"
}

case $name in
  build) build ;;
  run) build -q; exec "$target/release/millrace" serve "$@" ;;
  cluster)
    [ $# -gt 0 ] || exec ./test cluster
    build -q
    MILLRACE=$target/release/millrace exec tuning/cluster "$@"
    ;;
  check) cargo check --workspace --all-targets ;;
  lint)
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --workspace
    ;;
  tidy) cargo test -q -p millrace-tidy "$@" ;;
  deny) .ci/deny ;;
  format) cargo fmt --all ;;
  test) ./test "$@" ;;
  unit | process | clients | groups | soak | powercut) ./test "$name" "$@" ;;
  full) ./test --full "$@" ;;
  ci) .ci/run ;;
  crash) MILLRACE_CRASH_FIRST=${1:?SEED} MILLRACE_CRASH_SEEDS=1 cargo test -p millrace-engine --lib -- "${2:-store::}" ;;
  fuzz) MILLRACE_FUZZ_ITERATIONS=${1:-100000} cargo test -p millrace-engine -p millrace-net --test fuzz_smoke ;;
  suite) tests/compatibility/run "$@" ;;
  programs) tests/programs/run "$@" ;;
  bless)
    MILLRACE_BLESS=1 cargo test -q -p millrace --test readme
    MILLRACE_BLESS=1 cargo test -q -p millrace-tidy
    ;;
  fixture) cargo test -p millrace-engine --test fixture -- --ignored ;;
  smoke) build -q; "$target/release/millrace-bench" smoke --binary "$target/release/millrace" --dir "$target/smoke" ;;
  bench)
    build -q
    [ $# -gt 0 ] || set -- --help
    "$target/release/millrace-bench" "$@"
    ;;
  against-kafka) build -q; bench/against-kafka "$@" ;;
  bench-cluster) build -q; bench/cluster --commit "$(git describe --always --exclude '*' --dirty=+)" "$@" ;;
  bench-transactions) build -q; bench/transactions --commit "$(git describe --always --exclude '*' --dirty=+)" "$@" ;;
  profile) profile "${1:?PID}" "${2:-}" ;;
  *) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; [ "$name" = list ] || exit 2 ;;
esac
