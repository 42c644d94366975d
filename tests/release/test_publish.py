"""A bundle goes out whole or not at all: into directories, and onto a small Hub of our own (fake_hub.py)."""

import errno
import os
import shutil

import fake_hub
import pytest

from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import sha256
from behemoth.bundle import manifest
from behemoth.bundle.refusals import Refused
from behemoth.release import publish as publishing
from behemoth.release.publish import plan, publish

FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "config.json": b"{}\n",
    "model.safetensors": bytes(range(256)) * 400,
    "release/verdict.json": b"{}\n",
}
FACTS = {"name": "q-dpo", "version": "1", "mode": "open", "demo": True}


def make(directory, facts=FACTS, **more):
    """A bundle as far as publishing looks at it: files, their manifest, something in the place of a signature."""
    for name, data in {**FILES, **more}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    manifest.write(directory, facts)
    (directory / "model.sig").write_bytes(b"not looked at here\n")
    return directory


@pytest.fixture
def bundle(tmp_path):
    return make(tmp_path / "bundle")


def contents(directory):
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


# ------------------------------------------------------------------------------------------------------ a directory


def test_a_dry_run_says_what_would_go_and_writes_nothing(bundle, tmp_path):
    found = publish(bundle, str(tmp_path / "out"), really=False)
    assert found.there == "nothing is there" and not found.problems and not found.done
    assert {f.name: (f.bytes, f.state) for f in found.files} == {
        name: (len(data), "new") for name, data in contents(bundle).items()
    }
    assert (found.name, found.version, found.mode, found.demo) == ("q-dpo", "1", "open", True)
    assert found.bytes == sum(map(len, contents(bundle).values()))
    assert os.listdir(tmp_path) == ["bundle"]
    assert found.as_dict()["files"][0]["name"] == "README.md"


def test_a_directory_gets_all_of_it(bundle, tmp_path):
    publish(bundle, str(tmp_path / "a" / "out"), really=True)
    assert contents(tmp_path / "a" / "out") == contents(bundle)
    assert manifest.check(tmp_path / "a" / "out")["name"] == "q-dpo"
    assert os.listdir(tmp_path / "a") == ["out"]


def test_once_more_changes_nothing(bundle, tmp_path):
    out = tmp_path / "out"
    publish(bundle, str(out), really=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    found = publish(bundle, str(out), really=True)
    assert found.done and found.there == "this very bundle is there"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("there", ["file", "directory", "another version", "one byte", "link"])
def test_what_is_there_is_never_written_over(bundle, tmp_path, there):
    out = tmp_path / "out"
    match there:
        case "file":
            out.write_text("mine")
        case "directory":
            out.mkdir()
        case "another version":
            make(out, {**FACTS, "version": "2"})
        case "one byte":
            shutil.copytree(bundle, out)
            (out / "config.json").write_bytes(b"[]\n")
        case "link":
            out.symlink_to(tmp_path / "nowhere")
    before = contents(out) if out.is_dir() else None
    assert plan(bundle, str(out)).problems
    with pytest.raises(AnswerIsNo, match="ever written over"):
        publish(bundle, str(out), really=True)
    assert before is None or contents(out) == before


def test_a_full_disk_leaves_nothing(bundle, tmp_path, monkeypatch):
    copies = []

    def full(*arguments):
        copies.append(arguments)
        if len(copies) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(*arguments)

    copy = publishing.copy
    monkeypatch.setattr(publishing, "copy", full)
    with pytest.raises(OSError, match="No space"):
        publish(bundle, str(tmp_path / "out"), really=True)
    assert os.listdir(tmp_path) == ["bundle"]


def test_what_a_killed_copy_left_is_cleared_away(bundle, tmp_path):
    left = tmp_path / ".out.publishing"
    (left / "release").mkdir(parents=True)
    (left / "release" / "old.json").write_text("half")
    publish(bundle, str(tmp_path / "out"), really=True)
    assert contents(tmp_path / "out") == contents(bundle) and not left.exists()


def test_a_link_where_the_copy_would_be_laid_out_is_not_followed(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.publishing").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="move it away"):
        publish(bundle, str(tmp_path / "out"), really=True)
    assert not os.listdir(tmp_path / "elsewhere") and not os.path.lexists(tmp_path / "out")


@pytest.mark.parametrize("name", [manifest.MANIFEST, manifest.SIGNATURE])
def test_a_manifest_and_a_signature_are_those_that_were_verified(bundle, tmp_path, name):
    verified = {one: sha256(bundle / one) for one in (manifest.MANIFEST, manifest.SIGNATURE)}
    assert not plan(bundle, str(tmp_path / "out"), verified).problems
    with open(bundle / name, "a") as file:
        file.write("\n")
    with pytest.raises(Refused, match="changed since it was verified"):
        plan(bundle, str(tmp_path / "out"), verified)


def test_a_file_that_changes_after_the_plan_stops_it(bundle, tmp_path, monkeypatch):
    def swap(filling):
        if filling.name == ".out.publishing":
            (bundle / "model.safetensors").write_bytes(b"\1" + FILES["model.safetensors"][1:])

    monkeypatch.setattr(publishing, "remove_tree", swap)
    with pytest.raises(Refused, match="changed since it was verified") as refused:
        publish(bundle, str(tmp_path / "out"), really=True)
    assert refused.value.code == "changed-file" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "code"), [("extra.py", "extra-file"), ("config.json", "missing-file")])
def test_a_file_too_many_or_too_few_stops_it(bundle, tmp_path, name, code):
    (bundle / name).unlink() if name in FILES else (bundle / name).write_text("print()")
    with pytest.raises(Refused, match=name) as refused:
        plan(bundle, str(tmp_path / "out"))
    assert refused.value.code == code


