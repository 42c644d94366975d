"""An append-only log of decisions: one line of canonical JSON for each, chained by hash.

Every entry carries the hash of the one before it and its own, so no entry can be changed, taken out, put in or moved
without every later hash being wrong. What the chain alone cannot show is that its end was cut off between two lines:
for that, a statement signed later carries the `head` (the verdict and the bundle do). Order is what the log proves;
the times in it are claims of the machine's clock.

A writer can be killed at any moment. An entry is there when its last brace is; the beginning of a line that a killed
writer left is nobody's decision, and the next writer cuts it off. Anything else that is not as it was written is
damage, and stops reading and writing alike. Writers take turns by a lock (flock) on the file itself, so the file is
never renamed or replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import fsync_path
from behemoth.bundle.dsse import canonical, parse, read_limited
from behemoth.bundle.refusals import Refused

KINDS = ("policy", "evidence", "verdict", "approval", "release", "void", "note")
START = "0" * 64  # what the first entry follows
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One decision. at: UTC by the writer's clock. previous, sha256: of the entry before, and of this one."""

    number: int
    kind: str
    at: str
    facts: Mapping[str, Any]
    previous: str
    sha256: str

    def line(self) -> bytes:
        return canonical({**_content(self), "sha256": self.sha256}) + b"\n"


def append(path: Path, kind: str, facts: Mapping[str, Any], *, at: str | None = None) -> Entry:
    """Add an entry, on the disk when this returns. DamagedError: the log is not as it was written; nothing is added.

    OSError: the disk refuses, and nothing of the entry stays.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r} is not a kind of entry; there are {', '.join(KINDS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(handle, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            entry = _added(file, path, kind, facts, at)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing does not let go while a forked child has a copy
    fsync_path(path.parent)
    return entry


def read(path: Path) -> list[Entry]:
    """Every entry; [] where there is no log. DamagedError: it is not as it was written. Refused: not a plain file."""
    if not os.path.lexists(path):
        return []
    return _entries(read_limited(path, MOST_BYTES), path)[0]


def head(path: Path) -> str:
    """The hash of the last entry, which stands for all of them."""
    entries = read(path)
    return entries[-1].sha256 if entries else START


def up_to(path: Path, number: int) -> bytes:
    """The bytes of the first `number` entries: a log of its own."""
    return b"".join(entry.line() for entry in read(path)[:number])


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _added(file: FileIO, path: Path, kind: str, facts: Mapping[str, Any], at: str | None) -> Entry:
    """The new entry, after the last whole one and on the disk."""
    data = file.read(MOST_BYTES + 1)
    entries, end = _entries(data, path)
    entry = _entry(len(entries) + 1, kind, at or now(), facts, entries[-1].sha256 if entries else START)
    rest = entry.line()
    if _follows(rest[:-1], entries) is None or end + len(rest) > MOST_BYTES:
        raise InputError(
            f"{path}: these facts make no entry that can be read again; keep them small and flat"
        )
    if end and not data[:end].endswith(b"\n"):  # the last entry is whole but for the end of its line
        rest = b"\n" + rest
    file.truncate(end)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError as error:
        file.truncate(end)
        error.filename = str(path)
        raise
    return entry


def _content(entry: Entry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "kind": entry.kind,
        "at": entry.at,
        "facts": entry.facts,
        "previous": entry.previous,
    }


def _entry(number: int, kind: str, at: str, facts: Mapping[str, Any], previous: str) -> Entry:
    entry = Entry(number, kind, at, facts, previous, "")
    return Entry(number, kind, at, facts, previous, hashlib.sha256(canonical(_content(entry))).hexdigest())


def _entries(data: bytes, path: Path) -> tuple[list[Entry], int]:
    """Every entry, and where the last of them ends in the bytes; what comes after is the start of a line."""
    if len(data) > MOST_BYTES:
        raise DamagedError(path, f"larger than {MOST_BYTES:,} bytes; a log of decisions is not")
    *lines, tail = data.split(b"\n")
    entries: list[Entry] = []
    end = 0
    for line in lines:
        entry = _follows(line, entries)
        if entry is None:
            raise DamagedError(path, f"entry {len(entries) + 1} is not as it was written; its hash is broken")
        entries.append(entry)
        end += len(line) + 1
    tail = tail.rstrip(b"\0")  # a machine that loses power can leave zeros where the rest of a line belongs
    last = _follows(tail, entries)
    if last:
        return [*entries, last], end + len(tail)
    if _follows(tail[:-1], entries):  # whole, and then not the end of a line: no cut leaves that
        raise DamagedError(path, f"the line of entry {len(entries) + 1} does not end as it was written")
    return entries, end


def _follows(line: bytes, entries: list[Entry]) -> Entry | None:
    """The entry that `line` is, or None where it is not the next one, byte for byte."""
    if not line.endswith(b"}"):
        return None
    try:
        found = parse(line, "the log")
        entry = _entry(
            len(entries) + 1,
            found["kind"],
            found["at"],
            found["facts"],
            entries[-1].sha256 if entries else START,
        )
    except (Refused, KeyError, TypeError):
        return None
    whole = entry.kind in KINDS and isinstance(entry.at, str) and isinstance(entry.facts, dict)
    return entry if whole and entry.line() == line + b"\n" else None
