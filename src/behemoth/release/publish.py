"""A bundle goes out: into a directory or onto the Hugging Face Hub, whole or not at all, after a look at what would go.

What goes out is what was verified, not what lies there a moment later: manifest and signature must be those that were
verified, and every file is hashed again, against that manifest, while it is copied or before it is sent; on the Hub
what arrived is asked for afterwards. A directory is filled beside its place and renamed; on the Hub everything is one
commit on top of the one that the plan saw. Killed at any moment, it leaves nothing or all of it, and is begun again.

Nothing of somebody else's is touched: a directory is never written into, and a repository only if it is new or holds a
bundle already. A closed bundle goes into a private repository only. A commit that the Hub refuses can leave a new
repository without files; the next attempt uses it. The Hub adds a file of its own, .gitattributes,
and its download tool a folder .cache; a strict verifier refuses both, so whoever downloads a bundle deletes them.

Whether the bundle may go out is not asked here: the caller verifies it first. Left out: branches, pull requests, other
hubs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import publish_directory, remove_tree
from behemoth.base.logs import progress
from behemoth.bundle.dsse import parse, read_limited
from behemoth.bundle.manifest import MANIFEST, SIGNATURE, files_of
from behemoth.bundle.refusals import Refused

HUB = "hf://"
REPOSITORY = re.compile(r"hf://([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})")
BUFFER = 1 << 20
OF_THE_HUB = (".gitattributes",)  # in every repository, put there by the Hub

State = Literal["new", "same", "changed"]  # beside what is there


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str
    state: State


@dataclass(frozen=True)
class Plan:
    """What would be done. removed: files that are there and go; head: of the repository, None where there is none.

    problems: why it cannot be done; () where it can.
    """

    bundle: Path
    to: str
    name: str
    version: str
    mode: str
    demo: bool
    files: tuple[File, ...]
    there: str
    removed: tuple[str, ...] = ()
    head: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def done(self) -> bool:
        """Whether all of it is there already."""
        return not self.removed and all(file.state == "same" for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        files = [{"name": f.name, "bytes": f.bytes, "sha256": f.sha256, "state": f.state} for f in self.files]
        return {
            "bundle": str(self.bundle), "to": self.to, "name": self.name, "version": self.version, "mode": self.mode,
            "demo": self.demo, "there": self.there, "bytes": self.bytes, "files": files, "removed": [*self.removed],
            "problems": [*self.problems],
        }  # fmt: skip


def plan(bundle: Path, to: str, verified: Mapping[str, str] | None = None) -> Plan:
    """What `publish` would do, and why it could not; nothing is written. InputError: that is no bundle, or no place.

    verified: the SHA-256 of the manifest and of model.sig as they were when the bundle was verified. Every other file
    is held to the manifest.
    """
    refuse_staged(bundle)
    files, read = {}, {}
    for name in (MANIFEST, SIGNATURE):
        read[name] = read_limited(bundle / name)
        files[name] = len(read[name]), hashlib.sha256(read[name]).hexdigest()
        if verified is not None and verified[name] != files[name][1]:
            raise changed(bundle / name)
    record = dict(parse(read[MANIFEST], str(bundle / MANIFEST)))
    files |= {name: (facts["bytes"], facts["sha256"]) for name, facts in record["files"].items()}
    there = files_of(bundle)
    if strays := set(there) ^ set(files):
        code, what = ("extra-file", "not listed") if min(strays) in there else ("missing-file", "not there")
        raise Refused(code, f"{bundle / min(strays)}: {what} since it was verified; nothing was published")
    if "://" in to and not to.startswith(HUB):
        raise InputError(f"--to {to}: a directory, or hf://OWNER/NAME; nothing else is known here")
    looked = look_at_hub if to.startswith(HUB) else look_at_directory
    return looked(bundle, to, record, dict(sorted(files.items())))


def publish(bundle: Path, to: str, *, really: bool, verified: Mapping[str, str] | None = None) -> Plan:
    """Do what `plan` says, if `really`; the plan. AnswerIsNo: it cannot be done, and why."""
    planned = plan(bundle, to, verified)
    if not really:
        return planned
    if planned.problems:
        raise AnswerIsNo("\n".join(planned.problems))
    if not planned.done:
        (to_hub if to.startswith(HUB) else to_directory)(planned)
    return planned


def refuse_staged(bundle: Path) -> None:
    if (bundle / "staged.json").exists() and not (bundle / MANIFEST).exists():
        raise InputError(
            f"{bundle} is staged: publish {bundle / 'closed'}, or {bundle / 'open'} once it has been made open"
        )
    if not (bundle / MANIFEST).exists():
        raise InputError(f"{bundle} is not a bundle: it has no {MANIFEST}; behemoth release makes one")


def planned(bundle: Path, to: str, record: Mapping[str, Any], files: tuple[File, ...], **found: Any) -> Plan:
    facts = {key: record.get(key) for key in ("name", "version", "mode", "demo")}
    return Plan(bundle, to, **facts, files=files, **found)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ a directory


def look_at_directory(
    bundle: Path, to: str, record: Mapping[str, Any], files: Mapping[str, tuple[int, str]]
) -> Plan:
    place, ours = Path(to).absolute(), bundle.absolute()
    if place.is_relative_to(ours) or ours.is_relative_to(place):
        raise InputError(f"--to {to}: lies in the bundle, or the bundle in it; choose another place")
    there = os.path.lexists(place)
    same = there and place.is_dir() and is_copy(place, files)
    state: State = "same" if same else "new"
    listed = tuple(File(name, size, digest, state) for name, (size, digest) in files.items())
    told = "this very bundle is there" if same else "something else is there" if there else "nothing is there"
    problem = f"{to}: something else is there already, and nothing is ever written over; choose another place"
    return planned(bundle, to, record, listed, there=told, problems=(problem,) if there and not same else ())


def is_copy(place: Path, files: Mapping[str, tuple[int, str]]) -> bool:
    try:
        found = files_of(place)
        return set(found) == set(files) and all(
            path.stat().st_size == files[name][0] and hash_of(path) == files[name][1]
            for name, path in found.items()
        )
    except Refused:
        return False


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_directory(plan: Plan) -> None:
    """Copy beside the place, hash on the way, rename. What a killed copy left is cleared away first."""
    place = Path(plan.to).absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(place.parent):
        filling = place.with_name(f".{place.name}.publishing")
        cleared(filling)
        try:
            with progress(f"publishing to {plan.to}", total=plan.bytes, unit="B") as advance:
                for file in plan.files:
                    copy(plan.bundle, file, filling / file.name)
                    advance(file.bytes)
            publish_directory(filling, place)
        except BaseException:
            remove_tree(filling)
            raise


def cleared(place: Path) -> None:
    """Make the place to fill, anew: a link there would lead what is filled elsewhere, and be what is renamed."""
    remove_tree(place)
    if os.path.lexists(place):
        raise InputError(
            f"{place}: stands where the files are to be laid out, and is no directory; move it away"
        )
    place.mkdir()


def copy(bundle: Path, file: File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    with open(bundle / file.name, "rb") as source, open(target, "xb") as copied:
        while piece := source.read(BUFFER):
            seen.update(piece)
            copied.write(piece)
    if seen.hexdigest() != file.sha256:
        raise changed(bundle / file.name)


def changed(path: Path) -> Refused:
    return Refused("changed-file", f"{path}: changed since it was verified; nothing was published")


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Two processes that publish to one place take turns; the lock goes with the process."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------------------------- the Hub


def look_at_hub(
    bundle: Path, to: str, record: Mapping[str, Any], files: Mapping[str, tuple[int, str]]
) -> Plan:
    """What of it the repository has, by its own hashes: Git's for small files, SHA-256 for large ones."""
    name = repository(to)
    head, private, found = listing(name)
    listed = tuple(
        File(file, size, digest, state_of(bundle / file, digest, found.get(file)))
        for file, (size, digest) in files.items()
    )
    strangers = sorted(set(found) - set(files) - {*OF_THE_HUB})
    problems = []
    if strangers and MANIFEST not in found:
        problems.append(
            f"{to}: holds {strangers[0]!r} and is no bundle; a bundle replaces only an earlier one, so choose another "
            "name"
        )
    if record["mode"] != "open" and head is not None and not private:
        problems.append(
            f"{to}: is public and the bundle is {record['mode']}; make the repository private first"
        )
    kind = "private" if private else "public"
    there = (
        f"a {kind} repository at {head[:12]}" if head else "no such repository, or none that this login sees"
    )
    return planned(
        bundle, to, record, listed,
        there=there, removed=tuple(strangers), head=head, problems=tuple(problems),
    )  # fmt: skip


