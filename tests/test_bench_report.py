"""Tables, pictures and the page's block, from a result's content alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench_result import WORKLOAD, make_result
from kosine.errors import InputError
from kosine_bench import paths
from kosine_bench.measuring import machine, result_file
from kosine_bench.measuring.machine import Gpu
from kosine_bench.report import cost, figures, page, ratios, tables

ROOT = Path(__file__).parents[1]
PAGE = ROOT / paths.PAGE
ONNX_RUNS = ROOT / "bench" / "results" / "onnx"


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def path(result: dict[str, Any], tmp_path: Path) -> Path:
    file = result_file.path_for(result, tmp_path / "results")
    result_file.write(result, file)
    return file


def test_the_file_reads_back_as_it_was(result: dict[str, Any], path: Path) -> None:
    assert path.name == "2030-01-02-example-9000-2cpu.json"
    assert result_file.read(path) == {"schema": result_file.SCHEMA, **result}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot read"), ("{}", "schema None"), ('{"schema": 99}', "schema 99")],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        result_file.read(file)


def test_the_latest_is_the_newest_full_run(result: dict[str, Any], path: Path) -> None:
    later = {**result, "made": {**result["made"], "date": "2031-01-01T00:00:00Z", "quick": True}}
    result_file.write(later, path.with_name("later.json"))
    cut_off = {**later, "made": {**later["made"], "quick": False, "unfinished": True}}
    result_file.write(cut_off, path.with_name("cut-off.json"))
    assert result_file.latest(path.parent) == path
    with pytest.raises(InputError, match="no full result"):
        result_file.latest(path.parent.parent)


def test_the_ratio_is_against_the_fastest_rival_that_is_right(result: dict[str, Any]) -> None:
    best = ratios.best_ratio(result, WORKLOAD, "burst", "end-to-end")
    assert best is not None
    assert (best["ours"], best["rival"]) == ("kosine-onnx-float32", "right-int8")
    assert best["ratio"] == pytest.approx(0.5)
    within = ratios.best_ratio(result, WORKLOAD, "burst", "end-to-end", "float32")
    assert within is not None
    assert (within["rival"], within["ratio"]) == ("right-float32", pytest.approx(2.0))
    assert within["spread"] == pytest.approx([2.0, 2.0])


def test_no_ratio_without_two_sides(result: dict[str, Any]) -> None:
    assert ratios.best_ratio(result, WORKLOAD, "burst", "end-to-end", "bfloat16") is None
    assert ratios.best_ratio(result, "faq@base", "burst", "end-to-end") is None


def test_the_headline_has_a_row_for_each_and_says_who_is_absent(result: dict[str, Any]) -> None:
    rows = tables.headline(result, WORKLOAD, "end-to-end")
    assert [row[0] for row in rows] == [
        *("Wrong fp32", "Right int8", "kosine onnx fp32", "Right fp32", "Gone fp32"),
    ]
    heads = tables.heads(result, WORKLOAD)
    ours = dict(zip(heads, rows[2], strict=True))
    assert ours["burst, sentences/s"] == "100"
    assert ours["padding in a burst"] == "0%"
    assert ours["CPU s per 1000"] == "20.00"
    assert ours["peak memory, MiB"] == "512"
    assert ours["load, s"] == "0.60"
    assert ours["lowest cosine"] == "1.000000"
    assert dict(zip(heads, rows[3], strict=True))["padding in a burst"] == "50%"
    assert rows[4][1] == "absent: no such package"


def test_lowest_cosines_on_trained_weights_stand_beside_those_on_random_ones(
    result: dict[str, Any], path: Path
) -> None:
    alone = page.block(result, path, path.parent)
    assert tables.heads(result, WORKLOAD)[-1] == "lowest cosine"
    assert "trained" not in alone + page.summary(result, path, path.parent)
    for size, cosine in (("sample", 0.97), ("mine", 0.94)):
        result["models"][size] = {"weights": "trained"}
        result["workloads"][f"korsts@{size}"] = result["workloads"][WORKLOAD]
        figure = next(one for one in result["figures"] if one["contestant"] == "right-int8")
        result["figures"].append(figure | {"workload": f"korsts@{size}", "scope": "end-to-end"})
        entry = {"contestant": "right-int8", "workload": f"korsts@{size}", "min_cosine": cosine}
        result["parity"].append(entry)
    heads = tables.heads(result, WORKLOAD)
    assert heads[-2:] == ("lowest cosine", "lowest cosine, trained")
    rows = {row[0]: row[-2:] for row in tables.headline(result, WORKLOAD, "end-to-end")}
    assert rows["Right int8"] == ["0.991000", "0.940000"]
    assert rows["Right fp32"] == ["1.000000", ""]
    # On one of them it is that one's own.
    assert tables.heads(result, "korsts@sample")[-2:] == ("load, s", "lowest cosine, trained")
    (row, _) = tables.headline(result, "korsts@sample", "end-to-end")
    assert (row[0], row[-1]) == ("Right int8", "0.970000")
    assert "lowest cosine, trained" in tables.text_table(result)
    block = page.block(result, path, path.parent)
    assert "Weights are trained on `korsts@sample`, `korsts@mine`." in block
    assert "| 0.991000 | 0.940000 |" in page.summary(result, path, path.parent)


def test_the_terminal_table_names_everyone(result: dict[str, Any]) -> None:
    text = tables.text_table(result)
    for entry in result["contestants"]:
        assert entry["label"] in text
    assert "0.50x" in text
    assert "at 90%" in text


def test_the_page_keeps_all_but_what_is_between_the_markers(
    result: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "page.md"
    target.write_text(f"before\n{page.BEGIN}\nold figures\n{page.END}\nafter\n", "utf-8")
    assert page.update(result, path, target) == target
    text = target.read_text("utf-8")
    assert text.startswith(f"before\n{page.BEGIN}\nExample CPU")
    assert text.endswith(f"{page.END}\nafter\n")
    assert "old figures" not in text
    assert "| **kosine onnx fp32** |" in text
    assert "results/2030-01-02-example-9000-2cpu.json" in text
    assert "![" not in text
    page.update(result, path, target)
    assert target.read_text("utf-8") == text


@pytest.fixture
def gpu_result(result: dict[str, Any]) -> dict[str, Any]:
    """The same figures as if a GPU had made them, with packed rows and plain padding by name."""
    names = {
        "kosine-onnx-float32": "kosine-onnx-float16-cuda",
        "right-float32": "onnxruntime-plain-float16-cuda",
    }
    text = json.dumps(result)
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    made: dict[str, Any] = json.loads(text)
    made["made"]["device"] = "cuda"
    made["machine"]["gpu"] = Gpu("NVIDIA H200", "9.0", 132, 139.8, "13.0").describe()
    made["ceilings"] = {
        "matrix": {"float16": {"flops": 7.9e14}},
        "memory": {"bytes_per_second": 4.3e12},
    }
    return made


def test_a_gpus_run_has_a_file_and_a_block_of_its_own(
    result: dict[str, Any], path: Path, gpu_result: dict[str, Any], tmp_path: Path
) -> None:
    file = result_file.path_for(gpu_result, path.parent)
    assert file.name == "2030-01-02-nvidia-h200.json"
    with pytest.raises(InputError, match="no full result of device 'cuda'"):
        result_file.latest(path.parent, wanted="cuda")
    result_file.write(gpu_result, file)
    assert result_file.latest(path.parent) == path
    assert result_file.latest(path.parent, wanted="cuda") == file

    target = tmp_path / "page.md"
    empty = f"{page.BEGIN}\n{page.END}\n{page.GPU_BEGIN}\nnot measured\n{page.GPU_END}\n"
    target.write_text(empty, "utf-8")
    page.update(result, path, target)
    assert "not measured" in target.read_text("utf-8")
    page.update(gpu_result, file, target)
    cpu, gpu = target.read_text("utf-8").split(page.GPU_BEGIN)
    assert "CPU s per 1000" in cpu
    assert "NVIDIA H200" not in cpu
    assert "not measured |" in gpu  # Padding at its best setting is not in this result.
    assert gpu.startswith("\nNVIDIA H200 (140 GiB, CUDA 13.0), Example CPU")
    assert "790 TFLOP/s of dense fp16 products and 4.3 TB/s" in gpu
    assert "0.310000 (under 0.9998)" in gpu
    assert "| korsts@base | burst | 2.00x |" in gpu
    assert "| Right fp32 | 50 (4%) |" in gpu


def test_packed_rows_are_held_against_padding(
    result: dict[str, Any], gpu_result: dict[str, Any]
) -> None:
    rows = ratios.packed_rows(gpu_result)
    assert rows[1] == ["korsts@base", "burst", "2.00x", "not measured"]
    assert "packed rows against padding" in tables.text_table(gpu_result)
    assert {row[2] for row in ratios.packed_rows(result)} == {"not measured"}


def test_a_page_without_markers_is_refused(
    result: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "page.md"
    target.write_text("no markers\n", "utf-8")
    with pytest.raises(InputError, match="no markers"):
        page.update(result, path, target)


def test_the_machine_is_described_without_its_name() -> None:
    described = machine.describe(2)
    assert described["cpu"]
    assert described["threads"] == 2
    text = str(described)
    assert machine.platform.node() not in text or len(machine.platform.node()) < 4
    assert "/" not in described["system"]
    assert machine.slug(described)[0].isalnum()


def test_a_limit_that_was_passed_is_none(result: dict[str, Any], path: Path) -> None:
    """Measured too low: shares of it would say nothing, and the report says why there are none."""
    assert figures.beaten_limits(result) == set()
    result["ceilings"] = {"matrix": {"float32": {"flops": 2.5e11}}}
    for one in result["figures"]:
        if one["contestant"] == "right-float32":
            one["summary"]["limit_share"] = 1.9
    assert figures.beaten_limits(result) == {"float32"}
    assert "left out for float32: 250 GFLOP/s" in page.block(result, path, path.parent)
    shown = {row[0]: row[1] for row in tables.share_rows(result, "burst")}
    assert "%" in shown["Right int8"]
    assert "%" not in shown["Right fp32"] + shown["kosine onnx fp32"]


def test_the_page_shows_the_newest_full_run() -> None:
    newest = result_file.latest(ROOT / "bench" / "results")
    block = page.block(result_file.read(newest), newest, PAGE.parent)
    assert f"{page.BEGIN}\n{block}\n{page.END}" in PAGE.read_text("utf-8")
    short = page.summary(result_file.read(newest), newest, ROOT)
    assert f"{page.SUMMARY_BEGIN}\n{short}\n{page.SUMMARY_END}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(ONNX_RUNS.glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_table_of_onnx_runtime_alone(path: Path) -> None:
    text = PAGE.read_text("utf-8")
    assert path.relative_to(ROOT).as_posix() in text
    assert tables.markdown(ratios.PACKED_HEADS, ratios.packed_rows(result_file.read(path))) in text


def test_what_vectors_cost(result: dict[str, Any]) -> None:
    """100 texts a second on two cores: 180,000 in an hour of one; and money from that."""
    result["machine"]["threads"] = 2
    (row,) = cost.cost_rows(result)
    heads = cost.cost_heads()
    assert len(row) == len(heads)
    assert row[heads.index("vectors, float32")] == "180,000"
    assert row[heads.index("vectors, int8")] == "not measured"
    (row,) = cost.cost_rows(result, price=0.09)
    assert row[cost.cost_heads(0.09).index("a million vectors, float32")] == "0.500"
