"""The log of decisions: whatever is cut, changed, moved, killed or written at once is noticed or repaired."""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import DamagedError, InputError
from behemoth.bundle import journal
from behemoth.bundle.journal import START, append, head, read, up_to
from behemoth.bundle.refusals import Refused

FORK = multiprocessing.get_context("fork")
AT = "2026-01-31T12:00:00Z"


def written(path, count=4):
    for number in range(count):
        append(path, "note", {"number": number, "text": 'a "quoted" line\nand more, in Zürich'}, at=AT)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(tmp_path_factory.mktemp("log") / "log.jsonl")


@pytest.fixture
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "log.jsonl"


def test_what_is_appended_is_read_in_order_and_chained(place):
    assert read(place) == [] and head(place) == START
    made = [
        append(place, "policy", {"sha256": "f" * 64}),
        append(place, "verdict", {"verdict": "hold", "n": 1.5}),
    ]
    assert read(place) == made and head(place) == made[-1].sha256
    assert [one.number for one in made] == [1, 2]
    assert made[0].previous == START and made[1].previous == made[0].sha256
    assert len(place.read_bytes().splitlines()) == 2


def test_the_hash_is_of_everything_but_itself(place):
    append(place, "note", {"b": 1, "a": "é"}, at=AT)
    found = json.loads(place.read_text())
    own = found.pop("sha256")
    said = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(said.encode()).hexdigest() == own


def test_the_same_decisions_give_the_same_bytes(tmp_path, whole):
    assert written(tmp_path / "again.jsonl") == whole
    assert up_to(tmp_path / "again.jsonl", 2) == b"".join(whole.splitlines(keepends=True)[:2])


@settings(max_examples=150)
@given(data=st.data())
def test_any_cut_leaves_the_decisions_before_it(tmp_path_factory, whole, data):
    place = tmp_path_factory.mktemp("cut") / "log.jsonl"
    cut = data.draw(st.integers(0, len(whole)))
    zeros = data.draw(st.sampled_from([0, 1, 100]))
    place.write_bytes(whole[:cut] + b"\0" * zeros)  # zeros: what a machine that loses power can leave
    lines = whole.splitlines(keepends=True)
    kept = sum(len(b"".join(lines[: n + 1])) - 1 <= cut for n in range(len(lines)))
    assert [one.facts["number"] for one in read(place)] == list(range(kept))
    before = head(place)
    added = append(place, "note", {"number": "next"}, at=AT)
    assert added.number == kept + 1 and added.previous == before
    assert place.read_bytes() == b"".join(lines[:kept]) + added.line()


@settings(max_examples=150)
@given(data=st.data())
def test_any_changed_byte_is_noticed_and_nothing_is_added(tmp_path_factory, whole, data):
    place = tmp_path_factory.mktemp("changed") / "log.jsonl"
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
    place.write_bytes(changed)
    if (at, byte) == (len(whole) - 1, 0):  # the last line's end became zero: the entry is whole
        assert len(read(place)) == 4
        return
    with pytest.raises(DamagedError, match="entry"):
        read(place)
    with pytest.raises(DamagedError):
        append(place, "note", {})
    assert place.read_bytes() == changed


def test_the_end_of_the_last_line(place, whole):
    """Not written (a cut), zero (a cut in power), or changed: the first two are mended, the last is damage."""
    for end in (b"", b"\0", b"\0" * 99):
        place.write_bytes(whole[:-1] + end)
        assert len(read(place)) == 4
        assert place.read_bytes() == whole[:-1] + end  # reading mends nothing
        added = append(place, "note", {}, at=AT)
        assert place.read_bytes() == whole + added.line()
    for end in (b"x", b" ", b"}", b"\r"):
        place.write_bytes(whole[:-1] + end)
        with pytest.raises(DamagedError, match="does not end as it was written"):
            read(place)


@pytest.mark.parametrize("order", [[0, 2, 3], [1, 2, 3], [0, 0, 1], [1, 0, 2, 3], [0, 1, 3, 2], [3]])
def test_taken_out_put_in_twice_and_moved_is_noticed(place, whole, order):
    lines = whole.splitlines(keepends=True)
    place.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(DamagedError):
        read(place)


