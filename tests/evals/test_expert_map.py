from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from behemoth.evals.experts import added, expert_map, kind_of, losses_without, removed
from behemoth.evals.perplexity import held_out_bits
from behemoth.model.transformer import Transformer


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


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("\n    ", "white space"),
        (" 7", "number"),
        (" def", "beginning of a word"),
        ("ing", "inside a word"),
        ("été", "inside a word"),
        ("):\n", "punctuation"),
        ("x1", "other"),
        ("_name", "other"),
        ("", "other"),
    ],
)
def test_kinds_of_tokens(token, kind):
    assert kind_of(token) == kind


def test_a_dense_model_has_no_map_and_nothing_to_remove(tiny_config):
    model = Transformer(tiny_config.model_copy(update={"num_experts": 0}))
    documents = [Document("a", "s", np.arange(20), 20)]
    assert expert_map(model, documents, str, context=16) == []
    assert losses_without(model, documents, context=16) == []


def test_kinds_are_shares_of_what_an_expert_reads():
    documents = [Document("a", "s", np.array([2] * 30 + [4] * 10 + [3] * 20 + [5]), 61)]
    names = {2: " word", 4: "7", 3: "\n", 5: "."}
    (layer, _) = expert_map(Rules(), documents, lambda ids: names[ids[0]], context=64)
    assert layer["kinds"]["white space"] == pytest.approx(20 / 60)
    even, odd, idle, _ = (expert["kinds"] for expert in layer["experts"])
    assert even["beginning of a word"] == pytest.approx(30 / 40) and even["number"] == pytest.approx(10 / 40)
    assert odd["white space"] == 1
    assert set(idle.values()) == {0}


@pytest.fixture
def mixed(tiny_config):
    """A sparse model and documents of two sources; expert 0 of layer 0 does much, the others next to nothing."""
    model = Transformer(tiny_config).initialise(torch.Generator().manual_seed(0))
    for block in model.layers:
        block.feed_forward.experts.down_proj.data.mul_(1e-3)
    model.layers[0].feed_forward.experts.down_proj.data[0].mul_(3e4)
    generator = np.random.default_rng(0)
    return model, [
        Document(str(i), "ab"[i % 2], generator.integers(1, tiny_config.vocab_size, 40), 40) for i in range(8)
    ]


def test_removing_an_expert_shows_what_it_did_and_leaves_no_trace(mixed):
    model, documents = mixed
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = losses_without(model, documents, context=32)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert [(row["layer"], row["expert"]) for row in found] == [
        (layer, e) for layer in range(4) for e in range(4)
    ]
    assert set(found[0]["sources"]) == {"all", "a", "b"}
    size = {(r["layer"], r["expert"]): abs(r["sources"]["all"]["added"]) for r in found}
    assert size.pop((0, 0)) > 100 * max(size.values())


def test_added_bits_are_those_of_two_scorings(mixed):
    model, documents = mixed
    first = losses_without(model, documents, context=32)[0]["sources"]
    with removed(model, 0, 0):
        without = held_out_bits(model, documents, 32)
    assert first["all"]["added"] == pytest.approx(without - held_out_bits(model, documents, 32))
    assert first["all"]["low"] <= first["all"]["added"] <= first["all"]["high"]


def test_one_source_is_told_once_and_one_document_has_no_interval(mixed):
    model, documents = mixed
    assert set(losses_without(model, documents[::2], context=32)[0]["sources"]) == {"all"}
    alone = losses_without(model, documents[:1], context=32)[0]["sources"]["all"]
    assert (alone["low"], alone["verdict"]) == (None, "cannot tell")


def test_experts_are_one_family_and_eight_documents_are_no_evidence(mixed):
    """One expert worth much, one so little that only alone it would pass, and thirty worth nothing."""
    noise = np.random.default_rng(0).normal(0, 1, (32, 40))
    noise -= noise.mean(1, keepdims=True)
    noise /= noise.std(1, keepdims=True)
    worth = np.array([5.0, 0.4, *[0.01] * 30])
    documents = [Document(str(i), "a", np.zeros(11, int), 100) for i in range(40)]
    base = np.full(40, 200.0)
    found = added(base, list(base + worth[:, None] + noise), documents, list(range(40)))
    assert [one["verdict"] for one in found] == ["better"] + ["cannot tell"] * 31
    assert (found[0]["documents"], found[0]["tokens"], found[0]["level"]) == (
        40,
        400,
        pytest.approx(1 - 0.05 / 32),
    )
    assert found[1]["low"] < 0
    assert added(base, [base + 0.4 + noise[1]], documents, list(range(40)))[0]["verdict"] == "better"
    few = added(base, list(base + worth[:, None] + noise), documents, list(range(8)))
    assert few[0]["low"] > 0 and few[0]["verdict"] == "cannot tell"
    model, documents = mixed
    of_model = losses_without(model, documents, context=32)
    assert {row["sources"]["all"]["level"] for row in of_model} <= {1 - 0.05 / n for n in range(1, 17)}
