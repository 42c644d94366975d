"""Every way a save can go wrong, done to real files: the run keeps a good save, and knows which one it is."""

import builtins
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from behemoth.base.errors import DamagedError, InputError
from behemoth.base.files import MANIFEST, read_json, verify_manifest, write_json
from behemoth.train.checkpoint import Checkpoints, load_tensors, save_tensors, step_of

FILES = [
    "weights/teacher/config.json",
    "weights/teacher/model.safetensors",
    "state/teacher.safetensors",
    "state/run.json",
    MANIFEST,
]


def state_of(step):
    """A `write` for the store: weights and state that differ from step to step."""

    def write(directory):
        write_json(directory / "weights/teacher/config.json", {"hidden_size": 8, "step": step})
        save_tensors(directory / "weights/teacher/model.safetensors", {"a": torch.full((64,), float(step))})
        save_tensors(directory / "state/teacher.safetensors", {"momentum": torch.arange(64.0) * step})
        write_json(directory / "state/run.json", {"step": step, "seconds": step / 7})

    return write


def plain_state_of(step, size=2000):
    """The same without torch, for forked children and for faults injected into Python's own calls."""
    return lambda directory: (directory / "weights.bin").write_bytes(bytes([step % 251]) * size)


def saved(root, *steps, keep=3):
    store = Checkpoints(root, keep)
    for step in steps:
        assert store.save(step, state_of(step), {"seed": step}) is not None
    return store


def names(root):
    return sorted(path.name for path in root.iterdir())


def flip(path, position=None):
    data = bytearray(path.read_bytes())
    chooser = random.Random(path.name)
    data[chooser.randrange(len(data)) if position is None else position] ^= 1 << chooser.randrange(8)
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 3)


def delete(path):
    path.unlink()


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def swap(path):
    """Exchange the contents of a file and its neighbour in the same save."""
    save = next(parent for parent in path.parents if parent.name.startswith("step-"))
    files = sorted(file for file in save.rglob("*") if file.is_file())
    other = files[files.index(path) - 1]
    contents = path.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    path.write_bytes(contents[1])


def extra(path):
    path.with_name(path.name + ".old").write_bytes(b"left here by somebody")


def test_what_was_saved_comes_back(tmp_path):
    store = saved(tmp_path, 100, 200)
    latest = store.latest()
    assert latest == tmp_path / "step-00000200"
    assert (step_of(latest), read_json(latest / MANIFEST)["facts"]) == (200, {"seed": 200})
    weights = load_tensors(latest / "weights/teacher/model.safetensors")
    assert torch.equal(weights["a"], torch.full((64,), 200.0))
    assert json.loads((latest / "state/run.json").read_text())["seconds"] == 200 / 7
    assert Checkpoints(tmp_path / "new").latest() is None


@pytest.mark.parametrize("damage", [flip, truncate, delete, zero, swap, extra])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_named_and_an_older_save_is_taken(tmp_path, name, damage):
    saved(tmp_path, 100, 200, 300)
    bad = tmp_path / "step-00000300"
    damage(bad / name)
    said = []
    assert Checkpoints(tmp_path).latest(said.append) == tmp_path / "step-00000200"
    suspects = FILES if damage is swap else [name]  # of two that were exchanged, either may be met first
    assert any(str(bad / suspect) in said[0] for suspect in suspects)
    assert names(tmp_path) == [
        "damaged-step-00000300",
        "step-00000100",
        "step-00000200",
    ]  # set aside, not deleted


def test_every_byte_of_the_manifest_counts(tmp_path):
    saved(tmp_path, 100)
    manifest = tmp_path / "step-00000100" / MANIFEST
    good = manifest.read_bytes()
    for position in range(len(good)):
        flip(manifest, position)
        with pytest.raises(DamagedError):
            verify_manifest(manifest.parent)
        manifest.write_bytes(good)
    verify_manifest(manifest.parent)


def test_a_save_under_another_steps_name_is_damaged(tmp_path):
    saved(tmp_path, 100, 200)
    (tmp_path / "step-00000200").rename(tmp_path / "step-00000900")
    said = []
    assert Checkpoints(tmp_path).latest(said.append) == tmp_path / "step-00000100"
    assert "not the manifest of step-00000900" in said[0]


