"""Outputs beside the sentence vector, from the same pass: a weight or a vector for each token.

BGE-M3's checkpoints bring two linear layers that read the vector of each token before pooling.
They cost a few thousandths of the encoder's own work, so numpy computes them here, for every
engine alike, sentence by sentence: what a text gets depends on no other text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, cast, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kosine.backend import Backend
from kosine.bundle import Bundle
from kosine.computing import calls, compute_finite, compute_in_batches, not_finite_error
from kosine.errors import BackendError, InputError, IntegrityError, UnknownOption
from kosine.packed import Float32, Int32, Matrix, Output, Packed, Pooled, TokenWeights

__all__ = ["Outputs", "TokenBackend", "TokenHeads"]

FILES = {"sparse": "sparse_linear.pt", "multi": "colbert_linear.pt"}
DROPPED = ("cls", "sep", "pad", "unk")  # special tokens that carry no weight
NORM_FLOOR = np.float32(1e-12)  # torch.nn.functional.normalize's eps


@runtime_checkable
class TokenBackend(Backend, Protocol):
    """A backend that hands out what pooling reads."""

    def run_tokens(self, batch: Packed) -> tuple[Pooled, Float32]:
        """What `run` gives, and the (T, hidden_size) float32 vectors of the tokens.

        Raises:
            BackendError: It failed, was closed, or has no graph that gives them.
        """
        ...


def _names(output: Output | Sequence[Output]) -> tuple[Output, ...]:
    several = tuple(output) if isinstance(output, Iterable) else ()
    names = (output,) if isinstance(output, str) else several
    if not names or any(name not in get_args(Output) for name in names):
        raise UnknownOption(
            f"output is {output!r}"[:80],
            limit=f"known: {', '.join(get_args(Output))}, or several of them",
            remedy="leave it out for dense vectors",
        )
    return cast("tuple[Output, ...]", names)


class TokenHeads:
    """The linear layers of a bundle that read tokens.

    Args:
        bundle: The opened bundle.
        names: Outputs that will be asked for.

    Raises:
        UnknownOption: The bundle has no such layer.
    """

    def __init__(self, bundle: Bundle, names: Sequence[Output]) -> None:
        spec, special = bundle.manifest.spec, bundle.manifest.special_ids
        for name in names:
            if name not in spec.outputs:
                raise UnknownOption(
                    f"{bundle.path.name} gives no output {name!r}",
                    limit=f"it gives {', '.join(spec.outputs)}",
                    remedy=f"export a checkpoint that has {FILES[name]}, with --allow-pickle",
                )
        columns = {"sparse": 1, "multi": spec.heads.multi if spec.heads else None}
        self._arrays = {
            name: _linear(bundle, f"heads.{name}", columns[name])
            for name in names
            if name in columns
        }
        self._dropped = {special[name] for name in DROPPED if name in special}

    def sparse(self, ids: Int32, hidden: Float32) -> TokenWeights:
        """Of one sentence: the largest weight above 0 of each token id, special tokens left out.

        Args:
            ids: (L,) int32 token ids.
            hidden: (L, hidden_size) float32.
        """
        weight, bias = self._arrays["sparse"]
        weights = (hidden @ weight + bias)[:, 0].tolist()
        found: TokenWeights = {}
        for token, value in zip(ids.tolist(), weights, strict=True):
            if value > found.get(token, 0.0) and token not in self._dropped:
                found[token] = value
        return found

    def multi(self, hidden: Float32) -> Matrix:
        """Of one sentence: (L - 1, d) float32 unit vectors of all tokens but the first."""
        weight, bias = self._arrays["multi"]
        vectors = hidden[1:] @ weight + bias
        norms = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
        return np.asarray(vectors / np.maximum(norms, NORM_FLOOR), np.float32)


class Outputs:
    """What one call of `encode` gathers beside dense vectors, window after window.

    Args:
        bundle: The opened bundle.
        backend: Its engine.
        output: What is asked for: one output, or several.

    Raises:
        UnknownOption: No such output, or the bundle does not give it.
        BackendError: The engine cannot give it.
    """

    def __init__(self, bundle: Bundle, backend: Backend, output: Output | Sequence[Output]) -> None:
        names = _names(output)
        self._heads = TokenHeads(bundle, names)
        self._found: dict[str, list[Any]] = {name: [] for name in names if name != "dense"}
        for name in self._found:
            if not isinstance(backend, TokenBackend):
                raise BackendError(
                    f"backend {backend.name!r} on {backend.device} gives no output {name!r}",
                    limit="native, and onnx in float32 on a CPU, do",
                    remedy="load the bundle with backend='native' or 'onnx', and device='cpu'",
                )
        self._backend = backend
        self._dim = bundle.manifest.dim
        self._names = names
        self._alone = isinstance(output, str)

    def check_options(self, **options: Any) -> None:
        """Refuse what concerns dense vectors alone where there will be none.

        Args:
            options: By name; None where they are at their defaults.

        Raises:
            InputError: One of them is not.
        """
        given = next((name for name, value in options.items() if value is not None), None)
        if given is not None and "dense" not in self._names:
            raise InputError(
                f"{given} was given, with output {' and '.join(map(repr, self._names))}",
                limit="it is for dense vectors",
                remedy=f"leave {given} out, or ask for 'dense' too",
            )

    def compute_tokens(
        self,
        batch: Packed,
        max_tokens: int,
        max_texts: int | None,
        done: Callable[[int], object],
    ) -> Pooled:
        """The dense vectors of a window; what else is asked for is kept for `result`.

        The arguments are those of `kosine.computing.compute_in_batches`.

        Raises:
            NonFiniteVector: `indices` are the rows of the first call that came out NaN or infinite.
        """
        if not isinstance(self._backend, TokenBackend) or not self._found:
            compute = partial(compute_finite, self._backend, dim=self._dim)
            return compute_in_batches(compute, batch, self._dim, max_tokens, max_texts, done)
        vectors = np.empty((len(batch), self._dim), np.float32)
        norms = np.empty(len(batch), np.float32)
        window: dict[str, list[Any]] = {name: [None] * len(batch) for name in self._found}
        for indices in calls(batch, max_tokens, max_texts):
            part = batch.take(indices)
            pooled, hidden = _run_finite(self._backend, part, indices)
            vectors[indices], norms[indices] = pooled.vectors, pooled.norms
            for row, index in enumerate(indices.tolist()):
                own = slice(part.starts[row], part.starts[row + 1])
                tokens = np.ascontiguousarray(hidden[own])
                if "sparse" in window:
                    window["sparse"][index] = self._heads.sparse(part.ids[own], tokens)
                if "multi" in window:
                    window["multi"][index] = self._heads.multi(tokens)
            done(len(indices))
        for name, found in window.items():
            self._found[name] += found
        return Pooled(vectors, norms)

    def result(self, dense: Any, single: bool) -> Any:
        """What `encode` returns: the one output, or those that were asked for by their names.

        Args:
            dense: The dense vectors, as they were asked for.
            single: Whether one text was passed, by itself.
        """
        found = {name: each[0] if single else each for name, each in self._found.items()}
        found["dense"] = dense
        if self._alone:
            return found[self._names[0]]
        return {name: found[name] for name in self._names}


def _run_finite(
    backend: TokenBackend, batch: Packed, indices: NDArray[np.intp]
) -> tuple[Pooled, Float32]:
    """One call, and further ones for texts that come out NaN or infinite: as `compute_finite`.

    `indices` are the places of the batch's texts, for the error.
    """
    pooled, hidden = backend.run_tokens(batch)
    bad = _not_finite(batch, hidden)
    if bad and len(batch) > 1:
        vectors, norms = pooled.vectors.copy(), pooled.norms.copy()
        for row in bad:
            alone, own = backend.run_tokens(batch.take([row]))
            vectors[row], norms[row] = alone.vectors[0], alone.norms[0]
            hidden[batch.starts[row] : batch.starts[row + 1]] = own
        bad, pooled = _not_finite(batch, hidden), Pooled(vectors, norms)
    if bad:
        raise not_finite_error(tuple(int(indices[row]) for row in bad), pooled)
    return pooled, hidden


def _not_finite(batch: Packed, hidden: Float32) -> list[int]:
    finite = np.isfinite(hidden).all(axis=1)
    return np.flatnonzero(~np.logical_and.reduceat(finite, batch.starts[:-1])).tolist()


def _linear(bundle: Bundle, name: str, columns: int | None) -> tuple[Float32, Float32]:
    """A head's weight (hidden_size, columns) and bias (columns,), as views of the bundle's file."""
    file, hidden_size = bundle.tensors(), bundle.manifest.spec.hidden_size
    expected = {f"{name}.weight": (hidden_size, columns), f"{name}.bias": (columns,)}
    for each, shape in expected.items():
        entry = file.entries.get(each)
        if entry is None or entry.shape != shape or entry.dtype != np.float32:
            raise IntegrityError(
                f"weights.safetensors has no float32 tensor {each} of shape {shape}",
                limit="what the manifest's heads ask for",
                remedy="export the bundle again",
            )
    weight, bias = (file[each] for each in expected)
    return weight, bias
