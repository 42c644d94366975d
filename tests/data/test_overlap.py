import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import verify_manifest, write_manifest
from behemoth.data import overlap as module
from behemoth.data.overlap import (
    INDEX,
    Found,
    Match,
    Overlap,
    OverlapWriter,
    indexed,
    kept_grams,
    passport,
    unread,
    word_hashes,
    words,
    write_index,
)
from behemoth.data.prepare import prepare
from behemoth.data.sources import Document, FilesSource

TEMPLATE = "Which of the following statements is the best description of"


@pytest.fixture
def write_stage(tmp_path):
    """Index texts as the training documents `d0`, `d1` ... of a stage and return the stage's directory."""

    def write(texts, name="pretrain", source="books", licence="CC0-1.0"):
        directory = tmp_path / name
        with OverlapWriter(directory / INDEX) as writer:
            for i, text in enumerate(texts):
                writer.add([Document(text, f"d{i}", source, licence)])
        write_manifest(directory)
        return directory

    return write


@pytest.fixture
def open_index(write_stage):
    return lambda texts: Overlap.open({"pretrain": write_stage(texts)})


def some_words(seed, count):
    return random.Random(seed).choices([f"word{i}" for i in range(3000)], k=count)


def text_of(seed, count):
    return " ".join(some_words(seed, count))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“Don’t”, she said --\n\tTWICE.", "don t she said twice"),
        ("for x_1 in range(10): print(x_1**2)", "for x 1 in range 10 print x 1 2"),
        ("Caf\u0065\u0301 is Caf\u00e9, ﬁne", "café is café fine"),
        ("今日は天気。OK go", "今 日 は 天 気 ok go"),
        ("ภาษาไทย", "ภ า ษ า ไ ท ย"),
        ("हिन्दी में 한국어 말", "हिन्दी में 한국어 말"),
        ("𠀀𠀁x I ❤\ufe0f it", "𠀀 𠀁 x i it"),
        (" ... !? ", ""),
        ("", ""),
    ],
)
def test_what_a_word_is(text, expected):
    assert words(text) == expected.split()
    assert word_hashes([text])[1].tolist() == [len(expected.split())]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab1 ._-é日本ท\u0301\u0e34", max_size=30), min_size=1, max_size=6))
def test_hashes_agree_where_words_agree(texts):
    hashes, num_words = word_hashes(texts)
    expected = [word for text in texts for word in words(text)]
    assert num_words.tolist() == [len(words(text)) for text in texts]
    assert (
        len(set(zip(hashes.tolist(), expected, strict=True)))
        == len(set(hashes.tolist()))
        == len(set(expected))
    )


def test_nine_words_in_common_are_enough_and_eight_need_not_be():
    rng = random.Random(0)
    shared_by_eight = []
    for seed in range(200):
        common = some_words(seed, 9)
        for length, found in ((9, None), (8, shared_by_eight)):
            texts = [
                " ".join(some_words(rng.random(), 20) + common[:length] + some_words(rng.random(), 20))
                for _ in range(2)
            ]
            one, two = (set(kept_grams([text])[0].tolist()) for text in texts)
            if found is None:
                assert one & two
            else:
                found.append(bool(one & two))
    assert 0 < sum(shared_by_eight) < 200


def test_no_gram_crosses_the_border_of_two_texts():
    texts = [text_of(seed, count) for seed, count in enumerate((30, 3, 0, 8, 9, 7, 50))]
    grams, text, place, num_words = kept_grams(texts)
    alone = [kept_grams([t]) for t in texts]
    assert grams.tolist() == [g for a in alone for g in a[0].tolist()]
    assert text.tolist() == [i for i, a in enumerate(alone) for _ in a[0]]
    assert place.tolist() == [p for a in alone for p in a[2].tolist()]
    assert num_words.tolist() == [30, 3, 0, 8, 9, 7, 50]


