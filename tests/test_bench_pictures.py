"""Pictures: what is drawn, and how several workloads share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench_result import WORKLOAD, make_result
from kosine_bench.measuring import result_file
from kosine_bench.report import page, pictures, tables


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


@pytest.fixture
def path(result: dict[str, Any], tmp_path: Path) -> Path:
    file = result_file.path_for(result, tmp_path / "results")
    result_file.write(result, file)
    return file


def test_pictures_are_drawn_and_shown(result: dict[str, Any], path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the bench extra")
    drawn = pictures.draw(result, path)
    assert [file.name.removeprefix(f"{path.stem}-") for file in drawn] == [
        *("throughput.svg", "load.svg", "limits.svg"),
    ]
    first = [file.read_bytes() for file in drawn]
    assert all(content.startswith(b"<?xml") for content in first)
    assert [file.read_bytes() for file in pictures.draw(result, path)] == first
    block = page.block(result, path, path.parent.parent)
    for file in drawn:
        assert f"(results/{file.name})" in block


def more_load(result: dict[str, Any], workloads: int, requests: int) -> None:
    """Load of `workloads` workloads, with that many requests at the first point of each."""
    (first, second) = result["load"]
    for i in range(workloads - 1):
        key = f"{'abcd'[i]}@base"
        result["workloads"][key] = result["workloads"][WORKLOAD]
        result["load"] += [{**entry, "workload": key} for entry in (first, second)]
    for entry in result["load"]:
        rows = [{**row, "requests": 100} for row in entry["rows"]]
        entry["rows"] = [{**rows[0], "requests": requests}, *rows[1:]]


@pytest.mark.parametrize(("workloads", "panels"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6)])
def test_load_is_one_panel_a_workload_with_one_legend(
    result: dict[str, Any], workloads: int, panels: int
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the bench extra")
    from matplotlib import pyplot

    more_load(result, workloads, requests=100)
    drawing = pictures._load(result)
    assert len(drawing.axes) == panels
    titles = [axes.get_title("left") for axes in drawing.axes]
    assert titles == [*result["workloads"], *[""] * (panels - workloads)]
    legends = [axes.get_legend() for axes in drawing.axes if axes.get_legend()] + drawing.legends
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [
        ["kosine onnx fp32", "Right fp32"]
    ]
    # A contestant has one colour in all panels.
    colours = {
        (line.get_label(), line.get_color())
        for axes in drawing.axes
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }
    assert len(colours) == 2
    pyplot.close(drawing)


def test_points_of_few_arrivals_are_marked(result: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the bench extra")
    from matplotlib import pyplot

    more_load(result, 1, requests=99)
    drawing = pictures._load(result)
    (axes,) = drawing.axes
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert [len(line.get_xdata()) for line in hollow] == [1, 1]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[-1] == "hollow: fewer than 100 arrivals"
    assert "10000.0 / 10000.0 *" not in tables.text_table(result)
    assert " *  " in tables.text_table(result)
    pyplot.close(drawing)


def test_what_was_not_measured_is_not_drawn(result: dict[str, Any], path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need the bench extra")
    assert pictures.draw({**result, "figures": [], "load": []}, path) == []
