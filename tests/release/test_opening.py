"""A closed bundle and its key: it talks as the export does, and nothing of it lies anywhere in the clear."""

import base64
import json
import multiprocessing
import os
import shutil
import signal
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import small_bundle
import torch

from behemoth import cli, opening, verbs
from behemoth.base.errors import InputError
from behemoth.base.files import read_json, sha256, write_json
from behemoth.bundle import manifest
from behemoth.bundle.refusals import Refused
from behemoth.bundle.seal import seal, write_seal_key
from behemoth.model.config import ModelConfig
from behemoth.model.open import open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import save_weights
from behemoth.text.tokenizer import Tokenizer

PROMPT = "the model reads"
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_size": 8}
SIZES |= {"dense_size": 64, "expert_size": 32, "num_experts": 4}
SIZES |= {"chunk_size": 16, "temperature_floor": 16, "context_length": 32}


def export(place: Path, seed: int, tokenizer: Tokenizer) -> Path:
    """A drawn model in several weight files, as an export is laid out."""
    config = ModelConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, **SIZES)
    model = Transformer(config).initialise(torch.Generator().manual_seed(seed))
    tokenizer.save(place)
    known = tokenizer.sha256
    save_weights(model, place, tokenizer_sha256=known, turns=3, shard_bytes=40_000)
    receipt = {"verdict": "match", "checks": [], "versions": {}}
    write_json(
        place / "receipt.json", receipt | {"files": {path.name: sha256(path) for path in place.iterdir()}}
    )
    return place


@dataclass(frozen=True)
class Closed:
    """bundle: as far as it is opened here, which is its manifest and what is sealed. model, other: exported."""

    bundle: Path
    model: Path
    other: Path
    key: bytes

    def list(self, **changes) -> None:
        """Write the manifest over what is there, its word on the content as it was."""
        record = read_json(self.bundle / manifest.MANIFEST)
        kept = {name: value for name, value in record.items() if name not in ("format", "files")}
        manifest.write(self.bundle, kept | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Closed:
    place = tmp_path_factory.mktemp("closed")
    tokenizer = Tokenizer.train(["the model reads the text and the text reads like the model\n"] * 4, 320)
    model, other = (export(place / name, seed, tokenizer) for seed, name in enumerate(("model", "other")))
    key, sealed = write_seal_key(place / "seal.key"), {}
    for path in model.iterdir():
        seal(path, place / "bundle" / "sealed" / path.name, key, path.name)
        sealed[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (place / "bundle" / "LICENSE").write_text("as you like\n")
    facts = {"mode": "closed", "model": open_model(model).sha256, "sealed": sealed}
    manifest.write(place / "bundle", facts)
    return Closed(place / "bundle", model, other, key)


@pytest.fixture
def closed(made, tmp_path, monkeypatch) -> Closed:
    """A copy of the bundle, its key in the environment, and a place of its own for temporary files."""
    shutil.copytree(made.bundle, tmp_path / "bundle")
    (tmp_path / "aside").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "aside"))
    monkeypatch.setenv("BEHEMOTH_SEAL_KEY", str(made.bundle.parent / "seal.key"))
    return replace(made, bundle=tmp_path / "bundle")


