"""A prepared corpus, opened: batches for training, documents for evaluation.

The batch of a step is a pure function of (seed, step): to resume needs a number, not a replay. Training text
and held-out text are separate files; nothing here can hand out a held-out token for training.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, verify_manifest
from behemoth.base.mixing import mix_keys
from behemoth.data.batch import Batch
from behemoth.data.mixture import draw
from behemoth.data.packing import Row, Stream
from behemoth.data.shards import ShardReader


@dataclass(frozen=True)
class SourceInfo:
    """One source of the training text; `weight` is its share of rows relative to the others' weights."""

    name: str
    weight: float
    tokens: int  # for training
    licences: dict[str, int]  # documents per licence


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A document kept from training; `tokens` is `[bos] ids [eos]`, `num_bytes` that of its text in UTF-8."""

    id: str
    source: str
    tokens: np.ndarray
    num_bytes: int


class Corpus:
    """The directory that `prepare` wrote."""

    def __init__(self, directory: Path, manifest: dict[str, Any], report: dict[str, Any]):
        self.directory, self.report = directory, report
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.manifest_sha256: str = manifest["sha256"]
        self.sources = [
            _source_info(entry, report["sources"][entry["name"]]) for entry in manifest["sources"]
        ]

    @staticmethod
    def open(directory: Path) -> Corpus:
        """Check every file against the manifest, then open; DamagedError names the first that differs."""
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"{directory}: no prepared corpus here; run the data stage first")
        manifest = verify_manifest(directory)
        return Corpus(directory, manifest, read_json(directory / "report.json"))

    @property
    def num_tokens(self) -> int:
        """Training tokens, bos and eos of each document included."""
        return sum(source.tokens for source in self.sources)

    def held_out(self) -> list[HeldOut]:
        """Every document kept from training, in a fixed order; tokens stay on disk until they are read."""
        found = [
            (shards, i, record)
            for shards in (self._shards(source.name, "held_out") for source in self.sources)
            for i, record in enumerate(shards.records())
        ]
        names = told_apart([record["id"] for _, _, record in found])
        return [
            HeldOut(name, record["source"], shards.document(i), int(shards.bytes[i]))
            for name, (shards, i, record) in zip(names, found, strict=True)
        ]

    def training(self) -> list[ShardReader]:
        """The documents that training reads, by source."""
        return [self._shards(source.name, "train") for source in self.sources]

    def batches(self, context: int, rows: int, seed: int) -> BatchSource:
        """Batches of `rows` rows of `context` tokens; InputError when the corpus cannot fill one."""
        streams = [Stream(part, context, mix_keys(seed, i)) for i, part in enumerate(self.training())]
        for source, stream in zip(self.sources, streams, strict=True):
            if stream.num_rows == 0:
                raise InputError(
                    f"source {source.name!r} has {source.tokens:,} training tokens, too few for one row of "
                    f"{context:,}; give more text or shorten the context"
                )
        total = sum(stream.num_rows for stream in streams)
        if total < rows:
            raise InputError(
                f"the corpus is smaller than one batch: its {self.num_tokens:,} training tokens make "
                f"{total:,} rows of {context:,}, and a batch takes {rows:,}; give more text, "
                "or lower train.tokens_per_step or train.context_length"
            )
        return BatchSource(streams, [source.weight for source in self.sources], context, rows, seed)

    def stream(self, context: int, rows: int, seed: int, steps: int) -> Iterator[list[np.ndarray]]:
        """For each row of the first `steps` batches, its tokens by document: exactly what training reads."""
        source = self.batches(context, rows, seed)
        return (row.pieces() for step in range(steps) for row in source.rows_of(step))

    def _shards(self, source: str, kind: str) -> ShardReader:
        return ShardReader(self.directory / source / kind, self.vocab_size)


class BatchSource:
    """Batches by number. `num_rows` counts the rows of all sources, each once."""

    def __init__(self, streams: list[Stream], weights: list[float], context: int, rows: int, seed: int):
        self.context, self.rows, self.seed = context, rows, seed
        self._streams, self._weights = streams, weights
        self._num_rows = [stream.num_rows for stream in streams]
        self.num_rows = sum(self._num_rows)

    def batch(self, step: int) -> Batch:
        """The batch that the update from `step` to `step + 1` learns from; steps count from 0."""
        rows = self.rows_of(step)
        slots = torch.from_numpy(np.stack([row.slots for row in rows]))
        documents = torch.from_numpy(np.stack([row.documents for row in rows]))
        weights = np.stack([row.weights() for row in rows])
        return Batch(
            tokens_BT=slots[:, :-1].contiguous(),
            targets_BT=slots[:, 1:].contiguous(),
            weights_BT=torch.from_numpy(weights),
            documents_BT=documents[:, :-1].contiguous(),
            weight=float(weights.sum()),
        )

    def rows_of(self, step: int) -> list[Row]:
        """The rows of a batch, before they become tensors."""
        index = np.arange(step * self.rows, (step + 1) * self.rows)
        sources, rows = draw(index, self._weights, self._num_rows, self.seed)
        return [self._streams[s].row(r) for s, r in zip(sources.tolist(), rows.tolist(), strict=True)]

    def epochs(self, steps: int) -> float:
        """How often the most repeated source has been gone through after `steps` batches."""
        shares = np.array(self._weights) / sum(self._weights)
        return float((steps * self.rows * shares / np.array(self._num_rows)).max())


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, each once: two sources may hold a file of one name, and the second is then "name (2)"."""
    given: dict[str, None] = {}
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(2))
    for name in names:
        unique = name
        while unique in given:
            unique = f"{name} ({next(numbers[name])})"
        given[unique] = None
    return list(given)


def _source_info(entry: dict[str, Any], part: dict[str, Any]) -> SourceInfo:
    return SourceInfo(entry["name"], entry["weight"], part["train"]["tokens"], part["licences"])