def test_a_bundle_that_nobody_signed_is_not_published(bundle, tmp_path):
    (bundle / "model.sig").unlink()
    with pytest.raises(Refused, match=r"model\.sig"):
        plan(bundle, str(tmp_path / "out"))


def test_what_is_no_bundle_is_told(bundle, tmp_path):
    with pytest.raises(InputError, match="behemoth release makes one"):
        plan(tmp_path, str(tmp_path / "out"))
    (tmp_path / "staged.json").write_text("{}")
    with pytest.raises(InputError, match="is staged"):
        plan(tmp_path, "hf://lab/model")
    for inside in (bundle, bundle / "out", bundle.parent):
        with pytest.raises(InputError, match="choose another place"):
            plan(bundle, str(inside))


# ---------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    with fake_hub.running() as (found, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found


def on(hub, name="lab/model"):
    return {path: data for path, data in hub.repositories[name]["files"].items() if path != ".gitattributes"}


def test_a_new_repository_gets_all_of_it_in_one_commit(bundle, hub):
    found = publish(bundle, "hf://lab/model", really=False)
    assert found.there.startswith("no such repository") and {f.state for f in found.files} == {"new"}
    assert not hub.repositories
    publish(bundle, "hf://lab/model", really=True)
    assert on(hub) == contents(bundle)
    assert hub.commits == 2 and not hub.repositories["lab/model"]["private"]


def test_a_later_version_replaces_an_earlier_one_and_what_is_alike_stays(bundle, hub, tmp_path):
    publish(bundle, "hf://lab/model", really=True)
    later = make(tmp_path / "later", {**FACTS, "version": "2"}, **{"generation_config.json": b"{}"})
    (later / "config.json").unlink()
    manifest.write(later, {**FACTS, "version": "2"})
    found = publish(later, "hf://lab/model", really=False)
    assert found.removed == ("config.json",) and found.there.startswith("a public repository at ")
    assert {f.name: f.state for f in found.files} == {
        "README.md": "same", "generation_config.json": "new", "model.safetensors": "same", "model.sig": "same",
        "release/manifest.json": "changed", "release/verdict.json": "same",
    }  # fmt: skip
    sent = len([path for _, path in hub.requests if path.startswith("/upload/")])
    publish(later, "hf://lab/model", really=True)
    assert on(hub) == contents(later)
    assert len([path for _, path in hub.requests if path.startswith("/upload/")]) == sent
    assert publish(later, "hf://lab/model", really=True).done and hub.commits == 3


def test_a_repository_of_somebody_else_is_left_alone(bundle, hub):
    hub.create("lab/model", files={"weights.bin": b"mine"})
    with pytest.raises(AnswerIsNo, match=r"'weights\.bin' and is no bundle"):
        publish(bundle, "hf://lab/model", really=True)
    assert on(hub) == {"weights.bin": b"mine"}


def test_a_closed_bundle_goes_into_private_repositories_only(hub, tmp_path):
    closed = make(tmp_path / "closed", {**FACTS, "mode": "closed"})
    publish(closed, "hf://lab/new", really=True)
    assert hub.repositories["lab/new"]["private"]
    hub.create("lab/public")
    with pytest.raises(AnswerIsNo, match="is public and the bundle is closed"):
        publish(closed, "hf://lab/public", really=True)
    assert on(hub, "lab/public") == {}
    hub.create("lab/private", private=True)
    publish(closed, "hf://lab/private", really=True)
    assert on(hub, "lab/private") == contents(closed)


def test_somebody_who_was_quicker_is_not_overwritten(bundle, hub, monkeypatch):
    hub.create("lab/model")
    look = publishing.look_at_hub

    def then_another_commit(*arguments):
        found = look(*arguments)
        hub.commit("lab/model")
        return found

    monkeypatch.setattr(publishing, "look_at_hub", then_another_commit)
    with pytest.raises(InputError, match="the Hub did not do it"):
        publish(bundle, "hf://lab/model", really=True)
    assert on(hub) == {}


@pytest.mark.parametrize("step", ["/upload/", "/commit/", "/api/repos/create"])
def test_a_hub_that_fails_half_way_has_nothing_and_the_next_attempt_all(bundle, hub, step, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.refuse = step
    with pytest.raises(InputError, match="the Hub did not do it"):
        publish(bundle, "hf://lab/model", really=True)
    assert "lab/model" not in hub.repositories or on(hub) == {}
    hub.refuse = ""
    publish(bundle, "hf://lab/model", really=True)
    assert on(hub) == contents(bundle)


@pytest.mark.parametrize("harm", ["lost", "changed", "added"])
def test_what_arrives_is_held_against_what_was_sent(bundle, hub, harm):
    def spoil(files):
        match harm:
            case "lost":
                del files["config.json"]
            case "changed":
                files["model.safetensors"] = b"other"
            case "added":
                files["run.py"] = b"print()"

    hub.spoil = spoil
    with pytest.raises(AnswerIsNo, match="is not there as it was sent"):
        publish(bundle, "hf://lab/model", really=True)


def test_a_network_that_is_not_there_is_told(bundle, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="check the name, the network and the login"):
        plan(bundle, "hf://lab/model")


@pytest.mark.parametrize("name", ["hf://model", "hf://a/b/c", "hf://lab/", "hf://../x", "hf://lab/mo del"])
def test_a_repository_has_an_owner_and_a_name(bundle, name):
    with pytest.raises(InputError, match="hf://OWNER/NAME"):
        plan(bundle, name)
