"""The canary: 64 texts with the ids and vectors that the reference gave them at export.

Replaying it shows, with no PyTorch and on the machine at hand, whether this tokenizer, this
graph and this backend still give what the checkpoint gave.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.backend import Backend
from kosine.bundle import Bundle
from kosine.errors import IntegrityError, ParityError
from kosine.packed import Float32, Packed

__all__ = [
    "CANARY",
    "GATES",
    "Canary",
    "Centred",
    "Comparison",
    "Gate",
    "check_canary",
    "compare",
    "mean_vector",
    "replay",
]

CANARY = "canary.safetensors"
AUTO_TEXTS = 16  # how many of the texts a load replays; `kosine verify` replays them all
MAX_NORM_ERROR = 1e-6
# Centred cosines are measured on at least so many distinct texts. A row that is nearly the mean
# is left out: what remains of it is rounding, and it has no direction.
MIN_CENTRED_TEXTS = 32
MIN_CENTRED_LENGTH = 0.05


@dataclass(frozen=True, slots=True)
class Gate:
    """What a dtype must reach against float32 PyTorch; -1 and a `max_abs` of None gate nothing.

    The centred gates are for integer arithmetic. Taking the mean off magnifies rounding by
    1 / |row - mean|^2, so they would say of float dtypes how close a text lies to the mean.
    """

    min_cosine: float
    max_abs: float | None
    mean_cosine: float = -1.0
    centred_min_cosine: float = -1.0
    centred_mean_cosine: float = -1.0

    def __str__(self) -> str:
        lowest = {
            "min cosine": self.min_cosine,
            "mean": self.mean_cosine,
            "centred min": self.centred_min_cosine,
            "centred mean": self.centred_mean_cosine,
        }
        parts = [f"{name} {value}" for name, value in lowest.items() if value > -1]
        parts += [] if self.max_abs is None else [f"max abs error {self.max_abs:g}"]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "min_cosine": self.min_cosine,
            "mean_cosine": self.mean_cosine,
            "max_abs_error": self.max_abs,
            "max_norm_error": MAX_NORM_ERROR,
            "centred_min_cosine": self.centred_min_cosine,
            "centred_mean_cosine": self.centred_mean_cosine,
        }


GATES = {
    "float32": Gate(0.999999, 2e-5),
    "float16": Gate(0.9998, None),
    "bfloat16": Gate(0.9999, None, mean_cosine=0.99995),
    # The means tell of the rounding: about a hundredth of each product, in the square over some
    # 24 to 48 of them. A least cosine tells of one text, and some texts magnify the last bits of
    # their input. Trained encoders of 6 and 12 layers reach these; dynamic rounding with one scale
    # a row, without smoothing, does not.
    "w8a16": Gate(0.998, None, 0.999, centred_min_cosine=0.99, centred_mean_cosine=0.998),
    "int8": Gate(0.995, None, 0.998, centred_min_cosine=0.97, centred_mean_cosine=0.997),
}


@dataclass(frozen=True, slots=True)
class Centred:
    """Cosines of `texts` rows after one mean vector was taken off both sides."""

    texts: int
    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Vectors held against reference vectors.

    Cosines are computed in float64 with the norms divided out; `max_norm_error` is
    `max |norm - 1|` of the vectors under test, apart from that; `worst` is the row of the
    lowest cosine. `centred` is None where it was not measured: without a mean, or over fewer
    than 32 distinct rows.
    """

    texts: int
    min_cosine: float
    mean_cosine: float
    max_abs_error: float
    max_norm_error: float
    worst: int
    centred: Centred | None = None

    def passes(self, gate: Gate) -> bool:
        """Whether every gate is met. A centred cosine that was not measured gates nothing."""
        # Written so that NaN fails.
        return (
            self.min_cosine >= gate.min_cosine
            and self.mean_cosine >= gate.mean_cosine
            and self.max_norm_error <= MAX_NORM_ERROR
            and (gate.max_abs is None or self.max_abs_error <= gate.max_abs)
            and (
                self.centred is None
                or (
                    self.centred.min_cosine >= gate.centred_min_cosine
                    and self.centred.mean_cosine >= gate.centred_mean_cosine
                )
            )
        )

    def centred_text(self) -> str:
        """The lowest centred cosine, for a table."""
        return "not measured" if self.centred is None else f"{self.centred.min_cosine:.8f}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """The bundle's canary: `texts`, their packed ids, and the (64, dim) unit vectors.

    `mean` is the (dim,) mean of the float32 reference's vectors, or None.
    """

    texts: tuple[str, ...]
    batch: Packed
    vectors: Float32
    mean: Float32 | None = None

    @classmethod
    def read(cls, bundle: Bundle) -> Canary:
        file = bundle.tensors(CANARY)
        try:
            raw = file["texts"].tobytes()
            sizes = file["text_bytes"]
            ends = np.cumsum(sizes).tolist()
            texts = tuple(raw[a:b].decode() for a, b in zip([0, *ends], ends, strict=False))
            batch = Packed(file["ids"], file["starts"])
            vectors = file["vectors"]
            # The first bundles store none.
            mean = file["mean"] if "mean" in file.entries else mean_vector(vectors)
            lengths = batch.lengths
            fits = (
                sizes.dtype == np.int64
                and int(sizes.min()) >= 0
                and ends[-1] == len(raw)
                and batch.ids.ndim == batch.starts.ndim == 1
                and len(texts) == len(batch)
                and vectors.shape == (len(texts), bundle.manifest.dim)
                and vectors.dtype == np.float32
                and (
                    mean is None
                    or (
                        mean.shape == vectors.shape[1:]
                        and mean.dtype == np.float32
                        and bool(np.isfinite(mean).all())
                    )
                )
                and batch.ids.dtype == batch.starts.dtype == np.int32
                and batch.starts[0] == 0
                and batch.starts[-1] == len(batch.ids)
                and 1 <= lengths.min() <= lengths.max() <= bundle.manifest.max_tokens
                and batch.ids.min() >= 0
                and batch.ids.max() < bundle.manifest.spec.embeddings.vocab_size
            )
        except (ValueError, IndexError, TypeError):
            fits = False
        if not fits:
            raise IntegrityError(f"{CANARY} is damaged", remedy="export the bundle again")
        return cls(texts, batch, vectors, mean)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What `read` reads."""
        encoded = [text.encode() for text in self.texts]
        return {
            "vectors": self.vectors,
            **({} if self.mean is None else {"mean": self.mean}),
            "ids": self.batch.ids,
            "starts": self.batch.starts,
            "text_bytes": np.array([len(text) for text in encoded], np.int64),
            "texts": np.frombuffer(b"".join(encoded), np.uint8),
        }