def test_damage_after_saving_is_seen_by_the_process_that_saved(tmp_path):
    store = saved(tmp_path, 100, 200)
    flip(tmp_path / "step-00000200/state/run.json")
    assert store.latest() == tmp_path / "step-00000100"


def test_a_run_whose_saves_are_all_damaged_does_not_start_from_zero(tmp_path):
    saved(tmp_path, 100, 200)
    for path in tmp_path.iterdir():
        flip(path / "state/run.json")
    for _ in range(2):  # the second time they have been moved aside already
        with pytest.raises(
            DamagedError, match=r"damaged-step-00000100, damaged-step-00000200.*start this stage afresh"
        ):
            Checkpoints(tmp_path).latest()


def test_a_step_saved_twice(tmp_path, capfd):
    store = saved(tmp_path, 100, 200)
    before = (tmp_path / "step-00000200" / MANIFEST).read_bytes()
    assert store.save(200, state_of(999), {}) == tmp_path / "step-00000200"
    assert (tmp_path / "step-00000200" / MANIFEST).read_bytes() == before  # good, so kept
    flip(tmp_path / "step-00000200" / "state/run.json")
    assert store.save(200, state_of(200), {"seed": 200}) == tmp_path / "step-00000200"
    assert (tmp_path / "step-00000200" / MANIFEST).read_bytes() == before  # damaged, so written anew
    assert "damaged-step-00000200" in names(tmp_path)


