"""`kosine embed` of a million short texts: that memory stays bounded, written as JSON.

    python -m kosine_bench.reliability.million BUNDLE OUT.json [--texts N]

The file of texts is made first: words drawn from a fixed list, every text another one. The run is a
process of its own; its resident memory is read while it lasts. Beside it stands a run on a
twentieth of the file: what grows with the number of texts would show between them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from kosine_bench.contestants.process_memory import process_memory
from kosine_bench.measuring import machine

__all__ = ["main"]

WHO = ("고양이가", "강아지가", "그 여자는", "아이들이", "비행기가", "주가가", "보험사는", "의사가")
WHERE = ("집에서", "학교에서", "시장에서", "병원에서", "바다에서", "산에서", "회사에서", "공항에서")
WHAT = ("잔다", "논다", "일한다", "기다린다", "웃는다", "노래한다", "떠난다", "돌아온다", "달린다")
MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=1_000_000)
    args = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (args.texts // 20, args.texts):
            runs.append(_run(args.bundle, Path(folder), count))
            print(runs[-1])  # noqa: T201
    report = {
        "what": "kosine embed, short texts that all differ, to .npy; resident memory in MiB",
        "date": date.today().isoformat(),
        "machine": machine.describe(len(os.sched_getaffinity(0))),
        "commit": machine.commit(),
        "runs": runs,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


def _run(bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    texts, vectors = folder / "texts.txt", folder / "vectors.npy"
    rng = random.Random(1)
    with texts.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = [rng.choice(words) for words in (WHO, WHERE, WHAT)]
            file.write(f"{' '.join(words)} {i}\n")
    command = [sys.executable, "-m", "kosine.cli", "embed", str(bundle), str(texts)]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(vectors), "--json"], stdout=subprocess.PIPE)
    anonymous = resident = 0
    while process.poll() is None:
        anonymous = max(anonymous, process_memory(process.pid, "RssAnon"))
        resident = max(resident, process_memory(process.pid, "VmHWM"))
        time.sleep(0.2)
    assert process.stdout is not None
    said = json.loads(process.stdout.read())
    seconds = time.perf_counter() - begin
    if process.returncode != 0:
        raise SystemExit(f"kosine embed ended with {process.returncode}")
    rows = np.load(vectors, mmap_mode="r")
    if len(rows) != count or not np.isfinite(rows[:: max(1, count // 1000)]).all():
        raise SystemExit(f"{vectors.name} has {len(rows)} rows of {count}, or rows of no numbers")
    return {
        "texts": count,
        "texts_bytes": texts.stat().st_size,
        "vectors_bytes": vectors.stat().st_size,
        "peak_mib": round(resident / MIB, 1),
        "peak_without_mapped_files_mib": round(anonymous / MIB, 1),
        "seconds": round(seconds, 1),
        "said": {
            name: said[name] for name in ("texts", "tokens", "truncated_texts") if name in said
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
