"""A run that is killed and started again, over and over, ends with the weights of one that never was.

The run is the real one: `behemoth run` in a process of its own, on a folder of text made here. Half of the
kills fall at a random moment of the run's life (start-up, data, training), half while a file or a checkpoint
is being written, when there is something half-done to find. BEHEMOTH_SEED, printed, replays the moments.
"""

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
name = "tiny"
seed = 3

[data]
sources = [{ kind = "files", path = "text" }]
held_out = 0.4

[tokenizer]
vocab_size = 512

[model]
experts = 2
hidden_size = 32
num_layers = 2

[train]
tokens = 24_576
context_length = 64
tokens_per_step = 256
microbatches = 2
precision = "fp32"  # "auto" measures the machine, and two runs may then differ
save_every = 6
evaluate_every = 48
sample_every = 48

[[students]]
name = "student"
experts = 2
hidden_size = 32
num_layers = 1
joins_at = 0.5
"""
STEPS = 96
WORDS = ["river", "stone", "cloud", "green", "old", "runs", "sleeps", "under", "light", "never", "because"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe and its folder of 200 documents of random sentences."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "text").mkdir()
    chooser = random.Random(0)
    for number in range(200):
        text = " ".join(chooser.choice(WORDS) + str(chooser.randrange(50)) for _ in range(80))
        (folder / "text" / f"{number:03d}.txt").write_text(text)
    (folder / "tiny.toml").write_text(RECIPE)
    return folder / "tiny.toml"


def begin(recipe, out):
    """Start the run, or go on with it; what it says is added to `out`.log."""
    command = [sys.executable, "-m", "behemoth", "run", str(recipe), "--out", str(out)]
    with open(f"{out}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def is_trained(process, out):
    """Whether the weights are final. What comes after (evaluation, export) is not waited for."""
    stages = Path(out) / "stages.json"
    if stages.exists() and json.loads(stages.read_text()).get("pretrain", {}).get("finished"):
        return True
    assert process.poll() is None, Path(f"{out}.log").read_text()[-3000:]
    return False


def finish(recipe, out):
    """Go on until the weights are final."""
    process, limit = begin(recipe, out), time.monotonic() + 240
    while not is_trained(process, out):
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.kill()
    process.wait()


def checkpoints(out):
    return sorted((Path(out) / "pretrain/checkpoints").glob("step-*"))


def weights_of(out):
    """Hash of the final weights of every member."""
    final = checkpoints(out)[-1]
    assert final.name == f"step-{STEPS:08d}"
    files = sorted(final.glob("weights/*/model.safetensors"))
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def losses_of(out):
    """Every step's losses, in the order written: a repeated or a missing step shows."""
    lines = (Path(out) / "pretrain/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return [(s["step"], {name: member["loss"] for name, member in s["members"].items()}) for s in steps]


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """(weights, losses, seconds) of a run that nobody touched."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    start = time.monotonic()
    finish(recipe, out)
    seconds = time.monotonic() - start
    weights = weights_of(out)
    assert weights.keys() == {"teacher", "student", "student-control"}
    return weights, losses_of(out), seconds


def something_is_being_written(out):
    try:
        return next(Path(out).rglob(".*"), None) is not None
    except FileNotFoundError:  # it was, and has just been renamed
        return True


def kill_somewhere(process, out, chooser, seconds):
    """SIGKILL at a random moment, or while something is being written; whether that was in time."""
    moment, wait_for_writing = time.monotonic() + chooser.uniform(0, seconds), chooser.random() < 0.5
    while time.monotonic() < moment or (wait_for_writing and not something_is_being_written(out)):
        if is_trained(process, out):
            break
        time.sleep(0.002)
    time.sleep(chooser.uniform(0, 0.01))
    in_time = not is_trained(process, out)
    process.kill()
    process.wait()
    return in_time


def check_kills(recipe, undisturbed, tmp_path, kills):
    weights, losses, seconds = undisturbed
    seed = int(os.environ.get("BEHEMOTH_SEED", time.time_ns() % 10**9))
    print(f"BEHEMOTH_SEED={seed}, undisturbed {seconds:.1f} s")
    chooser = random.Random(seed)
    killed, torn, ended, out = 0, 0, 0, tmp_path / "run"
    while killed < kills:
        if kill_somewhere(begin(recipe, out), out, chooser, seconds):
            killed += 1
            torn += something_is_being_written(out)
        else:
            check_same(out, weights, losses)
            shutil.rmtree(out)
            ended += 1
    finish(recipe, out)
    check_same(out, weights, losses)
    print(f"{killed} kills, {torn} with something half-written left, {ended + 1} runs ended, all alike")


def check_same(out, weights, losses):
    assert weights_of(out) == weights
    assert losses_of(out) == losses
    assert not list((Path(out) / "pretrain/checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills(recipe, undisturbed, tmp_path):
    check_kills(recipe, undisturbed, tmp_path, 20)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_two_hundred_kills(recipe, undisturbed, tmp_path):
    check_kills(recipe, undisturbed, tmp_path, 200)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(recipe, undisturbed, tmp_path, number, code):
    weights, losses, _ = undisturbed
    out = tmp_path / "run"
    process = begin(recipe, out)
    while not checkpoints(out):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    start = time.monotonic()
    assert process.wait(timeout=60) == code
    assert time.monotonic() - start < 25
    said = Path(f"{out}.log").read_text()
    assert 6 <= int(checkpoints(out)[-1].name.removeprefix("step-")) < STEPS
    assert re.search(rf"behemoth run .*{re.escape(shlex.quote(str(out)))}", said.replace("\n", " ")), said
    finish(recipe, out)
    check_same(out, weights, losses)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(recipe, undisturbed, tmp_path):
    weights, losses, _ = undisturbed
    out = tmp_path / "run"
    process = begin(recipe, out)
    while len(checkpoints(out)) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    newest = checkpoints(out)[-1]
    file = newest / "weights/teacher/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    finish(recipe, out)
    check_same(out, weights, losses)
    assert str(file) in Path(f"{out}.log").read_text().replace("\n", "")
    assert newest.with_name(f"damaged-{newest.name}").exists()
