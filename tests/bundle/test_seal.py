"""Sealed files: they open with their key and name, are the same twice, and any change to them is refused."""

import base64
import hashlib
import hmac
import os
import stat

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from behemoth.base.errors import DamagedError, InputError
from behemoth.bundle import seal as sealing
from behemoth.bundle.refusals import Refused
from behemoth.bundle.seal import (
    HEADER,
    PIECE,
    TAG,
    open_sealed,
    read_seal_key,
    seal,
    unseal,
    unseal_to,
    write_seal_key,
)

KEY = bytes(range(32))
NAME = "model.safetensors"
SIZES = [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE]


@pytest.fixture
def content(tmp_path):
    """A file of three and a bit pieces, and what it looks like sealed."""
    path = tmp_path / "plain"
    path.write_bytes(bytes(range(251)) * (3 * PIECE // 251 + 5))
    seal(path, tmp_path / "sealed", KEY, NAME)
    return path.read_bytes()


@pytest.mark.parametrize("size", SIZES)
def test_what_was_sealed_comes_back(tmp_path, size):
    (tmp_path / "plain").write_bytes(b"x" * size)
    seal(tmp_path / "plain", tmp_path / "sealed", KEY, NAME)
    assert (tmp_path / "sealed").stat().st_size == HEADER + size + TAG * max(1, -(-size // PIECE))
    assert unseal(tmp_path / "sealed", KEY, NAME) == b"x" * size


def test_sealing_twice_gives_the_same_bytes_and_other_content_or_name_shares_none(tmp_path, content):
    sealed = (tmp_path / "sealed").read_bytes()
    seal(tmp_path / "plain", tmp_path / "again", KEY, NAME)
    assert (tmp_path / "again").read_bytes() == sealed
    (tmp_path / "plain").write_bytes(
        content[:-1] + b"!"
    )  # the last byte alone: a piece must not look the same
    seal(tmp_path / "plain", tmp_path / "other", KEY, NAME)
    assert (tmp_path / "other").read_bytes()[HEADER : HEADER + 32] != sealed[HEADER : HEADER + 32]
    (tmp_path / "plain").write_bytes(content)
    seal(tmp_path / "plain", tmp_path / "renamed", KEY, "tokenizer.json")
    assert (tmp_path / "renamed").read_bytes()[HEADER : HEADER + 32] != sealed[HEADER : HEADER + 32]
    assert content[:64] not in sealed


def derived(use: str, salt: bytes = b"", length: int = 32) -> bytes:
    """HKDF by hand (RFC 5869), of one block."""
    drawn = hmac.digest(salt or bytes(32), KEY, "sha256")
    return hmac.digest(drawn, b"behemoth seal 1 " + use.encode() + b"\1", "sha256")[:length]


def test_the_format_is_the_one_that_is_told(tmp_path, content):
    """Opened without our code: a sealed file must still open in ten years."""
    sealed = (tmp_path / "sealed").read_bytes()
    header, digest = sealed[:HEADER], hashlib.sha256(content).hexdigest()
    salt = hmac.digest(derived("salt"), f"{digest} {NAME}".encode(), "sha256")
    assert header == b"behemoth-seal-1\n" + derived("key id", length=16) + salt
    cipher, step = AESGCM(derived(f"file {NAME}", salt)), (1 << 20) + 16
    body = [sealed[at : at + step] for at in range(HEADER, len(sealed), step)]
    nonces = [number.to_bytes(11, "big") + bytes([number == len(body) - 1]) for number in range(len(body))]
    assert b"".join(map(cipher.decrypt, nonces, body, [header] * len(body))) == content


def test_every_kind_of_change_is_refused(tmp_path, content):
    sealed = (tmp_path / "sealed").read_bytes()
    step = PIECE + TAG
    body = [sealed[HEADER + i * step : HEADER + (i + 1) * step] for i in range(4)]
    assert len(body[3]) < step
    changes = {
        "no magic": (b"B" + sealed[1:], "not-sealed"),
        "cut in the header": (sealed[: HEADER - 1], "not-sealed"),
        "key id": (sealed[:20] + b"?" + sealed[21:], "wrong-seal-key"),
        "salt": (sealed[:40] + bytes([sealed[40] ^ 1]) + sealed[41:], "sealed-file-changed"),
        "header alone": (sealed[:HEADER], "sealed-file-changed"),
        "first byte": (
            sealed[:HEADER] + bytes([sealed[HEADER] ^ 1]) + sealed[HEADER + 1 :],
            "sealed-file-changed",
        ),
        "last byte": (sealed[:-1] + bytes([sealed[-1] ^ 128]), "sealed-file-changed"),
        "cut by a byte": (sealed[:-1], "sealed-file-changed"),
        "cut at a piece": (sealed[: HEADER + 2 * step], "sealed-file-changed"),
        "a byte more": (sealed + b"\0", "sealed-file-changed"),
        "a piece more": (sealed + body[3], "sealed-file-changed"),
        "pieces swapped": (sealed[:HEADER] + body[1] + body[0] + body[2] + body[3], "sealed-file-changed"),
        "a piece left out": (sealed[:HEADER] + body[0] + body[2] + body[3], "sealed-file-changed"),
        "a piece twice": (
            sealed[:HEADER] + body[0] + body[0] + body[1] + body[2] + body[3],
            "sealed-file-changed",
        ),
    }
    for what, (data, code) in changes.items():
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(Refused) as refusal:
            unseal(tmp_path / "bad", KEY, NAME)
        assert refusal.value.code == code, what


def test_every_single_byte_counts(tmp_path):
    (tmp_path / "plain").write_bytes(b"short")
    seal(tmp_path / "plain", tmp_path / "sealed", KEY, NAME)
    sealed = (tmp_path / "sealed").read_bytes()
    for place in range(len(sealed)):
        (tmp_path / "bad").write_bytes(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
        with pytest.raises(Refused):
            unseal(tmp_path / "bad", KEY, NAME)


def test_another_key_and_another_name_are_told_apart(tmp_path, content):
    with pytest.raises(Refused, match="another key") as refusal:
        unseal(tmp_path / "sealed", bytes(32), NAME)
    assert refusal.value.code == "wrong-seal-key"
    with pytest.raises(Refused, match="another file under this name") as refusal:
        unseal(tmp_path / "sealed", KEY, "config.json")
    assert refusal.value.code == "sealed-file-changed"


def test_content_is_held_to_the_salt(tmp_path, content, monkeypatch):
    """What opens piece by piece must still be the content that the salt was made of."""
    salt = sealing._salt
    monkeypatch.setattr(sealing, "_salt", lambda key, name, digest: salt(key, name, "0" * 64))
    seal(tmp_path / "plain", tmp_path / "forged", KEY, NAME)
    monkeypatch.setattr(sealing, "_salt", salt)
    with pytest.raises(Refused, match="not the content that was sealed"):
        unseal(tmp_path / "forged", KEY, NAME)


def test_opening_into_a_file_is_all_or_nothing(tmp_path, content):
    assert unseal_to(tmp_path / "sealed", tmp_path / "out", KEY, NAME) == sealing.sha256(tmp_path / "plain")
    assert (tmp_path / "out").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    (tmp_path / "bad").write_bytes((tmp_path / "sealed").read_bytes()[:-1])
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Refused):
        unseal_to(tmp_path / "bad", tmp_path / "never", KEY, NAME)
    assert sorted(os.listdir(tmp_path)) == before


def test_opening_streams(tmp_path, content):
    pieces = open_sealed(tmp_path / "sealed", KEY, NAME)
    assert next(pieces) == content[:PIECE]
    assert sum(len(piece) for piece in pieces) == len(content) - PIECE


def test_a_file_that_changes_while_it_is_sealed_is_not_sealed(tmp_path, content, monkeypatch):
    monkeypatch.setattr(sealing, "sha256", lambda path: "0" * 64)
    with pytest.raises(DamagedError, match="changed while it was sealed"):
        seal(tmp_path / "plain", tmp_path / "new", KEY, NAME)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


# ------------------------------------------------------------------------------------------------------ the key


def test_a_key_file_is_private_and_never_overwritten(tmp_path):
    key = write_seal_key(tmp_path / "keys" / "seal.key")
    path = tmp_path / "keys" / "seal.key"
    assert read_seal_key(path) == key and len(set(key)) > 8
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="never overwritten"):
        write_seal_key(path)
    assert read_seal_key(path) == key


def test_a_key_never_enters_a_bundle(tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="a bundle, which is handed on"):
        write_seal_key(tmp_path / "keys" / "seal.key")
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not base64!",
        base64.b64encode(bytes(32)) + b"!",
        base64.b64encode(bytes(31)),
        base64.b64encode(bytes(33)),
    ],
)
def test_what_is_not_a_key_is_told(tmp_path, text):
    path = tmp_path / "seal.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="must hold 32 random bytes as base64"):
        read_seal_key(path)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    write_seal_key(tmp_path / "seal.key")
    (tmp_path / "seal.key").chmod(0o640)
    with pytest.raises(InputError, match=r"mode 0640\); chmod 600"):
        read_seal_key(tmp_path / "seal.key")
    with pytest.raises(InputError, match="cannot be read"):
        read_seal_key(tmp_path / "none")
