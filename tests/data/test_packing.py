import numpy as np
import pytest

from behemoth.data.packing import Row, Stream
from behemoth.data.shards import ShardReader, ShardWriter
from behemoth.data.sources import Document

BOS, EOS = 1, 2


@pytest.fixture
def shards(tmp_path):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "train", 1000, shard_tokens=200) as writer:
        for i in range(60):
            ids = rng.integers(10, 1000, size=rng.integers(0, 40)).tolist()
            writer.append([BOS, *ids, EOS], 0, Document("", str(i), "", None))
    return ShardReader(tmp_path / "train", 1000)


@pytest.mark.parametrize("context", [1, 7, 64])
def test_rows_cut_the_documents_laid_end_to_end(shards, context):
    """Against the obvious way: join everything, then slice."""
    stream = Stream(shards, context, key=5)
    joined = np.concatenate([shards.document(int(i)) for i in stream._order])
    number = np.repeat(np.arange(60), shards.lengths[stream._order])
    assert stream.num_rows == (shards.num_tokens - 1) // context
    for r in range(stream.num_rows):
        row = stream.row(r)
        part = slice(r * context, r * context + context + 1)
        assert np.array_equal(row.slots, joined[part])
        assert np.array_equal(row.documents, number[part] - number[part][0])


def test_no_target_is_learnt_across_a_border(shards):
    stream = Stream(shards, 64, key=5)
    for r in range(stream.num_rows):
        row = stream.row(r)
        assert np.array_equal(row.weights() == 0, row.slots[1:] == BOS)


def test_every_document_is_in_the_stream_in_an_order_of_its_key(shards):
    one, two = Stream(shards, 8, key=1), Stream(shards, 8, key=2)
    assert sorted(one._order) == sorted(two._order) == list(range(60))
    assert not np.array_equal(one._order, two._order)


def test_pieces_hold_what_is_read_or_learnt():
    row = Row(np.array([5, 6, 2, 1, 7, 2, 1]), np.array([0, 0, 0, 1, 1, 1, 2]))
    assert [piece.tolist() for piece in row.pieces()] == [[5, 6, 2], [1, 7, 2]]
    assert row.weights().tolist() == [1, 1, 0, 1, 1, 0]
    whole = Row(np.array([5, 6, 7]), np.array([0, 0, 0]))
    assert [piece.tolist() for piece in whole.pieces()] == [[5, 6, 7]]