def test_find_agrees_with_a_slow_search(open_index):
    """Every kept eight words of training documents in a Python set, and each word marked by hand."""
    rng = random.Random(1)
    documents = [text_of(seed, 300) for seed in range(20)]
    overlap = open_index(documents)
    holders = {}
    for number, text in enumerate(documents):
        parts, places = words(text), kept_grams([text])[2]
        for place in places:
            holders.setdefault(tuple(parts[place : place + 8]), set()).add(number)
    for _ in range(60):
        query = []
        for _ in range(rng.randint(1, 5)):
            source, start = rng.choice(documents).split(), rng.randrange(280)
            query += source[start : start + rng.randint(3, 30)] + some_words(rng.random(), rng.randint(0, 9))
        places = kept_grams([" ".join(query)])[2]
        known, looked_up, by_document = set(), set(), {}
        for place in places:
            span = range(place, place + 8)
            looked_up |= set(span)
            for number in holders.get(tuple(query[place : place + 8]), ()):
                known |= set(span)
                by_document.setdefault(f"d{number}", set()).update(span)
        found = overlap.find(" ".join(query))
        if len(query) < 9:
            assert found.verdict == "too short"
            continue
        assert (found.words, found.covered, found.documents) == (len(query), len(known), len(by_document))
        assert found.share == len(known) / len(looked_up)
        assert {m.document: m.words for m in found.matches} == {d: len(w) for d, w in by_document.items()}


@pytest.mark.parametrize(
    ("edit", "verdict"),
    [
        (lambda w: w, "dirty"),
        (lambda w: [*w[:20], "other", *w[21:]], "dirty"),
        (lambda w: [*w[:15], *w[16:40], "more", "words", *w[40:]], "dirty"),
        (lambda w: w[:18] + some_words("other", 42), "partly dirty"),
        (lambda w: w[:11] + some_words("other", 40), "clean"),
        (lambda w: w[:45] + some_words("other", 400), "partly dirty"),
        (lambda w: w[:30] + some_words("other", 400), "clean"),
        (lambda w: w[:10], "partly dirty"),
        (lambda w: w[:8], "too short"),
        (lambda w: [], "too short"),
        (lambda w: w[::-1], "clean"),
    ],
)
def test_the_verdict_follows_how_much_is_known(open_index, edit, verdict):
    passage = some_words("passage", 60)
    overlap = open_index([f"{text_of(1, 50)} {' '.join(passage)} {text_of(2, 50)}", text_of(3, 500)])
    assert overlap.find(" ".join(edit(passage))).verdict == verdict


def test_a_question_that_begins_as_many_do_is_not_dirty(open_index):
    overlap = open_index([f"{TEMPLATE} {text_of(seed, 20)}" for seed in range(4)])
    assert overlap.find(f"{TEMPLATE} {text_of('else', 3)}").verdict != "dirty"
    assert overlap.find(f"{TEMPLATE} {text_of('else', 30)}").verdict == "clean"
    assert overlap.find(f"{TEMPLATE} {text_of(2, 20)}").verdict == "dirty"


@pytest.mark.parametrize(("documents", "verdict"), [(15, "partly dirty"), (16, "clean")])
def test_text_of_sixteen_documents_is_common_and_says_little(open_index, documents, verdict):
    """A licence header at the top of a fresh document is no sign that the document is known."""
    header = text_of("header", 60)
    overlap = open_index([f"{header} {text_of(i, 50)}" for i in range(documents)])
    assert overlap.find(f"{header} {text_of('fresh', 100)}").verdict == verdict


def test_a_gram_remembers_sixteen_documents(open_index):
    header = text_of("header", 60)
    overlap = open_index([f"{header} {text_of(i, 50)}" for i in range(30)])
    found = overlap.find(header)
    assert (found.verdict, found.documents) == ("dirty", 16)
    assert {match.document for match in found.matches} == {f"d{i}" for i in range(16)}


def test_grams_that_are_told_to_say_nothing_are_left_out(open_index):
    known, new = text_of("known", 40), text_of("new", 40)
    overlap = open_index([known])
    ignore = np.unique(kept_grams([known])[0])
    assert overlap.find(f"{known} {new}").verdict == "dirty"
    assert overlap.find(f"{known} {new}", ignore=ignore).covered == 0
    assert overlap.find(known, ignore=ignore).verdict == "too short"


