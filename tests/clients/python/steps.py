"""Runs steps and prints what became of each; a step passes when it returns without an exception."""

import os
import random
import sys
import traceback

BROKER = sys.argv[1]
RUN = f"{random.getrandbits(48):012x}"
GROUPS = os.environ.get("CLIENT_GROUPS", "").split()


def run_steps(client, steps):
    """Runs (name, function) pairs in order and ends the process: 0 when all passed, else 1."""
    failed = 0
    for name, step in steps:
        try:
            step()
            print(f"passed {client}-{name}", flush=True)
        except Exception:  # a failing step must not keep the others from running
            failed += 1
            print(f"FAILED {client}-{name}", flush=True)
            for line in traceback.format_exc().splitlines()[-8:]:
                print(f"    {line[:300]}", flush=True)
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # background threads of a failed client must not hold us


def expect(actual, expected):
    """Fails unless both are equal."""
    if actual != expected:
        raise AssertionError(f"expected {str(expected)[:400]}, got {str(actual)[:400]}")
