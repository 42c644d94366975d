"""Conversations as tokens on disk, and the rows of them that fine-tuning reads.

A directory holds `tokens.bin` (as `data/shards.py` writes them), `masks.bin` (a byte a token: 1 on what is learnt),
`offsets.npy`, `records.jsonl` (id, source, licence; a line per conversation), `rejected.jsonl` (id and why), the
index of their texts (`data/overlap.py`) and a manifest. Packing is best fit, longest first (Ding et al. 2024, arXiv
2404.10830), with a rule of this architecture: attention is chunked at fixed slots of the row, so a conversation that
fits in a chunk lies in one, and a longer one begins where a chunk does. Each then sees of itself what it sees when it
is asked alone; nothing sees another.

Only the temperature of layers without positions still counts slots of the row, as in pretraining. Leaves out: cutting
conversations that are too long; new company for a conversation in every epoch (rows are packed once for a seed).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behemoth.base.errors import InputError
from behemoth.base.files import publish_directory, read_jsonl, remove_tree, verify_manifest, write_manifest
from behemoth.base.logs import progress
from behemoth.base.mixing import mix_keys
from behemoth.data.batch import Batch
from behemoth.data.conversations import Conversation, Found, Rejected
from behemoth.data.corpus import BatchSource
from behemoth.data.mixture import permute
from behemoth.data.overlap import INDEX, OverlapWriter
from behemoth.data.shards import token_type
from behemoth.data.sources import Document
from behemoth.text.chat import encode_chat
from behemoth.text.tokenizer import Tokenizer


def write_examples(
    directory: Path, found: Found[Conversation], tokenizer: Tokenizer, context: int
) -> dict[str, Any]:
    """Encode the conversations that were kept into `directory`, which appears when it is whole; its manifest.

    Rejects more of them, by id: those of which nothing is learnt, and those longer than `context` predictions.
    InputError when none is left.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    remove_tree(partial)
    partial.mkdir(parents=True)
    try:
        offsets, rejected = _encode(partial, found, tokenizer, context)
        check_some_left("conversations", len(offsets) - 1, rejected, context)
        np.save(partial / "offsets.npy", np.array(offsets, dtype=np.int64))
        with open(partial / "rejected.jsonl", "w", encoding="utf-8") as file:
            file.writelines(_line(id=each.id, why=each.why) for each in rejected)
        manifest = write_manifest(
            partial,
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            pad_id=tokenizer.pad_id,
            context=context,
            kept=len(offsets) - 1,
            tokens=offsets[-1],
            rejected=dict(Counter(each.why for each in rejected)),
        )
        publish_directory(partial, directory)
    finally:
        remove_tree(partial)
    return manifest


def _encode(
    directory: Path, found: Found[Conversation], tokenizer: Tokenizer, context: int
) -> tuple[list[int], list[Rejected]]:
    """Where each conversation that was written ends, from 0, and all that are rejected."""
    offsets, rejected, texts = [0], list(found.rejected), []
    with (
        open(directory / "tokens.bin", "wb") as tokens,
        open(directory / "masks.bin", "wb") as masks,
        open(directory / "records.jsonl", "w", encoding="utf-8") as records,
        OverlapWriter(directory / INDEX) as index,
        progress("encoding conversations", total=len(found.kept)) as advance,
    ):
        for each in found.kept:
            advance(1)
            ids, mask = (chat := encode_chat(tokenizer, each.messages)).ids, chat.mask
            if not any(mask) or len(ids) - 1 > context:
                why = "longer than the context" if any(mask) else "nothing to learn"
                rejected.append(Rejected(each.id, why))
                continue
            tokens.write(np.array(ids, dtype=token_type(tokenizer.vocab_size)).tobytes())
            masks.write(bytes(mask))
            records.write(_line(id=each.id, source=each.source, licence=each.licence))
            offsets.append(offsets[-1] + len(ids))
            text = "\n".join(message.content for message in each.messages)
            texts.append(Document(text, each.id, each.source, each.licence))
        index.add(texts)
    return offsets, rejected


