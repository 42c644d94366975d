"""A file encrypted at rest with a key that the lab keeps: what a closed bundle holds instead of its weights.

AES-256-GCM in pieces of 1 MiB, each under a nonce of its number and whether it is the last (STREAM, by Hoang,
Reyhanitabar, Rogaway and Vizár 2015, as in age): a piece that is changed, moved, left out or added fails, and so does
a file that is cut between two. Sealing is deterministic, so that two builds are identical: the salt is a PRF of name
and content under the key (as the synthetic IV of RFC 5297 is), and the key of the file comes from that salt by HKDF
(RFC 5869). So no key meets two contents, and the content, once whole, is held to the salt again, which also ties the
file to this one key (GCM alone does not).

    16  "behemoth-seal-1\\n"    16  key id    32  salt    then per piece: ciphertext, 16 bytes of tag

What is given away: the length; that two files were sealed with one key; that a file of the same name has the same
content in two bundles. Whoever holds both the key and the file has the content, on a server too. Not covered: a new
key without sealing anew, a key in hardware.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import fsync_path, sha256
from behemoth.bundle.keys import refuse_place
from behemoth.bundle.refusals import Refused

MAGIC = b"behemoth-seal-1\n"
KEY, KEY_ID, SALT, TAG = 32, 16, 32, 16
HEADER = len(MAGIC) + KEY_ID + SALT
PIECE = 1 << 20

NOT_SEALED, WRONG_KEY, ALTERED = "not-sealed", "wrong-seal-key", "sealed-file-changed"


def write_seal_key(path: Path) -> bytes:
    """Draw a key and keep it in a file that only its owner reads. InputError: there is a file already, or the place is
    in a run or a bundle."""
    refuse_place(path)
    key = secrets.token_bytes(KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(f"{path} exists; a key is never overwritten, so name another file") from None
    with open(handle, "wb") as file:
        file.write(base64.b64encode(key) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_path(path.parent)
    return key


def read_seal_key(path: Path) -> bytes:
    """The 32 bytes that a key file holds as base64. InputError: no such file, not a key, others may read it."""
    try:
        with open(path, "rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(1024)
    except OSError as error:
        raise InputError(f"{path}: the key that seals cannot be read ({error.strerror})") from None
    if mode & 0o077:
        raise InputError(f"{path}: others may read this key (mode {mode & 0o777:04o}); chmod 600 {path}")
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY:
        raise InputError(f"{path} is not a key that seals: it must hold {KEY} random bytes as base64")
    return key


def seal(source: Path, target: Path, key: bytes, name: str) -> None:
    """Encrypt `source` into `target`, whole or not at all; the same bytes for the same content, key and name.

    name: what the file is called in the bundle; it opens under that name only. DamagedError: `source` changed
    while it was read.
    """
    content = sha256(source)
    salt = _salt(key, name, content)
    header, cipher, seen = MAGIC + _key_id(key) + salt, AESGCM(_file_key(key, name, salt)), hashlib.sha256()
    with _whole(target) as out, open(source, "rb") as file:
        out.write(header)
        for number, piece, last in _pieces(file, PIECE):
            seen.update(piece)
            out.write(cipher.encrypt(_nonce(number, last), piece, header))
        if seen.hexdigest() != content:  # two contents under one key and nonce would give both away
            raise DamagedError(source, "changed while it was sealed")


def open_sealed(source: Path, key: bytes, name: str) -> Iterator[bytes]:
    """The content, piece by piece, each as it was sealed and in its place; that it is all is known at the end only.

    Refused: "not-sealed", "wrong-seal-key" (of another key), "sealed-file-changed" (or of another name).
    """
    with open(source, "rb") as file:
        header = file.read(HEADER)
        if len(header) < HEADER or not header.startswith(MAGIC):
            raise Refused(NOT_SEALED, f"{name}: not a file that was sealed")
        if not hmac.compare_digest(header[len(MAGIC) : -SALT], _key_id(key)):
            raise Refused(WRONG_KEY, f"{name}: sealed with another key, or its first bytes were changed")
        salt, seen = header[-SALT:], hashlib.sha256()
        cipher = AESGCM(_file_key(key, name, salt))
        for number, piece, last in _pieces(file, PIECE + TAG):
            try:
                opened = cipher.decrypt(_nonce(number, last), piece, header)
            except InvalidTag:
                where = f"at byte {HEADER + number * (PIECE + TAG):,}"
                message = f"{name}: not as it was sealed {where}, cut short, or another file under this name"
                raise Refused(ALTERED, message) from None
            seen.update(opened)
            yield opened
        if not hmac.compare_digest(salt, _salt(key, name, seen.hexdigest())):
            raise Refused(ALTERED, f"{name}: not the content that was sealed")


def unseal(source: Path, key: bytes, name: str) -> bytes:
    """The whole content in memory; Refused as `open_sealed`."""
    return b"".join(open_sealed(source, key, name))


def unseal_to(source: Path, target: Path, key: bytes, name: str) -> str:
    """Write the content to `target`, readable by its owner alone, whole or not at all; its SHA-256."""
    seen = hashlib.sha256()
    with _whole(target, 0o600) as out:
        for piece in open_sealed(source, key, name):
            seen.update(piece)
            out.write(piece)
    return seen.hexdigest()


def _pieces(file: IO[bytes], size: int) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether it is the last); an empty file is one empty piece."""
    number, piece = 0, file.read(size)
    while following := file.read(size):
        yield number, piece, False
        number, piece = number + 1, following
    yield number, piece, True


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _derived(key: bytes, use: str, salt: bytes = b"", length: int = KEY) -> bytes:
    return HKDF(SHA256(), length, salt, b"behemoth seal 1 " + use.encode()).derive(key)


def _key_id(key: bytes) -> bytes:
    return _derived(key, "key id", length=KEY_ID)


def _file_key(key: bytes, name: str, salt: bytes) -> bytes:
    return _derived(key, f"file {name}", salt)


def _salt(key: bytes, name: str, content: str) -> bytes:
    return hmac.digest(_derived(key, "salt"), f"{content} {name}".encode(), "sha256")


@contextmanager
def _whole(target: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A file that appears at `target` once everything was written, as base.files.write_atomic, in pieces."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_path(target.parent)