def held() -> list[str]:
    """The files without a name that this process has open."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.lexists(link) and "memfd" in os.readlink(link)]


def generated(model: Path, capsys) -> dict:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", str(model), PROMPT, "--max-tokens", "12", "--json"])
    assert end.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_it_talks_as_the_export_does(closed, capsys):
    told, expected = generated(closed.bundle, capsys), generated(closed.model, capsys)
    assert told["text"] and told["model"] == "bundle"
    assert told | {"model": ""} == expected | {"model": ""}  # the same text, and the same SHA-256


def test_one_that_was_released_talks_too(made, tmp_path, monkeypatch, capsys):
    small = small_bundle.make(tmp_path, mode="closed", export=made.model)
    small.build(tmp_path / "bundle", "closed")
    (tmp_path / "seal.key").touch(0o600)
    (tmp_path / "seal.key").write_bytes(base64.b64encode(small_bundle.SEAL_KEY))
    monkeypatch.setenv("BEHEMOTH_SEAL_KEY", str(tmp_path / "seal.key"))
    assert generated(tmp_path / "bundle", capsys)["text"] == generated(made.model, capsys)["text"]


def test_it_chats_as_it_was_taught(closed, monkeypatch):
    said = {}
    for model in (closed.bundle, closed.model):
        asked, answered = iter(["what reads", None]), []
        monkeypatch.setattr(verbs, "read_line", lambda lines=asked: next(lines))
        monkeypatch.setattr(verbs, "write", answered.append)
        verbs.chat(str(model), 0.8, 0.95, 0)
        said[model] = "".join(answered)
    assert said[closed.bundle] == said[closed.model] != ""
    assert opening.ready(closed.bundle).turns == open_model(closed.model).turns == 3


def test_what_is_open_has_no_name_and_is_gone_afterwards(closed, tmp_path, monkeypatch):
    seen = []

    def watched(directory, **more):
        seen.extend(Path(directory).iterdir())
        assert all(path.is_symlink() and os.readlink(path).startswith("/proc/self/fd/") for path in seen)
        assert stat.S_IMODE(Path(directory).stat().st_mode) == 0o700
        return open_model(directory, **more)

    monkeypatch.setattr(opening, "open_model", watched)
    opening.ready(closed.bundle)
    names = {path.name for path in seen}
    weights = {name for name in names if name.startswith("model-0")}
    assert {"config.json", "tokenizer.json"} <= names and len(weights) > 1
    assert not list((tmp_path / "aside").iterdir()) and not held()


def test_killed_while_it_is_open_it_leaves_nothing_in_the_clear(closed, tmp_path):
    def die():
        with opening.unsealed(closed.bundle, manifest.check(closed.bundle), closed.key) as place:
            assert (place / "config.json").read_bytes()
            os.kill(os.getpid(), signal.SIGKILL)

    victim = multiprocessing.get_context("fork").Process(target=die)
    victim.start()
    victim.join()
    left = list((tmp_path / "aside").rglob("*"))
    assert victim.exitcode == -signal.SIGKILL and left
    assert not [path for path in left if path.is_file() and not path.is_symlink()]
    assert not any("fd" not in os.readlink(path) for path in left if path.is_symlink())


def test_without_its_key_it_says_what_to_do(closed, monkeypatch):
    monkeypatch.delenv("BEHEMOTH_SEAL_KEY")
    with pytest.raises(InputError, match="BEHEMOTH_SEAL_KEY names the file"):
        opening.ready(closed.bundle)


def test_a_key_that_others_may_read_is_refused(closed, tmp_path, monkeypatch):
    shutil.copyfile(os.environ["BEHEMOTH_SEAL_KEY"], tmp_path / "seal.key")
    (tmp_path / "seal.key").chmod(0o644)
    monkeypatch.setenv("BEHEMOTH_SEAL_KEY", str(tmp_path / "seal.key"))
    with pytest.raises(InputError, match="others may read"):
        opening.ready(closed.bundle)


def refusal(closed) -> str:
    with pytest.raises(Refused) as found:
        opening.ready(closed.bundle)
    assert not held()
    return found.value.code


def test_another_key_opens_nothing(closed, tmp_path, monkeypatch):
    write_seal_key(tmp_path / "seal.key")
    monkeypatch.setenv("BEHEMOTH_SEAL_KEY", str(tmp_path / "seal.key"))
    assert refusal(closed) == "wrong-seal-key"


def test_a_changed_file_is_refused_by_the_manifest(closed):
    path = closed.bundle / "LICENSE"
    path.write_text(path.read_text() + " ")
    assert refusal(closed) == "longer-file"


def test_a_sealed_file_that_changed_is_refused_even_when_it_is_listed(closed):
    path = closed.bundle / "sealed" / "config.json"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    closed.list()
    assert refusal(closed) == "sealed-file-changed"


def test_another_content_than_the_manifest_says_is_refused(closed, tmp_path):
    """By whoever has the key: sealed anew and listed, and the word on the content left."""
    (tmp_path / "config.json").write_bytes((closed.model / "config.json").read_bytes() + b" ")
    seal(tmp_path / "config.json", closed.bundle / "sealed" / "config.json", closed.key, "config.json")
    closed.list()
    assert refusal(closed) == "facts-differ"


def test_another_model_of_the_lab_is_refused(closed):
    """An earlier one under the same key, its files consistent in themselves."""
    record = read_json(closed.bundle / manifest.MANIFEST)
    for path in closed.other.iterdir():
        seal(path, closed.bundle / "sealed" / path.name, closed.key, path.name)
        record["sealed"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    closed.list(sealed=record["sealed"])
    assert refusal(closed) == "model-differs"


@pytest.mark.parametrize(
    "sealed", [None, [], {}, {"../config.json": {"sha256": "0" * 64}}, {"config.json": 1}]
)
def test_a_manifest_that_does_not_list_it_is_refused(closed, sealed):
    closed.list(sealed=sealed)
    assert refusal(closed) == "malformed"


def test_a_sealed_file_in_a_folder_is_refused(closed):
    place = closed.bundle / "sealed" / "deep"
    place.mkdir()
    seal(closed.model / "config.json", place / "config.json", closed.key, "deep/config.json")
    sealed = read_json(closed.bundle / manifest.MANIFEST)["sealed"]
    closed.list(sealed=sealed | {"deep/config.json": sealed["config.json"]})
    assert refusal(closed) == "malformed"


def test_a_staged_release_is_sent_to_its_closed_half(closed, tmp_path):
    write_json(tmp_path / "staged" / "staged.json", {})
    with pytest.raises(InputError, match=r"name .*staged/closed"):
        opening.ready(tmp_path / "staged")
