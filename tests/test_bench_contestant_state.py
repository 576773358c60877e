"""Contestants during a run: their labels, and instruction sets that were forced."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kosine_bench.contestants.contestant import Absent
from kosine_bench.contestants.kosine import (
    KosineNativeAvx2,
    KosineNativeAvx512,
    KosineNativeBfloat16,
    KosineNativeFloat32,
)
from kosine_bench.contestants.rivals import OnnxRuntime
from kosine_bench.measuring.contestant_state import ContestantState, leave_out_repeated
from kosine_bench.measuring.worker_process import WorkerProcess
from kosine_kernels.engine import Unavailable, isa_levels


def test_a_forced_level_that_is_taken_anyway_is_left_out() -> None:
    def entries(auto: str, forced: str) -> list[ContestantState]:
        return [
            ContestantState(KosineNativeFloat32, isa=auto),
            ContestantState(KosineNativeBfloat16, isa=forced),
            ContestantState(KosineNativeAvx2, isa=forced),
            ContestantState(OnnxRuntime),
        ]

    same = entries("avx2", "avx2")
    leave_out_repeated(same)
    assert same[2].reason == "kosine native fp32 runs at AVX2 here by itself"
    assert [entry.reason for entry in same if entry is not same[2]] == [None, None, None]
    other = entries("avx512", "avx2")
    leave_out_repeated(other)
    assert all(entry.reason is None for entry in other)
    gone = entries("avx2", "avx2")
    gone[0].reason = "it failed"
    leave_out_repeated(gone)
    assert gone[2].reason is None


def test_the_level_is_in_the_label_and_the_result() -> None:
    auto = ContestantState(KosineNativeFloat32, isa="avx512").describe()
    assert (auto["label"], auto["isa"], auto["forced"]) == (
        *("kosine native fp32 (AVX512)", "avx512", None),
    )
    forced = ContestantState(KosineNativeAvx2, isa="avx2").describe()
    assert (forced["label"], forced["isa"], forced["forced"]) == (
        *("kosine native fp32 (AVX2, forced)", "avx2", "avx2"),
    )
    assert ContestantState(OnnxRuntime).describe()["label"] == "ONNX Runtime fp32"


@pytest.mark.parametrize("kind", [KosineNativeAvx512, KosineNativeAvx2])
def test_a_forced_level_holds_in_its_own_process(
    tmp_path: Path, kind: type[KosineNativeAvx2]
) -> None:
    with WorkerProcess(
        *(Path(sys.executable), kind.name, tmp_path, tmp_path),
        *(1, kind.environ, tmp_path / "worker.log"),
    ) as worker:
        if kind.forced in isa_levels():
            assert worker.ask("isa_level") == kind.forced
        else:
            with pytest.raises(Absent, match=r"on this machine|native module"):
                worker.ask("isa_level")


def test_a_level_that_the_cpu_lacks_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: str) -> str:
        raise Unavailable("ISA level 'avx2' is not on this machine")

    monkeypatch.setattr("kosine_kernels.engine.select_isa", lacking)
    with pytest.raises(Absent, match="'avx2' is not on this machine"):
        KosineNativeAvx2().isa_level()
