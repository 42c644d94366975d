"""Files that are either whole or absent.

A file is written beside its final name, flushed to the disk and renamed; a directory likewise, as a whole. A
directory can carry a manifest (`MANIFEST.json`: size and SHA-256 of every file), because nothing underneath
notices a flipped bit: safetensors, numpy and the file system all load it silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from behemoth.base.errors import DamagedError, InputError

MANIFEST = "MANIFEST.json"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expanded(path: str) -> Path:
    """A path that a person wrote: `~` and environment variables filled in. InputError: nobody is called so."""
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}; write the whole path") from None


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write the whole file or nothing: a temporary file, flushed, then renamed over `path`.

    OSError, naming `path`, when the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # a write that finds the disk full does not say where
        raise
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or broken one is an InputError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedError(path, f"not valid JSON ({error})") from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file of our own, up to the first line that is not whole.

    A process that dies while it writes, or a machine that loses power, leaves a last line cut anywhere (within a
    character too), or zeros in its place.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line.decode()) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(record, dict):
                return
            yield record


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add a line, or nothing: what was written of it is taken back when the disk refuses the rest (OSError)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def publish_directory(temporary: Path, final: Path) -> None:
    """Make `temporary` appear at `final` in one step, after every byte of it has reached the disk."""
    if final.exists():
        raise InputError(f"{final} already exists; a published directory is never overwritten")
    for path in sorted(temporary.rglob("*")):
        fsync_path(path)
    fsync_path(temporary)
    os.rename(temporary, final)
    fsync_path(final.parent)


def write_manifest(directory: Path, **extra: Any) -> dict[str, Any]:
    """List every file of `directory` with size and SHA-256 in its MANIFEST.json, and return that record."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    record = {**extra, "files": files}
    record["sha256"] = _digest(record)
    write_json(directory / MANIFEST, record)
    return record


def verify_manifest(directory: Path, part: str = "") -> dict[str, Any]:
    """Read MANIFEST.json and check every file against it; DamagedError names the first file that differs.

    part: a subdirectory, to which the check is confined.
    """
    manifest = directory / MANIFEST
    if not manifest.exists():
        raise DamagedError(manifest, "missing, so this directory was never finished")
    record = read_json(manifest)
    if not isinstance(record, dict) or "files" not in record or record.get("sha256") != _digest(record):
        raise DamagedError(manifest, "altered after it was written")
    files = {name: facts for name, facts in record["files"].items() if Path(name).is_relative_to(part)}
    for name, facts in files.items():
        path = directory / name
        if not path.is_file():
            raise DamagedError(path, "missing")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedError(path, f"{path.stat().st_size} bytes where {facts['bytes']} were written")
        if sha256(path) != facts["sha256"]:
            raise DamagedError(path, "its bytes are not the ones that were written (SHA-256 differs)")
    found = {str(p.relative_to(directory)) for p in (directory / part).rglob("*") if p.is_file()}
    extra = found - {*files, MANIFEST}
    if extra:
        raise DamagedError(directory / min(extra), "not part of what was written")
    return record


def _digest(record: dict[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
