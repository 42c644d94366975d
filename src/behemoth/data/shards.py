"""Tokens on disk: flat files that are mapped into memory, and an index of the documents in them.

A directory holds `tokens-00000.bin`, `tokens-00001.bin` ... (little-endian uint16 for vocabularies up to
65,536, else uint32; a document never spans two files), `lengths.npy` (tokens of each document), `bytes.npy`
(bytes of its text) and `documents.jsonl` (id, source, licence; a line per document, in the same order).
Hashes are in the manifest of the directory above.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from behemoth.base.files import read_jsonl
from behemoth.data.sources import Document

SHARD_TOKENS = 1 << 27  # 256 MB of uint16


def token_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Append documents; leaving the `with` block writes the index. Memory: 16 bytes a document."""

    def __init__(self, directory: Path, vocab_size: int, shard_tokens: int = SHARD_TOKENS):
        directory.mkdir(parents=True)
        self.directory, self.shard_tokens = directory, shard_tokens
        self._type = token_type(vocab_size)
        self._lengths, self._bytes = array("q"), array("q")
        self._names = open(directory / "documents.jsonl", "w", encoding="utf-8")  # noqa: SIM115, see __exit__
        self._shard, self._held = 0, 0
        self._file = self._open_shard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        self._names.close()
        if kind is None:
            np.save(self.directory / "lengths.npy", np.array(self._lengths, dtype=np.int64))
            np.save(self.directory / "bytes.npy", np.array(self._bytes, dtype=np.int64))

    def append(self, ids: Sequence[int], num_bytes: int, document: Document) -> None:
        if self._held and self._held + len(ids) > self.shard_tokens:
            self._file.close()
            self._shard, self._held = self._shard + 1, 0
            self._file = self._open_shard()
        self._file.write(np.array(ids, dtype=self._type).tobytes())
        self._held += len(ids)
        self._lengths.append(len(ids))
        self._bytes.append(num_bytes)
        record = {"id": document.id, "source": document.source, "licence": document.licence}
        self._names.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _open_shard(self) -> IO[bytes]:
        return open(self.directory / f"tokens-{self._shard:05d}.bin", "wb")


class ShardReader:
    """Random access to documents; tokens stay on disk until they are read."""

    def __init__(self, directory: Path, vocab_size: int):
        self.directory = directory
        self.lengths: np.ndarray = np.load(directory / "lengths.npy")
        self.bytes: np.ndarray = np.load(directory / "bytes.npy")
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        files = sorted(directory.glob("tokens-*.bin"))
        self._maps = [_map(path, token_type(vocab_size)) for path in files]
        self._first = np.concatenate([[0], np.cumsum([len(tokens) for tokens in self._maps])])

    @property
    def num_tokens(self) -> int:
        return int(self._offsets[-1])

    @property
    def num_bytes(self) -> int:
        return int(self.bytes.sum())

    def records(self) -> Iterator[dict[str, Any]]:
        """Id, source and licence of every document, in order."""
        return read_jsonl(self.directory / "documents.jsonl")

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, bos and eos included."""
        offset = int(self._offsets[number])
        shard = int(np.searchsorted(self._first, offset, side="right")) - 1
        begin = offset - int(self._first[shard])
        return self._maps[shard][begin : begin + int(self.lengths[number])]


def _map(path: Path, kind: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")
