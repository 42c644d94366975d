"""Texts that are in the corpus twice, exactly or nearly.

Two texts are equal when they agree but for case and white space. They are near-duplicates when the Jaccard
similarity of their sets of five consecutive words is estimated at 0.8 or more from a MinHash signature of 128
values (Broder 1997; `rensa`'s R-MinHash). Candidates are found by banding: texts that agree on one of 32
bands of 4 values, which misses a pair at the threshold less than once in ten million times. Duplicates form
clusters (a union-find over the pairs); the first text of each cluster in reading order is kept.

Signatures live in a file, and one band at a time is sorted in memory: about 40 bytes a document. In a band a
text is compared with the first of its group and with its neighbour, so the work stays linear in the number of
texts.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rensa import RMinHash

from behemoth.base.mixing import mix

THRESHOLD = 0.8
SHINGLE_WORDS = 5
NUM_VALUES = 128
NUM_BANDS = 32
SEED = 1

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


def normalised(text: str) -> str:
    """Lower case, white space as single spaces: what is compared."""
    return " ".join(text.lower().split())


def fingerprint(text: str) -> bytes:
    """16 bytes that equal texts share (SHA-256, halved)."""
    return hashlib.sha256(normalised(text).encode()).digest()[:16]


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, uint32 (len(texts), 128), of texts that hold at least one word."""
    hashes, ends = shingles([normalised(text).encode() for text in texts])
    offsets = np.concatenate([[0], ends]).astype(np.uint64)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, NUM_VALUES, SEED).to_rows()
    return np.array(rows, dtype=np.uint32)


def shingles(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash for each five consecutive words of every text, end to end, and where each text's end.

    One shingle begins at every word; the last four of a text are completed with nothing, so that a text of
    one word has a shingle too. Words are separated by single spaces.
    """
    words, num_words = _word_hashes(texts)
    text_of_word = np.repeat(np.arange(len(texts)), num_words)
    place = (
        np.arange(len(words)) + (SHINGLE_WORDS - 1) * text_of_word
    )  # leaves room for nothing after each text
    padded = np.zeros(len(words) + (SHINGLE_WORDS - 1) * len(texts), dtype=np.uint64)
    padded[place] = words
    total = np.zeros(len(words), dtype=np.uint64)
    for k in range(SHINGLE_WORDS):
        total = mix(total + padded[place + k] + _BASE)
    return total, np.cumsum(num_words)


def _word_hashes(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every word and the number of words of every text, with no loop over words.

    The hash of bytes i..j is a polynomial in an odd base modulo 2**64, the difference of two prefix sums.
    """
    joined = np.frombuffer(b" ".join(texts) + b" ", dtype=np.uint8)
    spaces = np.flatnonzero(joined == ord(" "))
    starts = np.concatenate([[0], spaces[:-1] + 1])
    powers = np.cumprod(np.full(len(joined), _BASE, dtype=np.uint64))
    inverses = np.cumprod(np.full(len(joined), _INVERSE, dtype=np.uint64))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum((joined + np.uint64(1)) * inverses)])
    ends = np.cumsum([len(text) + 1 for text in texts])
    num_words = np.diff(np.searchsorted(starts, ends), prepend=0)
    return mix((sums[spaces] - sums[starts]) * powers[starts]), num_words


class Duplicates:
    """Collect a fingerprint and a signature per text, in order; then say which texts to drop.

    `directory` holds the signatures (512 bytes a text) until the end.
    """

    def __init__(self, directory: Path):
        self._path = directory / "signatures.bin"
        self._path.write_bytes(b"")
        self._fingerprints = bytearray()

    def add(self, texts: Sequence[str]) -> None:
        with open(self._path, "ab") as file:
            file.write(signatures(texts).tobytes())
        for text in texts:
            self._fingerprints += fingerprint(text)

    def find(self) -> tuple[np.ndarray, np.ndarray]:
        """(exact, near): whether each text repeats an earlier one, exactly or nearly. No text is in both."""
        keys = np.frombuffer(bytes(self._fingerprints), dtype=[("high", ">u8"), ("low", ">u8")])
        exact = _repeated(keys)
        near = np.zeros(len(keys), dtype=bool)
        if len(keys):
            near = _later_in_cluster(len(keys), self._near_pairs(len(keys))) & ~exact
        self._path.unlink()
        return exact, near

    def _near_pairs(self, count: int) -> np.ndarray:
        """Pairs (earlier, later) of texts that are similar enough, int64 (pairs, 2)."""
        table = np.memmap(self._path, dtype=np.uint32, mode="r", shape=(count, NUM_VALUES))
        rows = NUM_VALUES // NUM_BANDS
        found = [np.zeros((0, 2), dtype=np.int64)]
        for band in range(NUM_BANDS):
            pairs = _candidates(table[:, band * rows : (band + 1) * rows])
            found.append(pairs[_similarity(table, pairs) >= THRESHOLD])
        return np.unique(np.concatenate(found), axis=0)


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Whether each key occurred before."""
    order = np.argsort(keys, kind="stable", order=("high", "low"))
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return repeated


def _candidates(band: np.ndarray) -> np.ndarray:
    """Texts that agree on the band: each with the first of its group and with its neighbour."""
    key = np.zeros(len(band), dtype=np.uint64)
    for column in range(band.shape[1]):
        key = mix(key * _BASE + band[:, column] + np.uint64(1))
    order = np.argsort(key, kind="stable")
    same = np.concatenate([[False], key[order[1:]] == key[order[:-1]]])
    first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    place = np.flatnonzero(same)
    with_first = np.stack([first[place], order[place]], axis=1)
    with_neighbour = np.stack([order[place - 1], order[place]], axis=1)
    return np.unique(np.concatenate([with_first, with_neighbour]), axis=0)


def _similarity(table: np.ndarray, pairs: np.ndarray, at_once: int = 4096) -> np.ndarray:
    """Estimated Jaccard similarity: the share of values on which two signatures agree."""
    parts = [pairs[i : i + at_once] for i in range(0, len(pairs), at_once)]
    shares = [(table[part[:, 0]] == table[part[:, 1]]).mean(axis=1) for part in parts]
    return np.concatenate([np.zeros(0), *shares])


def _later_in_cluster(count: int, pairs: np.ndarray) -> np.ndarray:
    """Whether each text is in a cluster of connected pairs without being its first."""
    parent = array("q", range(count))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for a, b in pairs.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return np.array(parent) != np.arange(count)
