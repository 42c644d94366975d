import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.data.batch import Batch


def make_batch(rows=4, context=3):
    tokens = torch.arange(rows * context).reshape(rows, context)
    weights = (tokens % 2).float()
    return Batch(
        tokens, tokens + 1, weights, torch.zeros(rows, context, dtype=torch.int32), float(weights.sum())
    )


def test_microbatches_hold_the_rows_in_order_and_share_the_weight():
    batch = make_batch()
    parts = batch.microbatches(2)
    assert torch.equal(torch.cat([part.tokens_BT for part in parts]), batch.tokens_BT)
    assert torch.equal(torch.cat([part.targets_BT for part in parts]), batch.targets_BT)
    assert [part.weight for part in parts] == [3.0, 3.0]
    assert sum(part.weight for part in parts) == batch.weight


@pytest.mark.parametrize("n", [0, 3, 8])
def test_a_number_that_does_not_divide_the_rows_is_refused(n):
    with pytest.raises(InputError, match="divisor of 4"):
        make_batch().microbatches(n)


def test_moving_keeps_everything_else():
    batch = make_batch().to("cpu")
    assert (batch.weight, batch.tokens_BT.shape) == (6.0, (4, 3))
