"""Envelopes: signed as DSSE says (its own test vector, and readers that others wrote), read strictly."""

import base64
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.bundle import dsse
from behemoth.bundle.dsse import IN_TOTO, Envelope, Signature, pae, parse, read_statement, sign, statement
from behemoth.bundle.keys import PrivateKey, generate
from behemoth.bundle.refusals import Refused

KEY, OTHER = generate(), generate()
SAID = statement("urn:x", {"b": "0" * 64, "a": "f" * 64}, {"holds": True, "mean": 0.25, "wer": "Jürgen"})
SIGNED = sign(SAID, IN_TOTO, [KEY])


def refusal(call, *args):
    with pytest.raises(Refused) as caught:
        call(*args)
    assert caught.value.code == "malformed"
    return str(caught.value)


def file_of(tmp_path, value):
    path = tmp_path / "envelope.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_the_vector_of_the_specification():
    """DSSE protocol.md, "Test Vectors": the encoding, the key, and the deterministic signature as r and s."""
    number = 97358161215184420915383655311931858321456579547487070936769975997791359926199
    key = PrivateKey(ec.derive_private_key(number, ec.SECP256R1()))
    made = sign(b"hello world", "http://example.com/HelloWorld", [key])
    assert pae(made.payload_type, made.payload) == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert made.as_dict()["payload"] == "aGVsbG8gd29ybGQ="
    r, s = decode_dss_signature(made.signatures[0].sig)
    raw = base64.b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).decode()
    assert raw == "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="


@given(st.text(max_size=20), st.binary(max_size=200))
def test_the_encoding_is_that_of_securesystemslib(kind, payload):
    theirs = pytest.importorskip("securesystemslib.dsse")
    assert pae(kind, payload) == theirs.Envelope(payload, kind, {}).pae()


def test_securesystemslib_verifies_our_envelope():
    theirs = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    key = signer.SSlibKey.from_crypto(KEY.public.key, keyid=KEY.public.id)
    read = theirs.Envelope.from_dict(SIGNED.as_dict())
    assert read.payload == SAID and list(read.verify([key], 1)) == [KEY.public.id]
    changed = theirs.Envelope(SAID + b" ", IN_TOTO, read.signatures)
    with pytest.raises(Exception, match="Found: 0, Expected 1"):
        changed.verify([key], 1)


def test_in_toto_reads_our_statement():
    theirs = pytest.importorskip("in_toto_attestation.v1.statement")
    pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    message = json_format.Parse(SAID, pb2.Statement())
    theirs.Statement.copy_from_pb(message).validate()
    assert message.predicate_type == "urn:x" and message.predicate["wer"] == "Jürgen"
    assert {one.name: one.digest["sha256"] for one in message.subject} == {"a": "f" * 64, "b": "0" * 64}


def test_an_envelope_comes_back(tmp_path):
    made = sign(SAID, IN_TOTO, [KEY, OTHER])
    made.write(tmp_path / "a.json")
    found = Envelope.read(tmp_path / "a.json")
    assert found == made and found.signed_by(KEY.public) and found.signed_by(OTHER.public)
    assert not found.signed_by(generate().public)
    assert read_statement(found)["predicate"]["mean"] == 0.25
    assert dsse.subject_of(read_statement(found)) == {"a": "f" * 64, "b": "0" * 64}
    made.write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sign(SAID, IN_TOTO, [KEY, OTHER]) == made


def test_the_type_is_signed_and_so_is_the_border_of_type_and_payload():
    moved = Envelope("application/other", SIGNED.payload, SIGNED.signatures)
    assert not moved.signed_by(KEY.public)
    shifted = Envelope(IN_TOTO[:-1], IN_TOTO[-1:].encode() + SIGNED.payload, SIGNED.signatures)
    assert not shifted.signed_by(KEY.public)


def test_a_keyid_proves_nothing():
    lying = Envelope(IN_TOTO, SAID, (Signature(KEY.public.id, SIGNED.signatures[0].sig[:-1] + b"\0"),))
    assert not lying.signed_by(KEY.public)
    borrowed = Envelope(
        IN_TOTO, SAID, (Signature(KEY.public.id, sign(SAID, IN_TOTO, [OTHER]).signatures[0].sig),)
    )
    assert not borrowed.signed_by(KEY.public) and not borrowed.signed_by(OTHER.public)
    nameless = Envelope(IN_TOTO, SAID, (Signature("", SIGNED.signatures[0].sig),))
    assert nameless.signed_by(KEY.public) and not nameless.signed_by(OTHER.public)


@settings(max_examples=150)
@given(st.data())
def test_any_byte_changed_in_the_file_is_noticed(tmp_path_factory, data):
    """Whatever byte becomes whatever other byte: it is malformed, or not signed, or it meant nothing (white space)."""
    whole = json.dumps(SIGNED.as_dict(), indent=1).encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    path = file_of(tmp_path_factory.mktemp("e"), whole[:place] + bytes([byte]) + whole[place + 1 :])
    try:
        found = Envelope.read(path)
    except Refused:
        return
    blank = whole[place : place + 1].isspace() and bytes([byte]).isspace()
    assert not found.signed_by(KEY.public) or (blank and found == SIGNED)


@given(st.data())
def test_any_cut_is_malformed(tmp_path_factory, data):
    whole = json.dumps(SIGNED.as_dict()).encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    refusal(Envelope.read, file_of(tmp_path_factory.mktemp("e"), whole[:place]))


