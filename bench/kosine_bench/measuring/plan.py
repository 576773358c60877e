"""Which modes of each workload a run measures, how much of each, and with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from kosine_bench.contestants.contestant import Contestant
from kosine_bench.contestants.registry import CONTESTANTS, FORCED, WRAPPERS
from kosine_bench.measuring.machine import Gpu
from kosine_bench.measuring.models import SIZES, ModelSize
from kosine_bench.measuring.workload import WORKLOADS, Workload

__all__ = [
    *("CALL_MODES", "FULL", "GPU_FULL", "GPU_QUICK", "LOAD_SHARES", "LONG_TOKENS", "MODES"),
    *(
        "QUICK",
        "SCOPES",
        "SEED",
        "Effort",
        "Part",
        "Plan",
        "default_parts",
        "gpu_parts",
        "load_contestants",
        "trained_part",
    ),
]

# A mode of calls one after another, and latency under open-loop load.
CALL_MODES = ("single", "burst", "bulk")
MODES = (*CALL_MODES, "load")
SCOPES = ("engine", "end-to-end")
LOAD_SHARES = (0.3, 0.5, 0.7, 0.9)
SEED = 7
# A large model on it says nothing that base does not.
ON_BASE_ONLY = frozenset({"onnxruntime-plain"})
SHORT = ("matching", "faq")
LONG_TOKENS = 2_048
IN_INT8 = frozenset(kind.name for kind in CONTESTANTS["cpu"] if kind.precision == "int8")
# Run engines that are there by themselves.
NOT_LONG = frozenset({"kosine-onnx-float32", "tei-float32"})
# Under little load latency is one text's, which `single` measures.
FEWER_SHARES = (0.5, 0.7, 0.9)
FEWEST_SHARES = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Part:
    """One workload on one model size, and what of it is measured.

    Attributes:
        omits: Contestants that do not take part.
        rounds: Modes that are measured in fewer rounds than the effort's, and in how many.
        load_shares: Rates of arrivals under load, as shares of the capacity.
        under_load: Contestants that are measured under load; None: all that serve.
    """

    workload: Workload
    size: ModelSize
    modes: tuple[str, ...] = MODES
    scopes: tuple[str, ...] = SCOPES
    omits: frozenset[str] = frozenset()
    rounds: Mapping[str, int] = field(default_factory=dict)
    load_shares: tuple[float, ...] = LOAD_SHARES
    under_load: frozenset[str] | None = None

    def loads(self, kind: type[Contestant]) -> bool:
        """Whether `kind` is measured under load."""
        if "load" not in self.modes:
            return False
        return kind.serves if self.under_load is None else kind.name in self.under_load

    def takes(self, number: int) -> bool:
        """Whether there is anything to do in round `number`."""
        return any(self.measures(mode, number) for mode in self.modes)

    def measures(self, mode: str, number: int) -> bool:
        """Whether round `number`, counted from 0, measures `mode`."""
        return mode in self.modes and number < self.rounds.get(mode, number + 1)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run measures. Texts are the most; operations cut them on large models.

    Attributes:
        rounds: Interleaved rounds of everything but load.
        load_rounds: Rounds that measure latency under load too.
        omits: Contestants left out unless they are named.
        seconds: What one contestant spends on one mode in one round and scope, if the texts
            last that long; where a mode is missing, all its texts are measured.
        load_seconds, load_requests, most_load_seconds: How much each rate of arrivals measures;
            see `arrivals.num_requests`.
        tune_tokens: Tokens that a setting is tried on, in whole calls.
        import_rounds: Rounds that time the import in a fresh interpreter.
        repeats: Times that a process measures each mode in one round, one after the other; each is
            kept as a round's samples are.
    """

    rounds: int
    load_rounds: int
    single_texts: int
    bursts: int
    bulk_texts: int
    single_flops: float
    burst_flops: float
    bulk_flops: float
    load_seconds: float
    omits: frozenset[str] = frozenset()
    seconds: Mapping[str, float] = field(default_factory=dict)
    load_requests: int = 100
    most_load_seconds: float = 20.0
    tune_tokens: int = 3_072
    import_rounds: int = 1
    repeats: int = 1


FULL = Effort(
    *(3, 1, 64, 12, 2048, 8e11, 1.6e12, 4e12, 4.0),
    seconds={"single": 0.7, "burst": 1.1, "bulk": 1.5},
    tune_tokens=2_048,
)


QUICK = Effort(
    *(2, 1, 24, 6, 512, 1e11, 3e11, 4e11, 0.5),
    # The first compiles for a minute; the others are engines measured here: in wrappers that are
    # slow to start, or held to an older instruction set.
    omits=frozenset({"torch-compiled", *WRAPPERS, *FORCED}),
    seconds={"single": 0.3, "burst": 0.3, "bulk": 0.3},
    tune_tokens=2_048,
    import_rounds=0,
)


