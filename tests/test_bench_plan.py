"""What a run is asked for, and what it measures of which workload."""

from __future__ import annotations

import argparse

import pytest

from kosine.errors import InputError, UnknownOption
from kosine_bench import command
from kosine_bench.contestants.kosine import KosineNativeAvx2, KosineOnnx
from kosine_bench.contestants.registry import FORCED, RIVALS
from kosine_bench.contestants.rivals import OnnxRuntimePlain
from kosine_bench.measuring import models
from kosine_bench.measuring import plan as run_plan
from kosine_bench.measuring.plan import MODES, Part
from kosine_bench.measuring.workload import WORKLOADS


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_default_is_the_whole_comparison() -> None:
    plan = command.plan(parse())
    assert [(part.workload.name, part.size.name, part.modes) for part in plan.parts] == [
        ("korsts", "base", MODES),
        ("matching", "base", MODES),
        ("faq", "base", MODES),
        ("legal", "base", MODES),
        ("korsts", "large", ("single", "burst", "bulk")),
        ("long", "large", MODES),
        ("korsts", "modernbert-base", ("bulk",)),
        ("documents", "modernbert-base", ("single", "bulk")),
        ("korsts", "sample", ("bulk",)),
    ]
    trained = plan.parts[-1]
    assert (trained.scopes, trained.rounds) == (("end-to-end",), {"bulk": 1})
    assert trained.omits == FORCED
    assert {part.workload.name for part in plan.parts} == set(WORKLOADS) - {"long8k"}
    assert plan.modes == ("single", "burst", "bulk", "load")
    assert plan.parts[0].scopes == ("engine", "end-to-end")
    assert not plan.parts[0].omits
    known = {kind.name for kind in plan.contestants}
    assert all(part.omits < known for part in plan.parts)
    assert {kind.name for kind in RIVALS} < {kind.name for kind in plan.contestants}
    assert plan.effort.rounds == 3


def test_quick_is_the_sample_on_korsts() -> None:
    plan = command.plan(parse("--quick", "--rounds", "5", "--mode", "burst"))
    assert [(part.workload.name, part.size.name) for part in plan.parts] == [("korsts", "sample")]
    assert (plan.effort.rounds, plan.modes) == (5, ("burst",))
    assert "torch-compiled" not in {kind.name for kind in plan.contestants}
    named = command.plan(parse("--quick", "--rivals", "all,torch-compiled"))
    assert "torch-compiled" in {kind.name for kind in named.contestants}
    for rivals in ("all", "openvino"):
        quick = command.plan(parse("--quick", "--rivals", rivals)).contestants
        assert not FORCED & {kind.name for kind in quick}


@pytest.mark.parametrize(
    ("rivals", "expected"),
    [
        ("none", 0),
        ("openvino", 3),
        ("openvino-int8,fastembed", 2),
    ],
)
def test_rivals_go_by_name_or_prefix_and_kosine_is_always_there(rivals: str, expected: int) -> None:
    chosen = command.plan(parse("--rivals", rivals)).contestants
    assert sum(kind in RIVALS for kind in chosen) == expected
    assert KosineOnnx in chosen


def test_one_of_kosines_own_may_be_named_alone() -> None:
    chosen = command.plan(parse("--rivals", "kosine-onnx,onnxruntime-plain")).contestants
    assert [kind.name for kind in chosen] == ["kosine-onnx-float32", "onnxruntime-plain"]


def test_forced_levels_are_measured_on_korsts_base_alone() -> None:
    assert len(FORCED) == 2
    for words in ((), ("--mode", "single", "--mode", "load")):
        plan = command.plan(parse(*words))
        assert {kind.name for kind in plan.contestants} > FORCED
        with_them = [part for part in plan.parts if not FORCED & part.omits]
        assert [(part.workload.name, part.size.name) for part in with_them] == [("korsts", "base")]
        assert all(part.omits >= FORCED for part in plan.parts if part not in with_them)
        assert not any(part.loads(kind) for part in plan.parts for kind in (KosineNativeAvx2,))
    named = command.plan(parse("--quick", "--rivals", "kosine-native-avx2,onnxruntime-plain"))
    assert named.contestants == (KosineNativeAvx2, OnnxRuntimePlain)
    assert not named.parts[0].omits