def test_another_stage_with_the_same_text_makes_it_no_more_common(write_stage):
    """Later stages practise the same items: ten copies in each of two are no licence header."""
    header = text_of("header", 60)
    texts = [f"{header} {text_of(i, 50)}" for i in range(10)]
    overlap = Overlap.open({stage: write_stage(texts, stage) for stage in ("sft", "rl")})
    assert overlap.find(f"{header} {text_of('fresh', 100)}").verdict == "partly dirty"


def test_stages_are_told_apart(write_stage):
    one, both, other = text_of("one", 30), text_of("both", 30), text_of("other", 30)
    overlap = Overlap.open(
        {
            "pretrain": write_stage([one, both], "pretrain", source="books"),
            "sft": write_stage([other, text_of(0, 9), both], "sft", source="chats", licence=None),
        }
    )
    assert overlap.stages == ("pretrain", "sft")
    alone, twice = overlap.find(one), overlap.find(both)
    assert alone.matches == (Match("pretrain", "d0", "books", "CC0-1.0", alone.covered),)
    assert twice.matches == (
        Match("pretrain", "d1", "books", "CC0-1.0", twice.covered),
        Match("sft", "d2", "chats", None, twice.covered),
    )
    assert overlap.find(f"{one} {other}").covered > 50


def test_many_small_pieces_give_the_same_index(write_stage, monkeypatch):
    texts = [text_of(seed % 40, 200) for seed in range(60)]
    whole = write_stage(texts, "whole")
    monkeypatch.setattr(module, "SPILL", 500)
    monkeypatch.setattr(module, "AT_ONCE", 100)
    pieces = write_stage(texts, "pieces")
    names = sorted(path.name for path in (whole / INDEX).iterdir())
    assert names == ["buckets.npy", "documents.bin", "documents.jsonl", "hashes.bin"]
    for name in names:
        assert (whole / INDEX / name).read_bytes() == (pieces / INDEX / name).read_bytes()


def test_an_index_of_nothing_knows_nothing(write_stage):
    empty, short = write_stage([], "empty"), write_stage(["too few words", ""], "short")
    found = Overlap.open({"empty": empty, "short": short}).find(text_of(0, 50))
    assert found == Found("clean", 50, 0, 0.0, 0, 0)


# --- the stages of a run ------------------------------------------------------------------------------------


def document(seed):
    return Document(text_of(seed, 30), f"d{seed}", "chats", "MIT")