# Starting a process takes longer than all that it measures, so it measures twice, in one round.
GPU_FULL = Effort(
    *(1, 1, 128, 48, 8192, 1e14, 1e14, 2e14, 2.0),
    omits=frozenset({"torch-compiled-float16-cuda"}),  # It compiles for minutes.
    seconds={"single": 0.05, "burst": 0.06, "bulk": 0.1},
    tune_tokens=32_768,
    import_rounds=0,
    repeats=2,
)


GPU_QUICK = replace(GPU_FULL, bulk_flops=1e14, load_seconds=0.5, tune_tokens=16_384, repeats=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: parts (workload, model size, modes), contestants, effort."""

    parts: tuple[Part, ...]
    contestants: tuple[type[Contestant], ...]
    effort: Effort
    threads: int
    quick: bool
    install: bool = True
    device: Literal["cpu", "cuda"] = "cpu"
    gpu: Gpu | None = None

    @property
    def sizes(self) -> list[ModelSize]:
        return list(dict.fromkeys(part.size for part in self.parts))

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(mode for mode in MODES if any(mode in part.modes for part in self.parts))


def default_parts(
    pairs: Sequence[tuple[Workload, ModelSize]], modes: Sequence[str] | None
) -> tuple[Part, ...]:
    """What is measured of each pair: `modes` where they were asked for, else all of them.

    By default korsts on base is measured in full, forced instruction sets included; elsewhere
    what costs most is cut. Short workloads and large models go end to end alone. Texts of one
    length leave nothing to sort, so bulk is one round. Arrivals are measured for each engine
    once (see `load_contestants`), at fewer rates; korsts on large has none, korsts on base has.
    Of texts of thousands of tokens, which take up to minutes, one is measured once, by each
    engine at its usual precision and in int8.
    """
    return tuple(_asked(*pair, modes) if modes is not None else _default(*pair) for pair in pairs)


def _asked(workload: Workload, size: ModelSize, modes: Sequence[str]) -> Part:
    chosen = tuple(mode for mode in MODES if mode in modes)
    return Part(workload, size, chosen, omits=_levels(workload, size))


def _default(workload: Workload, size: ModelSize) -> Part:
    if workload.mean > LONG_TOKENS:
        every = frozenset(kind.name for kind in CONTESTANTS["cpu"])
        usual = load_contestants(ON_BASE_ONLY) | ({"torch-bfloat16"} if _has_bfloat16() else set())
        omits = every - usual - IN_INT8 | NOT_LONG
        return Part(workload, size, ("single",), SCOPES[1:], omits, rounds={"single": 1})
    large = size.name == "large"
    if size.family == "modernbert":
        modes = ("single", "bulk") if workload.equal else ("bulk",)
        omits = WRAPPERS | _levels(workload, size)
        return Part(*(workload, size, modes, SCOPES[1:], omits), rounds={"bulk": 1})
    if workload.name == "korsts" and not large:
        return Part(workload, size, omits=_levels(workload, size))
    omits = WRAPPERS | _levels(workload, size) | (ON_BASE_ONLY if large else frozenset())
    if workload.equal:
        return Part(
            *(workload, size, MODES, SCOPES[1:], omits),
            rounds={"bulk": 1},
            load_shares=FEWEST_SHARES,
            under_load=load_contestants(omits),
        )
    if workload.name == "korsts":
        return Part(workload, size, CALL_MODES, SCOPES[1:], omits)
    return Part(
        *(workload, size, MODES, SCOPES[1:] if workload.name in SHORT else SCOPES, omits),
        rounds={"bulk": 2} if workload.name in SHORT else {},
        load_shares=FEWER_SHARES,
        under_load=load_contestants(omits),
    )


def trained_part() -> Part:
    """What a run on random weights has beside them: how near everyone comes on trained ones.

    On few layers, so it takes little time.
    """
    korsts, sample = WORKLOADS["korsts"], SIZES["sample"]
    return Part(*(korsts, sample, ("bulk",), SCOPES[1:], FORCED), rounds={"bulk": 1})


def _levels(workload: Workload, size: ModelSize) -> frozenset[str]:
    """Forced instruction sets, but for korsts on base or smaller, which alone measures them."""
    shown = workload.name == "korsts" and size.name in ("sample", "base")
    return frozenset() if shown else FORCED


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
        asked = modes or (MODES if loaded else CALL_MODES)
        parts.append(Part(workload, size, tuple(mode for mode in MODES if mode in asked)))
    return tuple(parts)
