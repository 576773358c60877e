"""kosine.spark on Spark's local cluster: executors of their own, one killed in the middle.

    .venvs/spark/bin/python tests/libraries/spark_trial.py BUNDLE OUT.json

Needs Java (Debian: apt-get install default-jre-headless). No row may be lost or doubled, and each
vector must have the bits that one process gives.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyspark
from pyspark.sql import SparkSession
from pyspark.sql.functions import udf

import kosine
from kosine.spark import encode_udf

ROWS = 3_000
PARTITIONS = 12
EXECUTORS = 3
KILLED_AT_ROW = ROWS // 2


def texts() -> list[str]:
    return [f"{number}번 문장은 {number % 97}쪽에 있다." for number in range(ROWS)]


def killer(marker: str) -> Any:
    """A column function that kills the executor (the worker's JVM) at the middle row, once."""

    def kill(number: int) -> int:
        path = Path(marker)
        if number == KILLED_AT_ROW and not path.exists():
            executor = next(p for p in _parents(os.getpid()) if "Executor" in _command(p))
            path.write_text(str(executor))
            os.kill(executor, signal.SIGKILL)
        return number

    return udf(kill, "int")


def _parents(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text() if pid > 0 else ""


def main(bundle: str, out: Path) -> None:
    bundle = str(Path(bundle).resolve())
    expected = kosine.load(bundle, threads=1).encode(texts())
    os.environ.setdefault("SPARK_HOME", str(Path(pyspark.__file__).parent))
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local-cluster[{EXECUTORS},1,1024]")
        .config("spark.executorEnv.PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
        .getOrCreate()
    )
    marker = out.parent / "spark-killed"
    marker.unlink(missing_ok=True)
    try:
        rows: list[tuple[int, str | None]] = list(enumerate(texts()))
        rows.append((ROWS, None))
        frame = spark.createDataFrame(rows, "id int, text string").repartition(PARTITIONS)
        encode = encode_udf(spark, bundle)
        found = (
            frame.withColumn("vector", encode("text"))
            .withColumn("id", killer(str(marker))("id"))
            .select("id", "vector")
            .collect()
        )
        java = spark.sparkContext._jvm.java.lang.System.getProperty("java.version")
        assert marker.exists(), "no executor was killed"
    finally:
        spark.stop()
        marker.unlink(missing_ok=True)
    by_id = {row["id"]: row["vector"] for row in found}
    assert sorted(row["id"] for row in found) == list(range(ROWS + 1)), "rows lost or doubled"
    assert by_id[ROWS] is None
    vectors = np.array([by_id[number] for number in range(ROWS)], np.float32)
    same = bool((vectors.view(np.uint32) == expected.view(np.uint32)).all())
    assert same, "other bits than one process gives"
    names = ("pyspark", "pyarrow", "pandas", "numpy", "tokenizers")
    versions = {"python": platform.python_version(), "java": java,
                **{name: version(name) for name in names}}  # fmt: skip
    made = {"rows": len(found), "executors": EXECUTORS, "killed": 1, "lost": 0, "doubled": 0,
            "same_bits": same}  # fmt: skip
    text = json.dumps({"library": "spark", "versions": versions, "column": made}, indent=1)
    out.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
