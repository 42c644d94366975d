import gzip
import json
import sys
import tracemalloc

import pytest
import zstandard

from behemoth.base.errors import InputError
from behemoth.data import sources
from behemoth.data.sources import FilesSource, HubSource, PythonSource, Tally, passages, read, size


def collect(source, **options):
    tally, read_bytes = Tally(), []
    documents = list(read(source, tally, read_bytes.append, **options))
    assert tally.documents == len(documents) + tally.dropped.total()
    assert tally.kept == len(documents)
    return documents, tally, sum(read_bytes)


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_every_kind_of_file_is_read_in_order_of_name(write_folder):
    record = {"id": "one", "source": "web", "licence": "CC0-1.0", "text": "jsonl text"}
    folder = write_folder(
        {
            "a.txt": "plain text é",
            "b.md": b"\xef\xbb\xbfwith a mark",
            "c.py.gz": gzip.compress(b"packed = 1"),
            "d/e.txt.zst": zstandard.compress(b"one frame ") + zstandard.compress(b"and another"),
            "f.jsonl": lines(record, {"content": "other field"}) + "\n",
            "g.jsonl.zst": zstandard.compress(lines({"text": "zst line", "license": "MIT"}).encode()),
            ".hidden/x.txt": "not read",
        }
    )
    documents, tally, read_bytes = collect(FilesSource(folder, name="mine", licence="CC-BY-4.0"))
    assert [(d.id, d.text, d.source, d.licence) for d in documents] == [
        ("a.txt", "plain text é", "mine", "CC-BY-4.0"),
        ("b.md", "with a mark", "mine", "CC-BY-4.0"),
        ("c.py.gz", "packed = 1", "mine", "CC-BY-4.0"),
        ("d/e.txt.zst", "one frame and another", "mine", "CC-BY-4.0"),
        ("one", "jsonl text", "web", "CC0-1.0"),
        ("f.jsonl:2", "other field", "mine", "CC-BY-4.0"),
        ("g.jsonl.zst:1", "zst line", "mine", "MIT"),
    ]
    assert tally.dropped == {"empty": 1}
    assert read_bytes == size(FilesSource(folder))


def test_broken_input_is_named_and_counted_and_the_rest_is_kept(write_folder):
    good = lines(*({"text": f"line {i}"} for i in range(2000)))
    folder = write_folder(
        {
            "bad-encoding.txt": b"caf\xe9",
            "binary.txt": b"ab\0cd",
            "cut.jsonl.gz": gzip.compress(good.encode())[:-20],
            "cut.txt.gz": gzip.compress(b"text" * 1000)[:-3],
            "cut.txt.zst": zstandard.compress(b"text" * 1000)[:-3],
            "damaged.txt.gz": b"not gzip at all",
            "damaged.txt.zst": b"not zstd at all",
            "empty.txt": "",
            "good.txt": "fine",
            "picture.png": b"\x89PNG",
            "records.jsonl": '{"text": "ok"}\n{"text": \n[1]\n{"title": "x"}\n{"text": " "}\n\xff\n'.encode(
                "latin-1"
            )
            + b'{"text": "\\ud800"}\n{"text": "a\\u0000b"}\n'
            + b"[" * 100_000
            + b"\n",
        }
    )
    documents, tally, _ = collect(FilesSource(folder))
    assert {"good.txt", "records.jsonl:1"} <= {document.id for document in documents}
    assert tally.examples == {
        "bad encoding (not UTF-8)": ["bad-encoding.txt", "records.jsonl:6"],
        "binary (NUL bytes)": ["binary.txt", "records.jsonl:8"],
        "damaged or cut short .gz": ["cut.jsonl.gz", "cut.txt.gz", "damaged.txt.gz"],
        "damaged or cut short .zst": ["cut.txt.zst", "damaged.txt.zst"],
        "empty": ["empty.txt", "records.jsonl:5"],
        "lone surrogate": ["records.jsonl:7"],
        "malformed line (not JSON)": ["records.jsonl:2", "records.jsonl:9"],
        "no text field (text or content)": ["records.jsonl:3", "records.jsonl:4"],
        "unknown suffix .png": ["picture.png"],
    }


def test_only_the_first_examples_are_remembered(write_folder):
    _, tally, _ = collect(FilesSource(write_folder({"a.jsonl": "nonsense\n" * 50, "b.txt": "fine"})))
    assert tally.dropped["malformed line (not JSON)"] == 50
    assert len(tally.examples["malformed line (not JSON)"]) == sources.EXAMPLES


@pytest.mark.parametrize(
    ("files", "message"), [({"a.png": b"1", "b.exe": b"2"}, r"found: \.exe, \.png"), ({}, "found: nothing")]
)
def test_a_folder_without_text_is_refused_with_what_can_be_read(tmp_path, write_folder, files, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message + r".*\.txt \.md \.py \.jsonl"):
        collect(FilesSource(write_folder(files)))


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        collect(FilesSource(tmp_path / "nothing"))


def test_a_single_file_is_a_source(write_folder):
    folder = write_folder({"a.txt": "alone", "b.txt": "other"})
    documents, _, _ = collect(FilesSource(folder / "a.txt"))
    assert [(document.id, document.text) for document in documents] == [("a.txt", "alone")]


