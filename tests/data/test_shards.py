import numpy as np
import pytest

from behemoth.data.shards import ShardReader, ShardWriter
from behemoth.data.sources import Document


@pytest.mark.parametrize("vocab_size", [1000, 200_000])
def test_documents_come_back_from_several_files(tmp_path, vocab_size):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocab_size, size=n).tolist() for n in (3, 40, 2, 17, 5, 90, 2)]
    with ShardWriter(tmp_path / "train", vocab_size, shard_tokens=50) as writer:
        for i, ids in enumerate(documents):
            writer.append(ids, 10 * i, Document("", f"d{i}", "here", None))
    reader = ShardReader(tmp_path / "train", vocab_size)
    assert len(list((tmp_path / "train").glob("tokens-*.bin"))) == 4
    assert [reader.document(i).tolist() for i in range(len(documents))] == documents
    assert reader.num_tokens == sum(map(len, documents))
    assert reader.num_bytes == 210
    assert [record["id"] for record in reader.records()] == [f"d{i}" for i in range(7)]


def test_a_part_without_documents_can_be_read(tmp_path):
    with ShardWriter(tmp_path / "held_out", 1000):
        pass
    assert ShardReader(tmp_path / "held_out", 1000).num_tokens == 0


def test_a_failure_leaves_no_index(tmp_path):
    with pytest.raises(OSError, match="disk"), ShardWriter(tmp_path / "train", 1000):
        raise OSError("disk full")
    assert not (tmp_path / "train" / "lengths.npy").exists()