def test_asked_modes_are_measured_in_full_with_everyone() -> None:
    words = [word for mode in reversed(MODES) for word in ("--mode", mode)]
    plan = command.plan(parse(*words))
    for part in plan.parts:
        assert (part.modes, part.rounds, part.scopes) == (MODES, {}, ("engine", "end-to-end"))
        for kind in plan.contestants:
            assert part.loads(kind) == kind.serves


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_under_load_each_engine_is_there_once(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(run_plan, "_has_bfloat16", lambda: dtype == "bfloat16")
    plan = command.plan(parse())
    by_key = {(part.workload.name, part.size.name): part for part in plan.parts}
    for key in (("matching", "base"), ("faq", "base"), ("legal", "base"), ("long", "large")):
        part = by_key[key]
        loaded = {kind.name for kind in plan.contestants if part.loads(kind)}
        # Plain padding is for mixed lengths, so it is not measured on texts of one length.
        plain = "onnxruntime-float32" if key[1] == "large" else "onnxruntime-plain"
        assert loaded == {
            *(f"kosine-native-{dtype}", "kosine-onnx-float32", plain),
            *(f"openvino-{dtype}", "torch-float32", "tei-float32"),
        }
        assert not loaded & part.omits
    whole = by_key["korsts", "base"]
    loaded = {kind.name for kind in plan.contestants if whole.loads(kind)}
    assert loaded > {"kosine-native-float32", "kosine-native-bfloat16", "onnxruntime-int8"}
    assert not any(by_key["korsts", "large"].loads(kind) for kind in plan.contestants)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_long8k_is_measured_where_it_is_named(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(run_plan, "_has_bfloat16", lambda: dtype == "bfloat16")
    for words in (("--workload", "long8k"), ("--workload", "all")):
        plan = command.plan(parse(*words))
        (part,) = [part for part in plan.parts if part.workload.name == "long8k"]
        assert part.size.name == "large8k"
        assert (part.modes, part.scopes) == (("single",), ("end-to-end",))
        assert [part.takes(number) for number in range(3)] == [True, False, False]
        assert {kind.name for kind in plan.contestants} - part.omits == {
            *(f"kosine-native-{dtype}", "kosine-native-int8", "torch-float32", f"torch-{dtype}"),
            *(f"openvino-{dtype}", "openvino-int8", "onnxruntime-float32", "onnxruntime-int8"),
            "ctranslate2-int8",
        }
    asked = command.plan(parse("--workload", "long8k", "--mode", "burst")).parts
    assert [(part.modes, part.omits) for part in asked] == [(("burst",), FORCED)]
    assert command.plan(parse("--quick")).parts[0].workload.name == "korsts"
    with pytest.raises(InputError, match="up to 8192 tokens"):
        command.plan(parse("--workload", "long8k", "--model", "large"))


def test_a_mode_may_have_fewer_rounds() -> None:
    part = Part(WORKLOADS["faq"], models.SIZES["base"], MODES[:3], rounds={"bulk": 2})
    assert [part.measures("bulk", number) for number in range(3)] == [True, True, False]
    assert all(part.measures("burst", number) for number in range(9))
    assert not part.measures("load", 0)


def test_bad_arguments_are_typed_errors() -> None:
    with pytest.raises(UnknownOption, match="unknown rival 'tensorflow'"):
        command.plan(parse("--rivals", "tensorflow"))
    with pytest.raises(UnknownOption, match="--threads is 0"):
        command.plan(parse("--threads", "0"))
    with pytest.raises(InputError, match="up to 512 tokens"):
        command.plan(parse("--workload", "long", "--model", "sample"))
