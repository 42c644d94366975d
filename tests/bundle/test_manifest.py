"""The set of files is exactly the set that is listed: every way to differ has its own refusal."""

import json
import os
import socket
import unicodedata

import pytest

from behemoth.base.errors import InputError
from behemoth.bundle import manifest
from behemoth.bundle.manifest import (
    MANIFEST,
    SIGNATURE,
    check,
    examine,
    files_of,
    name_refused,
    names_refused,
    write,
)
from behemoth.bundle.refusals import Refused

CONTENTS = {
    "README.md": b"# card\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 20,
    "release/policy.toml": b'name = "p"\n',
    "release/evidence/evaluations/candidate/sums.jsonl": b'{"score": 1}\n' * 30,
    "model.sig": b"not listed",
}


@pytest.fixture
def bundle(tmp_path):
    """Six files and their manifest, which was seen to be good."""
    root = tmp_path / "bundle"
    for name, data in CONTENTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    write(root, {"name": "tiny", "version": "1"})
    check(root)
    return root


def codes(bundle):
    """The refusals' codes, the gravest first."""
    with pytest.raises(Refused) as refusal:
        check(bundle)
    assert refusal.value.code == refusal.value.refusals[0].code
    return [one.code for one in refusal.value.refusals]


def test_every_file_is_listed_by_size_and_hash(bundle):
    record = check(bundle)
    assert list(record) == ["format", "name", "version", "files"] and record["name"] == "tiny"
    assert list(record["files"]) == sorted(set(CONTENTS) - {SIGNATURE})
    assert record["files"]["config.json"] == {
        "bytes": 2,
        "sha256": manifest.hashlib.sha256(b"{}").hexdigest(),
    }
    hashes = manifest.hashes(bundle, record)
    assert set(hashes) == {MANIFEST, *record["files"]} and hashes == examine(bundle).hashes


def test_writing_twice_gives_the_same_bytes(bundle):
    before = (bundle / MANIFEST).read_bytes()
    write(bundle, {"name": "tiny", "version": "1"})
    assert (bundle / MANIFEST).read_bytes() == before


def test_a_hard_link_is_a_file(bundle, tmp_path):
    os.link(bundle / "config.json", tmp_path / "elsewhere")
    check(bundle)


def test_leaving_out_still_looks(bundle):
    assert SIGNATURE not in files_of(bundle, leave_out=(SIGNATURE,)) and SIGNATURE in files_of(bundle)
    (bundle / SIGNATURE).unlink()
    (bundle / SIGNATURE).symlink_to("README.md")
    with pytest.raises(Refused, match=r"model\.sig: a link"):
        files_of(bundle, leave_out=(SIGNATURE,))


# ------------------------------------------------------------------------------------------------------ differences


def put(bundle, name, data=b"x"):
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(data)


def linked(bundle, name, to):
    if (bundle / name).exists():
        (bundle / name).unlink()
    (bundle / name).symlink_to(to)


def swap(bundle, one, other):
    first, second = (bundle / one).read_bytes(), (bundle / other).read_bytes()
    (bundle / one).write_bytes(second)
    (bundle / other).write_bytes(first)


def listed(bundle, change):
    """Change the manifest itself."""
    record = json.loads((bundle / MANIFEST).read_text())
    change(record)
    (bundle / MANIFEST).write_text(json.dumps(record))


def entry(size=1):
    return {"bytes": size, "sha256": "0" * 64}


