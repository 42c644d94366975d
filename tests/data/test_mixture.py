import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.data.mixture import BLOCK, draw, permute, quotas


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(deadline=None, max_examples=60)
def test_every_number_is_met_once(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_a_large_permutation_needs_no_table():
    size = 10**15 + 7
    index = np.arange(size - 1000, size)
    places = permute(index, size, 5)
    assert len(set(places.tolist())) == 1000
    assert places.min() >= 0
    assert places.max() < size
    assert abs(places.mean() / size - 0.5) < 0.05


def test_the_permutation_is_pinned():
    """The order of a run must not change with a version of anything."""
    assert permute(np.arange(8), 8, 1).tolist() == [4, 3, 7, 0, 1, 5, 6, 2]


def test_keys_give_unlike_orders():
    one, two = (permute(np.arange(1000), 1000, key) for key in (1, 2))
    assert (one == two).sum() < 10


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
@settings(deadline=None)
def test_quotas_fill_a_block_and_follow_the_weights(weights):
    rows = quotas(weights)
    assert sum(rows) == BLOCK
    assert min(rows) >= 1
    exact = np.array(weights) / sum(weights) * BLOCK
    assert np.abs(np.maximum(exact, 1) - rows).max() <= len(weights)


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [1.0, 1.0, 1.0]])
def test_shares_of_rows_follow_the_weights(weights):
    drawn, _ = draw(np.arange(BLOCK), weights, [50] * len(weights), seed=3)
    shares = np.bincount(drawn, minlength=len(weights)) / BLOCK
    assert np.allclose(shares, np.array(weights) / sum(weights), atol=1 / BLOCK)
    early = np.bincount(drawn[: BLOCK // 4], minlength=len(weights)) / (BLOCK // 4)
    assert np.allclose(early, np.array(weights) / sum(weights), atol=0.12)


def test_each_pass_gives_every_row_once_in_an_order_of_its_own():
    source, row = draw(np.arange(2 * BLOCK), [1.0, 2.0], [7, 300], seed=3)
    rows = row[source == 1]
    passes = [rows[i : i + 300].tolist() for i in range(0, 1200, 300)]
    assert all(sorted(rows) == list(range(300)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == len(passes)


def test_a_draw_depends_on_nothing_but_its_index():
    index = np.arange(1000, 1100)
    together = np.stack(draw(index, [1.0, 1.0], [40, 60], seed=9))
    alone = [
        np.stack(draw(index[i : i + 1], [1.0, 1.0], [40, 60], seed=9))[:, 0] for i in reversed(range(100))
    ]
    assert np.array_equal(together, np.stack(alone[::-1], axis=1))
    assert not np.array_equal(together, np.stack(draw(index, [1.0, 1.0], [40, 60], seed=10)))
