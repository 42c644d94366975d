import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from behemoth.evals.perplexity import cut, fixed_subset, held_out_bits, score_documents, stretches
from behemoth.evals.results import scores
from behemoth.model.config import ModelConfig
from behemoth.model.transformer import Transformer
from behemoth.stats.paired import score_interval


@dataclass(frozen=True)
class Document:
    id: str
    source: str
    tokens: np.ndarray
    num_bytes: int


def documents(count=9, vocab_size=64):
    generator = np.random.default_rng(0)
    lengths = [2, 3, 17, 33, 34, 100, *generator.integers(5, 80, count - 6)]
    return [
        Document(f"d{i}", "test", generator.integers(1, vocab_size, length), 3 * int(length))
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=64, hidden_size=32, num_layers=4, num_heads=4, num_kv_heads=2, head_size=8, dense_size=48,
        expert_size=24, num_experts=4, moe_every=2, chunk_size=16, temperature_floor=8, init_std=0.2,
    )  # fmt: skip
    return Transformer(config).initialise(torch.Generator().manual_seed(0)).eval()


def obvious_nats(model, tokens, context):
    """One window at a time, all logits at once."""
    total = 0.0
    for start in range(0, len(tokens) - 1, context):
        window = torch.as_tensor(tokens[start : start + context + 1]).long()
        with torch.no_grad():
            logits_TV = model.logits(model(window[None, :-1]).hidden_BTD[0])
        total -= logits_TV.log_softmax(-1).gather(1, window[1:, None]).sum().item()
    return total


@pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
def test_batched_scores_are_those_of_one_window_at_a_time(model, batch_tokens):
    held_out = documents()
    expected = [obvious_nats(model, document.tokens, 32) for document in held_out]
    assert score_documents(model, held_out, 32, batch_tokens) == pytest.approx(expected, rel=1e-5)


def test_every_token_but_the_first_is_predicted_exactly_once():
    held_out = documents()
    targets = [[] for _ in held_out]
    for window in cut(held_out, 16):
        assert 2 <= len(window.tokens) <= 17
        targets[window.document].extend(window.tokens[1:])
    assert [list(document.tokens[1:]) for document in held_out] == targets


def test_a_model_that_knows_nothing_needs_log_v_per_token(model):
    silent = Transformer(model.config).initialise(torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(silent.lm_head.weight)
    held_out = documents()
    nats = score_documents(silent, held_out, 32)
    assert nats == pytest.approx([(len(document.tokens) - 1) * math.log(64) for document in held_out])
    bits = nats.sum() / math.log(2) / sum(d.num_bytes for d in held_out)
    assert held_out_bits(silent, held_out, 32) == pytest.approx(bits)


def test_scoring_leaves_the_model_as_it_was_and_able_to_train(model):
    model.train()
    score_documents(model, documents(), 32)
    assert model.training
    model.logits(model(torch.ones(1, 4, dtype=torch.long)).hidden_BTD).sum().backward()
    assert model.embed_tokens.weight.grad is not None


def test_fixed_subset_is_fixed_and_its_bytes_are_those_of_its_targets(model):
    lengths = np.arange(64)
    held_out = documents(40)
    subset = fixed_subset(held_out, lengths, 16, max_tokens=200)
    assert [document.id for document in subset] == [d.id for d in fixed_subset(held_out, lengths, 16, 200)]
    assert [d.id for d in subset] != [d.id for d in fixed_subset(held_out, lengths, 16, 200, seed=1)]
    assert 100 < sum(len(document.tokens) - 1 for document in subset) <= 200
    assert all(document.num_bytes == document.tokens[1:].sum() for document in subset)
    alone = scores("model", subset, score_documents(model, subset, 16))
    assert held_out_bits(model, subset, 16) == pytest.approx(score_interval(alone).estimate)


def test_fixed_subset_never_leaves_fewer_than_two_documents():
    assert len(fixed_subset(documents(), np.ones(64, int), 16, max_tokens=1)) == 2


def test_stretches_come_from_inside_and_are_fixed():
    """Tokens are numbered by their place, so that a stretch says where it was cut."""
    held_out = [Document(f"d{i}", "test", np.arange(1, 400), 0) for i in range(50)]
    held_out += [Document("short", "test", np.arange(1, 9), 0), Document("nothing", "test", np.array([1]), 0)]
    lengths = np.ones(400, int)
    found = stretches(held_out, lengths, 16, 60)
    assert len({document.id for document in found}) == 51  # all but the one that has nothing to predict
    assert [d.tokens.tolist() for d in found] == [
        d.tokens.tolist() for d in stretches(held_out, lengths, 16, 60)
    ]
    assert {len(d.tokens) for d in found if d.id != "short"} == {17}
    assert all(np.array_equal(np.diff(d.tokens), np.ones(len(d.tokens) - 1)) for d in found)
    assert all(d.num_bytes == len(d.tokens) - 1 for d in found)
    begins = [int(d.tokens[0]) for d in found if d.id != "short"]
    assert min(begins) < 60 and max(begins) > 320 and len(set(begins)) > 40
    assert len(stretches(held_out, lengths, 16, 7)) == 7
