"""`behemoth trust init | show | rotate | revoke`: a lab's directory of keys and its trust file.

    DIR/trust.json       who may sign what; this is what the lab publishes, under a link that stays
    DIR/keys/ada.pem     a private key for each person, encrypted; each person takes theirs
    DIR/keys/root.pem    what signs trust.json; moved offline, and brought back for a change

Every change makes a new version, signed by root. A change is made by one process at a time, and trust.json is the old
or the new whole file; a key that a killed command left unused is taken by the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from behemoth.base.config import nearest
from behemoth.base.errors import InputError
from behemoth.base.logs import say, table
from behemoth.bundle.dsse import SHA256
from behemoth.bundle.journal import now
from behemoth.bundle.keys import (
    PrivateKey,
    generate,
    passphrase_for,
    read_private,
    refuse_place,
    write_private,
)
from behemoth.bundle.seen import locked
from behemoth.bundle.trust import (
    FILE,
    KEYS,
    ROLES,
    TIME,
    VERSION,
    Newcomer,
    Trust,
    TrustedKey,
    found_lab,
    handover,
    is_name,
    is_text,
    is_time,
    make_demo,
    order,
    read_trust,
    spelling,
    write_trust,
)

OFFLINE = "move {root} to a place without a network (a stick in a safe): whoever has it decides who may sign"
SHORTEST_ID = 8  # characters of a key id that name it


def init(
    directory: Path, lab: str, people: list[str], demo: bool, as_json: bool, expires: str | None = None
) -> None:
    """Make the keys of a new lab and sign its first trust file. expires: a day, such as 2027-12-31; each later version
    of the file runs as long as the first."""
    refuse_place(directory / KEYS)
    if demo:
        if lab or people or expires:
            raise InputError("--demo makes demo people of its own; leave out --lab, --person and --expires")
        trust = read_trust(make_demo(directory))
        _tell(directory, trust, "demo keys, passphrase `demo`: what they sign proves nothing", as_json)
        return
    if not is_name(lab):
        raise InputError(f"a lab needs a short printable name: --lab NAME, not {lab!r}")
    parsed = [_person(text) for text in people]
    if not parsed:
        raise InputError("a lab needs people: --person Ada=builder --person Bo=approver")
    if directory.exists():
        raise InputError(f"{directory} already exists; a lab's keys are never overwritten")
    end = expires and _end(expires)
    newcomers = _newcomers(directory, parsed)
    root = directory / KEYS / "root.pem"
    trust = found_lab(directory, lab, newcomers, passphrase_for(root, new=True), expires=end)
    vacant = [role for role in ROLES if not any(role in roles for _, roles in parsed)]
    if vacant:
        say(f"nobody is {' or '.join(vacant)}; a policy that asks for one cannot be met")
    _tell(directory, trust, OFFLINE.format(root=root), as_json)


def show(trust: Path, as_json: bool) -> None:
    """Who may sign what, what was revoked and withdrawn."""
    found = read_trust(trust)
    if as_json:
        print(json.dumps(_as_json(found)))
        return
    until = f", until {found.expires}" if found.expires else ""
    demo = ", DEMO KEYS: proves nothing" if found.demo else ""
    print(f"{found.lab}, version {found.version} of {found.issued}{until}{demo}")
    rows = [
        [key.name, " and ".join(key.roles) or "root", keyid[:16], _state(key)]
        for keyid, key in found.keys.items()
    ]
    table("keys", ["name", "role", "key", ""], sorted(rows))
    for bundle, reason in found.withdrawn.items():
        print(f"withdrawn: bundle {bundle}: {reason}")
    for model, version in found.minimum.items():
        print(f"{model}: version {version} and later only")


def rotate(directory: Path, name: str | None, as_json: bool) -> None:
    """A new key for a person, or with None for the root; the earlier key counts for what it signed before."""
    with locked(_lab(directory)):
        trust, root = _opened(directory)
        if name is None:
            path = directory / KEYS / _root_file(len(trust.handovers) + 1)
            new = _new_key(path, trust)
            assert new is not None, path
            old = directory / KEYS / _root_file(len(trust.handovers))
            changed = handover(trust, root, new.public)
            root = new
            note = f"{OFFLINE.format(root=path)}; destroy {old}"
        else:
            changed, path = _rotated(directory, trust, name)
            note = f"{name} signs with {path} from now on, and destroys the earlier key; if it was stolen, revoke it"
        changed = write_trust(directory / FILE, changed, root)
    _tell(directory, changed, note, as_json)


def revoke(directory: Path, what: str, reason: str, as_json: bool) -> None:
    """Take back a person's keys, one key, or a bundle by its SHA-256; "MODEL<2" takes back every version below 2."""
    reason = " ".join(reason.split())
    if not is_text(reason):
        raise InputError("say why with --reason, in up to 500 characters: it is what a refused person reads")
    with locked(_lab(directory)):
        trust, root = _opened(directory)
        changed, note = _revoked(trust, what, reason)
        changed = write_trust(directory / FILE, changed, root)
    _tell(directory, changed, note, as_json)


