"""Conversations on disk and their rows: whole, apart, once per epoch, learnt where the mask says so."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

from behemoth.base.errors import DamagedError, InputError
from behemoth.data.conversations import Conversation, Found, Rejected
from behemoth.data.corpus import Corpus
from behemoth.data.examples import Examples, ExampleSource, best_fit, pack, write_examples
from behemoth.data.overlap import INDEX, Match, Overlap
from behemoth.data.prepare import prepare
from behemoth.data.show import render_examples
from behemoth.data.sources import FilesSource
from behemoth.model.transformer import Transformer
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(
    ["one two three four five six seven eight\n\nsystem user assistant tool\n" * 4], 384
)
CONTEXT, CHUNK = 64, 24  # the last chunk of a row is short
WORDS = ["one", " two", " three", " four", " five"]


def talk(name, asked, answered, **more):
    """A conversation of about 20 tokens more than its two numbers of words."""
    draw = random.Random(name)
    question, answer = ("".join(draw.choices(WORDS, k=k)) for k in (asked, answered))
    return Conversation(name, (Message("user", question), Message("assistant", answer, **more)))


@pytest.fixture(scope="module")
def found():
    draw = random.Random(0)
    kept = [talk(f"short {i}", draw.randint(1, 5), draw.randint(1, 5)) for i in range(60)]
    kept += [talk(f"long {i}", draw.randint(8, 18), draw.randint(8, 18)) for i in range(20)]
    kept.insert(7, talk("endless", 40, 40))
    kept.insert(9, talk("mute", 2, 2, learn=False))
    return Found(kept, [Rejected("broken", "unknown role")])


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    directory = tmp_path_factory.mktemp("examples") / "sft"
    return directory, write_examples(directory, found, TOKENIZER, CONTEXT)


@pytest.fixture(scope="module")
def examples(written):
    return Examples.open(written[0], TOKENIZER)


@pytest.fixture(scope="module")
def source(examples):
    return ExampleSource(examples, CONTEXT, 2, seed=3, chunk=CHUNK)


def chats(found):
    usable = [each for each in found.kept if each.id not in ("endless", "mute")]
    return {each.id: encode_chat(TOKENIZER, each.messages) for each in usable}


# --- on disk ------------------------------------------------------------------------------------------------


def test_what_is_written_comes_back(found, written, examples):
    _, manifest = written
    expected = chats(found)
    assert examples.ids() == list(expected)
    for number, chat in enumerate(expected.values()):
        ids, mask = examples.example(number)
        assert (ids.tolist(), mask.tolist()) == (chat.ids, chat.mask)
    assert manifest["kept"] == len(examples) == 80
    assert manifest["tokens"] == sum(len(chat.ids) for chat in expected.values())


def test_counts_in_are_kept_and_rejected_by_reason_and_id(found, written):
    directory, manifest = written
    rejected = [json.loads(line) for line in (directory / "rejected.jsonl").read_text().splitlines()]
    assert {each["id"]: each["why"] for each in rejected} == {
        "broken": "unknown role",
        "endless": "longer than the context",
        "mute": "nothing to learn",
    }
    assert len(found.kept) + len(found.rejected) == manifest["kept"] + sum(manifest["rejected"].values())


def test_what_is_learnt_can_be_looked_up_and_what_is_rejected_cannot(tmp_path):
    """Question and answer are one text: that of an item of an exam, which is its prompt and its answer."""
    draw = random.Random(5)
    words = [" ".join("".join(draw.choices("abcdef", k=3)) for _ in range(20)) for _ in range(3)]
    talks = [(f"{text[:40]}?", f"{text[40:]}.") for text in words]
    kept = [
        Conversation(f"t{n}", (Message("user", a), Message("assistant", b, learn=n < 2)), "forum", "MIT")
        for n, (a, b) in enumerate(talks)
    ]
    write_examples(tmp_path / "data", Found(kept, []), TOKENIZER, 999)
    overlap = Overlap.open({"sft": tmp_path / "data"})
    found = [overlap.find(text) for text in words]
    assert [each.verdict for each in found] == ["dirty", "dirty", "clean"]
    assert found[1].share == 1
    assert found[1].matches == (Match("sft", "t1", "forum", "MIT", found[1].covered),)
    (tmp_path / "data" / INDEX / "documents.jsonl").write_text("")
    with pytest.raises(DamagedError):
        Examples.open(tmp_path / "data")


def test_a_conversation_may_be_as_long_as_a_row(tmp_path):
    """Its last token is predicted, never read; one token more and it is rejected."""
    found = Found([talk("one", 4, 4)], [])
    slots = len(encode_chat(TOKENIZER, found.kept[0].messages).ids) - 1
    write_examples(tmp_path / "x", found, TOKENIZER, slots)
    batch = ExampleSource(Examples.open(tmp_path / "x"), slots, 1, 0, chunk=8).batch(0)
    assert batch.documents_BT.unique().tolist() == [0]
    with pytest.raises(InputError, match=r"none of 1 .* \(1 longer than the context; the first is 'one'\)"):
        write_examples(tmp_path / "y", found, TOKENIZER, slots - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_conversation_with_nothing_to_learn_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="1 nothing to learn; the first is 'mute'"):
        write_examples(tmp_path / "x", Found([talk("mute", 2, 2, learn=False)], []), TOKENIZER, 99)


def test_another_tokenizer_or_an_altered_byte_is_refused(written, examples, tmp_path):
    directory, _ = written
    with pytest.raises(InputError, match="is not the one that wrote"):
        Examples.open(directory, Tokenizer.train(["x"], 320))
    with pytest.raises(InputError, match="no encoded conversations"):
        Examples.open(tmp_path / "nothing")
    write_examples(tmp_path / "x", Found([talk("one", 4, 4)], []), TOKENIZER, 99)
    masks = bytearray((tmp_path / "x" / "masks.bin").read_bytes())
    masks[3] ^= 1
    (tmp_path / "x" / "masks.bin").write_bytes(masks)
    with pytest.raises(DamagedError, match=r"masks\.bin"):
        Examples.open(tmp_path / "x")
    with pytest.raises(InputError, match="cannot hold the longest"):
        ExampleSource(examples, 32, 2, 0, CHUNK)


# --- packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "chunk"), [(64, 16), (64, 24), (64, 64), (64, 100), (50, 7)])
def test_no_chunk_border_cuts_what_fits_in_a_chunk(context, chunk):
    lengths = np.random.default_rng(chunk).integers(1, context + 1, 300)
    row, slot = pack(lengths, context, chunk, key=5)
    chunk = min(chunk, context)
    taken = np.zeros((row.max() + 1, context), dtype=int)
    for length, r, s in zip(lengths, row, slot, strict=True):
        taken[r, s : s + length] += 1
        assert s + length <= context
        assert s // chunk == (s + length - 1) // chunk if length <= chunk else s % chunk == 0
    assert taken.max() == 1 and taken.any(axis=1).all()
    assert taken.sum() == lengths.sum()


def test_rows_are_filled_well():
    lengths = np.random.default_rng(0).integers(1, 40, 2000)
    row, _ = pack(lengths, 256, 64, key=0)
    assert lengths.sum() > 0.97 * 256 * (row.max() + 1)


def test_best_fit_against_the_obvious_way():
    sizes = np.random.default_rng(1).integers(1, 12, 200)
    bins, places = best_fit(sizes, np.full(200, 16), key=4)
    left = []
    for size in sorted(sizes.tolist(), reverse=True):
        fits = [room for room in left if room >= size]
        if fits:
            left.remove(min(fits))
            left.append(min(fits) - size)
        else:
            left.append(16 - size)
    used = np.bincount(bins, weights=sizes)
    assert sorted(16 - room for room in left) == sorted(used)
    for number in range(len(used)):  # inside a bin they lie one after another
        here = np.argsort(places[bins == number])
        ends = np.cumsum(sizes[bins == number][here])
        assert places[bins == number][here].tolist() == [0, *ends[:-1]]


# --- batches ------------------------------------------------------------------------------------------------


def test_an_epoch_reads_every_conversation_once_whole_and_weighs_what_its_mask_says(found, source):
    expected = Counter(
        (tuple(chat.ids[:-1]), tuple(chat.ids[1:]), tuple(chat.mask[1:])) for chat in chats(found).values()
    )
    seen = Counter()
    single = ExampleSource(source.examples, CONTEXT, 1, seed=3, chunk=CHUNK)
    for step in range(single.num_rows):
        rows = single.batch(step)
        for document in rows.documents_BT.unique().tolist():
            here = rows.documents_BT == document
            parts = (rows.tokens_BT[here], rows.targets_BT[here], rows.weights_BT[here].int())
            seen[tuple(tuple(part.tolist()) for part in parts)] += 1
    padding = {key: n for key, n in seen.items() if set(key[0]) == {TOKENIZER.pad_id}}
    assert padding and all(set(key[1]) == {TOKENIZER.pad_id} and set(key[2]) == {0} for key in padding)
    assert seen - Counter(padding) == expected
    assert (single.epochs(single.num_rows), source.epochs(source.num_rows)) == (1, 2)
    assert source.filled == sum(len(chat.ids) - 1 for chat in chats(found).values()) / (
        source.num_rows * CONTEXT
    )


def test_a_batch_depends_on_seed_and_step_alone(examples, source):
    forward = [source.batch(step) for step in range(40)]
    fresh = ExampleSource(examples, CONTEXT, 2, seed=3, chunk=CHUNK)
    for step in (39, 3, 11):
        again = fresh.batch(step)
        for name in ("tokens_BT", "targets_BT", "weights_BT", "documents_BT"):
            assert torch.equal(getattr(again, name), getattr(forward[step], name))
        assert (again.weight, again.tokens_BT.dtype) == (forward[step].weight, torch.int64)
    other = ExampleSource(examples, CONTEXT, 2, seed=4, chunk=CHUNK)
    assert not torch.equal(other.batch(3).tokens_BT, forward[3].tokens_BT)
    epochs = [[source.conversations(e * source.num_rows + i) for i in range(source.num_rows)] for e in (0, 1)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_microbatches_weigh_as_much_together(source):
    batch = source.batch(1)
    assert sum(part.weight for part in batch.microbatches(2)) == batch.weight == batch.weights_BT.sum() > 0


def test_replay_is_its_share_of_rows_with_the_weights_of_pretraining(examples, tmp_path, prose):
    lines = [json.dumps({"id": str(i), "text": prose(i, 16)}) for i in range(200)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    sources = [FilesSource(tmp_path / "text.jsonl")]
    prepare(
        sources, tmp_path / "data", tokenizer_directory=tmp_path / "t", vocab_size=384, tokenizer=TOKENIZER
    )
    replay = Corpus.open(tmp_path / "data").batches(CONTEXT, 3, seed=0)
    text = [replay.batch(step) for step in range(4)]
    wanted = [
        (batch.tokens_BT[i], batch.targets_BT[i], batch.weights_BT[i], batch.documents_BT[i])
        for batch in text
        for i in range(3)
    ]
    mixed = ExampleSource(examples, CONTEXT, 4, 3, CHUNK, replay, replay_share=0.3)
    rows = [
        tuple(tensor[i] for tensor in (b.tokens_BT, b.targets_BT, b.weights_BT, b.documents_BT))
        for b in (mixed.batch(step) for step in range(10))
        for i in range(4)
    ]
    alone = ExampleSource(examples, CONTEXT, 1, 3, CHUNK)
    of_text = [row for row in rows if any(torch.equal(row[0], other[0]) for other in wanted)]
    of_chat = [row for row in rows if not any(torch.equal(row[0], other[0]) for other in wanted)]
    assert (len(of_text), len(of_chat)) == (12, 28)
    for row, other in zip(of_text, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(row, other, strict=True))
    for step, row in enumerate(of_chat):
        assert torch.equal(row[0], alone.batch(step).tokens_BT[0])
    assert mixed.epochs(10) == 28 / alone.num_rows


# --- the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuned", [False, True])
def test_no_conversation_sees_another(source, tiny_config, tuned):
    """As alone, to rounding, wherever it lies; the temperature counts slots of the row, so with it only at slot 0."""
    changes = {"vocab_size": TOKENIZER.vocab_size, "chunk_size": CHUNK, "temperature_tuning": tuned}
    model = Transformer(tiny_config.model_copy(update=changes)).initialise(torch.Generator().manual_seed(0))
    tried = Counter()
    with torch.no_grad():
        for step in range(source.num_rows // 2):
            batch = source.batch(step)
            packed = model(batch.tokens_BT, batch.documents_BT).hidden_BTD
            for row in range(2):
                documents = batch.documents_BT[row]
                conversations = source.conversations(2 * step + row)
                for document, (number, slot) in enumerate(conversations):
                    if tuned and slot:
                        continue
                    ids = torch.from_numpy(source.examples.example(number)[0].astype(np.int64))
                    alone = model(ids[None, :-1]).hidden_BTD[0]
                    assert torch.allclose(packed[row, documents == document], alone, atol=2e-5)
                    tried[
                        "long" if len(ids) > CHUNK + 1 else "at a border" if slot % CHUNK == 0 else "inside"
                    ] += 1
    assert set(tried) == {"long", "at a border", "inside"} - ({"inside"} if tuned else set())


def test_neighbours_change_no_bit(source, tiny_config):
    """Without experts, whose products round by how many tokens each is given."""
    changes = {"vocab_size": TOKENIZER.vocab_size, "chunk_size": CHUNK, "num_experts": 0}
    model = Transformer(tiny_config.model_copy(update=changes)).initialise(torch.Generator().manual_seed(0))
    batch = next(b for b in map(source.batch, range(99)) if (b.documents_BT == 1).any(1).all())
    first = batch.documents_BT == 0
    other = torch.where(first, batch.tokens_BT, (batch.tokens_BT + 1) % TOKENIZER.vocab_size)
    with torch.no_grad():
        one, two = (model(tokens, batch.documents_BT).hidden_BTD for tokens in (batch.tokens_BT, other))
    assert torch.equal(one[first], two[first])
    assert not torch.equal(one[~first], two[~first])


# --- shown --------------------------------------------------------------------------------------------------


def test_what_is_learnt_is_seen_in_plain_text(tmp_path):
    messages = [
        Message("user", "one"),
        Message("assistant", "two\n\nthree"),
        Message("user", "four"),
        Message("assistant", "five", learn=False),
    ]
    write_examples(tmp_path / "x", Found([Conversation("mine", tuple(messages))], []), TOKENIZER, 99)
    examples = Examples.open(tmp_path / "x")
    shown = render_examples(examples, TOKENIZER, 1, chunk=99).splitlines()
    assert [line[3:] for line in shown if line.startswith(">> ")] == ["two", "", "three<|eot|>"]
    mask = examples.example(0)[1]
    slots = len(mask) - 1
    assert shown[0] == f"=== row 1: {slots} of 99 slots, {mask.sum()} tokens learnt (after >>) ==="
    assert shown[1] == f"--- mine: slots 0 to {slots - 1}, {mask.sum()} learnt ---"
    assert "   five<|eot|>" in shown
    with pytest.raises(InputError, match="5 rows are asked for, but the conversations make only 1 of 99"):
        render_examples(examples, TOKENIZER, 5, chunk=99)
    with pytest.raises(InputError, match="is not the one"):
        render_examples(examples, Tokenizer.train(["x"], 320), chunk=99)
