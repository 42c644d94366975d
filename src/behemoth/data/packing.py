"""Rows of a fixed number of tokens, cut from documents laid end to end.

The stream of a source is its documents, each `[bos] ids [eos]`, in a seeded order. Row r of context T is the
slots [r*T, r*T + T] of that stream: the first T are read, the last T predicted. No token is padding. What
belongs to which document is kept beside the tokens, so that attention stays inside one, and the prediction of
the next document's first token weighs nothing. The tokens after the last whole row are left out (less than
one row of a source).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from behemoth.base.mixing import mix_keys
from behemoth.data.mixture import permute
from behemoth.data.shards import ShardReader


@dataclass(frozen=True, eq=False)
class Row:
    """T + 1 consecutive slots; `documents` numbers them 0, 1, 2 ... by the document they belong to."""

    slots: np.ndarray  # int64 (T + 1,)
    documents: np.ndarray  # int32 (T + 1,)

    def pieces(self) -> list[np.ndarray]:
        """The tokens by document; one of which the row holds only a first token to predict is left out."""
        borders = np.flatnonzero(np.diff(self.documents)) + 1
        pieces = np.split(self.slots, borders)
        return pieces[:-1] if borders.size and borders[-1] == len(self.slots) - 1 else pieces

    def weights(self) -> np.ndarray:
        """float32 (T,): 1 where the target is of the same document as the token before it, else 0."""
        return (self.documents[1:] == self.documents[:-1]).astype(np.float32)


class Stream:
    """The documents of one source in the order that `key` names, cut into rows of `context` tokens."""

    def __init__(self, shards: ShardReader, context: int, key: int):
        self.shards, self.context = shards, context
        count = len(shards.lengths)
        self._order = permute(np.arange(count), count, mix_keys(key, 0))
        self._starts = np.concatenate([[0], np.cumsum(shards.lengths[self._order])])
        self.num_rows = max(0, (int(self._starts[-1]) - 1) // context)

    def row(self, number: int) -> Row:
        begin = number * self.context
        end = begin + self.context + 1
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        last = int(np.searchsorted(self._starts, end, side="left"))
        pieces = []
        for place in range(first, last):
            start = int(self._starts[place])
            tokens = self.shards.document(int(self._order[place]))
            pieces.append(tokens[max(begin - start, 0) : end - start])
        numbers = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece) for piece in pieces])
        return Row(np.concatenate(pieces).astype(np.int64), numbers)
