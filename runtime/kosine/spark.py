"""Spark: a column of texts to a column of vectors, by an iterator pandas UDF.

    from kosine.spark import encode_udf

    encode = encode_udf(spark, "/models/ko.kosine")
    rows = rows.withColumn("vector", encode("text"))

The path must lead to the same bundle on every machine. Each Python worker loads it once, with as
many threads as a task has CPUs (`spark.task.cpus`). Spark runs the task of a dead worker again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

import kosine
from kosine.errors import MissingExtra

if TYPE_CHECKING:
    from kosine.encoder import Encoder

__all__ = ["encode_udf"]


def encode_udf(
    spark: Any,
    bundle: str,
    *,
    encode: Mapping[str, Any] | None = None,
    load: Mapping[str, Any] | None = None,
) -> Any:
    """A pandas UDF of one string column to `array<float>`; null where the text is null.

    Args:
        spark: The SparkSession; what the workers need is broadcast through it.
        bundle: Path of the bundle on every machine.
        encode: Options of `Encoder.encode`, such as `prompt_name`.
        load: Options of `kosine.load`; `threads` is `spark.task.cpus` by default.

    Raises:
        MissingExtra: pandas, pyarrow or pyspark is not installed.
    """
    try:
        pandas_udf = import_module("pyspark.sql.pandas.functions").pandas_udf
        series: Any = import_module("pandas").Series
    except ImportError as error:
        raise MissingExtra(
            "pyspark, pandas or pyarrow is not installed", remedy="pip install 'pyspark[sql]'"
        ) from error
    options = spark.sparkContext.broadcast((bundle, dict(encode or {}), dict(load or {})))

    def vectors(batches: Iterator[Any]) -> Iterator[Any]:
        path, wanted, loading = options.value
        encoder = _encoder(path, tuple(sorted(loading.items())))
        for batch in batches:
            present = batch.notna().to_numpy()
            found = encoder.encode(batch[present].tolist(), **wanted)
            rows = np.full(len(batch), None, object)
            for place, vector in zip(np.flatnonzero(present), found, strict=True):
                rows[place] = vector
            yield series(rows, dtype=object)

    vectors.__annotations__ = {
        "batches": Iterator[series],
        "return": Iterator[series],
    }
    return pandas_udf(vectors, "array<float>")


@lru_cache(maxsize=2)
def _encoder(bundle: str, load: tuple[tuple[str, Any], ...]) -> Encoder:
    """One encoder a Python worker, however many tasks it runs."""
    context = import_module("pyspark").TaskContext.get()
    share = {"threads": context.cpus() if context else 1}
    return kosine.load(bundle, **{**share, **dict(load)})
