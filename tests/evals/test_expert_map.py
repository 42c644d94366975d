from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from behemoth.evals.experts import expert_map


@dataclass(frozen=True)
class Document:
    id: str
    source: str
    tokens: np.ndarray
    num_bytes: int


class Rules(torch.nn.Module):
    """Known choices: in layer 1 by parity; in layer 3 the first expert and the token's own."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(num_experts=4, vocab_size=32, sparse_layers=[1, 3])

    def forward(self, tokens_BT):
        parity = (tokens_BT.flatten() % 2).unsqueeze(1)
        own = torch.stack([torch.zeros_like(parity[:, 0]), 1 + tokens_BT.flatten() % 3], dim=1)
        return SimpleNamespace(experts=[parity, own])


@pytest.fixture
def layers():
    generator = np.random.default_rng(0)
    documents = [
        Document(str(i), "s", generator.integers(1, 32, n), n) for i, n in enumerate((700, 90, 33, 410))
    ]
    return expert_map(Rules(), documents, lambda ids: f"<{ids[0]}>", context=64, batch_tokens=300)


def test_layers_carry_their_numbers_and_shares_sum_to_one(layers):
    assert [layer["layer"] for layer in layers] == [1, 3]
    for layer in layers:
        assert [expert["expert"] for expert in layer["experts"]] == [0, 1, 2, 3]
        assert sum(expert["share"] for expert in layer["experts"]) == pytest.approx(1)


def test_tokens_are_listed_under_the_expert_they_go_to(layers):
    even, odd, *unused = layers[0]["experts"]
    assert all(int(text[1:-1]) % 2 == 0 and fraction == 1 for text, fraction, _ in even["tokens"])
    assert all(int(text[1:-1]) % 2 == 1 and fraction == 1 for text, fraction, _ in odd["tokens"])
    assert len(even["tokens"]) == 12
    assert all(expert["share"] == 0 and expert["tokens"] == [] for expert in unused)


def test_an_expert_that_everything_goes_to_has_no_token_of_its_own(layers):
    everyone, *own = layers[1]["experts"]
    assert everyone["share"] == pytest.approx(0.5)  # one of two choices of every token
    assert everyone["tokens"] == []
    for remainder, expert in enumerate(own):
        assert {int(text[1:-1]) % 3 for text, _, _ in expert["tokens"]} == {remainder}


def test_occurrences_are_those_of_the_text_without_padding(layers):
    generator = np.random.default_rng(0)
    inputs = np.concatenate([generator.integers(1, 32, n)[:-1] for n in (700, 90, 33, 410)])
    for text, _, occurrences in layers[0]["experts"][0]["tokens"]:
        assert occurrences == (inputs == int(text[1:-1])).sum()


def test_rare_tokens_are_left_out():
    documents = [Document("a", "s", np.array([2] * 50 + [4] * 5 + [3] * 50), 100)]
    experts = expert_map(Rules(), documents, str, context=64, min_occurrences=20)[0]["experts"]
    assert [text for text, _, _ in experts[0]["tokens"]] == ["[2]"]
