"""Find the texts of a corpus that are most like each query: a first look, without an index.

CORPUS is a file as `kosine embed` reads it. Queries take the bundle's prompt "query", the corpus
"document", "passage" or "corpus", where there are such prompts. The corpus is encoded anew each
time and never held whole: for more than a look, store the vectors with `kosine embed`.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from kosine.commands import options
from kosine.commands.score import clip
from kosine.encoder import DOCUMENT_PROMPTS, WINDOW
from kosine.errors import InputError
from kosine.jobs.encoding import RecordEncoder, windows
from kosine.jobs.inputs import Record, open_input
from kosine.packed import Float32
from kosine.progress import progress_bar
from kosine.scoring import Similarity, top_k

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("corpus", metavar="CORPUS", help="- is standard input")
    parser.add_argument("queries", metavar="QUERY", nargs="+")
    parser.add_argument("-k", type=int, default=5, metavar="K", help="hits a query (default: 5)")
    options.add_fields(parser)
    options.add_engine(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.k < 1:
        raise InputError(f"-k is {args.k}", limit="at least 1", remedy="ask for one hit or more")
    source = open_input(args.corpus, args.text_field)
    encoder = options.load_encoder(args)
    began = time.perf_counter()
    prompts = encoder.manifest.prompts
    prompt_name = next((name for name in DOCUMENT_PROMPTS if name in prompts), None)
    job = RecordEncoder(encoder, source, prompt_name=prompt_name)
    best = Best(encoder.encode_query(args.queries), args.k, encoder.manifest.similarity)
    with progress_bar(None, False if args.json else None, WINDOW) as bar:
        for window in windows(source.records()):
            best.add(job.encode(window).vectors, window)
            if bar is not None:
                bar.update(len(window))
    seconds = time.perf_counter() - began
    if args.json:
        options.print_json(
            {
                "corpus": best.count,
                "seconds": round(seconds, 3),
                "backend": encoder.backend.name,
                "dtype": encoder.backend.dtype,
                "similarity": encoder.manifest.similarity,
                "results": [
                    {"query": query, "hits": [_hit(*hit, source.unit) for hit in hits]}
                    for query, hits in zip(args.queries, best.hits(), strict=True)
                ],
            }
        )
        return 0
    for query, hits in zip(args.queries, best.hits(), strict=True):
        sys.stdout.write(f"{clip(query)}\n")
        for score, record in hits:
            sys.stdout.write(
                f"  {score:>8.4f}  {source.unit} {record.number}: {clip(record.text)}\n"
            )
    sys.stdout.write(
        f"{_count(len(args.queries), 'query', 'queries')} in "
        f"{_count(best.count, 'text', 'texts')} on "
        f"{encoder.backend.name}/{encoder.backend.dtype} in {seconds:.2f} s\n"
    )
    return 0


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _hit(score: float, record: Record, unit: str) -> dict[str, Any]:
    return {"score": score, unit: record.number, "text": record.text}


class Best:
    """The k best records for each query among those added so far; ties go to the earlier one."""

    def __init__(self, queries: Float32, k: int, similarity: Similarity) -> None:
        self.queries, self.k, self.similarity = queries, k, similarity
        self.scores = np.empty((len(queries), 0), np.float32)
        self.indices = np.empty((len(queries), 0), np.int64)
        self.records: dict[int, Record] = {}
        self.count = 0

    def add(self, vectors: Float32, records: list[Record]) -> None:
        found = top_k(self.queries, vectors, self.k, similarity=self.similarity)
        scores = np.concatenate([self.scores, found.scores], axis=1)
        indices = np.concatenate([self.indices, found.indices + self.count], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.indices = np.take_along_axis(indices, order, axis=1)
        known = {**self.records, **dict(enumerate(records, self.count))}
        self.records = {i: known[i] for i in set(self.indices.ravel().tolist())}
        self.count += len(records)

    def hits(self) -> list[list[tuple[float, Record]]]:
        """(score, record) for each query, best first."""
        return [
            [(float(score), self.records[int(i)]) for score, i in zip(*row, strict=True)]
            for row in zip(self.scores, self.indices, strict=True)
        ]