def bound(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


WRONG = {
    "a byte": (lambda b: put(b, "config.json", b"{ "), ["changed-file"]),
    "a bit of the weights": (
        lambda b: put(b, "model.safetensors", bytes(range(256)) * 19 + bytes(range(255)) + b"\0"),
        ["changed-file"],
    ),
    "cut": (lambda b: put(b, "config.json", b"{"), ["cut-file"]),
    "emptied": (lambda b: put(b, "README.md", b""), ["cut-file"]),
    "longer": (lambda b: put(b, "config.json", b"{}\n"), ["longer-file"]),
    "added": (lambda b: put(b, "extra.py"), ["extra-file"]),
    "a copy added": (lambda b: put(b, "copy.json", b"{}"), ["extra-file"]),
    "removed": (lambda b: (b / "config.json").unlink(), ["missing-file"]),
    "renamed": (lambda b: (b / "config.json").rename(b / "configs.json"), ["renamed-file"]),
    "swapped": (lambda b: swap(b, "config.json", "README.md"), ["swapped-file", "swapped-file"]),
    "several": (
        lambda b: [(b / "README.md").unlink(), put(b, "new"), put(b, "config.json", b"[]")],
        ["missing-file", "extra-file", "changed-file"],
    ),
    "a link to the same bytes": (lambda b: linked(b, "config.json", "README.md"), ["symlink"]),
    "a dangling link": (lambda b: linked(b, "more", "/nowhere"), ["symlink"]),
    "a directory that is a link": (
        lambda b: [
            (b / "release/evidence").rename(b.parent / "e"),
            linked(b, "release/evidence", b.parent / "e"),
        ],
        ["symlink"],
    ),
    "a link for the release directory": (
        lambda b: [(b / "release").rename(b.parent / "r"), linked(b, "release", b.parent / "r")],
        ["symlink"],
    ),
    "a pipe": (lambda b: os.mkfifo(b / "pipe"), ["special-file"]),
    "a pipe for the manifest": (
        lambda b: [(b / MANIFEST).unlink(), os.mkfifo(b / MANIFEST)],
        ["special-file"],
    ),
    "a socket": (lambda b: bound(b / "s"), ["special-file"]),
    "an empty directory": (lambda b: (b / "a" / "b").mkdir(parents=True), ["empty-directory"]),
    "what the Hub adds": (
        lambda b: put(b, ".gitattributes"),
        ["name-hidden", "extra-file"],
    ),
    "a case collision": (lambda b: put(b, "readme.md"), ["name-collision", "extra-file"]),
    "a directory's case collision": (lambda b: put(b, "RELEASE/x"), ["name-collision", "extra-file"]),
    "the manifest's case collision": (
        lambda b: put(b, "release/MANIFEST.json"),
        ["name-collision", "extra-file"],
    ),
    "a wide letter": (lambda b: put(b, "config.jsoｎ"), ["name-collision", "extra-file"]),
    "a decomposed letter": (
        lambda b: put(b, unicodedata.normalize("NFD", "é")),
        ["name-not-normal", "extra-file"],
    ),
    "a newline": (lambda b: put(b, "a\nb"), ["name-invisible", "extra-file"]),
    "a right-to-left override": (lambda b: put(b, "a\u202egpj.py"), ["name-invisible", "extra-file"]),
    "a backslash": (lambda b: put(b, "..\\x"), ["name-leads-outside", "extra-file"]),
    "a drive": (lambda b: put(b, "C:x"), ["name-leads-outside", "extra-file"]),
    "a device": (lambda b: put(b, "nul.txt"), ["name-not-portable", "extra-file"]),
    "a dot at the end": (lambda b: put(b, "config.json."), ["name-not-portable", "extra-file"]),
    "a space at the end": (lambda b: put(b, "d /x"), ["name-not-portable", "extra-file"]),
    "a long name": (lambda b: put(b, "x" * 200 + "/" + "y" * 60), ["name-too-long", "extra-file"]),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), ["manifest-missing"]),
    "a manifest that is not JSON": (lambda b: put(b, MANIFEST, b"{"), ["malformed"]),
    "a deep manifest": (lambda b: put(b, MANIFEST, b"[" * 100_000), ["malformed"]),
    "a manifest of another format": (lambda b: listed(b, lambda r: r.update(format=2)), ["malformed"]),
    "a manifest that lists itself": (
        lambda b: listed(b, lambda r: r["files"].update({MANIFEST: entry()})),
        ["malformed"],
    ),
    "a size that is not a number": (
        lambda b: listed(b, lambda r: r["files"]["config.json"].update(bytes="2")),
        ["malformed"],
    ),
    "a hash that is none": (
        lambda b: listed(b, lambda r: r["files"]["config.json"].update(sha256="x" * 64)),
        ["malformed"],
    ),
    "a listed field too many": (
        lambda b: listed(b, lambda r: r["files"]["config.json"].update(mode=7)),
        ["malformed"],
    ),
    "a listed ..": (
        lambda b: listed(b, lambda r: r["files"].update({"../x": entry()})),
        ["name-leads-outside", "missing-file"],
    ),
    "a listed absolute name": (
        lambda b: listed(b, lambda r: r["files"].update({"/etc/passwd": entry()})),
        ["name-leads-outside", "missing-file"],
    ),
    "a listed NUL": (
        lambda b: listed(b, lambda r: r["files"].update({"a\0": entry()})),
        ["name-invisible", "missing-file"],
    ),
    "a listed collision": (
        lambda b: listed(b, lambda r: r["files"].update({"CONFIG.json": entry()})),
        ["name-collision", "missing-file"],
    ),
}


