"""`kosine bench`: arguments in, a result file and a table out."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kosine.errors import InputError, UnknownOption
from kosine.threads import usable_cpus
from kosine_bench.contestants.contestant import Contestant
from kosine_bench.contestants.registry import CONTESTANTS
from kosine_bench.measuring import machine, own_model, result_file
from kosine_bench.measuring.machine import Gpu
from kosine_bench.measuring.models import SIZES, ModelSize
from kosine_bench.measuring.plan import (
    FULL,
    GPU_FULL,
    GPU_QUICK,
    MODES,
    QUICK,
    Plan,
    default_parts,
    gpu_parts,
    trained_part,
)
from kosine_bench.measuring.run import measure
from kosine_bench.measuring.workload import WORKLOADS
from kosine_bench.report import cost, page, pictures, tables

__all__ = ["add_arguments", "plan", "plans", "run"]

DEFAULT_SIZES = {
    "korsts": ["base", "large", "modernbert-base"],
    "matching": ["base"],
    "faq": ["base"],
    "legal": ["base"],
    "long": ["large"],
    "long8k": ["large8k"],
    "documents": ["modernbert-base"],
}
# A text takes up to a minute and gigabytes: measured where it is named.
ONLY_NAMED = ("long8k",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `kosine bench` on `parser`."""
    parser.add_argument(
        "--workload",
        action="append",
        choices=("all", *WORKLOADS),
        help="length distribution; repeat for several (default: all but long8k, with --quick"
        " korsts)",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="{" + ",".join(SIZES) + ",FOLDER}",
        help="model size, or the folder of a trained checkpoint of your own (BERT, RoBERTa,"
        " XLM-R); repeat for several (default: base, large for `long`, both for `korsts`, large8k"
        " for `long8k`, modernbert-base for `documents` and `korsts`, and the sample in bulk on"
        " `korsts`; with --quick sample)",
    )
    parser.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="repeat for several; each is measured in full, with everyone that can take part"
        " (default: all, the costliest ones cut; see bench/README.md)",
    )
    parser.add_argument(
        "--rivals",
        metavar="NAME,...",
        help="contestants to measure: names, prefixes, `none` or `all` (default); kosine's own"
        " always take part",
    )
    parser.add_argument(
        "--device",
        choices=("all", "cpu", "cuda"),
        default="all",
        help="measure on the CPU, on the GPU, or on all that is there (default)",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 3, quick 2)")
    parser.add_argument("--threads", type=int, help="threads of everyone (default: usable CPUs)")
    parser.add_argument("--quick", action="store_true", help="a rough comparison, in minutes")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="result file (quick runs write none without), written after each contestant",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="measure nothing: draw pictures and the page's tables from FILE or the newest result",
    )
    parser.add_argument(
        "--price-per-core-hour",
        type=float,
        metavar="P",
        help="also print what a million vectors cost, in the currency of P",
    )


def run(args: argparse.Namespace) -> int:
    """Do what `kosine bench` was asked for; 0, or 1 where no contestant could run."""
    if args.report is not None:
        return _report(Path(args.report) if args.report else None, args.price_per_core_hour)
    done = {}
    asked = plans(args)
    for chosen in asked:
        start = time.monotonic()
        path = args.output
        if path is not None and len(asked) > 1 and chosen.device == "cuda":
            path = path.with_name(f"{path.stem}-cuda{path.suffix}")
        save = partial(result_file.write, path=path) if path is not None else None
        result = done[chosen.device] = measure(chosen, _say, save)
        if path is None and not args.quick:
            path = result_file.path_for(result)
        if path is not None:
            result_file.write(result, path)
            _say(f"wrote {_relative(path)}")
        _say(f"done in {(time.monotonic() - start) / 60:.1f} min")
        if not args.json:
            sys.stdout.write(tables.text_table(result))
            _print_cost(result, args.price_per_core_hour)
    if args.json:
        (first, *others) = done.values()
        json.dump(done if others else first, sys.stdout)  # ASCII, for a terminal of any encoding
        sys.stdout.write("\n")
    return 0 if any(result["figures"] or result["load"] for result in done.values()) else 1


def plans(args: argparse.Namespace) -> list[Plan]:
    """What the arguments ask for: one plan for each device.

    Raises:
        UnknownOption: A rival that does not exist, or numbers out of range.
        InputError: No asked model takes the asked workload's lengths, a folder cannot be told
            from another model by its name, or a GPU was asked for and none is visible.
        CheckpointError: A folder that not all contestants can read.
    """
    device = machine.visible_gpu() if args.device != "cpu" else None
    if args.device == "cuda" and device is None:
        raise InputError(
            "no CUDA device is visible",
            limit="--device cuda needs an NVIDIA GPU and its driver",
            remedy="check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu",
        )
    names = [name for name in (args.rivals or "all").split(",") if name]
    _check_rivals(names)
    if args.device == "cuda" or device is None:
        return [plan(args, device)]
    # Rivals that were named run where they can.
    both = ((None, CONTESTANTS["cpu"]), (device, CONTESTANTS["cuda"]))
    return [plan(args, where) for where, kinds in both if _asked(names, kinds)]


