import json

import numpy as np
import pytest
import torch

from behemoth.base.errors import DamagedError, InputError
from behemoth.data.corpus import Corpus, told_apart
from behemoth.data.prepare import prepare
from behemoth.data.show import render
from behemoth.data.sources import FilesSource
from behemoth.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, prose):
    """A corpus of two sources, the second wanted three times as often."""
    root = tmp_path_factory.mktemp("corpus")
    for name, seeds in (("one", range(300)), ("two", range(300, 500))):
        lines = [json.dumps({"id": f"{name}{i}", "text": prose(i, 16)}) for i in seeds]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [
        FilesSource(root / "one.jsonl", name="one"),
        FilesSource(root / "two.jsonl", name="two", weight=3.0),
    ]
    prepare(sources, root / "data", tokenizer_directory=root / "tokenizer", vocab_size=512)
    return root


@pytest.fixture(scope="module")
def corpus(prepared):
    return Corpus.open(prepared / "data")


@pytest.fixture(scope="module")
def tokenizer(prepared):
    return Tokenizer.load(prepared / "tokenizer")


def test_what_the_corpus_says_of_itself(corpus, tokenizer):
    assert [(source.name, source.weight) for source in corpus.sources] == [("one", 1.0), ("two", 3.0)]
    assert corpus.tokenizer_sha256 == tokenizer.sha256
    assert corpus.vocab_size == tokenizer.vocab_size
    assert corpus.num_tokens == corpus.report["train"]["tokens"]


def test_a_batch_predicts_the_next_token_inside_documents(corpus, tokenizer):
    batch = corpus.batches(context=32, rows=4, seed=0).batch(3)
    assert batch.tokens_BT.shape == batch.targets_BT.shape == (4, 32)
    assert (batch.tokens_BT.dtype, batch.documents_BT.dtype) == (torch.int64, torch.int32)
    assert torch.equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
    assert torch.equal(batch.weights_BT == 0, batch.targets_BT == tokenizer.bos_id)
    steps = batch.documents_BT.diff(dim=1)
    assert torch.equal(steps == 1, batch.tokens_BT[:, 1:] == tokenizer.bos_id)
    assert set(steps.unique().tolist()) == {0, 1}
    assert batch.weight == batch.weights_BT.sum().item() < 4 * 32


def test_a_batch_depends_on_seed_and_step_alone(corpus, prepared):
    source = corpus.batches(32, 4, seed=7)
    forward = [source.batch(step).tokens_BT for step in range(20)]
    fresh = Corpus.open(prepared / "data").batches(32, 4, seed=7)
    for step in (19, 3, 11):
        assert torch.equal(fresh.batch(step).tokens_BT, forward[step])
    assert not torch.equal(corpus.batches(32, 4, seed=8).batch(3).tokens_BT, forward[3])


def test_the_same_rows_come_in_the_same_order_whatever_the_batch_size(corpus):
    small, large = corpus.batches(32, 2, seed=7), corpus.batches(32, 6, seed=7)
    rows = torch.cat([small.batch(step).tokens_BT for step in range(6)])
    assert torch.equal(torch.cat([large.batch(step).tokens_BT for step in range(2)]), rows)


def test_one_epoch_reads_every_row_of_the_corpus_once(corpus):
    """Counted on the source that is wanted three times as often as its equal."""
    source = corpus.batches(32, 1, seed=1)
    stream = source._streams[1]
    expected = sorted(tuple(stream.row(r).slots.tolist()) for r in range(stream.num_rows))
    drawn = [row for step in range(source.num_rows * 3) for row in source.rows_of(step)]
    known = set(expected)
    of_second = [row for row in (tuple(row.slots.tolist()) for row in drawn) if row in known]
    assert sorted(of_second[: stream.num_rows]) == expected
    assert sorted(of_second[stream.num_rows : 2 * stream.num_rows]) == expected
    assert of_second[: stream.num_rows] != of_second[stream.num_rows : 2 * stream.num_rows]


def test_epochs_count_the_most_repeated_source(corpus):
    source = corpus.batches(32, 4, seed=0)
    assert source.num_rows == sum(source._num_rows)
    assert source.epochs(100) == pytest.approx(
        max(100 * 0.25 / source._num_rows[0], 100 * 0.75 / source._num_rows[1]) * 4
    )


def test_the_stream_is_what_training_read(corpus, tokenizer):
    source = corpus.batches(32, 4, seed=0)
    pieces = list(corpus.stream(32, 4, seed=0, steps=5))
    assert len(pieces) == 5 * 4
    for step in range(5):
        batch = source.batch(step)
        learnt = sum(len(piece) - 1 for row in pieces[4 * step : 4 * step + 4] for piece in row)
        assert learnt == batch.weight
    assert all(tokenizer.bos_id not in piece[1:] for row in pieces for piece in row)


def test_held_out_documents_are_whole_and_never_in_a_batch(corpus, tokenizer):
    held_out = corpus.held_out()
    assert len(held_out) == 60
    assert {document.source for document in held_out} == {"one", "two"}
    for document in held_out:
        assert (document.tokens[0], document.tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.byte_lengths[document.tokens].sum() == document.num_bytes
    source = corpus.batches(32, 1, seed=0)
    training = {
        tuple(piece)
        for s in range(400)
        for row in source.rows_of(s)
        for piece in row.pieces()
        if len(piece) > 9
    }
    text = "|".join(",".join(map(str, document.tokens)) for document in held_out)
    assert len(training) > 300
    assert not [piece for piece in training if ",".join(map(str, piece)) in text]


def test_a_corpus_smaller_than_one_batch_is_refused_with_numbers(corpus):
    with pytest.raises(
        InputError, match=r"smaller than one batch.*make 1?\d,?\d+ rows of 32, .* takes 99,999"
    ):
        corpus.batches(32, 99_999, seed=0)
    with pytest.raises(InputError, match="too few for one row of 999,999"):
        corpus.batches(999_999, 1, seed=0)


def test_a_damaged_or_missing_corpus_is_refused(prepared, tmp_path):
    import shutil

    with pytest.raises(InputError, match="run the data stage first"):
        Corpus.open(tmp_path / "nothing")
    shutil.copytree(prepared / "data", tmp_path / "data")
    file = tmp_path / "data" / "one" / "train" / "tokens-00000.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        Corpus.open(tmp_path / "data")
    assert caught.value.path == file


def test_rows_are_shown_with_their_borders(corpus, tokenizer):
    text = render(corpus, tokenizer, context=64, rows=3)
    rows = corpus.batches(64, 3, seed=0).rows_of(0)
    assert text.count("=== row ") == 3
    assert text.count("--- document ") == sum(len(row.pieces()) for row in rows)
    assert tokenizer.decode(rows[0].pieces()[0].tolist(), keep_special=True) in text
    with pytest.raises(InputError, match=r"100,000 rows are asked for, .* makes only [\d,]+ of 64 tokens"):
        render(corpus, tokenizer, context=64, rows=100_000)
    with pytest.raises(InputError, match="is not the one"):
        render(corpus, Tokenizer.train(["x"], 320), context=64)


def test_the_stream_counts_every_token_as_training_does(corpus):
    """Borders are the only slots that are not learnt."""
    source = corpus.batches(16, 2, seed=2)
    for step in range(10):
        rows = source.rows_of(step)
        borders = sum(int((np.diff(row.documents) > 0).sum()) for row in rows)
        assert source.batch(step).weight == 2 * 16 - borders


def test_documents_of_one_name_are_told_apart():
    assert told_apart(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]
