"""Pairs of answers as tokens, and the batches that preference tuning reads.

An answer follows its prompt as the chat template lays it, so what is scored is what would be sampled. Rows are not
packed: each begins at slot 0 with a prompt of its own, since a pair is few rows and its two answers stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from behemoth.base.logs import progress
from behemoth.base.mixing import mix_keys
from behemoth.data.batch import Pairs, padded
from behemoth.data.conversations import Found, Rejected
from behemoth.data.examples import check_some_left
from behemoth.data.mixture import permute
from behemoth.data.preferences import Pair
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """A prompt up to where the assistant begins, and two answers, each with the token that ends it; int32."""

    id: str
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def encode_pairs(found: Found[Pair], tokenizer: Tokenizer, context: int) -> Found[EncodedPair]:
    """The pairs as tokens.

    Rejects more of them, by id: one side longer than `context`, or both the same. InputError when none is left.
    """
    kept, rejected = [], list(found.rejected)
    with progress("encoding pairs", total=len(found.kept)) as advance:
        for pair in found.kept:
            advance(1)
            encoded = _encode(pair, tokenizer)
            longest = len(encoded.prompt) + max(len(encoded.chosen), len(encoded.rejected))
            if longest - 1 > context:  # the last token is only predicted
                rejected.append(Rejected(pair.id, "longer than the context"))
            elif np.array_equal(encoded.chosen, encoded.rejected):
                rejected.append(Rejected(pair.id, "chosen equals rejected"))
            else:
                kept.append(encoded)
    check_some_left("pairs", len(kept), rejected, context)
    return Found(kept, rejected)


def _encode(pair: Pair, tokenizer: Tokenizer) -> EncodedPair:
    prompt = encode_chat(tokenizer, pair.prompt, generation_prompt=True).ids
    answers = []
    for text in (pair.chosen, pair.rejected):
        whole = encode_chat(tokenizer, (*pair.prompt, Message("assistant", text))).ids
        assert whole[: len(prompt)] == prompt, (
            "the template lays a prompt the same with and without its answer"
        )
        answers.append(np.array(whole[len(prompt) :], dtype=np.int32))
    return EncodedPair(pair.id, np.array(prompt, dtype=np.int32), *answers)


def stack(pairs: Sequence[EncodedPair], reference_P2: np.ndarray, pad_id: int) -> Pairs:
    """A batch of these pairs; `reference_P2` is the log-probability of chosen and rejected under the reference."""
    rows, masks = [], []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            rows.append([*pair.prompt.tolist(), *answer.tolist()])
            masks.append([0] * len(pair.prompt) + [1] * len(answer))
    tokens, targets, weights = padded(rows, masks, pad_id=pad_id)
    reference = torch.from_numpy(np.asarray(reference_P2, dtype=np.float32).reshape(-1))
    return Pairs(tokens, targets, weights, None, weight=float(len(pairs)), reference_B=reference)


class PairSource:
    """Batches by number: every pair once, in an order of `seed` and the epoch, before any comes again.

    reference: float, (P, 2), as `stack` takes it. rows_pairs: pairs of a batch, of twice as many rows.
    """

    def __init__(
        self, pairs: Sequence[EncodedPair], reference: np.ndarray, rows_pairs: int, seed: int, pad_id: int
    ):
        assert reference.shape == (len(pairs), 2), reference.shape
        self.pairs, self.reference, self.rows_pairs = pairs, reference, rows_pairs
        self.seed, self.pad_id = seed, pad_id

    def batch(self, step: int) -> Pairs:
        """The batch that the update from `step` to `step + 1` learns from; steps count from 0."""
        chosen = [self._number(i) for i in range(step * self.rows_pairs, (step + 1) * self.rows_pairs)]
        return stack([self.pairs[i] for i in chosen], self.reference[chosen], self.pad_id)

    def epochs(self, steps: int) -> float:
        """How often every pair has been gone through after `steps` batches."""
        return steps * self.rows_pairs / len(self.pairs)

    def _number(self, index: int) -> int:
        epoch, position = divmod(index, len(self.pairs))
        return int(permute(np.array([position]), len(self.pairs), mix_keys(self.seed, 8, epoch))[0])
