"""What a model must beat: counting, fitted on the very tokens that the model saw.

The n-grams use interpolated modified Kneser-Ney smoothing (Chen & Goodman 1998, section 3). On the standard
library it needs 0.09 bits per byte less than Witten-Bell for the token 3-gram and 0.19 less for the byte
5-gram, so it is the harder one to beat. With h the last m-1 symbols and h' the same less the oldest,

    p(w | h) = max(c(hw) - D(c), 0) / c(h)  +  (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h) * p(w | h'),

where c counts occurrences at the highest order and distinct left neighbours below it, Nj(h) is how many
symbols followed h exactly j times, the D come from counts of counts, and below order 1 lies the uniform
distribution. An n-gram is packed into one 64-bit integer, so that fitting is sorting and scoring is binary
search.

`xz` is there as a reference that knows nothing of models at all.

Leaves out: pruning, and repeats. A piece of text that training met twice is counted once: a second epoch
tells an n-gram nothing, and would leave no n-gram that occurs once, which the discounts are computed from.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from behemoth.base.errors import InputError

# -------------------------------------------------------------------------------------------------------
# counting


@dataclass(frozen=True)
class Text:
    """Symbols in one long array; only those in `targets` are predicted, and none sees past its own piece."""

    symbols: np.ndarray  # int64, each piece led by order - 1 pads
    targets: np.ndarray  # positions in `symbols`
    piece: np.ndarray  # which piece each target belongs to


@dataclass(frozen=True)
class Level:
    """The m-grams of one order m: what each keeps after discounting, and what each context passes down."""

    grams: np.ndarray  # sorted packed m-grams
    kept: np.ndarray  # (c - D(c)) / c(h) of each
    contexts: np.ndarray  # sorted packed histories, m - 1 symbols
    passed_down: np.ndarray  # the weight of the shorter history, of each

    def probability(self, grams: np.ndarray, base: int, shorter: np.ndarray) -> np.ndarray:
        """p(w | h) for packed m-grams, given p(w | h'). An unseen history has nothing to say."""
        return look_up(self.grams, self.kept, grams, 0.0) + shorter * look_up(
            self.contexts, self.passed_down, grams // base, 1.0
        )


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: float) -> np.ndarray:
    """values[i] where keys[i] == wanted, `default` where there is none; `keys` is sorted and not empty."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], default)


def pack(text: Text, order: int, base: int) -> np.ndarray:
    """The last `order` symbols up to each target as one number, the target lowest. (targets,) uint64"""
    packed = np.zeros(len(text.targets), np.uint64)
    for back in reversed(range(order)):
        packed = packed * np.uint64(base) + text.symbols[text.targets - back].astype(np.uint64)
    return packed


def fit_levels(text: Text, order: int, base: int) -> list[Level]:
    """Level 1 to level `order`."""
    grams, counts = np.unique(pack(text, order, base), return_counts=True)
    levels = [fit_level(grams, counts, base)]
    for m in range(order - 1, 0, -1):
        # Dropping the oldest symbol of every distinct gram counts the distinct left neighbours of what
        # remains.
        grams, counts = np.unique(grams % np.uint64(base**m), return_counts=True)
        levels.append(fit_level(grams, counts, base))
    return levels[::-1]


def fit_level(grams: np.ndarray, counts: np.ndarray, base: int) -> Level:
    discount = discounts(counts)[np.minimum(counts, 3)]
    contexts, starts = np.unique(grams // np.uint64(base), return_index=True)
    total = np.add.reduceat(counts, starts)
    per_gram = np.repeat(total, np.diff(np.append(starts, len(grams))))
    return Level(grams, (counts - discount) / per_gram, contexts, np.add.reduceat(discount, starts) / total)


LEAST = 0.1  # of a discount: at zero, nothing would be left for what was never seen


def discounts(counts: np.ndarray) -> np.ndarray:
    """[0, D1, D2, D3+] of Chen & Goodman (1998), equation 26; 1/2, 1, 3/2 where too little was counted."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0, 0.5, 1, 1.5])
    y = n1 / (n1 + 2 * n2)
    found = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(found, [0, LEAST, LEAST, LEAST], [0, 1, 2, 3])


@dataclass(frozen=True)
class Ngram:
    """Levels over `num_symbols` predictable symbols; the pad before a piece is symbol `num_symbols`."""

    levels: list[Level]
    num_symbols: int

    @classmethod
    def fit(cls, text: Text, order: int, num_symbols: int) -> Ngram:
        if not len(text.targets):
            raise InputError("the training text has no token to predict; an n-gram needs some text")
        if order < 1 or order * math.log2(num_symbols + 1) >= 64:
            raise InputError(
                f"order {order} over {num_symbols} symbols does not fit 64 bits; lower the order"
            )
        return cls(fit_levels(text, order, num_symbols + 1), num_symbols)

    def probabilities(self, text: Text) -> np.ndarray:
        """p of each target of `text`, given its history."""
        base = self.num_symbols + 1
        p = np.full(len(text.targets), 1 / self.num_symbols)
        for order, level in enumerate(self.levels, start=1):
            p = level.probability(pack(text, order, base), base, p)
        return p

    def nats(self, text: Text, pieces: int) -> np.ndarray:
        """Minus log probability of each piece, (pieces,)."""
        return np.bincount(text.piece, -np.log(self.probabilities(text)), minlength=pieces)


