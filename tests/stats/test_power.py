import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.stats.power import design_effect, items_needed, smallest_effect, spread_of_difference


def test_items_needed_by_hand():
    """(1.96 + 0.8416)^2 = 7.849 times the variance over the squared effect, and 1.96^2 / 2 for Student's t."""
    assert items_needed(0.02, sd=0.5) == pytest.approx(7.849 * 0.25 / 0.0004 + 1.92, abs=1)
    assert items_needed(0.02, sd=0.5, design=2.0) == pytest.approx(2 * items_needed(0.02, sd=0.5), abs=2)
    assert items_needed(0.02, sd=0.5, power=0.9) > 1.3 * items_needed(0.02, sd=0.5)
    connor = (1.95996 * 0.2**0.5 + 0.84162 * (0.2 - 0.0025) ** 0.5) ** 2 / 0.0025
    assert items_needed(0.05, differing=0.2) == pytest.approx(connor + 1.92, abs=1)


@pytest.mark.parametrize(
    ("items", "points"),
    [(164, 10.0), (450, 6.1), (1172, 3.8), (1319, 3.5), (10_042, 1.3), (14_042, 1.1)],
)
def test_smallest_effects_of_known_sets(items, points):
    """Of two models at 70% that are correlated by 0.5: what these benchmarks can see at all."""
    found = smallest_effect(items, sd=spread_of_difference(0.7, 0.5))
    assert 100 * found == pytest.approx(points, abs=0.1)


def test_smallest_effect_is_items_needed_turned_round():
    for given in ({"sd": 0.4}, {"differing": 0.2}, {"differing": 0.1, "design": 1.7}):
        found = smallest_effect(700, **given)
        assert items_needed(found, **given) <= 700 < items_needed(0.999 * found, **given) + 2
    assert np.isnan(smallest_effect(100, differing=0.02))  # were all two of them in favour of one


def test_design_effect():
    assert design_effect(np.ones(50), 0.9) == 1
    assert design_effect(np.full(50, 5), 0.25) == 2
    assert design_effect(np.array([1, 9]), 0.5) == pytest.approx(1 + (82 / 10 - 1) * 0.5)


@pytest.mark.parametrize(
    ("effect", "given", "message"),
    [
        (0.0, {"sd": 1.0}, "above 0"),
        (0.1, {}, "either"),
        (0.1, {"sd": 1.0, "differing": 0.2}, "either"),
        (0.3, {"differing": 0.2}, "part of what differs"),
    ],
)
def test_impossible_plans_are_refused(effect, given, message):
    with pytest.raises(InputError, match=message):
        items_needed(effect, **given)
    with pytest.raises(InputError, match="correlation"):
        spread_of_difference(0.5, 2.0)
