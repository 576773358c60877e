"""Four prefork workers share one copy of the packed weights: proportional set sizes, reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from native_machine import each_table, script

WORKERS = 4

# Loaded once before the fork, as `gunicorn --preload` does; each worker has run before any is
# measured, and all are alive while they are.
PREFORK = """
import gc, json, os, signal, sys
from native_machine import Encoder

dtype, isa, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
encoder = Encoder(hidden=768, heads=12, inner=3072, layers=4, vocab=8000)
engine = encoder.engine(dtype=dtype, isa=isa, threads=2)
batch = encoder.batch([9, 20, 40])
expected = engine.forward(*batch)[0].tobytes()
encoder.tensors.clear()
gc.collect()
gc.freeze()

def rollup():
    with open("/proc/self/smaps_rollup") as file:
        found = dict(line.split(":") for line in file if ":" in line and "kB" in line)
    return {key: 1024 * int(value.split()[0]) for key, value in found.items()}

say, measure, leave = os.pipe(), os.pipe(), os.pipe()
pids = []
for _ in range(workers):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        same = all(engine.forward(*batch)[0].tobytes() == expected for _ in range(3))
        os.write(say[1], b"r")
        os.read(measure[0], 1)  # until every worker has run
        sizes = rollup()
        private = sizes["Private_Dirty"] + sizes["Private_Clean"]
        line = json.dumps([same, sizes["Pss"], private])
        os.write(say[1], line.encode().ljust(80))
        os.read(leave[0], 1)  # until every worker was measured
        os._exit(0)
    pids.append(pid)
for _ in pids:
    os.read(say[0], 1)
os.write(measure[1], b"g" * workers)
found = [json.loads(os.read(say[0], 80)) for _ in pids]
parent = rollup()["Pss"]
os.write(leave[1], b"g" * workers)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
print(json.dumps({"codes": codes, "workers": found, "parent": parent,
                  "packed": engine.packed_bytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells PSS only")
@each_table()
def test_workers_forked_after_loading_share_the_packed_weights(dtype, isa):
    done = subprocess.run(
        [*script(PREFORK), dtype, isa, str(WORKERS)],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTHONWARNINGS": "ignore",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [0] * WORKERS
    packed = found["packed"]
    total = found["parent"] + sum(pss for _, pss, _ in found["workers"])
    print(
        f"{dtype} {isa}: packed weights {packed / 2**20:.0f} MiB; PSS of each worker",
        [f"{pss / 2**20:.0f} MiB" for _, pss, _ in found["workers"]],
        f"parent {found['parent'] / 2**20:.0f} MiB, together {total / 2**20:.0f} MiB",
        file=sys.stderr,
    )
    for same, _, private in found["workers"]:
        assert same, "another result in a worker"
        assert private < packed / 2, "a worker copied the weights"
    assert total < 2 * packed, "more than two copies among five processes"
