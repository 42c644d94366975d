"""What this machine has seen of each lab: its root and the highest version of its trust file.

A signature alone cannot tell an old trust file from the newest. So the newest one seen is remembered, by the lab's
name, in $XDG_STATE_HOME/behemoth (else ~/.local/state), and an older file is refused from then on, as is one under
another root, unless the known root handed over to it. The first file of a lab is believed; whoever can write to that
directory can make this machine forget.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from behemoth.base.errors import InputError
from behemoth.base.files import write_atomic
from behemoth.bundle.dsse import Envelope, canonical, exactly, parse, read_limited
from behemoth.bundle.keys import PublicKey
from behemoth.bundle.refusals import Refused

MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Seen:
    """sha256: of the trust file's signed bytes."""

    lab: str
    version: int
    sha256: str
    root: Sequence[PublicKey]


def held(given: Seen, signed: Envelope, handovers: Sequence[Envelope], path: Path, *, keep: bool) -> bool:
    """Hold a trust file against the newest of its lab, and remember it where it is newer and to be kept.

    Whether it is remembered now: a home that cannot be written to (OSError) remembers nothing. Refused: root-changed,
    trust-rolled-back, trust-forked.
    """
    place = memory() / (hashlib.sha256(given.lab.encode()).hexdigest()[:32] + ".json")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.parent):
            known = _recalled(place)
            if known:
                _follows(known, given, signed, handovers, path, place)
            if keep and (known is None or given.version > known.version):
                root = {one.id: one.pem for one in given.root}
                facts = {"lab": given.lab, "version": given.version, "sha256": given.sha256, "root": root}
                write_atomic(place, canonical(facts) + b"\n")
    except OSError:
        return False
    return keep


def memory() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "behemoth" / "trust"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time changes what lies in `directory`."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing does not let go while a forked child has a copy
        os.close(handle)


def _recalled(place: Path) -> Seen | None:
    if not place.exists():
        return None
    try:
        known = parse(read_limited(place, MOST_BYTES), str(place))
        exactly(known, {"lab", "version", "sha256", "root"}, str(place))
        root = known["root"]
        if (
            type(known["version"]) is not int
            or not isinstance(root, dict)
            or not all(isinstance(pem, str) for pem in root.values())
        ):
            raise Refused("malformed", f"{place}: a field is not of its kind")
        return Seen(
            known["lab"], known["version"], known["sha256"], [PublicKey(pem) for pem in root.values()]
        )
    except Refused as error:
        raise InputError(
            f"{error}; it keeps which trust files were seen here: delete it to start anew"
        ) from None


def _follows(
    known: Seen, given: Seen, signed: Envelope, handovers: Sequence[Envelope], path: Path, place: Path
) -> None:
    roots = known.root
    for one in handovers:
        if any(one.signed_by(root) for root in roots):
            said: Mapping[str, Mapping[str, str]] = parse(one.payload, str(path))
            roots = [PublicKey(pem) for pem in said["root"].values()]
    if not any(signed.signed_by(root) for root in roots):
        raise Refused(
            "root-changed",
            f"{path}: signed by another root than the one known here as {given.lab}, which did not hand over to it; "
            f"if this is another lab of that name, delete {place}",
        )
    if given.version < known.version:
        raise Refused(
            "trust-rolled-back",
            f"{path}: version {given.version} of {given.lab}, but version {known.version} was seen here; "
            "use the newer file, which may revoke keys of this one",
        )
    if given.version == known.version and given.sha256 != known.sha256:
        raise Refused(
            "trust-forked",
            f"{path}: another version {known.version} of {given.lab} was seen here; ask the lab",
        )
