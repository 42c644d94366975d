import pytest

from behemoth.base.files import read_json, verify_manifest
from behemoth.data.licences import is_licence, keep_licences, python_licence, texts_beside
from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource, HubSource, PythonSource


def write(path, text="text\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *[
            (name, True)
            for name in ("LICENSE", "LICENCE.txt", "license.md", "LICENSE-MIT", "COPYING", "NOTICE")
        ],
        *[(name, True) for name in ("Copyright.txt", "COPYING.LESSER", "notices.rst", "LICENSE_PYTHON.txt")],
        *[
            (name, False)
            for name in ("license.py", "licenses.json", "notice to mariners.txt", "LICENSED.txt")
        ],
        *[(name, False) for name in ("license.jsonl", "copyrighted", "a LICENSE", "README.md")],
    ],
)
def test_what_a_licence_is_called(tmp_path, name, is_one):
    assert is_licence(write(tmp_path / name)) is is_one


def test_a_text_too_long_to_be_a_licence_is_none(tmp_path):
    assert not is_licence(write(tmp_path / "LICENSE", "x" * 1_000_001))


def test_of_a_folder_all_texts_count_and_of_a_file_those_beside_it(tmp_path):
    one, inner = write(tmp_path / "a" / "LICENSE"), write(tmp_path / "a" / "b" / "NOTICE")
    write(tmp_path / "a" / ".git" / "LICENSE")
    book = write(tmp_path / "a" / "b" / "book.txt")
    assert texts_beside(tmp_path / "a") == sorted([one, inner])
    assert texts_beside(book) == [inner]
    assert texts_beside(tmp_path / "nowhere.txt") == []


def test_they_are_kept_by_source(tmp_path):
    write(tmp_path / "a" / "LICENSE", "of all")
    write(tmp_path / "a" / "b" / "LICENSE", "of b")
    sources = [
        FilesSource(tmp_path / "a", name="mine"),
        FilesSource(write(tmp_path / "c" / "book.txt"), name="bare"),
        HubSource(str(tmp_path / "a" / "b"), name="hub"),
        HubSource("owner/elsewhere", name="far"),
    ]
    kept = keep_licences(sources, tmp_path / "kept")
    assert kept == {"mine": ["LICENSE", "b/LICENSE"], "bare": [], "hub": ["LICENSE"], "far": []}
    assert (tmp_path / "kept" / "mine" / "b" / "LICENSE").read_text() == "of b"


def test_pythons_own_licence_is_found_and_is_pythons(tmp_path, monkeypatch):
    if python_licence() is None:
        pytest.skip("this Python came without its licence")
    (name,) = keep_licences([PythonSource(name="python")], tmp_path)["python"]
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (tmp_path / "python" / name).read_text().upper()
    write(tmp_path / "empty" / "LICENSE.txt", "of something else")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "empty"))
    monkeypatch.setattr("sys.base_prefix", str(tmp_path / "empty"))
    assert python_licence() is None
    assert keep_licences([PythonSource(name="python")], tmp_path / "none") == {"python": []}


def test_a_prepared_corpus_holds_them_and_its_manifest_has_their_hashes(write_folder, prose, tmp_path):
    folder = write_folder({f"{i}.txt": prose(i, 60) for i in range(20)})
    write(folder / "LICENSE", "do as you like")
    source = FilesSource(folder, name="mine", licence="0BSD")
    where = {"tokenizer_directory": tmp_path / "run" / "tokenizer", "vocab_size": 384}
    report = prepare([source], tmp_path / "run" / "data", **where)
    assert report["sources"]["mine"]["licence_texts"] == ["LICENSE"]
    assert report["sources"]["mine"]["origins"] == {"mine": 20}
    assert (tmp_path / "run" / "data" / "licences" / "mine" / "LICENSE").read_text() == "do as you like"
    assert "licences/mine/LICENSE" in verify_manifest(tmp_path / "run" / "data")["files"]
    assert read_json(tmp_path / "run" / "data" / "report.json") == report