def put_bytes(root, name, data=b"x"):
    with open(os.path.join(root, name), "wb") as file:
        file.write(data)


WRONG["a name that is not text"] = (
    lambda b: put_bytes(os.fsencode(b), b"a\xff"),
    ["name-not-text", "extra-file"],
)


@pytest.mark.parametrize("what", WRONG)
def test_each_difference_has_its_own_refusal(bundle, what):
    change, expected = WRONG[what]
    change(bundle)
    assert codes(bundle) == expected


def test_what_cannot_be_read_is_not_written_either(bundle, monkeypatch):
    def gone(*found):
        return manifest.Refusal("unreadable-file", "gone")

    monkeypatch.setattr(manifest, "_hashed", gone)
    with pytest.raises(Refused, match="gone"):
        write(bundle, {})


def test_of_two_equal_files_the_one_that_is_left_is_not_the_other_renamed(bundle):
    put(bundle, "twin.json", b"{}")
    write(bundle, {})
    (bundle / "config.json").unlink()
    assert codes(bundle) == ["missing-file"]


def test_names_are_shown_as_they_are_only_where_nobody_could_be_fooled():
    assert [manifest.shown(name) for name in ("a b/c.d", "é", "a\x1b")] == ["a b/c.d", r"'\xe9'", r"'a\x1b'"]
    assert manifest.shown("x" * 500) == "x" * 117 + "..."


def test_messages_show_no_letter_that_could_fool(bundle):
    put(bundle, "a\u202egpj\x1b[2Jé")
    with pytest.raises(Refused) as refusal:
        check(bundle)
    assert str(refusal.value).isascii() and "\x1b" not in str(refusal.value)


def test_what_cannot_be_read_is_told_once(bundle, monkeypatch):
    opening = os.open

    def locked(path, *rest, **named):
        if str(path).endswith("config.json"):
            raise PermissionError(13, "Permission denied")
        return opening(path, *rest, **named)

    monkeypatch.setattr(os, "open", locked)
    assert codes(bundle) == ["unreadable-file"]


def test_a_directory_that_cannot_be_read_is_told_once(bundle, monkeypatch):
    scanning = os.scandir

    def locked(path):
        if str(path).endswith("candidate"):
            raise PermissionError(13, "Permission denied")
        return scanning(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert codes(bundle) == ["unreadable-file"]


def test_a_file_that_changes_while_it_is_read_is_refused(bundle, monkeypatch):
    walk = manifest._walk

    def grown(directory):
        found = walk(directory)
        put(directory, "config.json", b"{}" * 9)
        return found

    monkeypatch.setattr(manifest, "_walk", grown)
    assert codes(bundle) == ["changed-file"]


def test_a_size_that_nothing_listed_has_is_not_read(bundle):
    with open(bundle / "huge", "wb") as file:
        file.truncate(1 << 31)  # two gigabytes of nothing; an attacker would take more
    with open(bundle / "model.safetensors", "ab") as file:
        file.truncate(1 << 31)
    assert codes(bundle) == ["extra-file", "longer-file"]
    assert examine(bundle).hashes["huge"] == ""


def test_too_many_files_are_not_walked_to_the_end(bundle, monkeypatch):
    monkeypatch.setattr(manifest, "MOST_FILES", 4)
    with pytest.raises(Refused) as refusal:
        files_of(bundle)
    assert "too-many-files" in {one.code for one in refusal.value.refusals}


def test_a_very_deep_tree_is_refused_and_left(bundle):
    deep = bundle / "/".join(["d" * 50] * 20)
    deep.mkdir(parents=True)
    assert codes(bundle) == ["name-too-long"]


def test_what_may_not_be_checked_is_not_written(bundle):
    put(bundle, ".DS_Store")
    with pytest.raises(Refused, match=r"\.DS_Store: the name is hidden"):
        write(bundle, {})


def test_no_directory_is_the_persons_mistake(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        check(tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "licences/PSF-2.0.txt",
        "a b/c.d",
        "ünï/日本",
        "x" * 255,
        "console.txt",
    ],
)
def test_good_names(name):
    assert name_refused(name) is None


def test_collisions_are_found_between_directories_once_a_name():
    found = names_refused(["a/x", "A/x", "A/y", "b"])
    assert [one.code for one in found] == ["name-collision"]
