import json
import os
import resource

import pytest

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import (
    MANIFEST,
    append_jsonl,
    publish_directory,
    read_json,
    read_jsonl,
    verify_manifest,
    write_atomic,
    write_json,
    write_manifest,
)


@pytest.fixture
def directory(tmp_path):
    """A directory with two files and its manifest."""
    made = tmp_path / "made"
    (made / "inner").mkdir(parents=True)
    (made / "a.bin").write_bytes(b"abc")
    (made / "inner" / "b.bin").write_bytes(b"defg")
    write_manifest(made, step=3)
    return made


def test_a_manifest_that_holds(directory):
    record = verify_manifest(directory)
    assert record["step"] == 3
    assert record["files"]["inner/b.bin"]["bytes"] == 4


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.bin", "inner/b.bin", MANIFEST])
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 2), lambda path: path.unlink()])
def test_every_damage_is_found_and_named(directory, name, damage):
    damage(directory / name)
    with pytest.raises(DamagedError) as caught:
        verify_manifest(directory)
    assert caught.value.path == directory / name


def test_a_manifest_rewritten_to_match_is_found(directory):
    record = json.loads((directory / MANIFEST).read_text())
    record["step"] = 4
    (directory / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(DamagedError, match="altered"):
        verify_manifest(directory)


def test_a_file_too_many_is_found(directory):
    (directory / "extra").touch()
    with pytest.raises(DamagedError, match="not part of what was written"):
        verify_manifest(directory)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomic(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_directory_is_published_once(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    publish_directory(tmp_path / "first", tmp_path / "final")
    with pytest.raises(InputError, match="already exists"):
        publish_directory(tmp_path / "second", tmp_path / "final")


def test_json_both_ways(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"é": [1, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DamagedError, match="not valid JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "c.json")


@pytest.mark.parametrize(
    "rest", [b'{"step": 3', '{"text": "é'.encode()[:-1], b"\0" * 9, b"\0\0\n", b"{}}\n", b"3\n"], ids=repr
)
def test_lines_count_up_to_the_first_that_is_not_whole(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    append_jsonl(path, {"step": 2})
    with open(path, "ab") as file:
        file.write(rest)
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 2}]
    assert list(read_jsonl(tmp_path / "absent.jsonl")) == []


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores SIGXFSZ, so a write ends in EFBIG
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            append_jsonl(path, {"step": 2, "more": "than fits"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_jsonl(path, {"step": 3})
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 3}]
