import json
import subprocess
import sys

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, verify_manifest
from behemoth.data import prepare as module
from behemoth.data.corpus import Corpus
from behemoth.data.dedup import fingerprint, normalised
from behemoth.data.prepare import Sample, describe, num_held_out, prepare
from behemoth.data.sources import FilesSource
from behemoth.text.tokenizer import Tokenizer


@pytest.fixture
def run(tmp_path):
    """Prepare sources in a fresh run directory; returns the report and the directory."""

    def prepare_run(*sources, name="run", **options):
        directory = tmp_path / name
        report = prepare(
            sources,
            directory / "data",
            tokenizer_directory=directory / "tokenizer",
            **{"vocab_size": 384} | options,
        )
        return report, directory

    return prepare_run


@pytest.fixture
def folder(write_folder, prose):
    """450 short documents, of which 3 repeat others, and 2 that cannot be used."""
    records = [{"id": f"d{i}", "text": prose(i, 60), "licence": "CC0-1.0"} for i in range(450)]
    records[100]["text"] = records[10]["text"].upper()
    records[101]["text"] = records[11]["text"] + " and more"
    records[102]["text"] = "much more of " + records[11]["text"]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    return write_folder({"a.jsonl": lines + "nonsense\n", "b.txt": ""})


def texts_of(directory, kind):
    """The text of every document of one part, by id, decoded from its shards."""
    corpus, tokenizer = Corpus.open(directory / "data"), Tokenizer.load(directory / "tokenizer")
    found = {}
    for source in corpus.sources:
        shards = corpus._shards(source.name, kind)
        for i, record in enumerate(shards.records()):
            tokens = shards.document(i).tolist()
            assert (tokens[0], tokens[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            found[record["id"]] = tokenizer.decode(tokens[1:-1])
            assert len(found[record["id"]].encode()) == shards.bytes[i]
    return found


def test_documents_in_are_kept_or_dropped_by_reason(run, folder, capsys):
    report, directory = run(FilesSource(folder, name="mine"))
    assert report["documents"] == {
        "in": 452,
        "kept": 447,
        "dropped": {"malformed line (not JSON)": 1, "empty": 1, "exact duplicate": 1, "near duplicate": 2},
    }
    part = report["sources"]["mine"]
    assert part["dropped_examples"]["exact duplicate"] == ["d100"]
    assert part["dropped_examples"]["near duplicate"] == ["d101", "d102"]
    assert part["licences"] == {"CC0-1.0": 447}
    assert (report["held_out"]["documents"], report["train"]["documents"]) == (60, 387)
    assert report["notes"] == []
    assert read_json(directory / "data" / "report.json") == report
    printed = capsys.readouterr().err
    assert "452 in = 447 kept + 5 dropped" in printed
    assert all(line in printed for line in describe(report))


def test_no_text_is_lost_changed_or_in_both_parts(run, folder, prose):
    report, directory = run(FilesSource(folder))
    train, held_out = texts_of(directory, "train"), texts_of(directory, "held_out")
    assert not set(train) & set(held_out)
    assert train | held_out == {f"d{i}": prose(i, 60) for i in range(450) if i not in (100, 101, 102)}
    assert report["train"]["bytes"] == sum(len(text.encode()) for text in train.values())


def test_no_held_out_text_resembles_a_training_text(run, folder):
    """Every pair is compared, by its words."""
    _, directory = run(FilesSource(folder))
    train, held_out = (
        [set(normalised(text).split()) for text in texts_of(directory, kind).values()]
        for kind in ("train", "held_out")
    )
    most = max(len(a & b) / len(a | b) for a in train for b in held_out)
    assert 0 < most < 0.5


def test_the_tokenizer_learns_from_training_text_alone(run, write_folder, prose, monkeypatch):
    seen = []
    train = Tokenizer.train
    monkeypatch.setattr(Tokenizer, "train", lambda texts, size: train(seen.extend(texts) or seen, size))
    files = {f"{i}.txt": prose(i, 30) for i in range(420)}
    _, directory = run(FilesSource(write_folder(files)))
    assert sorted(seen) == sorted(texts_of(directory, "train").values())


def test_the_same_text_gives_the_same_bytes_and_another_seed_another_split(run, folder):
    source = FilesSource(folder)
    _, first = run(source, name="first")
    _, second = run(source, name="second")
    _, other = run(source, name="other", seed=1)
    assert verify_manifest(first / "data") == verify_manifest(second / "data")
    assert set(texts_of(first, "held_out")) != set(texts_of(other, "held_out"))


def test_few_long_documents_are_held_out_by_passages(run, write_folder, prose):
    books = {f"book{i}.txt": prose(i, 12_000) for i in range(3)}
    report, directory = run(FilesSource(write_folder(books)))
    held_out = texts_of(directory, "held_out")
    assert len(held_out) >= 60
    assert len(held_out) >= 0.1 * report["documents"]["kept"]
    assert all("#" in name for name in held_out)
    assert "fewer than 400 documents" in report["notes"][0]
    assert "passages of one text lie on both sides" in report["notes"][0]
    assert not {name.split("#")[0] for name in held_out} - {
        n.split("#")[0] for n in texts_of(directory, "train")
    }
    parts = texts_of(directory, "train") | held_out
    names = sorted(
        (name for name in parts if name.startswith("book1.txt#")), key=lambda n: int(n.split("#")[1])
    )
    assert "".join(parts[name] for name in names) == books["book1.txt"]


def test_too_few_documents_hold_out_what_is_possible_and_say_so(run, write_folder, prose, capsys):
    report, _ = run(FilesSource(write_folder({f"{i}.txt": prose(i, 20) for i in range(20)})))
    assert report["held_out"]["documents"] == 6
    assert "only 6 documents are held out" in report["notes"][0]
    assert f"note: {report['notes'][0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "held_out"), [(4, 2), (7, 2), (20, 6), (200, 60), (600, 60), (601, 61), (10_000, 1000)]
)
def test_how_many_documents_are_held_out(documents, held_out):
    assert num_held_out(documents, 0.1) == held_out


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("documents", [4, 5, 9, 100, 1000])
def test_two_documents_are_left_on_both_sides(documents, share):
    assert 2 <= num_held_out(documents, share) <= documents - 2


def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(run, folder, tmp_path, monkeypatch):
    source = FilesSource(folder)
    _, undisturbed = run(source, name="undisturbed")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokenizer"]
    _, directory = run(source)
    assert verify_manifest(directory / "data") == verify_manifest(undisturbed / "data")
    assert {path.name for path in directory.iterdir()} == {"data", "tokenizer"}


def test_a_given_tokenizer_is_used_and_saved(run, folder):
    given = Tokenizer.train(["some other text entirely"], 320)
    report, directory = run(FilesSource(folder), tokenizer=given)
    assert report["tokenizer"]["sha256"] == given.sha256 == Tokenizer.load(directory / "tokenizer").sha256
    assert texts_of(directory, "held_out")


def test_another_tokenizer_in_the_way_is_not_overwritten(run, folder, tmp_path):
    Tokenizer.train(["some other text entirely"], 320).save(tmp_path / "run" / "tokenizer")
    with pytest.raises(InputError, match="holds another tokenizer"):
        run(FilesSource(folder))
    assert not (tmp_path / "run" / "data").exists()


def test_text_that_changes_between_the_passes_is_noticed(run, folder, monkeypatch):
    train = Tokenizer.train

    def change_then_train(texts, vocab_size):
        (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text().replace("a", "b"))
        return train(texts, vocab_size)

    monkeypatch.setattr(Tokenizer, "train", change_then_train)
    with pytest.raises(InputError, match="changed while it was being read"):
        run(FilesSource(folder))


def test_documents_lost_between_the_passes_are_noticed(run, folder, monkeypatch):
    train = Tokenizer.train

    def cut_then_train(texts, vocab_size):
        lines = (folder / "a.jsonl").read_text().splitlines(keepends=True)
        (folder / "a.jsonl").write_text("".join(lines[:-20]))
        return train(texts, vocab_size)

    monkeypatch.setattr(Tokenizer, "train", cut_then_train)
    with pytest.raises(InputError, match="changed while it was being read"):
        run(FilesSource(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": "", "b.txt": b"\xff\xfe\xff"}, "the corpus is empty.*2 in = 0 kept"),
        ({"a.txt": "one lonely text"}, "removed: 1, of 15 B in all; at least 4 are needed"),
        ({"a.txt": "the same", "b.txt": "The  same"}, "removed: 1, of 17 B"),
        ({f"{i}.txt": f"text {i}" for i in range(3)}, "removed: 3, of .*, so give more text"),
        ({"a.png": b"\x89PNG"}, "readable are"),
    ],
)
def test_a_corpus_without_enough_text_is_refused(run, write_folder, files, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        run(FilesSource(write_folder(files)))


def test_all_problems_of_the_sources_are_named_at_once(run, folder):
    with pytest.raises(InputError) as caught:
        run(
            FilesSource(folder, name="a/b"),
            FilesSource(folder, name="c", weight=0),
            FilesSource(folder, name="c"),
        )
    assert all(word in str(caught.value) for word in ("'a/b'", "used 2 times", "weight 0"))
    with pytest.raises(InputError, match="no source"):
        run()


def test_duplicates_are_found_across_sources(run, write_folder, prose, tmp_path):
    folder = write_folder({f"one/{i}.txt": prose(i, 30) for i in range(210)})
    for i in range(210):
        (folder / "two").mkdir(exist_ok=True)
        (folder / "two" / f"{i}.txt").write_text(prose(i + 200, 30))
    report, _ = run(
        FilesSource(folder / "one", name="one"), FilesSource(folder / "two", name="two", weight=3.0)
    )
    assert report["sources"]["one"]["documents"]["dropped"] == {}
    assert report["sources"]["two"]["documents"]["dropped"] == {"exact duplicate": 10}
    assert report["sources"]["two"]["weight"] == 3.0


def test_the_sample_for_the_tokenizer_is_bounded_and_even(prose):
    sample = Sample(limit=20_000)
    texts = [prose(i, 20) for i in range(2000)]
    for i, text in enumerate(texts):
        sample.add(i, int.from_bytes(fingerprint(text)[:4], "big"), text)
    assert 5_000 < sample.characters <= 20_000
    chosen = [number for _, number, _ in sample.held]
    assert 600 < np.mean(chosen) < 1400
    assert list(sample.texts(np.zeros(2000, dtype=bool))) == []
    assert set(sample.texts(np.ones(2000, dtype=bool))) == {texts[number] for number in chosen}


def test_preparing_needs_no_torch():
    code = "import sys, behemoth.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert not hasattr(module, "torch")
