"""What code written for sentence-transformers looks up on a model, as a base of `Encoder`.

Evaluators, SetFit, mteb and others are handed an encoder, and find the names, shapes and types
that they read of a `SentenceTransformer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kosine import scoring
from kosine.encode_options import PromptedEncoding
from kosine.packed import Float32, Packed
from kosine.quantization import Precision, Ranges
from kosine.tensors import as_arrays, as_asked

if TYPE_CHECKING:
    from kosine.backend import Backend
    from kosine.bundle.manifest import Manifest

__all__ = ["ModelCardData", "SentenceTransformerNames"]


class ModelCardData:
    """What evaluators and mteb read of a model's card, and where they leave their figures.

    Attributes:
        model_name, base_model: "kosine/" and the encoder's fingerprint: whoever caches vectors by
            this name (`mine_hard_negatives(cache_folder=...)`) mixes no two models.
        base_model_revision: None: the name says it all.
        eval_results_dict: The figures by evaluator.
    """

    base_model_revision: str | None = None

    def __init__(self, name: str) -> None:
        self.model_name = self.base_model = name
        self.eval_results_dict: dict[Any, dict[str, Any]] = {}

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keep an evaluator's figures; `epoch` and `step` are those of a training."""
        del epoch, step
        self.eval_results_dict[evaluator] = dict(metrics)


class SentenceTransformerNames(PromptedEncoding):
    """What sentence-transformers has beside `encode`."""

    if TYPE_CHECKING:
        backend: Backend
        manifest: Manifest
        dim: int
        max_tokens: int
        prepare: Any
        fingerprint: Any

    _card: ModelCardData | None = None

    # Scores

    def similarity(
        self,
        a: ArrayLike,
        b: ArrayLike,
        *,
        precision: Precision | None = None,
        ranges: Ranges | None = None,
    ) -> Float32:
        """(n, m) scores by the manifest's similarity function (distances negated).

        Args:
            a, b: (n, d) and (m, d) as `encode` gives them, in any precision; one side may be
                float32 and the other smaller. int8 and uint8 are scored as what their integers or
                bits stand for, see `kosine.scoring`.
            precision: What int8 and uint8 arrays are. The default goes by their width:
                ceil(dim / 8) columns are bits, more are integers. Fewer are refused: for vectors
                truncated to an eighth or less it has to be named.
            ranges: What `encode` was given; the default are the bundle's.

        Returns:
            An array; a tensor where a side is one (or a list of them).

        Raises:
            InputError: The sides do not fit, or what they are stays unclear.
            UnknownOption: No such precision.
        """
        scores: Float32 = self._scores(scoring.score_matrix, a, b, precision, ranges)
        return scores

    def similarity_pairwise(
        self,
        a: ArrayLike,
        b: ArrayLike,
        *,
        precision: Precision | None = None,
        ranges: Ranges | None = None,
    ) -> Float32:
        """(n,) scores of row i against row i by the manifest's similarity function.

        The arguments are those of `similarity`.
        """
        scores: Float32 = self._scores(scoring.pairwise, a, b, precision, ranges)
        return scores

    def _scores(
        self,
        score: Callable[..., Float32],
        a: ArrayLike,
        b: ArrayLike,
        precision: str | None,
        ranges: Ranges | None,
    ) -> Any:
        sides, tensors = as_arrays(a, b)
        ranges = self.manifest.ranges if ranges is None else ranges
        options = {"precision": precision, "ranges": ranges, "dim": self.dim}
        return as_asked(score(*sides, self.manifest.similarity, **options), not tensors, tensors)

    # What is known of the model

    @property
    def similarity_fn_name(self) -> str:
        """ "cosine", "dot", "euclidean" or "manhattan": what `similarity` computes."""
        return self.manifest.similarity

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts' texts by name."""
        return dict(self.manifest.prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt that `encode` puts in front where it is told no other."""
        return self.manifest.default_prompt_name

    @property
    def device(self) -> str:
        """ "cpu" or "cuda:N", where the engine runs; PyTorch takes it for a device."""
        return self.backend.device

    @property
    def max_seq_length(self) -> int:
        """`max_tokens`; it is set by `kosine export --max-tokens`."""
        return self.max_tokens

    def get_max_seq_length(self) -> int:
        """`max_tokens`."""
        return self.max_tokens

    def get_embedding_dimension(self) -> int:
        """`dim`."""
        return self.dim

    def get_sentence_embedding_dimension(self) -> int:
        """`dim`, by the name that it had before."""
        return self.dim

    @property
    def model_card_data(self) -> ModelCardData:
        """What evaluators read and write of a model's card."""
        if self._card is None:
            self._card = ModelCardData(f"kosine/{self.fingerprint}")
        return self._card

    def tokenize(self, texts: str | Iterable[str]) -> dict[str, NDArray[np.int64]]:
        """Token ids as the engine gets them, cut to `max_tokens`: "input_ids" and
        "attention_mask", (n, longest) int64 each. No prompt is put in front.

        Raises:
            TextError: As `encode`.
        """
        batch: Packed = self.prepare(texts, prompt="").batch
        return _padded(batch, self.manifest.special_ids["pad"])

    def eval(self) -> Self:
        """The encoder: there is no other mode."""
        return self


def _padded(batch: Packed, pad: int) -> dict[str, NDArray[np.int64]]:
    lengths = batch.lengths
    mask = np.arange(max(lengths, default=0)) < lengths[:, None]
    ids = np.full(mask.shape, pad, np.int64)
    ids[mask] = batch.ids
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
