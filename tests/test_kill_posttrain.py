"""Post-training that is killed and started again, over and over, ends with the files of a run that never was.

The command is the real one, in a process of its own. It is killed with SIGKILL before a write into the run's directory,
of those that an undisturbed process makes a random one, or a moment after it. BEHEMOTH_SEED, printed, replays them.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from shutil import rmtree

import pytest

from small_assistant import RECIPE, without, write_folder

STAGES = ("sft", "rl", "dpo")
ADAPTED = RECIPE.replace(
    "[dpo]\n", "[dpo]\nadapter = { rank = 2, alpha = 4 }\n"
)  # it is one more thing to write
TIMING = {"seconds", "tokens_per_second", "peak_share"}
KILLED = """
import atexit, os, signal, sys, threading

last, delay, directory, done = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], 0
end = (os.kill, (os.getpid(), signal.SIGKILL))

def count(event, facts):
    global done
    if event not in ("open", "os.rename", "os.remove") or not str(facts[0]).startswith(directory):
        return
    if event == "open" and not facts[2] & (os.O_WRONLY | os.O_RDWR):
        return
    done += 1
    if done == last:
        threading.Timer(delay, *end).start() if delay else end[0](*end[1])

sys.addaudithook(count)
atexit.register(lambda: print(done))
sys.argv = ["behemoth", *sys.argv[4:]]
from behemoth.cli import main

main()
"""


def go_on(out, stage, kill_at=0, delay=0.0):
    """The stage's command in a process that is killed at a write (0: not at all); the writes that it made, or None."""
    command = ["run", out.parent / "recipe.toml", "--out", out, "--stage", stage]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (kill_at, delay, out, *command))],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    return int(process.stdout.split()[-1])


def untimed(value):
    match value:
        case dict():
            return {key: untimed(part) for key, part in value.items() if key not in TIMING}
        case list():
            return [untimed(part) for part in value]
    return value


def files(directory):
    """What a stage leaves: of its lines all but the seconds, of every other file the hash."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        if path.suffix == ".jsonl":
            found[name] = [untimed(json.loads(line)) for line in path.read_text().splitlines()]
        elif not name.startswith("tensorboard") and not path.name.startswith("."):
            content = path.read_bytes().replace(
                str(directory.parent).encode(), b"RUN"
            )  # an adapter names its base
            found[name] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twelve_kills(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "recipe.toml").write_text(ADAPTED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    writes = {stage: go_on(whole, stage) for stage in ("data", "pretrain", *STAGES)}
    without(whole, killed, *STAGES)
    seed = int(os.environ.get("BEHEMOTH_SEED", time.time_ns() % 10**9))
    print(f"BEHEMOTH_SEED={seed}; {writes} writes")
    chooser = random.Random(seed)
    for stage in STAGES:
        expected, kills = files(whole / stage), 0
        assert {"metrics.jsonl", "tasks.jsonl", "heldout.jsonl"} < expected.keys()
        while kills < 4:
            delay = chooser.choice([0.0, chooser.uniform(0, 0.05)])
            if go_on(killed, stage, chooser.randint(1, writes[stage]), delay) is None:
                kills += 1
                continue
            assert files(killed / stage) == expected
            rmtree(killed / stage)
            done = json.loads((killed / "stages.json").read_text())
            (killed / "stages.json").write_text(json.dumps({k: v for k, v in done.items() if k != stage}))
        go_on(killed, stage)
        assert files(killed / stage) == expected
        assert not list((killed / stage).glob("best-*"))
