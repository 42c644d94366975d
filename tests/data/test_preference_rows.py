"""Pairs as tokens, two rows each, in an order of seed and step."""

from collections import Counter

import numpy as np
import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.data.conversations import Found, Rejected
from behemoth.data.preference_rows import PairSource, encode_pairs, stack
from behemoth.data.preferences import Pair
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["one two three four five\n\nsystem user assistant tool\n" * 4], 384)


def pair(name, chosen, rejected):
    prompt = (
        Message("system", "Count."),
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", name),
    )
    return Pair(name, prompt, chosen, rejected)


FOUND = Found(
    [pair(f"pair {i}", "three" * (1 + i % 4), " four five ") for i in range(7)], [Rejected("old", "a tie")]
)


@pytest.fixture(scope="module")
def encoded():
    return encode_pairs(FOUND, TOKENIZER, 256).kept


@pytest.fixture(scope="module")
def source(encoded):
    reference = -np.arange(14, dtype=np.float64).reshape(7, 2)
    return PairSource(encoded, reference, rows_pairs=3, seed=1, pad_id=TOKENIZER.pad_id)


def test_prompt_and_answer_are_the_conversation(encoded):
    for pair, tokens in zip(FOUND.kept, encoded, strict=True):
        for text, answer in ((pair.chosen, tokens.chosen), (pair.rejected, tokens.rejected)):
            whole = encode_chat(TOKENIZER, [*pair.prompt, Message("assistant", text)])
            assert [*tokens.prompt, *answer] == whole.ids
            assert answer.tolist() == [*TOKENIZER.encode(text.strip()), TOKENIZER.eot_id]
            assert tokens.id == pair.id


def test_pairs_too_long_or_of_one_answer_are_rejected_by_id():
    long = pair("long", "one " * 200, "two")
    same = pair("same", "two ", "\ntwo")
    found = encode_pairs(Found([*FOUND.kept, long, same], FOUND.rejected), TOKENIZER, 100)
    whys = {each.id: each.why for each in found.rejected}
    assert whys == {"old": "a tie", "long": "longer than the context", "same": "chosen equals rejected"}
    assert len(found.kept) == 7
    kept = found.kept[0]
    slots = len(kept.prompt) + max(len(kept.chosen), len(kept.rejected)) - 1
    assert encode_pairs(Found([FOUND.kept[0]], []), TOKENIZER, slots).kept
    with pytest.raises(
        InputError, match=r"none of 1 pairs .* \(1 longer than the context; the first is 'pair 0'\)"
    ):
        encode_pairs(Found([FOUND.kept[0]], []), TOKENIZER, slots - 1)


def test_rows_are_chosen_and_rejected_in_turn_and_weigh_their_answers(encoded):
    batch = stack(encoded[:4], np.arange(8).reshape(4, 2), TOKENIZER.pad_id)
    assert batch.documents_BT is None and batch.weight == 4
    assert batch.reference_B.tolist() == list(range(8)) and batch.reference_B.dtype == torch.float32
    for row, (tokens, answer) in enumerate((p, a) for p in encoded[:4] for a in (p.chosen, p.rejected)):
        whole = [*tokens.prompt, *answer]
        assert batch.tokens_BT[row, : len(whole) - 1].tolist() == whole[:-1]
        assert batch.targets_BT[row, : len(whole) - 1].tolist() == whole[1:]
        learnt = batch.targets_BT[row][batch.weights_BT[row] == 1]
        assert learnt.tolist() == answer.tolist() and batch.weights_BT[row].sum() == len(answer)
        assert set(batch.targets_BT[row, len(whole) - 1 :].tolist()) <= {TOKENIZER.pad_id}


def test_every_pair_comes_once_an_epoch_with_its_reference(encoded, source):
    drawn = [
        (tuple(b.targets_BT[row][b.weights_BT[row] == 1].tolist()), b.reference_B[row].item())
        for b in map(source.batch, range(14))
        for row in range(6)
    ]
    every = [
        (tuple(answer.tolist()), source.reference[i, side])
        for i, tokens in enumerate(encoded)
        for side, answer in enumerate((tokens.chosen, tokens.rejected))
    ]
    assert all(Counter(drawn[e * 14 : e * 14 + 14]) == Counter(every) for e in range(6))
    assert len({tuple(drawn[e * 14 : e * 14 + 14]) for e in range(6)}) > 1
    assert source.epochs(14) == 6


def test_a_batch_depends_on_seed_and_step_alone(encoded, source):
    forward = [source.batch(step) for step in range(9)]
    fresh = PairSource(encoded, source.reference, 3, seed=1, pad_id=TOKENIZER.pad_id)
    for step in (8, 2, 5):
        assert torch.equal(fresh.batch(step).tokens_BT, forward[step].tokens_BT)
        assert torch.equal(fresh.batch(step).reference_B, forward[step].reference_B)
    other = PairSource(encoded, source.reference, 3, seed=2, pad_id=TOKENIZER.pad_id)
    assert any(not torch.equal(other.batch(s).reference_B, forward[s].reference_B) for s in range(9))


def test_microbatches_weigh_as_much_together(source):
    parts = source.batch(0).microbatches(3)
    assert [part.weight for part in parts] == [1, 1, 1] and source.batch(0).weight == 3
    assert torch.equal(torch.cat([part.reference_B for part in parts]), source.batch(0).reference_B)
