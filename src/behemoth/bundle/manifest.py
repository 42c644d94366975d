"""Every file of a bundle by name, size and SHA-256, and a check that nothing else is there.

    release/manifest.json    {"format": 1, ...facts, "files": {NAME: {"bytes", "sha256"}}}: all but itself and model.sig

A directory is believed when the set of its files is exactly the set that is listed, byte for byte. What other
verifiers let pass is refused here: links, hidden files, empty directories, names that mean something else on another
system (case, Unicode forms, what Windows reserves) or lead outside. So every name means one file wherever the bundle
is unpacked. All that is wrong is told at once (`Refused.refusals`).

Each file is read once, on as many threads as there are cores: hashlib lets go of the interpreter while it hashes. What
the size alone disproves is not read. Not covered: modes, times, owners and extended attributes, and a directory that
somebody changes while it is checked.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.files import write_json
from behemoth.bundle.dsse import SHA256, parse, read_limited
from behemoth.bundle.refusals import Refusal, Refused, refused

MANIFEST, SIGNATURE = "release/manifest.json", "model.sig"
FORMAT = 1
MOST_FILES, MOST_NAME_BYTES = 100_000, 255
BUFFER = 1 << 20
RESERVED = frozenset('<>:"|?*')
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10)),
}


@dataclass(frozen=True)
class Examined:
    """What `examine` found. record: the manifest, {} where there is none to read. hashes: every file but model.sig,
    the manifest too; "" for one that its size ruled out unread."""

    record: dict[str, Any]
    hashes: dict[str, str]
    refusals: list[Refusal]


def files_of(directory: Path, *, leave_out: Collection[str] = ()) -> dict[str, Path]:
    """The files under `directory` by name (relative, with slashes), sorted; `leave_out` are looked at, not returned.

    Refused, with everything that may not stand in a bundle. InputError: there is no such directory.
    """
    files, refusals, _ = _walk(directory)
    refusals += names_refused(files)
    if refusals:
        raise refused(refusals)
    return {name: path for name, (path, _) in files.items() if name not in leave_out}


def write(directory: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write release/manifest.json over the files as they are; the record. Refused: see `files_of`."""
    assert not {"format", "files"} & set(facts), facts
    files = files_of(directory, leave_out=(MANIFEST, SIGNATURE))
    sizes = {name: path.stat().st_size for name, path in files.items()}
    digests = hash_files({name: (path, sizes[name]) for name, path in files.items()})
    listed = {name: {"bytes": sizes[name], "sha256": digests[name]} for name in files}
    record = {"format": FORMAT, **facts, "files": listed}
    write_json(directory / MANIFEST, record)
    return record


