"""`kosine bench`: arguments in, a result file and a table out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kosine.errors import InputError, UnknownOption
from kosine.threads import usable_cpus
from kosine_bench import report, results
from kosine_bench.contestant import Contestant
from kosine_bench.measure import Plan, measure
from kosine_bench.models import SIZES
from kosine_bench.ours import OURS
from kosine_bench.rivals import RIVALS
from kosine_bench.suite import FULL, MODES, QUICK
from kosine_bench.workload import WORKLOADS

__all__ = ["add_arguments", "main", "run"]

CONTESTANTS: tuple[type[Contestant], ...] = (*OURS, *RIVALS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `kosine bench` on `parser`."""
    parser.add_argument(
        "--workload",
        action="append",
        choices=("all", *WORKLOADS),
        help="length distribution; repeat for several (default: all, with --quick korsts)",
    )
    parser.add_argument(
        "--model",
        action="append",
        choices=tuple(SIZES),
        help="model size; repeat for several (default: base, and large for `long`;"
        " with --quick sample)",
    )
    parser.add_argument(
        "--mode", action="append", choices=MODES, help="repeat for several (default: all)"
    )
    parser.add_argument(
        "--rivals",
        metavar="NAME,...",
        help="contestants to measure: names, prefixes, `none` or `all` (default); kosine's own"
        " always take part",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 3, quick 2)")
    parser.add_argument("--threads", type=int, help="threads of everyone (default: usable CPUs)")
    parser.add_argument("--quick", action="store_true", help="a rough comparison, in minutes")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="result file (quick runs write none without)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="measure nothing: draw pictures and the README table from FILE or the newest result",
    )


def run(args: argparse.Namespace) -> int:
    """Do what `kosine bench` was asked for; 0, or 1 where no contestant could run."""
    if args.report is not None:
        return _report(Path(args.report) if args.report else results.latest())
    start = time.monotonic()
    result = measure(plan(args), _say)
    path = args.output
    if path is None and not args.quick:
        path = results.path_for(result)
    if path is not None:
        results.write(result, path)
        _say(f"wrote {_relative(path)}")
    _say(f"done in {(time.monotonic() - start) / 60:.1f} min")
    if args.json:
        json.dump(result, sys.stdout, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(report.text_table(result))
    return 0 if result["figures"] or result["load"] else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program of its own."""
    parser = argparse.ArgumentParser(prog="kosine bench", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def plan(args: argparse.Namespace) -> Plan:
    """What the arguments ask for.

    Raises:
        UnknownOption: A rival that does not exist, or numbers out of range.
        InputError: No asked model takes the asked workload's lengths.
    """
    names = args.workload or (["korsts"] if args.quick else ["all"])
    workloads = list(WORKLOADS.values()) if "all" in names else [WORKLOADS[n] for n in names]
    pairs = []
    for workload in workloads:
        longest = max(column.maximum for column in workload.columns)
        asked = args.model or (
            ["sample"] if args.quick else ["large" if workload.name == "long" else "base"]
        )
        for name in asked:
            if longest <= SIZES[name].max_tokens:
                pairs.append((workload, SIZES[name]))
            else:
                _say(f"left out: {workload.name} has {longest} tokens, {name} takes fewer")
    if not pairs:
        raise InputError(
            f"workload {workloads[0].name!r} has texts of up to"
            f" {max(column.maximum for column in workloads[0].columns)} tokens",
            limit=f"model {args.model or ['sample']} takes fewer",
            remedy="choose --model base or large",
        )
    effort = QUICK if args.quick else FULL
    for option in ("rounds", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UnknownOption(f"--{option} is {value}", limit="at least 1")
    if args.rounds:
        effort = replace(effort, rounds=args.rounds)
    return Plan(
        tuple(pairs),
        tuple(mode for mode in MODES if mode in (args.mode or MODES)),
        _chosen(args.rivals, effort.omits),
        effort,
        args.threads or usable_cpus(),
        args.quick,
    )


def _chosen(names: str | None, omits: frozenset[str]) -> tuple[type[Contestant], ...]:
    """kosine's own, and the rivals that were named; `omits` is left out of `all`."""
    asked = [name for name in (names or "all").split(",") if name]
    unknown = [
        name
        for name in asked
        if name not in ("all", "none") and not any(k.name.startswith(name) for k in CONTESTANTS)
    ]
    if unknown:
        raise UnknownOption(
            f"unknown rival {unknown[0]!r}",
            limit=f"known: {', '.join(kind.name for kind in RIVALS)}",
            remedy="name one of these, or leave --rivals out",
        )
    named = [kind for kind in CONTESTANTS if any(kind.name.startswith(n) for n in asked)]
    if "all" in asked:
        return tuple(kind for kind in CONTESTANTS if kind.name not in omits or kind in named)
    if any(kind in OURS for kind in named):
        return tuple(named)
    return (*OURS, *named)


def _report(path: Path) -> int:
    result = results.read(path)
    for drawn in report.draw(result, path):
        _say(f"wrote {_relative(drawn)}")
    readme = report.update_readme(result, path)
    if readme:
        _say(f"wrote {_relative(readme)}")
    return 0


def _relative(path: Path) -> str:
    return os.path.relpath(path)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
