"""Which modes of each workload a run measures, in how many rounds, and with whom."""

from __future__ import annotations

from collections.abc import Sequence

from kosine_bench.contestants.kosine import FORCED
from kosine_bench.measuring.models import ModelSize
from kosine_bench.measuring.work_file import MODES, SCOPES, WRAPPERS, Part
from kosine_bench.measuring.workload import Workload

__all__ = ["default_parts", "gpu_parts", "load_contestants"]

# A large model on it says nothing that base does not.
ON_BASE_ONLY = frozenset({"onnxruntime-plain"})
SHORT = ("matching", "faq")
# Under little load latency is one text's, which `single` measures.
FEWER_SHARES = (0.5, 0.7, 0.9)
FEWEST_SHARES = (0.5, 0.9)


def default_parts(
    pairs: Sequence[tuple[Workload, ModelSize]], modes: Sequence[str] | None
) -> tuple[Part, ...]:
    """What is measured of each pair: `modes` where they were asked for, else all of them.

    By default korsts on base is measured in full, forced instruction sets included; elsewhere
    what costs most is cut. Short workloads and large models go end to end alone. Texts of one
    length leave nothing to sort, so bulk is one round. Arrivals are measured for each engine
    once (see `load_contestants`), at fewer rates; korsts on large has none, korsts on base has.
    """
    return tuple(_asked(*pair, modes) if modes is not None else _default(*pair) for pair in pairs)


def _asked(workload: Workload, size: ModelSize, modes: Sequence[str]) -> Part:
    chosen = tuple(mode for mode in MODES if mode in modes)
    return Part(workload, size, chosen, omits=_levels(workload, size))


def _default(workload: Workload, size: ModelSize) -> Part:
    large = size.name == "large"
    if workload.name == "korsts" and not large:
        return Part(workload, size)
    omits = WRAPPERS | _levels(workload, size) | (ON_BASE_ONLY if large else frozenset())
    if workload.equal:
        return Part(
            *(workload, size, MODES, SCOPES[1:], omits),
            rounds={"bulk": 1},
            load_shares=FEWEST_SHARES,
            under_load=load_contestants(omits),
        )
    if workload.name == "korsts":
        return Part(workload, size, MODES[:3], SCOPES[1:], omits)
    return Part(
        *(workload, size, MODES, SCOPES[1:] if workload.name in SHORT else SCOPES, omits),
        rounds={"bulk": 2} if workload.name in SHORT else {},
        load_shares=FEWER_SHARES,
        under_load=load_contestants(omits),
    )


def _levels(workload: Workload, size: ModelSize) -> frozenset[str]:
    """Forced instruction sets, but for korsts on base or smaller, which alone measures them."""
    return frozenset() if workload.name == "korsts" and size.name != "large" else FORCED


def load_contestants(omits: frozenset[str] = frozenset()) -> frozenset[str]:
    """Each engine once, at the precision that it takes unless it is told otherwise.

    kosine's native engine and OpenVINO take bfloat16 where the CPU has it; ONNX Runtime, under
    kosine and plain, PyTorch and text-embeddings-inference take float32. Where `omits` has plain
    ONNX Runtime, its best setting stands in. Known before anything is measured.
    """
    precision = "bfloat16" if _has_bfloat16() else "float32"
    plain = "onnxruntime-plain"
    return frozenset(
        {
            *(f"kosine-native-{precision}", "kosine-onnx-float32"),
            "onnxruntime-float32" if plain in omits else plain,
            *(f"openvino-{precision}", "torch-float32", "tei-float32"),
        }
    )


def _has_bfloat16() -> bool:
    from kosine_kernels.engine import Unavailable, select_isa

    try:
        select_isa("bfloat16")
    except Unavailable:
        return False
    return True


def gpu_parts(
    pairs: Sequence[tuple[Workload, ModelSize]], modes: Sequence[str] | None
) -> tuple[Part, ...]:
    """The same on a GPU, which is fast enough for every mode of every pair but load."""
    parts = []
    for workload, size in pairs:
        loaded = workload.name == "korsts" and size.name == "base"
        asked = modes or (MODES if loaded else MODES[:3])
        parts.append(Part(workload, size, tuple(mode for mode in MODES if mode in asked)))
    return tuple(parts)
