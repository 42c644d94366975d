"""The model signature: the released `model_signing` takes ours, we take one of its, and we are stricter."""

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from behemoth.bundle import dsse, keys, manifest, oms
from behemoth.bundle.manifest import SIGNATURE
from behemoth.bundle.refusals import Refused

WITHOUT = "the released model_signing (with pyOpenSSL) is not installed"
FILES = {
    "README.md": b"# card\n",
    "a/x": b"1",
    "a-b/y": b"22",  # sorted by letters this comes before a/x, by parts after it
    "empty": b"",
    "ünï 日本.txt": b"name",
    "release/manifest.json": b"{}",
}


@pytest.fixture(scope="module")
def key():
    return keys.generate()


@pytest.fixture
def model(tmp_path, key):
    """A few files with our signature."""
    root = tmp_path / "model"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    oms.sign(root, key, name="tiny")
    return root


def refusal(call, *arguments):
    with pytest.raises(Refused) as refused:
        call(*arguments)
    return refused.value


def test_it_says_who_and_what(model, key):
    signed = oms.verify(model, key.public)
    assert signed.keyid == key.public.id and signed.claims(key.public) and signed.name == "tiny"
    assert signed.hashes == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert list(signed.hashes) == [
        "README.md",
        "a/x",
        "a-b/y",
        "empty",
        "release/manifest.json",
        "ünï 日本.txt",
    ]


def test_signing_twice_gives_the_same_bytes_wherever_it_lies(model, key, tmp_path):
    before = (model / SIGNATURE).read_bytes()
    moved = model.rename(tmp_path / "elsewhere")
    hashes = dict(reversed(list(oms.read(moved / SIGNATURE).hashes.items())))
    oms.sign(moved, key, name="tiny", hashes=hashes)
    assert (moved / SIGNATURE).read_bytes() == before
    oms.sign(moved, key, name="tiny")
    assert (moved / SIGNATURE).read_bytes() == before


def test_every_difference_to_the_files_is_told(model, key):
    (model / "a/x").write_bytes(b"2")
    (model / "empty").unlink()
    (model / "more.py").write_bytes(b"")
    refused = refusal(oms.verify, model, key.public)
    assert [(one.code, one.message.split(":")[0]) for one in refused.refusals] == [
        ("signed-file-missing", "empty"),
        ("unsigned-file", "more.py"),
        ("signed-file-changed", "a/x"),
    ]


def test_it_claims_a_key_by_every_name_that_it_gives(model, key):
    signed = oms.read(model / SIGNATURE)
    assert not replace(signed, hint="0" * 64).claims(key.public)
    assert not replace(signed, keyid="0" * 64).claims(key.public)
    assert replace(signed, keyid="").claims(key.public)  # as the released tool writes it


def test_another_key_did_not_sign_it(model, key):
    other = keys.generate()
    assert refusal(oms.verify, model, other.public).code == "bad-signature"
    oms.sign(model, other, name="tiny")
    assert refusal(oms.verify, model, key.public).code == "bad-signature"
    bundle = json.loads((model / SIGNATURE).read_text())  # signed by one, said to be of another
    bundle["verificationMaterial"]["publicKey"]["hint"] = oms.hint_of(key.public)
    bundle["dsseEnvelope"]["signatures"][0]["keyid"] = key.public.id
    (model / SIGNATURE).write_bytes(oms._spelled(bundle))
    assert oms.read(model / SIGNATURE).claims(key.public)
    assert refusal(oms.verify, model, key.public).code == "bad-signature"


def test_every_single_byte_counts(model, key):
    good = (model / SIGNATURE).read_bytes()
    hashes = oms.read(model / SIGNATURE).hashes
    for place in range(len(good)):
        bit = 1 << place % 7
        (model / SIGNATURE).write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
        refusal(oms.verify, model, key.public, hashes)
    (model / SIGNATURE).write_bytes(good + b"\n")
    assert refusal(oms.verify, model, key.public, hashes).code == "malformed"


def test_no_signature(model, key):
    (model / SIGNATURE).unlink()
    assert refusal(oms.verify, model, key.public).code == "signature-missing"
    (model / SIGNATURE).symlink_to("README.md")
    assert refusal(oms.verify, model, key.public).code == "malformed"


def resigned(model, key, change):
    """A signature by the right key of a statement that was changed first: what a careless builder could make."""
    bundle = json.loads((model / SIGNATURE).read_text())
    said = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(bundle, said)
    signed = dsse.sign(json.dumps(said).encode(), dsse.IN_TOTO, [key]).as_dict()
    bundle["dsseEnvelope"] = signed | bundle.get("dsseEnvelope", {}).get("instead", {})
    (model / SIGNATURE).write_bytes(oms._spelled(bundle))


def how(said):
    return said["predicate"]["serialization"]