def _line(**record: Any) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def check_some_left(what: str, kept: int, rejected: Sequence[Rejected], context: int) -> None:
    """InputError, with the reasons, when none of the conversations (or pairs) can be learnt from."""
    if kept:
        return
    reasons = Counter(each.why for each in rejected)
    counts = ", ".join(f"{count:,} {why}" for why, count in reasons.most_common()) or "the files hold none"
    first = f"; the first is {rejected[0].id!r}" if rejected else ""
    raise InputError(
        f"none of {len(rejected):,} {what} can be learnt from ({counts}{first}); give some in which the assistant "
        f"answers, of at most {context:,} tokens"
    )


class Examples:
    """The directory that `write_examples` wrote; tokens stay on disk until they are read."""

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory, self.manifest = directory, manifest
        self.context, self.pad_id = int(manifest["context"]), int(manifest["pad_id"])
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.offsets: np.ndarray = np.load(directory / "offsets.npy")
        self._tokens = np.memmap(directory / "tokens.bin", token_type(manifest["vocab_size"]), mode="r")
        self._masks = np.memmap(directory / "masks.bin", "u1", mode="r")

    @staticmethod
    def open(directory: Path, tokenizer: Tokenizer | None = None) -> Examples:
        """Check every file against the manifest, then open; DamagedError names the first that differs.

        InputError when there is no such directory, or `tokenizer` is not the one that wrote it.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"{directory}: no encoded conversations here; run the stage that writes them")
        examples = Examples(directory, verify_manifest(directory))
        if tokenizer is not None:
            examples.check(tokenizer)
        return examples

    def check(self, tokenizer: Tokenizer) -> None:
        """InputError when another tokenizer wrote the conversations."""
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise InputError(
                f"this tokenizer (SHA-256 {tokenizer.sha256[:12]}) is not the one that wrote {self.directory} "
                f"({self.tokenizer_sha256[:12]}); encode the conversations again"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Slots that each conversation takes: all tokens but the last, which is only predicted."""
        return np.diff(self.offsets) - 1

    def ids(self) -> list[str]:
        """The name of every conversation, in order."""
        return [record["id"] for record in read_jsonl(self.directory / "records.jsonl")]

    def example(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of one conversation, and as many marks: 1 on what is learnt."""
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self._tokens[part], self._masks[part]


class ExampleSource:
    """Batches of packed conversations by number; an epoch is `num_rows` rows, with every conversation once.

    chunk: slots that attention sees together, the model's `chunk_size`. replay: pretraining text, of which
    `replay_share` of the rows is made. InputError when the longest conversation does not fit in a row.
    """

    def __init__(
        self,
        examples: Examples,
        context: int,
        rows: int,
        seed: int,
        chunk: int,
        replay: BatchSource | None = None,
        replay_share: float = 0.0,
    ):
        assert 0 <= replay_share < 1 and (replay is not None or not replay_share), replay_share
        assert replay is None or replay.context == context, "replayed rows are as long as the others"
        lengths = examples.lengths
        if lengths.max() > context:
            raise InputError(
                f"rows of {context:,} tokens cannot hold the longest conversation of {examples.directory}, of "
                f"{lengths.max():,}; encode the conversations again for this context"
            )
        self.examples, self.context, self.rows, self.seed = examples, context, rows, seed
        self._replay, self._share = replay, replay_share
        in_row, self._slots = pack(lengths, context, chunk, mix_keys(seed, 6))
        self._order = np.lexsort((self._slots, in_row))
        self.num_rows = int(in_row.max()) + 1
        self._borders = np.searchsorted(in_row[self._order], np.arange(self.num_rows + 1))
        self.filled = float(lengths.sum() / (self.num_rows * context))  # share of slots that are not padding

    def batch(self, step: int) -> Batch:
        """The batch that the update from `step` to `step + 1` learns from; steps count from 0."""
        rows = [self._row(index) for index in range(step * self.rows, (step + 1) * self.rows)]
        tokens, targets, weights, documents = (
            torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
        )
        return Batch(tokens, targets, weights, documents, weight=float(weights.sum()))

    def epochs(self, steps: int) -> float:
        """How often every conversation has been gone through after `steps` batches."""
        index = steps * self.rows
        return (index - self._replayed(index)) / self.num_rows

    def conversations(self, index: int) -> list[tuple[int, int]]:
        """Number and first slot of every conversation in row `index` of training, replay not counted."""
        epoch, position = divmod(index, self.num_rows)
        row = int(permute(np.array([position]), self.num_rows, mix_keys(self.seed, 7, epoch))[0])
        here = self._order[self._borders[row] : self._borders[row + 1]]
        return list(zip(here.tolist(), self._slots[here].tolist(), strict=True))

    def _replayed(self, index: int) -> int:
        """Rows of replay among the first `index`, evenly spread so that one step is like another."""
        return int(index * self._share)

    def _row(self, index: int) -> tuple[np.ndarray, ...]:
        """Tokens, targets, weights and documents of a row, each (T,)."""
        before = self._replayed(index)
        if self._replay is None or self._replayed(index + 1) == before:
            return self._packed(self.conversations(index - before))
        step, place = divmod(before, self._replay.rows)
        row = self._replay.rows_of(step)[place]
        return row.slots[:-1], row.slots[1:], row.weights(), row.documents[:-1]

    def _packed(self, conversations: list[tuple[int, int]]) -> tuple[np.ndarray, ...]:
        tokens, targets = np.full((2, self.context), self.examples.pad_id, dtype=np.int64)
        weights = np.zeros(self.context, dtype=np.float32)
        documents = np.full(self.context, len(conversations), dtype=np.int32)  # padding is the last of them
        for document, (number, slot) in enumerate(conversations):
            ids, mask = self.examples.example(number)
            part = slice(slot, slot + len(ids) - 1)
            tokens[part], targets[part], weights[part] = ids[:-1], ids[1:], mask[1:]
            documents[part] = document
        return tokens, targets, weights, documents


def pack(lengths: np.ndarray, context: int, chunk: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Row, and first slot in it, of every conversation; `key` decides among equals.

    First chunks are filled, those that a long conversation spans together; then rows are filled with them.
    """
    chunk = min(chunk, context)
    spans = -(-lengths // chunk)  # chunks that a conversation reaches into
    block, place = best_fit(lengths, np.minimum(spans * chunk, context), mix_keys(key, 0))
    opens = place == 0
    width = np.zeros(block.max() + 1, dtype=np.int64)
    width[block[opens]] = spans[opens]
    # A span into the short chunk at the end of a row, when there is one, has the row for itself.
    row, first_chunk = best_fit(width, np.maximum(width, context // chunk), mix_keys(key, 1))
    return row[block], first_chunk[block] * chunk + place


def best_fit(sizes: np.ndarray, rooms: np.ndarray, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Bin, and place in it, of every item: the largest first, each where it leaves least.

    Where none has room a bin is opened, with the room of its first item. Items of one size come in an order of `key`.
    """
    order = np.lexsort((permute(np.arange(len(sizes)), len(sizes), key), -sizes))
    bins, places = np.zeros((2, len(sizes)), dtype=np.int64)
    waiting: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # by room left: bin and next place
    lefts = 0  # bit n is set where a bin with n left waits
    opened = 0
    for item, size, room in zip(order.tolist(), sizes[order].tolist(), rooms[order].tolist(), strict=True):
        if fitting := lefts >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            number, place = waiting[room].pop()
            lefts ^= 0 if waiting[room] else 1 << room
        else:
            number, place = opened, 0
            opened += 1
        bins[item], places[item] = number, place
        if room > size:
            waiting[room - size].append((number, place + size))
            lefts |= 1 << (room - size)
    return bins, places
