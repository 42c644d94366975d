import pytest

from behemoth.base.errors import InputError
from behemoth.stats.agreement import cohen_kappa, krippendorff_alpha

FIRST = ["yes"] * 25 + ["no"] * 25
SECOND = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15


def test_kappa_by_hand():
    """35 of 50 agree, 25 would by chance: 0.2 of 0.5."""
    found = cohen_kappa(FIRST, SECOND)
    assert found.estimate == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - 2.01 * 0.128, abs=0.02)  # with the large-sample error, 0.128


def test_weights_count_steps():
    first, second = [0, 1, 2, 0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 2, 1, 2, 1]
    plain, linear, quadratic = (
        cohen_kappa(first, second, weights=weights).estimate for weights in ("nominal", "linear", "quadratic")
    )
    assert plain < linear < quadratic
    assert plain == pytest.approx(1 - (3 / 9) / (1 - (3 * 2 + 3 * 4 + 3 * 3) / 81))
    with pytest.raises(InputError, match="none of the categories"):
        cohen_kappa(first, second, categories=[0, 1])
    with pytest.raises(InputError, match="same items"):
        cohen_kappa(first, second[:-1])


def test_alpha_as_published():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: 12 units, 4 observers, gaps."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    ratings = [list(unit) for unit in zip(*table, strict=True)]
    assert krippendorff_alpha(ratings).estimate == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(ratings, weights="quadratic").estimate == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_two_raters_is_close_to_kappa():
    alpha = krippendorff_alpha(list(zip(FIRST, SECOND, strict=True)))
    assert alpha.estimate == pytest.approx(cohen_kappa(FIRST, SECOND).estimate, abs=0.01)
    assert alpha.low < alpha.estimate < alpha.high


def test_perfect_and_empty_agreement():
    assert cohen_kappa(FIRST, FIRST).estimate == 1
    assert cohen_kappa(["a"] * 9, ["a"] * 9).estimate == 0  # chance explains it
    with pytest.raises(InputError, match="1 item"):
        krippendorff_alpha([[1, 1], [2, None]])