def plan(args: argparse.Namespace, device: Gpu | None = None) -> Plan:
    """The run on the CPU or, with `device`, on that GPU; raises as `plans` does."""
    names = args.workload or [name for name in WORKLOADS if name not in ONLY_NAMED]
    if args.quick and not args.workload:
        names = ["korsts"]
    workloads = list(WORKLOADS.values()) if "all" in names else [WORKLOADS[n] for n in names]
    asked = _models(args.model or ())
    pairs = []
    for workload in workloads:
        longest = max(column.maximum for column in workload.columns)
        if args.quick:
            default = ["base" if device else "sample"]
        else:
            on_gpu = [name for name in ("base", "large") if longest <= SIZES[name].max_tokens]
            default = (
                on_gpu
                if device and workload.name not in ONLY_NAMED
                else DEFAULT_SIZES[workload.name]
            )
        for size in asked or [SIZES[name] for name in default]:
            if longest <= size.max_tokens:
                pairs.append((workload, size))
            else:
                _say(f"left out: {workload.name} has {longest} tokens, {size.name} takes fewer")
    if not pairs:
        raise InputError(
            f"workload {workloads[0].name!r} has texts of up to"
            f" {max(column.maximum for column in workloads[0].columns)} tokens",
            limit=f"model {', '.join(size.name for size in asked) or 'sample'} takes fewer",
            remedy="choose another --model, or leave it out",
        )
    quick, full = (GPU_QUICK, GPU_FULL) if device else (QUICK, FULL)
    effort = quick if args.quick else full
    for option in ("rounds", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UnknownOption(
                f"--{option} is {value}", limit="at least 1", remedy="leave it out for the default"
            )
    if args.rounds:
        effort = replace(effort, rounds=args.rounds)
    # What is best on base is used on larger ones.
    order = [*SIZES.values(), *asked]
    pairs.sort(key=lambda pair: (pair[1].trained, order.index(pair[1])))
    parts = gpu_parts(pairs, args.mode) if device else default_parts(pairs, args.mode)
    if WORKLOADS["korsts"] in workloads and not (device or args.quick or args.model or args.mode):
        parts += (trained_part(),)
    return Plan(
        parts,
        _chosen(args.rivals, effort.omits, CONTESTANTS["cuda" if device else "cpu"]),
        effort,
        args.threads or usable_cpus(),
        args.quick,
        device="cuda" if device else "cpu",
        gpu=device,
    )


def _models(names: Sequence[str]) -> list[ModelSize]:
    """Known sizes, and checkpoints of one's own by their folders."""
    found: dict[str, ModelSize] = {}
    for name in dict.fromkeys(names):
        if name not in SIZES and not Path(name).is_dir():
            raise UnknownOption(
                f"unknown model {name!r}",
                limit=f"known: {', '.join(SIZES)}, and folders of checkpoints",
                remedy="name one of these, or leave --model out",
            )
        size = SIZES.get(name) or own_model.read(Path(name))
        if size.name in found:
            raise InputError(
                f"two folders are called {size.name!r}",
                limit="a result knows models by name",
                remedy="link or copy one of them under another name",
            )
        found[size.name] = size
    return list(found.values())


def _check_rivals(names: Sequence[str]) -> None:
    known = (*CONTESTANTS["cpu"], *CONTESTANTS["cuda"])
    for name in names:
        if name not in ("all", "none") and not any(kind.name.startswith(name) for kind in known):
            raise UnknownOption(
                f"unknown rival {name!r}",
                limit=f"known: {', '.join(kind.name for kind in known if not kind.ours)}",
                remedy="name one of these, or leave --rivals out",
            )


def _asked(names: Sequence[str], kinds: Sequence[type[Contestant]]) -> bool:
    return any(
        name in ("all", "none") or any(kind.name.startswith(name) for kind in kinds)
        for name in names
    )


def _chosen(
    names: str | None, omits: frozenset[str], kinds: Sequence[type[Contestant]]
) -> tuple[type[Contestant], ...]:
    """Of `kinds`, kosine's own and those that were named; `omits` is left out of `all`."""
    asked = [name for name in (names or "all").split(",") if name]
    _check_rivals(asked)
    named = [kind for kind in kinds if any(kind.name.startswith(n) for n in asked)]
    if "all" in asked:
        return tuple(kind for kind in kinds if kind.name not in omits or kind in named)
    if any(kind.ours for kind in named):
        return tuple(named)
    return (*(kind for kind in kinds if kind.ours and kind.name not in omits), *named)


def _report(path: Path | None, price: float | None) -> int:
    """Pictures and tables of `path`, or of the newest result of each device."""
    if path is not None:
        paths = [path]
    else:
        paths = [result_file.latest()]
        with contextlib.suppress(InputError):  # There need not be one of a GPU.
            paths.append(result_file.latest(wanted="cuda"))
    for one in paths:
        result = result_file.read(one)
        for drawn in pictures.draw(result, one):
            _say(f"wrote {_relative(drawn)}")
        written = page.update(result, one)
        if written:
            _say(f"wrote {_relative(written)}")
        _print_cost(result, price)
    return 0


def _print_cost(result: dict[str, Any], price: float | None) -> None:
    if price is not None and result_file.device(result) == "cpu":
        table = tables.markdown(cost.cost_heads(price), cost.cost_rows(result, price))
        sys.stdout.write(f"{table}\n")


def _relative(path: Path) -> str:
    return os.path.relpath(path)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