def test_an_entry_with_a_new_hash_breaks_the_next(place, whole):
    lines = whole.splitlines(keepends=True)
    forged = journal._entry(1, "note", AT, {"number": 0, "text": "other"}, START)
    place.write_bytes(forged.line() + b"".join(lines[1:]))
    with pytest.raises(DamagedError, match="entry 2"):
        read(place)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "party"},
        {"kind": ["note"]},
        {"at": 7},
        {"facts": [1]},
        {"number": 1.0},
        {"number": True},
        {"extra": 1},
        {"facts": {"a": float("nan")}},
    ],
    ids=str,
)
def test_an_entry_of_another_form_is_refused_whatever_its_hash(place, change):
    found = {"number": 1, "kind": "note", "at": AT, "facts": {}, "previous": START} | change
    said = json.dumps(found, sort_keys=True, separators=(",", ":"))
    found["sha256"] = hashlib.sha256(said.encode()).hexdigest()
    place.write_text(json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(DamagedError):
        read(place)


def test_facts_that_cannot_be_read_again_are_not_written(place):
    append(place, "note", {})
    before = place.read_bytes()
    deep: dict = {}
    for _ in range(200):
        deep = {"in": deep}
    for bad, error in ((deep, InputError), ({"x": float("nan")}, ValueError), ({"x": {1}}, TypeError)):
        with pytest.raises(error):
            append(place, "note", bad)
    with pytest.raises(InputError, match="party"):
        append(place, "party", {})
    assert place.read_bytes() == before


def test_a_link_or_a_pipe_is_no_log(tmp_path, whole):
    (tmp_path / "real.jsonl").write_bytes(whole)
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link.jsonl", "pipe.jsonl"):
        with pytest.raises(Refused):
            read(tmp_path / name)
    with pytest.raises(OSError):
        append(tmp_path / "link.jsonl", "note", {})
    assert (tmp_path / "real.jsonl").read_bytes() == whole


def test_a_full_disk_takes_nothing_away(place):
    """A file that may grow by 20 bytes only: the entry is taken back, and what was torn before it stays cut."""
    first = append(place, "note", {"text": "x" * 50})
    size = place.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            append(place, "note", {"text": "x" * 50})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(place)
    assert place.stat().st_size == size and read(place) == [first]


def test_four_processes_at_once_make_one_chain(place):
    workers = [FORK.Process(target=append_many, args=(place, name, 25)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    entries = read(place)
    assert len(entries) == 100
    for name in "abcd":  # each in its own order
        assert [one.facts["n"] for one in entries if one.facts["by"] == name] == list(range(25))


def append_many(place, name, count):
    for number in range(count):
        append(place, "note", {"by": name, "n": number})


@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_that_was_said_to_be_there_is_lost(place, kills):
    """Two writers that write a few bytes at a time, one killed (-9) at random; whoever comes next goes on.

    A writer says over a pipe what was appended, after it was; all of that must be there, in order, and at most one
    entry more (killed between the entry and saying so).
    """
    draw = random.Random(7)
    said = torn = 0
    for _ in range(kills):
        reader, writer = FORK.Pipe(duplex=False)
        victim = FORK.Process(target=append_slowly, args=(place, "victim", said, writer))
        other = FORK.Process(target=append_many, args=(place, "other", 2))
        victim.start()
        other.start()
        time.sleep(draw.uniform(0.002, 0.03))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        torn += place.exists() and not place.read_bytes().endswith(b"\n")
        other.join()
        assert other.exitcode == 0
        writer.close()
        try:
            while True:
                said = reader.recv() + 1
        except EOFError:
            reader.close()
        theirs = [one.facts["n"] for one in read(place) if one.facts["by"] == "victim"]
        assert theirs in (list(range(said)), list(range(said + 1)))
        said = len(theirs)
    entries = read(place)
    assert torn or kills < 100  # otherwise nothing was tested
    assert sum(one.facts["by"] == "other" for one in entries) == 2 * kills
    last = append(place, "note", {"by": "last"})
    assert read(place) == [*entries, last] and place.read_bytes().endswith(b"\n")


def append_slowly(place, name, start, told):
    class Slow:
        """A raw file that takes seven bytes at a time, so that a kill finds a line half written."""

        def __init__(self, *args, **kinds):
            self.file = open(*args, **kinds)  # noqa: SIM115

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            time.sleep(0.0002)
            return self.file.write(data[:7])

    journal.open = Slow
    for number in range(start, start + 1000):
        append(place, "note", {"by": name, "n": number})
        told.send(number)


def test_a_line_half_written_was_nobodys_decision(place):
    """A kill in the middle of a line, made certain: the next writer cuts it off."""
    append(place, "note", {"by": "x", "n": 0})
    before = place.read_bytes()
    _, writer = FORK.Pipe(duplex=False)
    victim = FORK.Process(target=append_slowly, args=(place, "victim", 0, writer))
    victim.start()
    while place.stat().st_size < len(before) + 20:
        time.sleep(0.0005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    whole_lines = place.read_bytes().count(b"\n")
    assert len(read(place)) == whole_lines
    assert append(place, "note", {"by": "y"}).number == whole_lines + 1
    assert place.read_bytes().startswith(before)