def state_of(path: Path, digest: str, there: str | None) -> State:
    return "new" if there is None else "same" if there in names_of(path, digest) else "changed"


def repository(to: str) -> str:
    found = REPOSITORY.fullmatch(to)
    if not found:
        raise InputError(
            f"--to {to}: a repository is named as hf://OWNER/NAME, in letters, digits, - _ and ."
        )
    return f"{found[1]}/{found[2]}"


def listing(name: str) -> tuple[str | None, bool, dict[str, str]]:
    """The repository's commit, whether it is private, and each file's hash; None where there is no such repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    with told(name):
        try:
            info = api.model_info(name)
        except RepositoryNotFoundError:
            return None, False, {}
        tree = api.list_repo_tree(name, recursive=True, revision=info.sha)
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return info.sha, bool(info.private), {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in files}


def names_of(path: Path, digest: str) -> tuple[str, str]:
    """By what the Hub may know a file: its SHA-256, or Git's SHA-1 of a blob."""
    seen = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(BUFFER):
            seen.update(piece)
    return digest, seen.hexdigest()


def to_hub(plan: Plan) -> None:
    """One commit on top of the one that the plan saw; then what arrived is held against what was to go."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    name, api, head = repository(plan.to), HfApi(), plan.head
    for file in plan.files:
        if hash_of(plan.bundle / file.name) != file.sha256:
            raise changed(plan.bundle / file.name)
    with told(name):
        if head is None:
            api.create_repo(name, private=plan.mode != "open", exist_ok=False)
            head = api.model_info(name).sha
        operations: list[Any] = [
            CommitOperationAdd(file.name, str(plan.bundle / file.name))
            for file in plan.files
            if file.state != "same"
        ]
        operations += [CommitOperationDelete(file) for file in plan.removed]
        message = f"{plan.name} {plan.version}"
        api.create_commit(name, operations, commit_message=message, parent_commit=head)
    _, _, found = listing(name)
    wrong = [
        file.name
        for file in plan.files
        if found.get(file.name) not in names_of(plan.bundle / file.name, file.sha256)
    ]
    wrong += sorted(set(found) - {file.name for file in plan.files} - {*OF_THE_HUB})
    if wrong:
        raise AnswerIsNo(
            f"{plan.to}: {wrong[0]} is not there as it was sent; take the repository down and look"
        )


@contextmanager
def told(name: str) -> Iterator[None]:
    """The Hub's refusals, and a network that is not there, in words."""
    try:
        yield
    except (
        Exception
    ) as error:  # the library raises its own, httpx's under either name, ValueError and OSError
        said = str(error).strip().partition("\n")[0]
        raise InputError(
            f"hf://{name}: the Hub did not do it ({type(error).__name__}: {said}); check the name, the network and "
            "the login (hf auth login)"
        ) from None
