#!/usr/bin/env bash
# filelock's FileLock has a `pid`, "the holder's PID", which cannot be asked for on Linux, neither by who holds the lock nor
# by who is refused; and the file of the lock stays behind.
#
# Packages: filelock 4.3.1 (Python 3.11).
# Guess: a process that is refused (Timeout) reads from `lock.pid` who holds the lock, as SoftFileLock's `pid` says, and the
#        empty file is removed by the last who held it.
# Seen:  `pid` and `is_lock_held_by_us` raise AttributeError ("marker access requires a soft fallback ..."): they are of
#        file systems without flock only. The file is empty and stays. SoftFileLock, in the same place, says the number.
# It installs into a temporary folder, lets one process hold a lock that another asks for, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "filelock==4.3.1"
cd "$folder"
venv/bin/python - <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import filelock

OTHER = """
import sys, filelock
lock = getattr(filelock, sys.argv[1])(sys.argv[2], timeout=0)
try:
    lock.acquire()
    print("both hold it")
except filelock.Timeout:
    try:
        print("refused; pid", lock.pid)
    except AttributeError as error:
        print("refused; AttributeError:", error)
"""


def ask(kind: str, path: str) -> str:
    with getattr(filelock, kind)(path, timeout=0) as lock:
        said = subprocess.run([sys.executable, "-c", OTHER, kind, path], capture_output=True, text=True, check=True).stdout
        try:
            own = str(lock.pid)
        except AttributeError as error:
            own = f"AttributeError: {error}"
    return f"{said.strip()} | by the holder: {own} | file stays: {Path(path).exists()}"


import os

native, soft = ask("FileLock", "a.lock"), ask("SoftFileLock", "b.lock")
print("FileLock    ", native)
print("SoftFileLock", soft)
assert native.count("AttributeError") == 2 and "file stays: True" in native, "FileLock says who holds it now"
assert soft.startswith(f"refused; pid {os.getpid()}"), "SoftFileLock does not say it any more"
PYTHON
echo "as recorded"