def test_long_texts_are_cut_at_paragraph_borders(write_folder, prose):
    book = prose(1, 3000)
    folder = write_folder(
        {"book.txt": book, "line.jsonl": lines({"id": "b", "text": book}), "short.txt": "x y"}
    )
    documents, _, _ = collect(FilesSource(folder), passage=1000)
    for name in ("book.txt", "b"):
        parts = [document for document in documents if document.id.startswith(f"{name}#")]
        assert "".join(part.text for part in parts) == book
        assert [part.id for part in parts] == [f"{name}#{i}" for i in range(1, len(parts) + 1)]
        assert all(part.text.endswith("\n\n") for part in parts[:-1])
        assert all(len(part.text) <= 1000 for part in parts)
    assert documents[-1].id == "short.txt"


def test_a_text_longer_than_memory_allows_is_cut_while_it_is_read(write_folder, prose, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_DOCUMENT", 5000)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 3001)
    book = prose(2, 6000).replace("a", "é")
    documents, _, _ = collect(FilesSource(write_folder({"book.txt": book})), passage=5000)
    assert "".join(document.text for document in documents) == book
    assert len(documents) > 5
    assert max(len(document.text) for document in documents) <= 5000


def test_a_line_that_no_memory_should_hold_is_dropped_by_name(write_folder, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LINE", 5000)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 999)
    long = [{"text": "a"}, {"text": "x" * 4900}, {"text": "x" * 5000}, {"text": "b"}, {"text": "y" * 90_000}]
    documents, tally, _ = collect(FilesSource(write_folder({"a.jsonl": lines(*long).removesuffix("\n")})))
    assert [document.id for document in documents] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"]
    assert tally.examples == {sources.TOO_LONG: ["a.jsonl:3", "a.jsonl:5"]}


def test_a_line_without_end_is_not_held(monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LINE", 100_000)
    tracemalloc.start()
    assert list(sources._lines(b"x" * 10_000 for _ in range(1000))) == [None]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("text", ["", "x" * 50, "a b " * 20, "\n" * 30, "one\n\ntwo\n\n" * 9])
@pytest.mark.parametrize("passage", [1, 2, 7, 20])
def test_passages_are_the_text(text, passage):
    parts = list(passages(text, passage))
    assert "".join(parts) == text
    assert all(0 < len(part) <= passage for part in parts)


def test_the_standard_library_is_real_text_without_tests():
    documents, tally, read_bytes = collect(PythonSource())
    names = {document.id for document in documents}
    assert {"argparse.py", "asyncio/tasks.py", "json/decoder.py"} <= names
    assert not {part for name in names for part in name.split("/")} & sources.NOT_THE_LIBRARY
    assert {document.licence for document in documents} == {"PSF-2.0"}
    assert set(tally.dropped) <= {"empty"}
    assert read_bytes == size(PythonSource()) > 5_000_000


def test_parquet_is_read_and_a_damaged_one_is_named(write_folder):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = write_folder({"b.parquet": b"PAR1 nonsense", "c.txt": "x"})
    table = pyarrow.table({"text": ["one", None, "three"], "id": ["a", "b", "c"], "other": [1, 2, 3]})
    parquet.write_table(table, folder / "a.parquet")
    documents, tally, _ = collect(FilesSource(folder))
    assert [(d.id, d.text) for d in documents] == [("a", "one"), ("c", "three"), ("c.txt", "x")]
    assert tally.examples == {
        "no text field (text or content)": ["a.parquet:2"],
        "damaged or cut short .parquet": ["b.parquet"],
    }


def test_a_missing_library_names_the_extra(write_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"behemoth-lab\[hub\]"):
        collect(FilesSource(write_folder({"a.parquet": b"", "b.png": b""})))
    documents, tally, _ = collect(FilesSource(write_folder({"c.txt": "read all the same"})))
    assert [document.id for document in documents] == ["c.txt"]
    assert tally.examples[".parquet needs pyarrow (pip install 'behemoth-lab[hub]')"] == ["a.parquet"]
    with pytest.raises(InputError, match=r"behemoth-lab\[hub\]"):
        collect(HubSource("nobody/nothing"))


@pytest.mark.slow
def test_a_hub_data_set_is_read_from_local_files(write_folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_folder({"a.jsonl": lines({"body": "one", "id": 7}, {"body": "two", "id": 8})})
    documents, _, _ = collect(HubSource(str(folder), text_field="body", licence="CC0-1.0"))
    assert [(d.id, d.text, d.source, d.licence) for d in documents] == [
        ("7", "one", str(folder), "CC0-1.0"),
        ("8", "two", str(folder), "CC0-1.0"),
    ]
    assert [d.id for d in collect(HubSource(str(folder), split="train[:50%]", text_field="body"))[0]] == ["7"]
    with pytest.raises(InputError, match="no column 'text'; it has body, id"):
        collect(HubSource(str(folder)))
    with pytest.raises(InputError, match="could not be loaded"):
        collect(HubSource(str(folder), split="missing"))