MALFORMED = {
    "ignores the card": (
        lambda b, s: how(s).update(ignore_paths=["model.sig", "README.md"]),
        "signature-leaves-out",
    ),
    "ignores a directory": (lambda b, s: how(s).update(ignore_paths=["."]), "signature-leaves-out"),
    "allows links": (lambda b, s: how(s).update(allow_symlinks=True), "signature-leaves-out"),
    "says nothing of links": (lambda b, s: how(s).pop("allow_symlinks"), "signature-leaves-out"),
    "ignores a number": (lambda b, s: how(s).update(ignore_paths=[1]), "malformed"),
    "shards": (lambda b, s: how(s).update(method="shards"), "signature-kind"),
    "another hash": (lambda b, s: how(s).update(hash_type="blake3"), "signature-kind"),
    "another predicate": (
        lambda b, s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        "signature-kind",
    ),
    "an old bundle": (
        lambda b, s: b.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
        "signature-kind",
    ),
    "a certificate": (
        lambda b, s: b.update(verificationMaterial={"x509CertificateChain": {}}),
        "signature-kind",
    ),
    "a log entry": (lambda b, s: b["verificationMaterial"].update(tlogEntries=[{}]), "malformed"),
    "a field more": (lambda b, s: b.update(more=1), "malformed"),
    "another root": (
        lambda b, s: s["subject"][0]["digest"].update(sha256="0" * 64),
        "signature-inconsistent",
    ),
    "two subjects": (
        lambda b, s: s["subject"].append({"name": "b", "digest": {"sha256": "0" * 64}}),
        "signature-inconsistent",
    ),
    "a file left off the list": (lambda b, s: s["predicate"]["resources"].pop(), "signature-inconsistent"),
    "a file twice": (
        lambda b, s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        "malformed",
    ),
    "a short hash": (lambda b, s: s["predicate"]["resources"][0].update(digest="00"), "malformed"),
    "a file's other hash": (lambda b, s: s["predicate"]["resources"][0].update(algorithm="md5"), "malformed"),
    "a file with a field more": (lambda b, s: s["predicate"]["resources"][0].update(more=1), "malformed"),
    "a file that is none": (lambda b, s: s["predicate"]["resources"].append("x"), "malformed"),
    "a file whose name is none": (lambda b, s: s["predicate"]["resources"][0].update(name=[]), "malformed"),
    "a predicate field more": (lambda b, s: s["predicate"].update(more=1), "malformed"),
    "no statement": (lambda b, s: s.update(_type="x"), "malformed"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_another_tool_might_pass_is_refused_though_the_key_is_right(model, key, what):
    change, code = MALFORMED[what]
    resigned(model, key, change)
    assert refusal(oms.verify, model, key.public).code == code


def test_a_changed_but_whole_statement_passes(model, key):
    resigned(model, key, lambda bundle, said: None)  # else the cases above would prove nothing
    oms.verify(model, key.public)


# ---------------------------------------------------------------------------------------------- the released tool


@pytest.fixture
def pems(tmp_path, key):
    """The key pair as files that their tool reads: (private, public)."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_text(key.public.pem)
    return private, public


def tool(*arguments):
    """`model_signing` as a person runs it; whether it said yes."""
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode == 0 and "succeeded" in done.stdout, done.stdout + done.stderr


def api(model, public):
    """Their verification as a library, with nothing configured but the key."""
    verifying = pytest.importorskip("model_signing.verifying", reason=WITHOUT)
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(model, model / SIGNATURE)


def test_their_library_takes_ours(model, pems):
    api(model, pems[1])
    (model / "a/x").write_bytes(b"2")
    with pytest.raises(ValueError, match="Hash mismatch for 'a/x'"):
        api(model, pems[1])


def test_their_command_takes_ours_and_we_take_theirs(model, key, pems):
    pytest.importorskip("model_signing", reason=WITHOUT)
    private, public = pems
    verify = ("verify", "key", "--public_key", public, "--signature", model / SIGNATURE, model)
    good, said = tool(*verify)
    assert good, said
    ours = oms.read(model / SIGNATURE)
    good, said = tool("sign", "key", "--private_key", private, "--signature", model / SIGNATURE, model)
    assert good, said
    theirs = oms.verify(model, key.public)
    assert theirs.keyid == "" and theirs.hint == ours.hint
    assert list(theirs.hashes.items()) == list(ours.hashes.items())
    root = [dsse.read_statement(one.envelope)["subject"][0]["digest"] for one in (ours, theirs)]
    assert root[0] == root[1]
    assert refusal(oms.verify, model, keys.generate().public).code == "bad-signature"
    (model / "more").write_bytes(b"")
    assert not tool(*verify)[0]
    assert refusal(oms.verify, model, key.public).code == "unsigned-file"


def test_their_library_signs_what_we_take(model, key, pems):
    signing = pytest.importorskip("model_signing.signing", reason=WITHOUT)
    hashing = pytest.importorskip("model_signing.hashing", reason=WITHOUT)
    left_out = hashing.Config().set_ignored_paths(paths=[model / SIGNATURE])
    config = signing.Config().use_elliptic_key_signer(private_key=pems[0]).set_hashing_config(left_out)
    config.sign(model, model / SIGNATURE)
    oms.verify(model, key.public)


def test_where_theirs_lets_pass_ours_refuses(model, key, pems):
    """What their documentation does not say aloud: files named .git... and empty directories pass."""
    (model / ".gitattributes").write_bytes(b"added later")
    (model / ".git").mkdir()
    (model / ".git" / "hook.py").write_bytes(b"added later")
    (model / "empty directory").mkdir()
    api(model, pems[1])
    found = refusal(oms.verify, model, key.public).refusals
    assert sorted(one.code for one in found) == ["empty-directory", "name-hidden", "name-hidden"]
    with pytest.raises(Refused):
        manifest.check(model)