def hashes(directory: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of every file but model.sig, from the record that was just written: what is signed."""
    own = hashlib.sha256(read_limited(directory / MANIFEST)).hexdigest()
    return {MANIFEST: own} | {name: facts["sha256"] for name, facts in record["files"].items()}


def check(directory: Path) -> dict[str, Any]:
    """The manifest's record, when the files are exactly those it lists. Refused, with all that is wrong."""
    found = examine(directory)
    if found.refusals:
        raise refused(found.refusals)
    return found.record


def examine(directory: Path) -> Examined:
    """As `check`, for whoever goes on after a refusal: what was read is not read again."""
    files, refusals, bad = _walk(directory)
    record: dict[str, Any] = {}
    digests: dict[str, str] = {}
    listed: dict[str, Any] = {}
    if MANIFEST in files:
        try:
            data = read_limited(files[MANIFEST][0])
            digests[MANIFEST] = hashlib.sha256(data).hexdigest()
            record = _record(parse(data, MANIFEST))
            listed = record["files"]
        except Refused as error:
            refusals += error.refusals
    elif not _explained(MANIFEST, bad):
        refusals.append(
            Refusal("manifest-missing", f"{MANIFEST}: not there, so nothing says what belongs here")
        )
    refusals += names_refused({*files, *listed})
    files = {name: file for name, file in files.items() if name not in (MANIFEST, SIGNATURE)}
    sizes = {entry["bytes"] for entry in listed.values()}
    wanted = {name: file for name, file in files.items() if not record or file[1] in sizes}
    read = hash_files(wanted, refusals)
    bad |= set(wanted) - set(read)
    digests |= dict.fromkeys(files, "") | read
    if record:
        refusals += _compare(listed, {name: size for name, (_, size) in files.items()}, digests, bad)
    return Examined(record, dict(sorted(digests.items())), refusals)


def hash_files(
    files: Mapping[str, tuple[Path, int]], refusals: list[Refusal] | None = None
) -> dict[str, str]:
    """Hex SHA-256 of each (path, size), the largest first. What cannot be read is Refused, or told in `refusals`."""
    names = sorted(files, key=lambda name: -files[name][1])
    with ThreadPoolExecutor(_cores()) as pool:
        found = dict(zip(names, pool.map(lambda name: _hashed(name, *files[name]), names), strict=True))
    wrong = [answer for answer in found.values() if isinstance(answer, Refusal)]
    if wrong and refusals is None:
        raise refused(wrong)
    if refusals is not None:
        refusals += wrong
    return {name: answer for name, answer in found.items() if isinstance(answer, str)}


def shown(name: str) -> str:
    """A name as it may stand in a message: what could fool a terminal or an eye is written as its number."""
    text = name if name.isascii() and name.isprintable() else ascii(name)
    return text if len(text) <= 120 else text[:117] + "..."


# ------------------------------------------------------------------------------------------------------ names


def names_refused(names: Iterable[str]) -> list[Refusal]:
    """What is wrong with each name, and which of them are one name where case or Unicode forms do not count."""
    said: dict[tuple[str, str], Refusal] = {}
    first: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.encode(errors="surrogatepass")):
        if problem := name_refused(name):
            said[name, ""] = problem
        parts = name.split("/")
        for count in range(1, len(parts) + 1):  # two directories can collide too
            path = "/".join(parts[:count])
            other = first.setdefault(_folded(path), path)
            if other != path:
                both = f"{shown(other)} and {shown(path)} are one name on some systems"
                said[other, path] = Refusal("name-collision", both)
                break
    return list(said.values())


def name_refused(name: str) -> Refusal | None:
    """Why a name may not stand in a bundle, or None."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return Refusal("name-not-text", f"{shown(name)}: the name is not UTF-8")
    parts = name.split("/")
    said = None
    if "\\" in name or any(part in ("", ".", "..") for part in parts) or name[1:2] == ":":
        said = "name-leads-outside", "absolute, or with .., a backslash or an empty part"
    elif any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for letter in name):
        said = "name-invisible", "with control characters, or ones that are not seen"
    elif any(part.startswith(".") for part in parts):
        said = (
            "name-hidden",
            "hidden; hubs, git and file managers leave such files: delete it and check again",
        )
    elif RESERVED & set(name) or any(_reserved(part) for part in parts):
        said = (
            "name-not-portable",
            'not a name on every system: no <>:"|?*, no dot or space at the end, no device',
        )
    elif unicodedata.normalize("NFC", name) != name:
        said = "name-not-normal", "not in Unicode's normal form C"
    elif size > MOST_NAME_BYTES:
        said = "name-too-long", f"{size} bytes, where {MOST_NAME_BYTES} is the most"
    return Refusal(said[0], f"{shown(name)}: the name is {said[1]}") if said else None


def _reserved(part: str) -> bool:
    return part.endswith((".", " ")) or part.split(".")[0].strip().casefold() in DEVICES


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


# ------------------------------------------------------------------------------------------------------ files


def _walk(directory: Path) -> tuple[dict[str, tuple[Path, int]], list[Refusal], set[str]]:
    """Each plain file with its size, sorted; what may not be there; and the names of that."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give the one that holds {MANIFEST}")
    files: dict[str, tuple[Path, int]] = {}
    said: dict[str, Refusal] = {}
    places = [("", directory)]
    while places:
        prefix, place = places.pop()
        try:
            with os.scandir(place) as entries:
                inside = list(entries)
            if not inside:
                said[prefix] = Refusal("empty-directory", f"{shown(prefix)}: empty, and so in no manifest")
            for entry in inside:
                name, mode = prefix + entry.name, entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(mode.st_mode):
                    said[name] = Refusal("symlink", f"{shown(name)}: a link; a bundle has plain files only")
                elif stat.S_ISDIR(mode.st_mode):
                    if len(os.fsencode(name)) > MOST_NAME_BYTES:
                        said[name] = Refusal(
                            "name-too-long", f"{shown(name)}/: the name is too long to look inside"
                        )
                    else:
                        places.append((f"{name}/", Path(entry.path)))
                elif not stat.S_ISREG(mode.st_mode):
                    said[name] = Refusal("special-file", f"{shown(name)}: a pipe, a socket or a device")
                else:
                    files[name] = Path(entry.path), mode.st_size
        except OSError as error:
            said[prefix.rstrip("/")] = Refusal(
                "unreadable-file", f"{shown(prefix)}: cannot be read ({error.strerror})"
            )
        if len(files) + len(places) + len(said) > MOST_FILES:
            said[""] = Refusal("too-many-files", f"more than {MOST_FILES:,} files; no bundle has so many")
            break
    ordered = {name: files[name] for name in sorted(files, key=os.fsencode)}
    return ordered, [said[name] for name in sorted(said, key=os.fsencode)], set(said)


