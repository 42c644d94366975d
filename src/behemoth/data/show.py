"""The first rows of a corpus as a person would read them, with the borders that the model sees."""

from __future__ import annotations

from behemoth.base.errors import InputError
from behemoth.data.corpus import Corpus
from behemoth.data.packing import Row
from behemoth.text.tokenizer import Tokenizer


def render(corpus: Corpus, tokenizer: Tokenizer, context: int, rows: int = 2, seed: int = 0) -> str:
    """The first `rows` rows of training as text.

    A line of its own opens each document of a row; attention does not cross it. InputError when the corpus
    has fewer rows, or was written with another tokenizer.
    """
    if tokenizer.sha256 != corpus.tokenizer_sha256:
        raise InputError(
            f"this tokenizer (SHA-256 {tokenizer.sha256[:12]}) is not the one that wrote the corpus "
            f"({corpus.tokenizer_sha256[:12]})"
        )
    source = corpus.batches(context, 1, seed)
    if rows > source.num_rows:
        raise InputError(
            f"{rows:,} rows are asked for, but the training text makes only {source.num_rows:,} of {context:,} "
            f"tokens; ask for {source.num_rows:,} or fewer"
        )
    return "\n".join(_render_row(source.rows_of(i)[0], i + 1, tokenizer) for i in range(rows))


def _render_row(row: Row, number: int, tokenizer: Tokenizer) -> str:
    pieces = row.pieces()
    learnt = int(row.weights().sum())
    lines = [
        f"=== row {number}: {len(row.slots) - 1:,} tokens, {learnt:,} learnt, and one more to predict ==="
    ]
    for index, piece in enumerate(pieces):
        lines.append(f"--- document {index}: {len(piece):,} tokens ---")
        lines.append(tokenizer.decode(piece.tolist(), keep_special=True))
    return "\n".join(lines)
