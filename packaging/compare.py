"""What a compiler and an ABI cost: the native engine of several environments, side by side.

    python packaging/compare.py OUT.json --bundle BUNDLE... --with NAME=PYTHON...

Each NAME is an environment of its own with kosine in it. All have every bundle loaded, and take
turns, in another order each round. Ratios are of the times within a round, to the first NAME's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

from kosine_bench.measuring import machine

SEED = 7
TEXTS = 64
SINGLES = 15
WORKER = """
import json, platform, sys, time
import numpy as np, kosine
seed, texts, singles, *bundles = sys.argv[1:]
draw = np.random.default_rng(int(seed))
words = "비행기가 하늘로 날아오른다 남자가 악기를 연주하고 있다 커피 한 잔 주세요".split()
texts = [" ".join(draw.choice(words, draw.integers(4, 13))) for _ in range(int(texts))]
loaded = [kosine.load(path, backend="native", dtype="float32", threads=2) for path in bundles]
say = lambda value: print(json.dumps(value), flush=True)

def seconds(work, *arguments):
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin

def measured(encoder):
    one = encoder.prepare(texts[0]).batch
    repeat = lambda work, given: sorted(seconds(work, given) for _ in range(int(singles)))
    middle = int(singles) // 2
    return {"64 texts": seconds(encoder.encode, texts),
            "one text": repeat(encoder.encode, texts[0])[middle],
            "one text, engine alone": repeat(encoder.compute, one)[middle]}

say(platform.python_version())
for line in sys.stdin:
    say([measured(encoder) for encoder in loaded])
"""


class Contestant:
    def __init__(self, python: str, bundles: list[str]) -> None:
        self.process = subprocess.Popen(
            [python, "-c", WORKER, str(SEED), str(TEXTS), str(SINGLES), *bundles],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )  # fmt: skip
        self.python = self._read()

    def turn(self) -> Any:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a contestant ended; see above")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle", nargs="+", required=True)
    parser.add_argument("--with", nargs="+", required=True, dest="pairs", metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    bundles = [str(Path(bundle).resolve()) for bundle in given.bundle]
    pairs = [pair.rpartition("=") for pair in given.pairs]
    contestants = {name: Contestant(python, bundles) for name, _, python in pairs}
    order = random.Random(SEED)
    rounds: list[dict[str, Any]] = []
    for _ in range(given.rounds + 1):  # the first warms up
        names = order.sample([*contestants], len(contestants))
        rounds.append({name: contestants[name].turn() for name in names})
    found = {}
    for number, bundle in enumerate(bundles):
        for what in rounds[0][pairs[0][0]][number]:
            for name in contestants:
                times = [each[name][number][what] for each in rounds[1:]]
                firsts = [each[pairs[0][0]][number][what] for each in rounds[1:]]
                ratios = sorted(time / first for time, first in zip(times, firsts, strict=True))
                found.setdefault(Path(bundle).stem, {}).setdefault(what, {})[name] = {
                    "median_ms": round(1e3 * statistics.median(times), 4),
                    "times_the_first": round(statistics.median(ratios), 3),
                    "middle_half": [round(ratios[len(ratios) * q // 4], 3) for q in (1, 3)],
                }
    report = {
        "what": "the native engine by compiler and ABI, float32: medians of rounds in turn",
        "date": date.today().isoformat(),
        "machine": machine.describe(2),
        "commit": machine.commit(),
        "seed": SEED,
        "rounds": given.rounds,
        "texts": TEXTS,
        "pythons": {name: each.python for name, each in contestants.items()},
        "results": found,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