def mean_vector(vectors: Float32) -> Float32 | None:
    """The (dim,) mean of (n, dim) reference vectors; None with under 32 distinct rows."""
    if _distinct(vectors) < MIN_CENTRED_TEXTS:
        return None
    return np.asarray(np.mean(vectors, axis=0, dtype=np.float64), np.float32)


def compare(
    vectors: NDArray[Any], reference: NDArray[Any], mean: NDArray[Any] | None = None
) -> Comparison:
    """Hold (n, dim) vectors against (n, dim) reference vectors, n at least 1.

    A row that is all zero on both sides counts as equal (a text whose tokens were all left out
    of pooling). With a (dim,) `mean` the centred cosines are measured too.
    """
    a, b = np.asarray(vectors, np.float64), np.asarray(reference, np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    empty = (norm_a == 0) & (norm_b == 0)
    cosines = np.where(empty, 1.0, _cosines(a, b))
    centred = None
    if mean is not None:
        # By the reference's length alone: a vector that fell onto the mean by mistake must show.
        rows = np.linalg.norm(b - mean, axis=1) >= MIN_CENTRED_LENGTH
        if _distinct(b[rows]) >= MIN_CENTRED_TEXTS:
            left = _cosines(a[rows] - mean, b[rows] - mean)
            centred = Centred(len(left), float(left.min()), float(left.mean()))
    return Comparison(
        texts=len(a),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        max_abs_error=float(np.abs(a - b).max()),
        max_norm_error=float(np.where(empty, 0.0, np.abs(norm_a - 1)).max()),
        worst=int(cosines.argmin()),
        centred=centred,
    )


def replay(canary: Canary, backend: Backend, texts: int | None = None) -> Comparison:
    """Run the first `texts` (all by default) through a backend and compare."""
    batch = canary.batch.take(range(len(canary.batch))[:texts])
    return compare(backend.run(batch).vectors, canary.vectors[: len(batch)], canary.mean)


def check_canary(bundle: Bundle, backend: Backend, texts: int | None = AUTO_TEXTS) -> Comparison:
    """Replay the first `texts` canary texts, or all of them (None).

    Raises:
        ParityError: The backend's dtype misses its gate.
    """
    found = replay(Canary.read(bundle), backend, texts)
    gate = GATES[backend.dtype]
    if not found.passes(gate):
        raise ParityError(
            f"backend {backend.name!r} in {backend.dtype} fails the canary: min cosine "
            f"{found.min_cosine:.7f}, mean {found.mean_cosine:.7f}, max abs error "
            f"{found.max_abs_error:.1e}"
            + ("" if found.centred is None else f", centred min {found.centred_text()}"),
            limit=str(gate),
            remedy="run `kosine verify` on the bundle; export it again if it fails",
        )
    return found


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) cosines of row i and row i; -1 where one has no direction."""
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.where(np.isfinite(cosines), cosines, -1.0)


def _distinct(rows: NDArray[Any]) -> int:
    return len({row.tobytes() for row in rows})