def test_a_run_is_asked_in_every_stage_that_has_an_index(tmp_path):
    assert indexed(tmp_path) == {} and unread(tmp_path) == ["pretrain"]
    with pytest.raises(InputError, match="no stage of this training has an index"):
        Overlap.open(indexed(tmp_path))
    for number, place in enumerate(("data", "sft/data", "dpo/data")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_index(tmp_path / place, [document(number)])
    (tmp_path / "rl").mkdir()
    places = {"pretrain": "data", "sft": "sft/data", "dpo": "dpo/data"}
    assert indexed(tmp_path) == {stage: tmp_path / place for stage, place in places.items()}
    assert unread(tmp_path) == ["rl"]
    overlap = Overlap.open(indexed(tmp_path))
    assert [overlap.find(document(n).text).matches[0].stage for n in range(3)] == ["pretrain", "sft", "dpo"]


def test_of_weights_that_were_brought_in_what_they_were_pretrained_on_is_unread(tmp_path):
    write_index(tmp_path / "data", [document(0)])
    assert unread(tmp_path) == []
    (tmp_path / "import").mkdir()
    assert list(indexed(tmp_path)) == unread(tmp_path) == ["pretrain"]


def test_an_index_is_whole_or_absent(tmp_path, monkeypatch):
    (tmp_path / ".data.partial" / INDEX).mkdir(parents=True)  # of a process that was killed
    (tmp_path / ".data.partial" / INDEX / "hashes.bin").write_bytes(b"torn")

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_sorted", killed)
        with pytest.raises(KeyboardInterrupt):
            write_index(tmp_path / "data", [document(0)])
    assert list(tmp_path.iterdir()) == []
    write_index(tmp_path / "data", [document(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert Overlap.open({"sft": tmp_path / "data"}).find(document(0).text).verdict == "dirty"


# --- in a prepared corpus -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, prose):
    root = tmp_path_factory.mktemp("prepared")
    for name, seeds in (("one", range(300)), ("two", range(300, 450))):
        records = [{"id": f"d{i}", "text": prose(i, 60), "source": f"site {i % 3}"} for i in seeds]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare(
        [
            FilesSource(root / "one.jsonl", name="one", licence="CC0-1.0"),
            FilesSource(root / "two.jsonl", name="two"),
        ],
        root / "data",
        tokenizer_directory=root / "tokenizer",
        vocab_size=384,
    )
    return root / "data"


def ids(directory, kind):
    return {
        json.loads(line)["id"]
        for name in ("one", "two")
        for line in (directory / name / kind / "documents.jsonl").read_text().splitlines()
    }


def test_every_training_document_is_found_and_no_held_out_one(prepared, prose):
    overlap = Overlap.open({"pretrain": prepared})
    train, held_out = ids(prepared, "train"), ids(prepared, "held_out")
    assert len(train) == 390 and len(held_out) == 60
    for name in train:
        number = int(name[1:])
        found = overlap.find(prose(number, 60))
        licence = "CC0-1.0" if number < 300 else None
        assert found.verdict == "dirty" and found.share == 1 and found.covered >= found.words - 2
        assert found.matches[0] == Match("pretrain", name, f"site {number % 3}", licence, found.covered)
    assert {overlap.find(prose(int(name[1:]), 60)).verdict for name in held_out} == {"clean"}


def test_a_corpus_without_an_index_is_never_clean(prepared, tmp_path):
    with pytest.raises(InputError, match="run the data stage first"):
        Overlap.open({"pretrain": tmp_path / "nothing"})
    shutil.copytree(prepared, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / INDEX)
    with pytest.raises(InputError, match=r"has no overlap index .* run the data stage again"):
        Overlap.open({"pretrain": prepared, "sft": tmp_path / "old"})


@pytest.mark.parametrize("name", ["hashes.bin", "documents.bin", "documents.jsonl", "buckets.npy"])
def test_a_damaged_index_is_refused(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / "data")
    file = tmp_path / "data" / INDEX / name
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        Overlap.open({"pretrain": tmp_path / "data"})
    assert caught.value.path == file
    file.unlink()
    with pytest.raises(DamagedError, match="missing"):
        Overlap.open({"pretrain": tmp_path / "data"})


def test_only_the_index_is_read_to_open_it(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    shards = [path for path in (tmp_path / "data").rglob("train/*") if path.is_file()]
    assert shards
    for path in shards:
        path.write_bytes(b"")
    assert Overlap.open({"pretrain": tmp_path / "data"}).stages == ("pretrain",)
    with pytest.raises(DamagedError):
        verify_manifest(tmp_path / "data")
    (tmp_path / "data" / INDEX / "more").write_text("")
    with pytest.raises(DamagedError, match="not part of what was written"):
        Overlap.open({"pretrain": tmp_path / "data"})


def test_a_passport_says_where_a_passage_has_been(prepared, prose):
    overlap = Overlap.open({"pretrain": prepared})
    number = min(int(name[1:]) for name in ids(prepared, "train"))
    found = passport(overlap, "Once upon a time: " + prose(number, 60))
    told, known = str(found), found.found.covered
    assert 58 <= known <= 60 and told.startswith(f"dirty: {known} of 64 words")
    assert f"pretrain: d{number}, from site {number % 3}, licence CC0-1.0: {known} words" in told
    assert " ".join(words(prose(number, 60))[2:40]) in told
    record = json.loads(json.dumps(found.as_dict()))
    assert record["stages_that_saw_it"] == record["stages_looked_into"] == ["pretrain"]
    assert record["documents"][0]["document"] == f"d{number}"
    assert str(passport(overlap, text_of("new", 30))).startswith("clean: none of its 30 words")
    assert str(passport(overlap, "three short words")).startswith("too short: 3 words")
