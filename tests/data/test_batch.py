import pytest
import torch

from behemoth.base.errors import InputError
from behemoth.data.batch import Batch, Pairs, Rollouts, padded


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


def make_rows(kind, **more):
    tokens, targets, weights = padded(
        [[5, 6, 7], [5, 8], [3, 1, 2, 4], [3, 9]], [[0, 1, 1], [0, 1], [0, 0, 1, 1], [0, 1]], 4
    )
    return kind(tokens, targets, weights, None, 6.0 if kind is Rollouts else 2.0, **more)


def test_rows_are_padded_to_a_multiple_and_the_padding_weighs_nothing():
    batch = make_rows(Rollouts, advantages_BT=torch.zeros(4, 4), sampled_BT=torch.zeros(4, 4))
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 0], [5, 8, 0, 0], [3, 1, 2, 4], [3, 9, 0, 0]]
    assert batch.targets_BT.tolist() == [[6, 7, 0, 0], [8, 0, 0, 0], [1, 2, 4, 0], [9, 0, 0, 0]]
    assert batch.weights_BT.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]


def test_the_contents_of_every_tensor_follow_their_rows():
    advantages = torch.arange(16.0).view(4, 4)
    parts = make_rows(Rollouts, advantages_BT=advantages, sampled_BT=-advantages).microbatches(2)
    assert torch.equal(parts[1].advantages_BT, advantages[2:]) and torch.equal(
        parts[1].sampled_BT, -advantages[2:]
    )
    assert (parts[0].weight, parts[1].weight) == (3.0, 3.0)
    assert parts[0].reference_BT is None and parts[0].documents_BT is None


def test_a_pair_is_never_parted_and_the_weight_counts_pairs():
    pairs = make_rows(Pairs, reference_B=torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    parts = pairs.microbatches(2)
    assert [part.weight for part in parts] == [1.0, 1.0]
    assert [part.reference_B.tolist() for part in parts] == [[-1.0, -2.0], [-3.0, -4.0]]
    assert pairs.to("meta").reference_B.is_meta
    with pytest.raises(InputError, match="divide 2 pairs"):
        pairs.microbatches(4)


def test_rows_without_documents_are_one_document_each():
    batch = make_rows(Rollouts, advantages_BT=torch.zeros(4, 4), sampled_BT=torch.zeros(4, 4))
    assert batch.documents.shape == (4, 4) and not batch.documents.any()
    assert make_batch().documents is not None and batch.rows(slice(1)).weight == 2