def _record(value: Any) -> dict[str, Any]:
    """The manifest that a parsed JSON value is. Refused "malformed"."""
    if (
        not isinstance(value, dict)
        or value.get("format") != FORMAT
        or not isinstance(value.get("files"), dict)
    ):
        raise Refused("malformed", f'{MANIFEST}: has to have "format": {FORMAT} and "files"')
    for name, entry in value["files"].items():
        good = (
            isinstance(entry, dict)
            and set(entry) == {"bytes", "sha256"}
            and type(entry["bytes"]) is int
            and entry["bytes"] >= 0
            and isinstance(entry["sha256"], str)
            and SHA256.fullmatch(entry["sha256"])
            and name not in (MANIFEST, SIGNATURE)
        )
        if not good:
            raise Refused("malformed", f"{MANIFEST}: {shown(name)} is not listed by bytes and sha256")
    return value


def _compare(
    listed: Mapping[str, Any], sizes: Mapping[str, int], hashes: Mapping[str, str], bad: Collection[str]
) -> list[Refusal]:
    """Every difference between the manifest and what is there; `bad` is refused for what it is already."""
    said = []
    by_hash = {entry["sha256"]: name for name, entry in listed.items()}
    extra = {hashes[name]: name for name in sizes if name not in listed and hashes[name]}
    renamed = set()
    for name, entry in listed.items():
        if name not in sizes:
            if (now := extra.get(entry["sha256"])) is not None:
                renamed.add(now)
                said.append(Refusal("renamed-file", f"{shown(name)}: is there as {shown(now)}"))
            elif not _explained(name, bad):
                said.append(Refusal("missing-file", f"{shown(name)}: listed, and not there"))
        elif name not in bad and (hashes[name], sizes[name]) != (entry["sha256"], entry["bytes"]):
            said.append(_differs(name, entry, sizes[name], by_hash.get(hashes[name])))
    for name in sizes:
        if name not in listed and name not in renamed:
            said.append(Refusal("extra-file", f"{shown(name)}: there, and not listed"))
    return said


def _explained(name: str, bad: Collection[str]) -> bool:
    """Whether it is known already why this file is not there: it, or a directory above it, was refused."""
    return any(str(path) in bad for path in (PurePosixPath(name), *PurePosixPath(name).parents))


def _differs(name: str, entry: Mapping[str, Any], size: int, other: str | None) -> Refusal:
    if other is not None and other != name:
        return Refusal("swapped-file", f"{shown(name)}: holds what is listed as {shown(other)}")
    if size != entry["bytes"]:
        code = "cut-file" if size < entry["bytes"] else "longer-file"
        return Refusal(code, f"{shown(name)}: {size:,} bytes where {entry['bytes']:,} are listed")
    return Refusal("changed-file", f"{shown(name)}: not the bytes that are listed (SHA-256)")


def _hashed(name: str, path: Path, size: int) -> str | Refusal:
    """The hash of a plain file that has this size still; a link that took its place is not followed."""
    seen, buffer, count = hashlib.sha256(), bytearray(BUFFER), 0
    view = memoryview(buffer)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return Refusal("special-file", f"{shown(name)}: a pipe, a socket or a device")
            while count <= size and (read := file.readinto(buffer)):
                seen.update(view[:read])
                count += read
    except OSError as error:
        return Refusal("unreadable-file", f"{shown(name)}: cannot be read ({error.strerror})")
    if count != size:
        return Refusal("changed-file", f"{shown(name)}: changed while it was read")
    return seen.hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
