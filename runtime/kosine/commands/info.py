"""Say what a bundle holds: the model, its limits, its files, the parity measured at export.

Only the manifest is read, and no engine is made: what is said of engines is what shows without
that (the module, its packages, the processor, the target).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from kosine.backends.registry import BACKENDS, candidates, capabilities, probe
from kosine.bundle import Bundle
from kosine.bundle.manifest import Manifest
from kosine.commands import options
from kosine.errors import InputError, KosineError
from kosine.spec import EncoderSpec

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    bundle = Bundle(args.bundle)
    engines = _engines(bundle)
    chosen = _chosen(bundle)
    if args.json:
        value = {
            "path": str(bundle.path),
            "engines": engines,
            "auto": chosen,
            **dataclasses.asdict(bundle.manifest),
            **_summary(bundle.manifest.spec),
        }
        options.print_json(value)
    else:
        sys.stdout.write(_text(bundle, engines, chosen))
    return 0


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    """Every backend and dtype: whether it runs here, and its fingerprint or the reason not."""
    found = []
    for backend in BACKENDS:
        for dtype in capabilities(backend).dtypes:
            entry: dict[str, Any] = {"backend": backend, "dtype": dtype}
            try:
                probe(bundle, backend, dtype)
            except KosineError as error:
                entry |= {"runs": False, "reason": str(error)}
            else:
                entry |= {"runs": True, "fingerprint": bundle.manifest.fingerprint(backend, dtype)}
            found.append(entry)
    return found


def _chosen(bundle: Bundle) -> dict[str, str] | None:
    """What "auto" tries first on this machine, and takes where it passes the canary; or None."""
    for backend, dtype in candidates("auto", "auto", "auto"):
        try:
            probe(bundle, backend, dtype)
        except InputError:  # "auto" goes no further
            return None
        except KosineError:
            continue
        return {"backend": backend, "dtype": dtype}
    return None


def _summary(spec: EncoderSpec) -> dict[str, Any]:
    """The spec in a few flat values, for scripts that want no more."""
    first = spec.layers[0]
    return {
        "dim": spec.dim,
        "architecture": {
            "family": spec.family,
            "vocab_size": spec.embeddings.vocab_size,
            "hidden_size": spec.hidden_size,
            "embedding_size": spec.embeddings.size,
            "num_layers": len(spec.layers),
            "num_heads": first.attention.num_heads,
            "intermediate_size": first.feed_forward.intermediate_size,
            "max_position_embeddings": spec.embeddings.positions.rows,
            "type_vocab_size": spec.embeddings.token_types,
            "layer_norm_eps": first.norm.eps,
            "position_rule": spec.embeddings.positions.rule,
        },
        "pooling": {
            "mode": "+".join(spec.pooling.modes),
            "include_prompt": spec.pooling.include_prompt,
        },
        "dense": [dataclasses.asdict(layer) for layer in spec.dense],
        "normalized": spec.normalize,
        "outputs": list(spec.outputs),
    }


def _text(bundle: Bundle, engines: list[dict[str, Any]], chosen: dict[str, str] | None) -> str:
    m = bundle.manifest
    spec = m.spec
    size = sum(entry.bytes for entry in m.files().values())
    lines = [
        f"{bundle.path.name}: {spec.family}, {len(spec.layers)} layers, "
        f"hidden {spec.hidden_size}, {spec.layers[0].attention.num_heads} heads, "
        f"vocabulary {spec.embeddings.vocab_size}",
        f"  vectors      {m.dim} dimensions, {' + '.join(spec.pooling.modes)} pooling, "
        f"similarity {m.similarity}" + (", normalised by the checkpoint" if spec.normalize else ""),
        f"  max tokens   {m.max_tokens} (longer texts are cut)",
        f"  prompts      {', '.join(f'{k}={v!r}' for k, v in m.prompts.items()) or 'none'}"
        f" (default: {m.default_prompt_name or 'none'}; "
        f"{'in' if spec.pooling.include_prompt else 'left out of'} the pooling)",
        f"  source       {m.source.get('name')} ({m.source.get('format', 'unknown format')}), "
        f"exported by kosine {m.kosine}",
        f"  targets      {', '.join(m.targets)}; {len(m.files())} files, {size / 1e6:.1f} MB",
        "  parity       " + _parity(m),
    ]
    if spec.heads is not None:
        lines.insert(2, f"  outputs      {', '.join(spec.outputs)}")
    others = None if m.parity is None else m.parity.get("others")
    for dtype, other in others.items() if isinstance(others, dict) else ():
        lines.append(f"    in {dtype:<8} {_measured(other)}")
    for entry in engines:
        state = f"fingerprint {entry['fingerprint']}" if entry["runs"] else entry["reason"]
        if chosen == {"backend": entry["backend"], "dtype": entry["dtype"]}:
            state += "  (auto, where it passes the canary)"
        lines.append(f"  {entry['backend']}/{entry['dtype']:<9} {state}")
    if m.int8 is not None:
        lines.append(
            f"  int8         {len(m.int8.bytes_only)} of {len(m.int8.errors)} products stay in "
            f"w8a16, {m.int8.bytes_only_share:.1%} of the multiply-adds"
        )
    for plan in m.plans:
        widths = ", ".join(str(profile.width) for profile in plan.profiles)
        lines.append(
            f"  plan         {plan.flavour} {plan.version} for compute capability "
            f"{', '.join(plan.architectures)}; row widths {widths}"
        )
    return "\n".join(lines) + "\n"


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity is None:
        missing = manifest.source.get("referee_missing")
        if not isinstance(missing, list) or not missing:
            missing = ["PyTorch or sentence-transformers"]
        return (
            f"not measured at export: {', '.join(map(str, missing))} "
            f"{'was' if len(missing) == 1 else 'were'} not installed (pip install 'kosine[torch]' "
            "and export again to measure it)"
        )
    return _measured(parity)


def _measured(parity: Any) -> str:
    try:
        centred = parity.get("centred")
        return (
            f"min cosine {parity['min_cosine']:.8f}, "
            + ("" if centred is None else f"centred {centred['min_cosine']:.8f}, ")
            + f"max abs error {parity['max_abs_error']:.1e} over "
            f"{parity['texts']} comparisons with {parity['referee']}"
        )
    except (AttributeError, KeyError, TypeError, ValueError):  # the manifest leaves its form open
        return "not in the form that this version of kosine writes"
