"""Forced instruction sets have rows of their own, and are nobody's headline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench_result import WORKLOAD, contestant, figure, make_result
from kosine_bench.measuring import result_file
from kosine_bench.report import page, pictures, ratios, tables


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def path(result: dict[str, Any], tmp_path: Path) -> Path:
    file = result_file.path_for(result, tmp_path / "results")
    result_file.write(result, file)
    return file


@pytest.fixture
def levels(result: dict[str, Any]) -> dict[str, Any]:
    """With the native engine as it comes, held to an older level, and at a level that is not."""
    forced = "kosine-native-avx2-float32"
    result["contestants"] += [
        contestant("kosine-native-float32", "kosine native fp32 (AVX512)", isa="avx512"),
        contestant(forced, "kosine native fp32 (AVX2, forced)", isa="avx2", forced="avx2"),
        contestant(
            "kosine-native-avx512-float32",
            "AVX512, forced",
            forced="avx512",
            absent="no_such_level",
        ),
        contestant("onnxruntime-plain", "Plain fp32"),
        contestant("onnxruntime-float32", "Tuned fp32"),
    ]
    # The forced level is the fastest here, which it must never be taken for.
    seconds = {"kosine-native-float32": 1.5, forced: 0.25}
    seconds |= {"onnxruntime-plain": 5.0, "onnxruntime-float32": 2.5}
    result["figures"] += [
        figure(name, mode, [second] * 3, "end-to-end")
        for name, second in seconds.items()
        for mode in ("single", "burst", "bulk")
    ]
    return result


def test_a_forced_level_is_never_kosines_fastest(levels: dict[str, Any]) -> None:
    for precision in (None, "float32"):
        best = ratios.best_ratio(levels, WORKLOAD, "burst", "end-to-end", precision)
        assert best is not None
        assert best["ours"] == "kosine-onnx-float32"
    rows = [row for row in ratios.ratio_rows(levels) if row[1] == "burst"]
    assert [row[2:5] for row in rows] == [["kosine onnx fp32", "Right int8", "0.50x"]]
    assert "(AVX2, forced)" not in str(tables.headline(levels, WORKLOAD, "end-to-end"))
    bars = pictures._bars(levels, WORKLOAD, "burst", "p50_ms")
    assert "kosine native fp32 (AVX512)" in {bar[0] for bar in bars}
    assert not any("forced" in bar[0] for bar in bars)


def test_a_forced_level_has_rows_of_its_own(levels: dict[str, Any]) -> None:
    rows = [row for row in ratios.ratio_rows(levels, precision="float32") if row[1] == "bulk"]
    assert [row[2:5] for row in rows] == [
        ["kosine onnx fp32", "Right fp32", "2.00x"],
        ["kosine native fp32 (AVX2, forced)", "Right fp32", "8.00x"],
    ]
    assert not any("forced" in row[2] for row in ratios.ratio_rows(levels, precision="int8"))
    rows = [row for row in ratios.level_rows(levels) if row[1] == "burst"]
    assert [row[2:] for row in rows] == [
        ["kosine native fp32 (AVX512)", "67", "3.33x", "1.67x", "1.67-1.67"],
        ["kosine native fp32 (AVX2, forced)", "400", "20.00x", "10.00x", "10.00-10.00"],
    ]
    text = tables.text_table(levels)
    assert "kosine native float32 by instruction set" in text
    absent = text.partition("\nabsent\n")[2]
    assert absent.splitlines()[-1].split() == ["AVX512,", "forced", "no_such_level"]


def test_the_report_shows_forced_levels_by_themselves(levels: dict[str, Any], path: Path) -> None:
    block = page.block(levels, path, path.parent)
    assert "by the instruction set that it is held to" in block
    first, rest = block.split("| workload |", 1)
    assert "forced" not in first
    assert "forced" in rest
    levels["figures"] = [f for f in levels["figures"] if "avx2" not in f["contestant"]]
    assert ratios.level_rows(levels) == []
    assert "instruction set" not in page.block(levels, path, path.parent)