def _revoked(trust: Trust, what: str, reason: str) -> tuple[Trust, str]:
    found = [
        keyid
        for keyid, key in trust.keys.items()
        if spelling(key.name) == spelling(what)
        or (len(what) >= SHORTEST_ID and keyid.startswith(what.lower()))
    ]
    if set(found) & set(trust.root):
        raise InputError("the root key is not revoked but replaced: `behemoth trust rotate DIR`")
    if found:
        if len({trust.keys[keyid].name for keyid in found}) > 1:
            raise InputError(f"{what} begins the ids of {len(found)} keys; give more of it")
        gone = {"version": trust.version, "reason": reason}
        keys = {
            keyid: replace(key, revoked=gone) if keyid in found and not key.revoked else key
            for keyid, key in trust.keys.items()
        }
        if keys == trust.keys:
            raise InputError(f"{what} is revoked already; nothing was changed")
        return replace(trust, keys=keys), f"nothing that {trust.keys[found[0]].name} signed counts any more"
    model, below, version = what.rpartition("<")
    if below and is_name(model.strip()) and VERSION.fullmatch(version.strip()):
        return _raised(trust, model.strip(), version.strip())
    if SHA256.fullmatch(what.lower()):
        withdrawn = {**trust.withdrawn, what.lower(): reason}
        note = f"the bundle whose manifest has SHA-256 {what.lower()[:16]}... is refused"
        note += " (behemoth release prints it)"
        return replace(trust, withdrawn=withdrawn), note
    names = sorted({key.name for keyid, key in trust.keys.items() if keyid not in trust.root})
    raise InputError(
        f"{what} is no person, key id, SHA-256 of a bundle or MODEL<VERSION{nearest(what, names)}"
    )


def _raised(trust: Trust, model: str, version: str) -> tuple[Trust, str]:
    """No version of the model below `version` counts. What the lab released stands nowhere here, so that a name which
    is nobody's cannot be refused: it is told what the word matches."""
    least = trust.least(model)
    if least is not None and order(version) <= order(least):
        raise InputError(f"{model} is refused below {least} already; nothing was changed")
    others = {name: each for name, each in trust.minimum.items() if spelling(name) != spelling(model)}
    note = f"{model} below {version} is refused: every bundle whose first line in behemoth verify has this name, "
    note += "in upper or lower case"
    if least is None:
        known = nearest(model, sorted(others)) if others else ""
        note += f"\nfirst word on this model, and a misspelt name takes nothing back: compare it{known}"
    if not all(model.partition("-")[::2]):
        note += f"\n{model} is no name that behemoth gives: those are RUN-MEMBER, such as {model}-student"
    return replace(trust, minimum={**others, model: version}), note


def _rotated(directory: Path, trust: Trust, name: str) -> tuple[Trust, Path]:
    theirs = {
        keyid: key
        for keyid, key in trust.keys.items()
        if keyid not in trust.root and spelling(key.name) == spelling(name)
    }
    if not theirs:
        names = sorted({key.name for key in trust.keys.values() if key.roles})
        raise InputError(f"{name} has no key in {directory / FILE}{nearest(name, names)}")
    active = [key for key in theirs.values() if not key.revoked and not key.retired]
    active = active or [max(theirs.values(), key=lambda key: (key.retired or key.revoked or {})["version"])]
    roles = tuple(role for role in ROLES if any(role in key.roles for key in active))
    named = active[0].name
    number = len(theirs) + 1
    while (new := _new_key(path := directory / KEYS / f"{_slug(named)}-{number}.pem", trust)) is None:
        number += 1
    gone = {"version": trust.version, "reason": "replaced"}
    keys = {
        keyid: replace(key, retired=gone) if keyid in theirs and not key.retired else key
        for keyid, key in trust.keys.items()
    }
    return replace(trust, keys={**keys, new.public.id: TrustedKey(new.public, named, roles)}), path


