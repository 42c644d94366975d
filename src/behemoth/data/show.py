"""The first rows of training as a person would read them, with the borders that the model sees."""

from __future__ import annotations

import numpy as np

from behemoth.base.errors import InputError
from behemoth.data.corpus import Corpus
from behemoth.data.examples import Examples, ExampleSource
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
    _check_rows(rows, source.num_rows, "the training text makes", context)
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


def render_examples(
    examples: Examples, tokenizer: Tokenizer, rows: int = 2, *, chunk: int, seed: int = 0
) -> str:
    """The first `rows` rows of conversations that fine-tuning reads, without replay; what is learnt stands after `>>`.

    InputError when the conversations make fewer rows, or were encoded with another tokenizer.
    """
    examples.check(tokenizer)
    source = ExampleSource(examples, examples.context, 1, seed, chunk)
    _check_rows(rows, source.num_rows, "the conversations make", source.context)
    names = examples.ids()
    return "\n".join(
        _render_conversations(source.conversations(i), i + 1, source, names, tokenizer) for i in range(rows)
    )


def _render_conversations(
    conversations: list[tuple[int, int]],
    number: int,
    source: ExampleSource,
    names: list[str],
    tokenizer: Tokenizer,
) -> str:
    parts = [(names[n], slot, *source.examples.example(n)) for n, slot in conversations]
    read = sum(len(ids) - 1 for _, _, ids, _ in parts)
    learnt = sum(int(mask.sum()) for _, _, _, mask in parts)
    lines = [
        f"=== row {number}: {read:,} of {source.context:,} slots, {learnt:,} tokens learnt (after >>) ==="
    ]
    for name, slot, ids, mask in parts:
        lines.append(f"--- {name}: slots {slot:,} to {slot + len(ids) - 2:,}, {int(mask.sum()):,} learnt ---")
        borders = np.flatnonzero(np.diff(mask)) + 1
        for begin, piece in zip([0, *borders.tolist()], np.split(ids, borders), strict=True):
            margin = ">> " if mask[begin] else "   "
            text = tokenizer.decode(piece.tolist(), keep_special=True)
            lines += [margin + line for line in text.removesuffix("\n").split("\n")]
    return "\n".join(lines)


def _check_rows(wanted: int, rows: int, what: str, context: int) -> None:
    if wanted > rows:
        raise InputError(
            f"{wanted:,} rows are asked for, but {what} only {rows:,} of {context:,} tokens; "
            f"ask for {rows:,} or fewer"
        )