SPARE = {
    "a field more": lambda e: e | {"extra": 1},
    "a field less": lambda e: {k: v for k, v in e.items() if k != "payloadType"},
    "no signature": lambda e: e | {"signatures": []},
    "signatures no list": lambda e: e | {"signatures": e["signatures"][0]},
    "seventeen signatures": lambda e: e | {"signatures": [{"sig": "AA=="}] * 17},
    "a key twice": lambda e: e | {"signatures": e["signatures"] * 2},
    "a field more in a signature": lambda e: e | {"signatures": [e["signatures"][0] | {"cert": ""}]},
    "a keyid no text": lambda e: e | {"signatures": [e["signatures"][0] | {"keyid": 7}]},
    "a keyid of megabytes": lambda e: e | {"signatures": [e["signatures"][0] | {"keyid": "a" * 201}]},
    "a type no text": lambda e: e | {"payloadType": None},
    "a type with a line": lambda e: e | {"payloadType": IN_TOTO + "\n"},
    "a payload no text": lambda e: e | {"payload": 1},
    "base64 of the URL kind": lambda e: e | {"payload": "-_8="},
    "base64 with spaces": lambda e: e | {"payload": e["payload"][:4] + "\n" + e["payload"][4:]},
    "base64 with bits left over": lambda e: e | {"payload": "QR=="},
    "base64 cut": lambda e: e | {"payload": e["payload"][:-1]},
    "a list": lambda e: [e],
    "nothing": lambda e: None,
}


@pytest.mark.parametrize("change", SPARE.values(), ids=SPARE.keys())
def test_what_is_not_exactly_an_envelope_is_malformed(tmp_path, change):
    refusal(Envelope.read, file_of(tmp_path, change(SIGNED.as_dict())))


BYTES = {
    "empty": b"",
    "a key twice": b'{"payload":"","payload":"","payloadType":"a","signatures":[{"sig":""}]}',
    "not UTF-8": b'{"payload":"\xff"}',
    "UTF-16": json.dumps(SIGNED.as_dict()).encode("utf-16"),
    "half a character": b'{"payload":"\\ud800","payloadType":"a","signatures":[]}',
    "half a character as a key": b'{"\\ud800":1}',
    "not a number": b'{"payload":NaN}',
    "infinite": b'{"payload":1e999}',
    "a number of 5,000 digits": b'{"payload":' + b"9" * 5000 + b"}",
    "deep": b"[" * 200_000,
    "deep and closed": b"[" * 101 + b"]" * 101,
    "two values": b"{}{}",
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_json_of_two_meanings_is_malformed(tmp_path, data):
    refusal(Envelope.read, file_of(tmp_path, data))
    refusal(parse, data, "it")


def test_what_is_no_plain_file_is_malformed(tmp_path):
    SIGNED.write(tmp_path / "real.json")
    (tmp_path / "link.json").symlink_to("real.json")
    os.mkfifo(tmp_path / "pipe.json")  # a reader that opens it waits for ever
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(dsse.MOST_BYTES + 1)
    for name in ("link.json", "pipe.json", "large.json", "absent.json", "nul\0.json", "."):
        refusal(Envelope.read, tmp_path / name)
    assert "larger than" in refusal(
        Envelope.read, tmp_path / "large.json"
    )  # and no more of it was read than that
    assert Envelope.read(tmp_path / "real.json") == SIGNED


NO_STATEMENTS = {
    "another version": lambda s: s | {"_type": "https://in-toto.io/Statement/v0.1"},
    "a field more": lambda s: s | {"extra": 1},
    "about nothing": lambda s: s | {"subject": []},
    "a subject twice": lambda s: s | {"subject": s["subject"] * 2},
    "a short digest": lambda s: s | {"subject": [{"name": "a", "digest": {"sha256": "f" * 63}}]},
    "a digest in capitals": lambda s: s | {"subject": [{"name": "a", "digest": {"sha256": "F" * 64}}]},
    "another digest": lambda s: s | {"subject": [{"name": "a", "digest": {"sha1": "f" * 40}}]},
    "a digest and a line": lambda s: s | {"subject": [{"name": "a", "digest": {"sha256": "f" * 64 + "\n"}}]},
    "a name no text": lambda s: s | {"subject": [{"name": 1, "digest": {"sha256": "f" * 64}}]},
    "subjects no list": lambda s: s | {"subject": {}},
    "a predicate no object": lambda s: s | {"predicate": "yes"},
    "a type no text": lambda s: s | {"predicateType": ["urn:x"]},
}


@pytest.mark.parametrize("change", NO_STATEMENTS.values(), ids=NO_STATEMENTS.keys())
def test_what_is_not_exactly_a_statement_is_malformed(change):
    signed = sign(json.dumps(change(json.loads(SAID))).encode(), IN_TOTO, [KEY])
    refusal(read_statement, signed)


def test_a_payload_of_another_type_is_no_statement():
    refusal(read_statement, sign(SAID, "application/json", [KEY]))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_canonical_json_comes_back_and_has_one_spelling(value):
    data = dsse.canonical(value)
    assert parse(data, "it") == value
    assert dsse.canonical(parse(data, "it")) == data


def test_what_json_does_not_have_is_not_signed():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            dsse.canonical({"x": bad})
    for subject in ({}, {"a": "f" * 63}):
        with pytest.raises(AssertionError):
            statement("urn:x", subject, {})
