"""What is drawn, how often, and on what it depends."""

import numpy as np
import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.inference.sampling import Sampling, choose, distribution, draw, pick, token_logprobs, uniform

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 1.5, -0.5, float("-inf")])
CHI_SQUARE_99_9 = {3: 16.27, 4: 18.47, 6: 22.46}  # by degrees of freedom


def chi_square(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    expected = probs * len(tokens)
    seen = torch.bincount(tokens, minlength=len(probs)).double()
    assert seen[probs == 0].sum() == 0, "a token of probability 0 was drawn"
    return float(((seen - expected)[probs > 0] ** 2 / expected[probs > 0]).sum())


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Sampling(1.0), [0, 1, 2, 3, 4, 5, 6]),
        (Sampling(0.5), [0, 1, 2, 3, 4, 5, 6]),
        (Sampling(1.5, top_k=4), [0, 5, 1, 4]),
        (Sampling(1.0, top_p=0.9), [0, 5, 1, 4, 2]),
        (Sampling(1.0, top_p=0.9, top_k=5), [0, 5, 1, 4]),
    ],
    ids=["plain", "cold", "top-k", "top-p", "both"],
)
def test_frequencies_are_the_probabilities(how: Sampling, kept: list[int]) -> None:
    number = 10_000
    probs = torch.zeros(8, dtype=torch.float64)
    probs[kept] = (LOGITS[kept].double() / how.temperature).softmax(-1)
    over_seeds = draw(LOGITS.expand(number, -1), how, range(number), index=3)
    assert chi_square(over_seeds, probs) < CHI_SQUARE_99_9[len(kept) - 1]


def test_one_seed_draws_well_over_time() -> None:
    row = LOGITS.unsqueeze(0)
    drawn = torch.cat([draw(row, Sampling(1.0), [7], index) for index in range(4000)])
    assert chi_square(drawn, LOGITS.double().softmax(-1)) < CHI_SQUARE_99_9[6]
    after_zero = drawn[1:][drawn[:-1] == 0]  # and what comes next does not depend on what came before
    assert chi_square(after_zero, LOGITS.double().softmax(-1)) < CHI_SQUARE_99_9[6]


def test_a_draw_depends_on_its_own_row_alone() -> None:
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    how, seeds = Sampling(1.0, top_p=0.95), [5, 1, 9, 5, 0, -3]
    together, _ = choose(logits_BV, how, seeds, 4)
    alone = [choose(logits_BV[row : row + 1], how, [seeds[row]], 4)[0].item() for row in range(6)]
    order = [3, 0, 5, 1, 4, 2]
    shuffled, _ = choose(logits_BV[order], how, [seeds[row] for row in order], 4)
    assert together.tolist() == alone
    assert shuffled.tolist() == [alone[row] for row in order]


def test_seed_and_index_are_not_confused() -> None:
    numbers = {number for index in range(60) for number in uniform(range(-20, 40), index).tolist()}
    assert len(numbers) == 3600
    assert all(0 <= number < 1 for number in numbers)


@pytest.mark.parametrize(
    ("how", "ids"),
    [
        (Sampling(1.0, top_p=1e-9), [0]),  # the likeliest always stays
        (Sampling(1.0, top_p=0.5), [0]),  # 0.5 exactly is enough
        (Sampling(1.0, top_p=0.5000001), [0, 1]),
        (Sampling(1.0, top_p=0.999999), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=1), [0]),
        (Sampling(1.0, top_k=99), [0, 1, 2, 3]),
        (Sampling(1e-30), [0]),
    ],
)
def test_edges_of_the_cut(how: Sampling, ids: list[int]) -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    probs, order = distribution(logits, how)
    kept = probs[0].nonzero().flatten()
    assert (kept if order is None else order[0, kept]).tolist() == ids


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.5, 3), (1 - 2.0**-48, 3)])
def test_tokens_without_probability_are_never_drawn(
    monkeypatch: pytest.MonkeyPatch, number: float, token: int
) -> None:
    monkeypatch.setattr("behemoth.inference.sampling.uniform", lambda seeds, index: np.array([number]))
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    assert draw(logits, Sampling(1.0), [0], 0).item() == token


@pytest.mark.parametrize("size", [1, 64, 65, 200])
def test_a_draw_by_blocks_is_the_one_from_the_whole_running_sum(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    numbers = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1] + 1e-6
    probs = torch.rand(size, generator=torch.Generator().manual_seed(size)) + 0.01
    probs[1:64:3] = 0.0
    probs[64:128] = 0.0  # a block of nothing
    monkeypatch.setattr("behemoth.inference.sampling.uniform", lambda seeds, index: numbers.numpy())
    drawn = pick(probs.expand(1000, -1), [0] * 1000, 0).squeeze(1)
    running = probs.double().cumsum(0)
    whole = torch.searchsorted(running, numbers * running[-1], right=True)
    assert (drawn != whole).sum() <= 2  # a number on the border of two tokens may fall to either
    assert (probs[drawn] > 0).all()


def test_equal_logits_are_cut_to_exactly_k() -> None:
    probs, _ = distribution(torch.zeros(1, 10), Sampling(1.0, top_k=3))
    assert int((probs > 0).sum()) == 3


def test_greedy_takes_the_largest_and_logprobs_are_the_models_own() -> None:
    logits_BV = torch.randn(5, 30, generator=torch.Generator().manual_seed(2)) * 4
    greedy, logprobs = choose(logits_BV, Sampling(), range(5), 0)
    assert greedy.tolist() == logits_BV.argmax(-1).tolist()
    torch.testing.assert_close(logprobs, logits_BV.log_softmax(-1).amax(-1))
    drawn, logprobs = choose(logits_BV.bfloat16(), Sampling(0.3, top_p=0.8), range(5), 0)
    torch.testing.assert_close(logprobs, logits_BV.bfloat16().float().log_softmax(-1)[range(5), drawn])
    torch.testing.assert_close(logprobs, token_logprobs(logits_BV.bfloat16(), drawn))


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1)],
)
def test_impossible_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field} = {value}"):
        Sampling(**{field: value})
