"""Keys: one curve, one spelling, deterministic signatures, and files that keep the private half private."""

import io
import multiprocessing
import os
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from behemoth.base.errors import InputError
from behemoth.bundle import keys
from behemoth.bundle.keys import PublicKey, generate, read_private, write_private
from behemoth.bundle.refusals import CODES, Refusal, Refused, refused

SPKI = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch):
    monkeypatch.delenv(keys.PASSPHRASE, raising=False)


def test_a_signature_holds_for_its_key_and_bytes_alone():
    one, other = generate(), generate()
    signature = one.sign(b"said")
    assert one.public.verify(signature, b"said")
    assert not one.public.verify(signature, b"Said")
    assert not other.public.verify(signature, b"said")
    assert not one.public.verify(b"", b"said")
    assert not one.public.verify(signature + b"\0", b"said")  # DER and nothing behind it


def test_signing_twice_gives_the_same_bytes():
    """RFC 6979, A.2.5: P-256, SHA-256, the message "sample"."""
    number = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    key = keys.PrivateKey(ec.derive_private_key(number, ec.SECP256R1()))
    r = "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
    s = "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    assert key.sign(b"sample").hex().upper() == f"3046022100{r}022100{s}"


def test_openssl_reads_what_is_written(tmp_path):
    path, key = tmp_path / "keys" / "ada.pem", generate()
    write_private(path, key, "long enough")
    command = ["openssl", "pkey", "-in", str(path), "-passin", "pass:long enough", "-pubout"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == key.public.pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["ada.pem"]


def test_the_id_is_of_the_der(tmp_path):
    key = generate().public
    (tmp_path / "key.pem").write_text(key.pem)
    command = f"openssl pkey -pubin -in {tmp_path}/key.pem -outform DER -out {tmp_path}/key.der"
    subprocess.run(command.split(), check=True)
    digest = subprocess.run(
        ["sha256sum", str(tmp_path / "key.der")], capture_output=True, text=True, check=True
    )
    assert digest.stdout.split()[0] == key.id


def test_a_key_comes_back_and_is_never_overwritten(tmp_path):
    path, key = tmp_path / "ada.pem", generate()
    write_private(path, key, "secret")
    assert read_private(path, "secret").public == key.public
    with pytest.raises(InputError, match="never overwritten"):
        write_private(path, generate(), "secret")
    assert read_private(path, "secret").public == key.public
    assert [p.name for p in tmp_path.iterdir()] == ["ada.pem"]


def test_two_writers_leave_one_whole_key(tmp_path):
    path = tmp_path / "ada.pem"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        done = pool.map(try_to_write, [path] * 4)
    assert sum(done) == 1
    assert read_private(path, "secret").sign(b"x")


def try_to_write(path):
    try:
        write_private(path, generate(), "secret")
    except InputError:
        return False
    return True


def test_nothing_shows_the_secret(tmp_path):
    key = generate()
    assert repr(key) == "PrivateKey()"
    write_private(tmp_path / "k.pem", key, "secret")
    with pytest.raises(InputError, match="needs a passphrase"):
        write_private(tmp_path / "l.pem", key, "")
    assert not (tmp_path / "l.pem").exists()


def test_where_the_passphrase_comes_from(tmp_path, monkeypatch):
    path = tmp_path / "ada.pem"
    write_private(path, generate(), "secret")
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))  # not a terminal
    with pytest.raises(InputError, match=r"BEHEMOTH_PASSPHRASE.*terminal"):
        read_private(path)
    monkeypatch.setenv(keys.PASSPHRASE, "secret")
    assert read_private(path)
    monkeypatch.setenv(keys.PASSPHRASE, "Secret")
    with pytest.raises(InputError, match="does not open this key"):
        read_private(path)
    assert read_private(path, "secret")  # what is given goes before the environment
    monkeypatch.delenv(keys.PASSPHRASE)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    typed = iter(["secret", "one", "another", "same", "same"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    assert read_private(path)
    with pytest.raises(InputError, match="differ"):
        keys.passphrase_for(path, new=True)
    assert keys.passphrase_for(path, new=True) == "same"


@pytest.mark.parametrize(
    ("passphrase", "told"),
    [("a" * 1024, r"1,024 bytes.*1,023"), ("é" * 512, "1,024 bytes"), ("\udcff", "not UTF-8")],
)
def test_a_passphrase_that_nobody_can_use_is_told(tmp_path, monkeypatch, passphrase, told):
    write_private(tmp_path / "ada.pem", generate(), "a" * 1023)
    with pytest.raises(InputError, match=told):
        write_private(tmp_path / "new.pem", generate(), passphrase)
    with pytest.raises(InputError, match=told):
        read_private(tmp_path / "ada.pem", passphrase)
    assert [path.name for path in tmp_path.iterdir()] == ["ada.pem"]
    assert read_private(tmp_path / "ada.pem", "a" * 1023)


def test_a_terminal_that_closes_is_told(tmp_path, monkeypatch):
    def closes(prompt):
        raise EOFError

    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", closes)
    with pytest.raises(InputError, match="none was typed"):
        keys.passphrase_for(tmp_path / "ada.pem")


HANDED_ON = {
    "a run": ["record.json", "recipe.toml"],
    "an imported run": ["record.json", "import/checkpoints/step-00000000/MANIFEST.json"],
    "a bundle": ["release/manifest.json"],
    "a staged release": ["staged.json"],
    "an exported model": ["config.json", "receipt.json"],
}


@pytest.mark.parametrize("files", HANDED_ON.values(), ids=HANDED_ON.keys())
def test_no_key_is_written_into_what_is_handed_on(tmp_path, files):
    for name in files:
        (tmp_path / "place" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "place" / name).write_text("{}")
    (tmp_path / "place" / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place" / "inner")
    before = sorted(tmp_path.rglob("*"))
    for path in (
        "place/ada.pem",
        "place/lab/keys/ada.pem",
        "link/lab/ada.pem",
        "place/lab/../../place/ada.pem",
    ):
        with pytest.raises(InputError, match="handed on, and a secret key is not"):
            write_private(tmp_path / path, generate(), "secret")
    assert sorted(tmp_path.rglob("*")) == before
    write_private(tmp_path / "lab" / "ada.pem", generate(), "secret")  # beside it is fine


@pytest.mark.parametrize(
    "name", ["record.json", "recipe.toml", "config.json", "receipt.json", "manifest.json"]
)
def test_a_file_alone_makes_no_run(tmp_path, name):
    (tmp_path / name).write_text("{}")
    write_private(tmp_path / "lab" / "ada.pem", generate(), "secret")


@pytest.mark.parametrize(
    "what", ["plain", "other curve", "other kind", "public", "noise", "large", "missing"]
)
def test_what_is_no_key_of_ours_is_told_apart(tmp_path, what):
    path = tmp_path / "k.pem"
    made = {
        "plain": generate().key,
        "other curve": ec.generate_private_key(ec.SECP384R1()),
        "other kind": ed25519.Ed25519PrivateKey.generate(),
    }.get(what)
    if made is not None:
        none, some = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"secret")
        how = none if what == "plain" else some
        path.write_bytes(
            made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
        )
    elif what != "missing":
        path.write_text(
            {"public": generate().public.pem, "noise": "ENCRYPTED", "large": "ENCRYPTED" * 9999}[what]
        )
    with pytest.raises(InputError, match=str(path)) as caught:
        read_private(path, "secret")
    expected = {
        "plain": "not an encrypted private key",
        "public": "not an encrypted private key",
        "noise": "does not open",
        "large": "too large",
        "missing": "cannot be read",
    }
    assert expected.get(what, "another kind") in str(caught.value)


def test_a_public_key_has_one_spelling():
    pem = generate().public.pem
    point = ec.generate_private_key(ec.SECP384R1()).public_key()
    others = [pem.replace("\n", "\r\n"), pem.strip(), pem + "\n", "# Ada\n" + pem, "", "\0", pem[:-40]]
    for bad in [*others, point.public_bytes(*SPKI).decode()]:
        with pytest.raises(Refused) as caught:
            PublicKey(bad)
        assert caught.value.code == "malformed"
    assert PublicKey(pem).id == PublicKey(pem).id


def test_what_another_program_signs_is_verified():
    key = ec.generate_private_key(ec.SECP256R1())
    signature = key.sign(b"theirs", ec.ECDSA(hashes.SHA256()))  # with random numbers, as others do
    assert PublicKey(key.public_key().public_bytes(*SPKI).decode()).verify(signature, b"theirs")


def test_several_refusals_are_known_by_the_gravest():
    found = refused([Refusal("wrong-role", "a"), Refusal("malformed", "b"), Refusal("revoked-key", "c")])
    assert found.code == "malformed" and found.exit_code == 1
    assert [one.code for one in found.refusals] == ["malformed", "revoked-key", "wrong-role"]
    assert Refused("malformed", "why").refusals == [Refusal("malformed", "why")]
    with pytest.raises(AssertionError):
        Refused("no-such-code", "")
    assert all(meaning and code == code.lower() and " " not in code for code, meaning in CODES.items())


def test_a_full_disk_leaves_no_key(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_private(tmp_path / "ada.pem", generate(), "secret")
    assert not list(tmp_path.iterdir())