# ---------------------------------------------------------------------------------------------- tokens and bytes


class HasBytes(Protocol):
    """The part of a tokenizer that is needed to go back from tokens to bytes."""

    vocab_size: int
    byte_lengths: np.ndarray

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


@dataclass(frozen=True)
class TokenNgram:
    """A token given the order - 1 tokens before it. A piece's first token, as for the model, is given."""

    ngram: Ngram
    order: int

    @classmethod
    def fit(cls, pieces: Iterable[np.ndarray], vocab_size: int, order: int = 3) -> TokenNgram:
        return cls(Ngram.fit(token_text(distinct(pieces), order, vocab_size), order, vocab_size), order)

    def score(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Nats of each document's tokens after the first, (documents,)."""
        return self.ngram.nats(token_text(documents, self.order, self.ngram.num_symbols), len(documents))


@dataclass(frozen=True)
class ByteNgram:
    """A byte, or the end of the document, given the order - 1 bytes before it."""

    ngram: Ngram
    order: int
    table: list[bytes]

    @classmethod
    def fit(cls, pieces: Iterable[np.ndarray], table: list[bytes], order: int = 5) -> ByteNgram:
        """`table[id]` is the text of a token, as `token_bytes` makes it."""
        return cls(Ngram.fit(byte_text(distinct(pieces), table, order), order, END + 1), order, table)

    def score(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Nats of each document's bytes and of its end, (documents,)."""
        return self.ngram.nats(byte_text(documents, self.table, self.order), len(documents))


END = 256  # a document's end, as a symbol beside the 256 bytes: the model predicts it too


def distinct(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Each different piece once."""
    seen = set()
    for piece in pieces:
        if (key := piece.tobytes()) not in seen:
            seen.add(key)
            yield piece


def token_text(pieces: Iterable[np.ndarray], order: int, pad: int) -> Text:
    """All but the first token of a piece are targets: it is the bos, or was the last target of the row before."""
    pieces = list(pieces)
    return lay_out([piece.astype(np.int64) for piece in pieces], [1] * len(pieces), order, pad)


def byte_text(pieces: Iterable[np.ndarray], table: list[bytes], order: int) -> Text:
    """The same pieces in bytes; a last token without text is the end of a document."""
    symbols, first = [], []
    for piece in pieces:
        parts = [table[token] for token in piece.tolist()]
        ends = [END] if len(piece) > 1 and not parts[-1] else []
        text = np.frombuffer(b"".join(parts), np.uint8).astype(np.int64)
        symbols.append(np.concatenate([text, np.array(ends, np.int64)]))
        first.append(len(parts[0]) if parts else 0)
    return lay_out(symbols, first, order, END + 1)


def lay_out(pieces: list[np.ndarray], first: list[int], order: int, pad: int) -> Text:
    """Join the pieces, `order - 1` pads before each; targets start at symbol `first` of a piece."""
    margin = order - 1
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    starts = np.cumsum(lengths + margin) - lengths  # where each piece's own symbols begin
    symbols = np.full(int((lengths + margin).sum()), pad, np.int64)
    piece = np.repeat(np.arange(len(pieces)), lengths)
    offset = np.arange(len(piece)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = offset + np.repeat(starts, lengths)
    symbols[places] = np.concatenate([*pieces, np.zeros(0, np.int64)])
    wanted = offset >= np.repeat(np.array(first, np.int64), lengths)
    return Text(symbols, places[wanted], piece[wanted])


def token_bytes(tokenizer: HasBytes) -> list[bytes]:
    """The bytes each id stands for; empty for specials and padding ids."""
    has_text = np.asarray(tokenizer.byte_lengths) > 0
    return [tokenizer.decode_bytes([i]) if has_text[i] else b"" for i in range(tokenizer.vocab_size)]


# ----------------------------------------------------------------------------------------------------------
# xz


def xz_per_document(texts: Sequence[bytes]) -> np.ndarray:
    """Nats of each text compressed alone, (documents,)."""
    return np.array([8 * math.log(2) * len(compressed(text)) for text in texts])


def xz_together(texts: Sequence[bytes]) -> float:
    """Bits per byte of all texts in one archive, where each may copy from the ones before it."""
    joined = b"".join(texts)
    return 8 * len(compressed(joined)) / len(joined)


def compressed(text: bytes) -> bytes:
    """Raw LZMA2 as strong as `xz -9`, less its container; the window is the whole text, up to 512 MB."""
    window = min(max(1 << 20, 1 << max(0, len(text) - 1).bit_length()), 1 << 29)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    return lzma.compress(text, lzma.FORMAT_RAW, filters=filters)