def _new_key(path: Path, trust: Trust) -> PrivateKey | None:
    """A key written to `path`, or the one that a killed command left there; None where it is somebody's."""
    if path.exists():
        left = read_private(path)
        return None if left.public.id in trust.keys else left
    key = generate()
    write_private(path, key, passphrase_for(path, new=True))
    return key


def _lab(directory: Path) -> Path:
    if not (directory / FILE).is_file():
        raise InputError(f"{directory} has no {FILE}; give the directory that `behemoth trust init` made")
    return directory


def _opened(directory: Path) -> tuple[Trust, PrivateKey]:
    """The next version, still as the last one says, and the key that signs it. An expired file may be renewed."""
    trust = read_trust(directory / FILE, at="")
    path = directory / KEYS / _root_file(len(trust.handovers))
    if not path.exists():
        raise InputError(
            f"{path} is not there: bring the root key back for this change, and away again after it"
        )
    root = read_private(path)
    if root.public.id not in trust.root:
        raise InputError(
            f"{path} is not the root key of {trust.lab}, version {trust.version}; bring that one"
        )
    issued = now()
    expires = trust.expires and _later(issued, _seconds(trust.expires) - _seconds(trust.issued))
    return replace(trust, version=trust.version + 1, issued=issued, expires=expires), root


def _root_file(handovers: int) -> str:
    return f"root-{handovers + 1}.pem" if handovers else "root.pem"


def _person(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, given = text.partition("=")
    roles = [role.strip() for role in given.split(",")]
    if not equals or not is_name(name.strip()):
        raise InputError(f"--person {text}: write it as NAME=ROLE, for example Ada=builder")
    for role in roles:
        if role not in ROLES:
            raise InputError(f"--person {text}: no role {role!r}{nearest(role, ROLES)}")
    return name.strip(), tuple(role for role in ROLES if role in roles)


def _newcomers(directory: Path, people: Sequence[tuple[str, tuple[str, ...]]]) -> list[Newcomer]:
    files: dict[str, str] = {}
    for name, _ in people:
        slug = _slug(name)
        if not slug or re.fullmatch(r"root(-\d+)?", slug):
            raise InputError(
                f"--person {name}: a key file cannot be called {slug or 'nothing'}; give another name"
            )
        if slug in files:
            raise InputError(
                f"--person {name}: {files[slug]} would have the same key file; give each another name"
            )
        files[slug] = name
    return [
        Newcomer(name, roles, f"{slug}.pem", passphrase_for(directory / KEYS / f"{slug}.pem", new=True))
        for (name, roles), slug in zip(people, files, strict=True)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[\W_]+", "-", spelling(name))[:40].strip("-")


def _end(day: str) -> str:
    end = f"{day}T00:00:00Z"
    if not is_time(end) or end <= now():
        raise InputError(f"--expires {day}: give a day to come, such as 2027-12-31")
    return end


def _seconds(time: str) -> float:
    assert TIME.fullmatch(time), time
    return datetime.fromisoformat(time).timestamp()


def _later(time: str, seconds: float) -> str:
    return datetime.fromtimestamp(_seconds(time) + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _state(key: TrustedKey) -> str:
    if key.revoked:
        return f"revoked in version {key.revoked['version']}: {key.revoked['reason']}"
    if key.retired:
        return f"replaced in version {key.retired['version']}; counts for what came before"
    return ""


def _as_json(trust: Trust) -> dict[str, Any]:
    return json.loads(trust.payload()) | {"sha256": trust.sha256}


def _tell(directory: Path, trust: Trust, note: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(directory / FILE), "note": note, **_as_json(trust)}))
        return
    print(f"{directory / FILE}: version {trust.version} of {trust.lab}; publish this file, and only this one")
    print(note)
