"""The promises of "The gate" in docs/statistics.md, through `decide` itself in worlds where the truth is known."""

import pytest
import simulated_gate
from simulated_gate import see

FULL, FEW = 10_000, 400
MANY = pytest.param(1000, 0.075, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="some")
ALL = pytest.param(FULL, 0.055, marks=[pytest.mark.campaign, pytest.mark.timeout(3600)], id="all")
QUICK = [  # one of each kind
    "better, 300 items, score 0.5",
    "better, 100 passages of 5, score 0.9",
    "better, 60 documents",
    "not worse by 5 points, truly by 5, 300 items",
    "at most 0.02, truly 0.02, 300 items",
    "at least 0.95, truly 0.95, 35 passages of 20 and 300 of 1, each as a whole",
    "not worse by 5 points, truly by 5, 100 passages of log-normal size, half alike",
    "not worse by 0.05 bits, truly by 0.05, all in 2% of texts (2.5 bits each), 60 documents",
]
KINDS = (simulated_gate.nothing_to_find, simulated_gate.passages_unlike, simulated_gate.rare_losses)
NOTHING = {world.name: world for kind in KINDS for world in kind()}


@pytest.mark.parametrize("name", QUICK)
def test_a_few_draws_of_what_is_not_so(name):
    assert see(NOTHING[name], FEW).release <= 0.055


def test_a_few_draws_of_twenty_claims():
    plain, *_ = simulated_gate.twenty()
    seen = see(plain, 20)
    assert seen.release == 0 and seen.told <= 0.2


def test_a_few_draws_of_a_regression():
    plan = next(simulated_gate.regressions())
    seen = see(plan.world, FEW)
    assert seen.hold >= 0.93 and seen.release == 0


@pytest.mark.parametrize("world", [*simulated_gate.too_little()], ids=lambda world: world.name)
def test_too_little_is_unknown(world):
    assert see(world, 20).unknown == 1


@pytest.mark.parametrize("name", [*NOTHING])
@pytest.mark.parametrize(("draws", "most"), [MANY, ALL])
def test_what_is_not_so_is_not_released(name, draws, most):
    """No difference, or the one at the bar: 2.5% are promised, and 5.5% never passed in 10,000 draws."""
    assert see(NOTHING[name], draws).release <= most


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", [*simulated_gate.twenty()], ids=lambda world: world.name)
def test_one_of_twenty_claims(world):
    """Neither released, nor is any claim that is false told to hold."""
    seen = see(world, FULL)
    assert seen.release <= 0.055 and seen.told <= 0.055


@pytest.mark.parametrize("plan", [*simulated_gate.regressions()], ids=lambda plan: plan.name)
@pytest.mark.parametrize(("draws", "most"), [MANY, ALL])
def test_a_regression_of_twice_the_margin_is_held(plan, draws, most):
    seen = see(plan.world, draws)
    assert seen.hold >= 1.005 - most and seen.release == 0


@pytest.mark.slow
@pytest.mark.parametrize("world", [*simulated_gate.too_little()], ids=lambda world: world.name)
def test_too_little_is_always_unknown(world):
    assert see(world, FULL).unknown == 1