@pytest.mark.parametrize(("keep", "left"), [(3, [4, 5, 6]), (1, [5, 6]), (0, [5, 6])])
def test_retention_keeps_the_newest_and_never_fewer_than_two(tmp_path, keep, left):
    saved(tmp_path, *range(1, 7), keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


def test_retention_counts_only_good_saves(tmp_path):
    saved(tmp_path, 100, 200, keep=2)
    flip(tmp_path / "step-00000200" / "state/run.json")
    saved(tmp_path, 300, keep=2)
    assert names(tmp_path) == ["damaged-step-00000200", "step-00000100", "step-00000300"]


def test_a_save_that_cannot_be_read_back_costs_no_older_one(tmp_path, monkeypatch):
    store = saved(tmp_path, 100, 200, keep=2)

    def publish_and_rot(temporary, final):
        os.rename(temporary, final)
        flip(final / "state/run.json")

    monkeypatch.setattr("behemoth.train.checkpoint.publish_directory", publish_and_rot)
    assert store.save(300, state_of(300), {}) is None
    assert names(tmp_path) == ["damaged-step-00000300", "step-00000100", "step-00000200"]


def check_the_run_survives_a_full_disk(root, fill, free, capfd):
    """`fill` makes the disk refuse, in the middle of a file and not before; `free` makes it well again."""
    store, big = saved(root, 100), torch.randn(60_000)
    fill()
    refused = store.save(200, lambda directory: save_tensors(directory / "big.safetensors", {"a": big}), {})
    assert refused is None
    message = " ".join(capfd.readouterr().err.split())
    assert "step 200: checkpoint NOT saved" in message
    assert "step-00000100" in message
    assert names(root) == ["step-00000100"]  # the good one, and nothing half-written
    free()
    assert store.save(300, state_of(300), {}) is not None
    assert Checkpoints(root).latest() == root / "step-00000300"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 512 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip(
            "a real small disk (tmpfs) needs the right to mount; the file size limit stands in for it"
        )
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_disk_full(small_disk, capfd):
    root, ballast = small_disk / "checkpoints", small_disk / "ballast"
    check_the_run_survives_a_full_disk(
        root, lambda: ballast.write_bytes(bytes(300_000)), ballast.unlink, capfd
    )


def test_read_only_disk(small_disk, capfd):
    store = saved(small_disk / "checkpoints", 100)

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    remount("ro")
    assert store.save(200, state_of(200), {}) is None
    assert "Read-only file system" in capfd.readouterr().err
    assert store.latest() == small_disk / "checkpoints/step-00000100"
    with pytest.raises(InputError, match="cannot be written to"):
        Checkpoints(small_disk / "checkpoints")
    remount("rw")
    assert store.save(200, state_of(200), {}) is not None


def test_file_size_limit(tmp_path, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores SIGXFSZ, so a write ends in EFBIG
    try:
        check_the_run_survives_a_full_disk(
            tmp_path / "checkpoints",
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
            capfd,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_too_little_room_is_seen_before_writing(tmp_path, monkeypatch, capfd):
    store = saved(tmp_path, 100)
    size = sum(path.stat().st_size for path in (tmp_path / "step-00000100").rglob("*") if path.is_file())
    for free, kept in ((1.1 * size, False), (1.3 * size, True)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, int(free))
        )
        assert (store.save(200, state_of(200), {}) is not None) == kept
    assert "NOT saved" in capfd.readouterr().err


def test_other_errors_pass_through_and_leave_nothing(tmp_path):
    store = saved(tmp_path, 100)

    def stumble(directory):
        (directory / "half").write_bytes(b"half")
        raise KeyError("a bug")

    def misread(directory):
        (directory / "not.safetensors").write_bytes(b"not safetensors at all")
        safetensors.torch.load_file(directory / "not.safetensors")

    for write, error in ((stumble, KeyError), (misread, safetensors.SafetensorError)):
        with pytest.raises(error):
            store.save(200, write, {})
        assert names(tmp_path) == ["step-00000100"]


CALLS = [(os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "replace"), (io, "open"), (builtins, "open")]


def at_call(patch, index, act):
    """Run `act` instead of the `index`-th call that reaches the disk; returns the list of calls seen."""
    seen = []

    def counted(call):
        def wrapper(*args, **kwargs):
            seen.append(call)
            return act() if len(seen) - 1 == index else call(*args, **kwargs)

        return wrapper

    for module, name in CALLS:
        patch.setattr(module, name, counted(getattr(module, name)))
    return seen


def input_output_error():
    raise OSError(errno.EIO, "Input/output error")


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def check_a_good_save_is_left(root, steps):
    store = Checkpoints(root, keep=2)
    latest = store.latest()
    assert latest is not None
    assert step_of(latest) in steps
    assert not list(root.glob(".*"))
    assert store.save(400, plain_state_of(400), {}) is not None


def test_an_error_at_any_call_costs_at_most_that_save(tmp_path, monkeypatch):
    index, failed = 0, 0
    while True:
        root = tmp_path / str(index)
        store = Checkpoints(root, keep=2)
        for step in (100, 200):
            store.save(step, plain_state_of(step), {})
        with monkeypatch.context() as patch:
            seen = at_call(patch, index, input_output_error)
            failed += store.save(300, plain_state_of(300), {}) is None
        check_a_good_save_is_left(root, (200, 300))
        if index >= len(seen):
            break
        index += 1
    assert index > 12
    assert failed > 10


def test_kill_at_any_call_leaves_a_good_save(tmp_path, monkeypatch):
    for index in range(1000):
        root = tmp_path / str(index)
        store = Checkpoints(root, keep=2)
        for step in (100, 200):
            store.save(step, plain_state_of(step), {})
        child = os.fork()
        if child == 0:
            with monkeypatch.context() as patch:
                at_call(patch, index, kill_self)
                os._exit(store.save(300, plain_state_of(300), {}) is None)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check_a_good_save_is_left(root, (200, 300))
        if code != -signal.SIGKILL:
            break
    assert code == 0
    assert index > 12


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid(), os.getppid()):
        (tmp_path / f".step-00000100.{process}.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("a person's own file")
    Checkpoints(tmp_path)
    assert names(tmp_path) == [f".step-00000100.{os.getppid()}.tmp", "notes.txt"]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": base,
        "row": base[1],
        "transposed": base.t(),
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(2**60),
        "empty": torch.empty(0, 3),
        "bits": torch.tensor([True, False]),
        "brain": torch.randn(7).bfloat16(),
        "limits": torch.tensor([float("-inf"), -0.0, 1e-45]),
    }
    path = tmp_path / "state/all.safetensors"
    save_tensors(path, tensors)
    before = path.read_bytes()
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0)
    loaded["whole"].add_(1)
    assert torch.equal(loaded["row"], base[1])
    assert path.read_bytes() == before


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_tensors(path)
    path.write_bytes(b"\x80\x04\x95 a pickle, say")
    with pytest.raises(DamagedError, match=r"a\.safetensors"):
        load_tensors(path)
