"""Signing keys: ECDSA on P-256, and files that keep the private half.

One curve, one hash, no choice to get wrong. P-256 and not Ed25519, because the OpenSSF model signature that a stranger
checks with `model_signing` knows elliptic curve keys of NIST alone. Signatures are deterministic (RFC 6979): the same
key over the same bytes gives the same bytes, so that a bundle can be built twice and compared.

A private key is a PKCS#8 PEM file under a passphrase. OpenSSL's defaults hash a passphrase only 2,048 times, so a
long passphrase is what protects the file; a lab with more at stake keeps its root key on hardware, which is not done
here. ECDSA lets anybody turn one valid signature into a second of the same bytes: a signature is never an identity.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from behemoth.base.errors import InputError
from behemoth.base.files import fsync_path
from behemoth.bundle.refusals import Refused

PASSPHRASE = "BEHEMOTH_PASSPHRASE"  # the environment variable
MOST_BYTES = 10_000  # of a key file; a real one has about 250
LONGEST_PASSPHRASE = 1023  # bytes, which is OpenSSL's rule


@dataclass(frozen=True)
class PublicKey:
    """A P-256 key in the one spelling that SubjectPublicKeyInfo PEM has, so that a key has one id."""

    pem: str

    def __post_init__(self) -> None:
        try:
            key = load_pem_public_key(self.pem.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Refused("malformed", f"not a public key in PEM: {error}") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Refused("malformed", "a public key of another kind; only ECDSA on P-256 is read")
        if key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() != self.pem:
            raise Refused(
                "malformed", "a public key in an unusual spelling; write it with `openssl ec -pubout`"
            )

    @cached_property
    def key(self) -> ec.EllipticCurvePublicKey:
        key = load_pem_public_key(self.pem.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    @cached_property
    def id(self) -> str:
        """Hex SHA-256 of the DER SubjectPublicKeyInfo."""
        der = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    def verify(self, signature: bytes, data: bytes) -> bool:
        try:
            self.key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, eq=False)
class PrivateKey:
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @cached_property
    def public(self) -> PublicKey:
        pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return PublicKey(pem.decode())

    def sign(self, data: bytes) -> bytes:
        """DER; the same bytes each time."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def generate() -> PrivateKey:
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()))


def write_private(path: Path, key: PrivateKey, passphrase: str) -> None:
    """Write the key encrypted, readable by its owner alone.

    InputError: there is a file, which may be a key; `path` lies in what is handed on; no passphrase that can be used.
    """
    refuse_place(path)
    if not passphrase:
        raise InputError(f"{path}: a private key needs a passphrase; give one, or set {PASSPHRASE}")
    sealed = BestAvailableEncryption(_encoded(passphrase, path))
    data = key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # a rename would replace what is there
    except FileExistsError:
        raise InputError(
            f"{path} exists already, and a key is never overwritten; give another name"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    fsync_path(path.parent)


def read_private(path: Path, passphrase: str | None = None) -> PrivateKey:
    """The private key of a file; without a passphrase it is $BEHEMOTH_PASSPHRASE, or asked for at a terminal."""
    data = _key_bytes(path)
    if b"ENCRYPTED" not in data:
        how = f"openssl pkcs8 -topk8 -v2 aes-256-cbc -in {path} -out NEW.pem"
        raise InputError(f"{path} is not an encrypted private key; encrypt one with `{how}`")
    secret = passphrase_for(path) if passphrase is None else passphrase
    typed = _encoded(secret, path)
    try:
        key = load_pem_private_key(data, typed)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{path}: the passphrase does not open this key, or it is damaged") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{path} is a key of another kind; `behemoth trust` makes ones on P-256")
    return PrivateKey(key)


def refuse_place(path: Path) -> None:
    """InputError where `path` lies in a run, a bundle or an exported model: they are handed on, and a key is not."""
    for place in path.resolve().parents:
        begun = (place / "record.json").is_file()
        run = begun and ((place / "recipe.toml").is_file() or any(place.glob("*/checkpoints")))
        bundle = any((place / name).is_file() for name in ("release/manifest.json", "staged.json"))
        model = all((place / name).is_file() for name in ("config.json", "receipt.json"))
        if run or bundle or model:
            kind = "a run" if run else "a bundle" if bundle else "an exported model"
            raise InputError(
                f"{path}: {place} is {kind}, which is handed on, and a secret key is not; choose a place outside"
            )


def passphrase_for(path: Path, *, new: bool = False) -> str:
    """From the environment, else from the person; typed twice for a new key."""
    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise InputError(f"{path} needs a passphrase: set {PASSPHRASE}, or run this at a terminal")
    try:
        typed = getpass.getpass(f"Passphrase of {path}: ")
        again = getpass.getpass("The same again: ") if new else typed
    except EOFError:
        raise InputError(
            f"{path} needs a passphrase, and none was typed; set {PASSPHRASE} otherwise"
        ) from None
    if again != typed:
        raise InputError(f"{path}: the two passphrases differ; nothing was written for it")
    return typed


def _encoded(passphrase: str, path: Path) -> bytes:
    try:
        data = passphrase.encode()
    except UnicodeEncodeError:  # bytes of the environment or a terminal, which Python passes on as surrogates
        raise InputError(f"{path}: the passphrase is not UTF-8; choose one that is") from None
    if len(data) > LONGEST_PASSPHRASE:
        raise InputError(
            f"{path}: the passphrase has {len(data):,} bytes, and OpenSSL takes {LONGEST_PASSPHRASE:,}; shorten it"
        )
    return data


def _key_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: the key cannot be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{path} is too large to be a key; give the PEM file that `behemoth trust` wrote")
    return data
