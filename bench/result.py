"""What a file of results says of the build that was measured, and of the machine."""

import hashlib
import json
import os
import platform
import subprocess


def measured(binary, commit):
    """Which build: only who built it knows the commit, as the checkout may have gone on since."""
    version = subprocess.run([binary, "--version"], text=True, stdout=subprocess.PIPE, check=True).stdout.strip()
    with open(binary, "rb") as file:
        return {"commit": commit, "version": version, "sha256": hashlib.sha256(file.read()).hexdigest()}


def keep(folder, name, began, **result):
    """Writes a file of that day."""
    path = os.path.join(folder, f"{began:%Y-%m-%d}-{name}.json")
    machine = {"kernel": platform.release(), "cpus": os.cpu_count()}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"when": began.isoformat(timespec="seconds"), **machine, **result}, file, indent=1)
    print(f"\n{path}")
