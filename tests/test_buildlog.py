"""Reading a build log: a real one, kept, of a one-layer encoder with two profiles."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from kosine.bundle.plans import PlanProfile
from kosine_export.tensorrt.build_log import Kernel, Tail, fusion, read_kernels, shortfalls, tail_of

LOG = Path(__file__).parent / "fixtures" / "tensorrt-rtx-build.log"
LINES = LOG.read_text(encoding="utf-8").split("\n")
PROFILES = (PlanProfile(32, 1, 192, 512, 16), PlanProfile(32, 1, 1, 1, 1))
# Of the encoder that the log is of.
TAIL = Tail(
    pooling=frozenset(
        ("Unsqueeze_3", "Unsqueeze_4", "Equal_2", "Cast_12", "MatMul_7", "ReduceSum_1", "Max_1",
         "Div_2", "Reshape_5", "Gather_4")
    ),
    norm=frozenset(("Mul_4", "ReduceSum_2", "Sqrt_1", "Max_2", "Div_3", "Squeeze_1")),
)  # fmt: skip


def test_kernels_belong_to_their_profiles() -> None:
    kernels = read_kernels(LINES)
    assert [kernel.profile for kernel in kernels] == [0] * 15 + [1] * 15
    assert {kernel.kind for kernel in kernels} == {"kgen", "gemm", "runtime_fusion"}
    attention = [kernel for kernel in kernels if kernel.is_attention]
    assert [k.name for k in attention] == ["_gemm_mha_v2_myl0_7", "_gemm_mha_v2_myl1_6"]
    for kernel in attention:
        assert kernel.nodes == {"MatMul_2", "Cast_5", "Add_4", "Softmax_1", "Cast_6", "MatMul_3"}
        assert kernel.has("Softmax")
        assert not kernel.has("Soft")
        assert not kernel.has("Where")


def test_every_node_of_the_tail_is_in_some_kernel_of_each_profile() -> None:
    for number in (0, 1):
        nodes = set().union(*(k.nodes for k in read_kernels(LINES) if k.profile == number))
        assert nodes >= TAIL.pooling | TAIL.norm


def test_what_is_fused() -> None:
    found = fusion(read_kernels(LINES), PROFILES, TAIL)
    assert [profile.pop("pooling_and_norm") for profile in found] == [
        ["__myl_CastReshGathMulSumSqrtReshCastMaxDivCast_myl0_15"],
        ["__myl_CastMaxDivMulReshGathMulSumSqrtReshCastMaxDivCast_myl1_14"],
    ]
    same = {"width": 32, "kernels": 15, "attention": 1, "softmax": 0, "mask": 1, "pooling": 3}
    assert found == [{**same, "max_rows": 512}, {**same, "max_rows": 1}]


def test_nothing_falls_short_in_the_real_log() -> None:
    assert shortfalls(fusion(read_kernels(LINES), PROFILES, TAIL), 1) == []


def test_attention_taken_apart_is_told_by_its_profile() -> None:
    lines = [
        line.replace("_gemm_mha_v2_myl1", "__myl_MaxSubExpSumDiv_myl1")
        if line.startswith("Name: _gemm_mha_v2_myl1")
        else line
        for line in LINES
    ]
    found = fusion(read_kernels(lines), PROFILES, TAIL)
    assert [(p["attention"], p["softmax"]) for p in found] == [(1, 0), (0, 1)]
    assert shortfalls(found, 1) == [
        "at width 32, up to 1 rows: 0 fused attention kernels for 1 layers, "
        "1 separate softmax kernels"
    ]


@pytest.mark.parametrize("profile", [0, 1])
def test_a_layer_without_its_kernel_is_told(profile: int) -> None:
    lines = [line for line in LINES if not line.startswith(f"Name: _gemm_mha_v2_myl{profile}_")]
    notes = shortfalls(fusion(read_kernels(lines), PROFILES, TAIL), 1)
    assert [note.startswith(f"at width 32, up to {(512, 1)[profile]} rows") for note in notes] == [
        True
    ]


def test_pooling_apart_from_the_norm_is_told() -> None:
    tail = Tail(TAIL.pooling - {"Gather_4", "Reshape_5", "Div_2", "Max_1"}, TAIL.norm)
    found = fusion(read_kernels(LINES), PROFILES, tail)
    assert all(not profile["pooling_and_norm"] for profile in found)
    assert len(shortfalls(found, 1)) == 2
    assert "pooling and the norm are kernels apart" in shortfalls(found, 1)[0]


@pytest.mark.parametrize("lines", [[], ["Layers:", ""], ["Name: without a type"]])
def test_a_log_without_kernels_shows_nothing_and_says_so(lines: list[str]) -> None:
    assert read_kernels(lines) == []
    (note,) = shortfalls(fusion([], PROFILES, TAIL), 1)
    assert "lists no kernels" in note


def test_a_profile_that_the_log_leaves_out_falls_short() -> None:
    found = fusion(read_kernels(LINES), (*PROFILES, PlanProfile(64, 1, 96, 256, 32)), TAIL)
    assert [note.split(":")[0] for note in shortfalls(found, 1)] == [
        "at width 64, up to 256 rows"
    ] * 2


def test_separators_within_a_line_do_not_end_it() -> None:
    line = (
        "Name: _gemm_mha_v2_myl0_3, LayerType: kgen, Inputs: [], Metadata: "
        "[ONNX Layer: MatMul_2]\x1e[ONNX Layer: Softmax_1 [profile 2]]\x1e[ONNX Layer: MatMul_3]"
    )
    assert read_kernels([line]) == [
        Kernel("_gemm_mha_v2_myl0_3", "kgen", 2, frozenset(("MatMul_2", "Softmax_1", "MatMul_3")))
    ]


@pytest.mark.parametrize("name", ["packed.onnx", "fp16/packed.onnx"])
def test_the_tail_of_a_graph(sample_bundle: Path, name: str) -> None:
    graph = onnx.load(str(sample_bundle / name), load_external_data=False).graph
    tail = tail_of(graph)
    kinds = {node.name: node.op_type for node in graph.node}
    assert sorted(kinds[n] for n in tail.norm) == [
        "Div", "Max", "Mul", "ReduceSum", "Sqrt", "Squeeze",
    ]  # fmt: skip
    pooling = sorted(kinds[n] for n in tail.pooling)
    expected = sorted(
        ["Cast", "Div", "Equal", "Gather", "MatMul", "Max", "ReduceSum", "Reshape"]
        + ["Unsqueeze"] * 2
    )
    assert pooling == expected
