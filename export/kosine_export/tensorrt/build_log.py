"""What a TensorRT build log shows of fusion: a pure function over its lines.

Built with detailed profiling verbosity, a plan's log ends in a table of its kernels, one line
each, with the ONNX nodes that went into it. Reading the plan itself would take a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from kosine.bundle.plans import PlanProfile

__all__ = ["Kernel", "Tail", "fusion", "read_kernels", "shortfalls", "tail_of"]

ROW = re.compile(r"^\s*Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<rest>.*)$")
NODE = re.compile(r"\[ONNX Layer: ([^\]]+?)(?: \[profile \d+)?\]")
PROFILE = re.compile(r"\[profile (\d+)\]")
# Kernels of one compiled subgraph share a number; every profile has subgraphs of its own.
SUBGRAPH = re.compile(r"_myl(\d+)_")
ATTENTION = "_mha"
# Rows of the table that run nothing on their own: streams that wait for one another.
NO_KERNEL = ("shape_call", "signal", "wait")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A row of the log's table.

    Attributes:
        name: As the library calls it.
        kind: Its LayerType, for example "gemm" or "kgen".
        profile: Number of the optimisation profile that it belongs to.
        nodes: Names of the ONNX nodes inside.
    """

    name: str
    kind: str
    profile: int
    nodes: frozenset[str]

    @property
    def is_attention(self) -> bool:
        """A fused attention kernel: products, mask and softmax in one."""
        return ATTENTION in self.name

    def has(self, kind: str) -> bool:
        """Whether a node of this ONNX operator is inside; nodes are called `Operator_number`."""
        return any(node.rpartition("_")[0] == kind for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Tail:
    """Names of a packed graph's last nodes.

    Attributes:
        pooling: From the last LayerNormalization to the pooled vectors, Dense modules included.
        norm: Those that compute lengths and divide by them.
    """

    pooling: frozenset[str]
    norm: frozenset[str]


def tail_of(graph: onnx.GraphProto) -> Tail:
    """The tail of a graph that `kosine_export.graph.packed.packed_graph` wrote."""
    nodes = list(graph.node)
    last = max(i for i, node in enumerate(nodes) if node.op_type == "LayerNormalization")
    producer = {output: node for node in nodes for output in node.output}
    root = next(node for node in nodes[last:] if node.op_type == "Sqrt")
    total = producer[root.input[0]]
    squares = producer[total.input[0]]
    first = next(i for i, node in enumerate(nodes) if node.name == squares.name)
    return Tail(
        pooling=frozenset(node.name for node in nodes[last + 1 : first]),
        norm=frozenset(node.name for node in nodes[first:] if node.op_type != "Identity"),
    )


def read_kernels(lines: Iterable[str]) -> list[Kernel]:
    """The kernels that a build log lists, in its order.

    Args:
        lines: Log lines; a message of many lines is to be split at "\\n" alone, because the
            library separates names within a line by other separators.
    """
    rows = [found for line in lines if (found := ROW.match(line))]
    profile_of: dict[str, int] = {}
    for row in rows:
        named = PROFILE.search(row["name"]) or PROFILE.search(row["rest"])
        if named:
            profile_of.setdefault(_subgraph(row["name"]), int(named[1]))
    return [
        Kernel(
            row["name"],
            row["kind"],
            profile_of.get(_subgraph(row["name"]), 0),
            frozenset(NODE.findall(row["rest"])),
        )
        for row in rows
        if row["kind"] not in NO_KERNEL
    ]


def fusion(kernels: Sequence[Kernel], profiles: Sequence[PlanProfile], tail: Tail) -> Any:
    """For each profile: how many kernels, and what is fused inside them.

    Returns:
        A list of dicts: `width`, `max_rows`; `kernels`; `attention`, the fused attention
        kernels; `softmax`, kernels that compute a softmax outside of them; `mask`, kernels that
        write an attention mask for them to read; `pooling`, kernels that hold pooling or the
        norm; `pooling_and_norm`, the names of those that hold pooling and the norm's square root.
    """
    found = []
    for number, profile in enumerate(profiles):
        mine = [kernel for kernel in kernels if kernel.profile == number]
        ends = [kernel for kernel in mine if kernel.nodes & (tail.pooling | tail.norm)]
        found.append(
            {
                "width": profile.width,
                "max_rows": profile.max_rows,
                "kernels": len(mine),
                "attention": sum(kernel.is_attention for kernel in mine),
                "softmax": sum(k.has("Softmax") and not k.is_attention for k in mine),
                "mask": sum(k.has("Where") and not k.is_attention for k in mine),
                "pooling": len(ends),
                "pooling_and_norm": [
                    k.name for k in ends if k.nodes & tail.pooling and k.has("Sqrt")
                ],
            }
        )
    return found


def shortfalls(found: Sequence[Mapping[str, Any]], num_layers: int) -> list[str]:
    """What `fusion` found missing, one sentence for each profile concerned."""
    if not any(profile["kernels"] for profile in found):
        return ["the build log lists no kernels, so it shows nothing of fusion"]
    notes = []
    for profile in found:
        at = f"at width {profile['width']}, up to {profile['max_rows']} rows"
        if profile["attention"] != num_layers or profile["softmax"]:
            notes.append(
                f"{at}: {profile['attention']} fused attention kernels for {num_layers} layers, "
                f"{profile['softmax']} separate softmax kernels"
            )
        if not profile["pooling_and_norm"]:
            notes.append(f"{at}: pooling and the norm are kernels apart")
    return notes


def _subgraph(name: str) -> str:
    found = SUBGRAPH.search(name)
    return found[1] if found else ""
