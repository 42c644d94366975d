"""A model on its way out (gate, two approvals, release, publish) is killed again and again, and nothing is lost.

The commands are the real ones, in a forked process, so that a kill falls into the work and not into the start of
Python. It is killed with SIGKILL at a random moment: of the undisturbed duration, or at one of its writes. After
every kill: the log's chain is intact and has every entry that it had; the bundle is whole or not there, and so is what
is published. In the end all is as if nobody had been killed. BEHEMOTH_SEED, printed, replays the moments.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time

import pytest
import torch

from behemoth import cli
from behemoth.bundle import journal
from behemoth.bundle.trust import DEMO_PASSPHRASE, make_demo, read_trust
from behemoth.release import approvals, evidence
from behemoth.release.verify import verify
from small_assistant import RECIPE, write_folder
from small_recipes import call
from test_gating import POLICY, SUITE

FORK = multiprocessing.get_context("fork")
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
TIMES = {"seconds", "finished", "at", "records_sha256"}
DONE = ["policy", "evidence", "verdict", "approval", "approval", "release"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run up to its export, a policy beside it, and a lab."""
    folder = tmp_path_factory.mktemp("killed")
    write_folder(folder)
    (folder / "recipe.toml").write_text(RECIPE.partition("[rl]")[0])
    (folder / "suite.toml").write_text(
        SUITE.replace('ask = "choice"\n', "")
    )  # a chat model is asked to write
    two = POLICY.replace("[approvals.open]\napprover = 1", "[approvals.open]\napprover = 2\npeople = 2")
    assert two != POLICY
    (folder / "policy.toml").write_text(two)
    (folder / "text" / "LICENSE").write_text("CC0 1.0 Universal: no rights reserved.")
    for stage in ("data", "pretrain", "sft", "export"):
        call("run", folder / "recipe.toml", "--out", folder / "runs" / "run", "--stage", stage, "--no-doctor")
    make_demo(folder / "lab")
    return folder


def commands(folder):
    """What people type, from the verdict to what others find."""
    run, out, trust = folder / "runs" / "run", folder / "out", ("--trust", folder / "lab" / "trust.json")

    def signed(name, key):
        return ("--as", name, "--key", folder / "lab" / "keys" / f"{key}.pem", *trust)

    return [
        ("gate", run, "--policy", folder / "policy.toml", *signed("Bo Demo", "evaluator")),
        ("approve", run, *signed("Cy Demo", "approver-1")),
        ("approve", run, *signed("Di Demo", "approver-2")),
        ("release", run, "--open", out, *signed("Ada Demo", "builder")),
        ("publish", out, "--to", folder / "public", *trust, "--really"),
    ]


def work(folder, moment, delay, writes):
    """All of it, in a process that is killed at a write of a command, or a moment after it: moment = (command, write).

    writes: how many each command made so far.
    """
    torch.set_num_threads(1)  # threads of the parent are not there after a fork
    printed = os.open(folder / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1), os.dup2(printed, 2)
    inside, end, now = str(folder), (os.kill, (os.getpid(), signal.SIGKILL)), 0

    def count(event, facts):
        if event not in WRITES or not str(facts[0]).startswith(inside):
            return
        if event == "open" and not (isinstance(facts[2], int) and facts[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        writes[now] += 1
        if (now, writes[now]) == moment:
            threading.Timer(delay, *end).start() if delay else end[0](*end[1])

    sys.addaudithook(count)
    for now, words in enumerate(commands(folder)):  # noqa: B007
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            if ended.code:
                os._exit(ended.code)
    os._exit(0)


def begin(folder, moment=None, delay=0.0):
    writes = FORK.Array("i", len(commands(folder)), lock=False)
    process = FORK.Process(target=work, args=(folder, moment, delay, writes))
    process.start()
    return process, writes


def copy_of(trained, place):
    return shutil.copytree(trained, place)


def check(folder, before):
    """What must hold at every moment; the log's entries now."""
    run = folder / "runs" / "run"
    entries = journal.read(run / "gate" / "log.jsonl")
    assert entries[: len(before)] == before, "an entry was lost"
    if (run / "gate" / "evidence").exists():
        evidence.digest(run / "gate" / "evidence")
    for path in (run / "gate" / "approvals").glob("[!.]*"):
        approvals.read_approval(path)
    lab = read_trust(folder / "lab" / "trust.json")
    for place in (folder / "out", folder / "public"):
        if place.exists():
            found = verify(place, lab)
            assert found.holds, (place.name, found.refusals)
    return entries


def check_end(folder):
    """All is there once, and nothing that was begun lies about."""
    run = folder / "runs" / "run"
    entries = check(folder, [])
    assert [entry.kind for entry in entries] == DONE
    assert len({entry.facts["by"] for entry in entries if entry.kind == "approval"}) == 2
    assert contents(folder / "public") == contents(folder / "out")
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} <= {".lock"}
    left = {path.name for path in (run / "gate").iterdir()} - {"approvals"}
    assert left == {
        "log.jsonl", "policy.toml", "evidence", "verdict.json", "verdict.dsse.json", "verdict.html"
    }, left  # fmt: skip
    assert not [path for path in folder.rglob("*.tmp") if "lab" not in path.parts]


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def untimed(value):
    match value:
        case dict():
            return {key: untimed(part) for key, part in value.items() if key not in TIMES}
        case list():
            return [untimed(part) for part in value]
    return value


def decided(folder):
    """Every answer and every check, without how long it took and what depends on that."""
    place = folder / "out" / "release"
    lines = {
        f"{path.parent.name}/{path.name}": [
            untimed(json.loads(line)) for line in path.read_text().splitlines()
        ]
        for path in sorted(place.glob("evidence/evaluations/*/*.jsonl"))
    }
    verdict = json.loads((place / "verdict.json").read_text())
    return lines, verdict["checks"], verdict["verdict"], verdict["reasons"]


def check_kills(trained, tmp_path, kills):
    began = time.monotonic()
    whole, writes = begin(copy_of(trained, tmp_path / "undisturbed"))
    whole.join()
    seconds = time.monotonic() - began
    assert whole.exitcode == 0, (tmp_path / "undisturbed" / "printed.txt").read_text()[-3000:]
    check_end(tmp_path / "undisturbed")
    wanted = decided(tmp_path / "undisturbed")

    seed = int(os.environ.get("BEHEMOTH_SEED", time.time_ns() % 10**9))
    chooser, folder, before = random.Random(seed), copy_of(trained, tmp_path / "0"), []
    print(f"\nBEHEMOTH_SEED={seed}, undisturbed {seconds:.1f} s and {[*writes]} writes")
    killed, ended, during = 0, 0, dict.fromkeys(["gate", "approve", "release", "publish"], 0)
    while killed < kills:
        if chooser.random() < 0.4:
            process, _ = begin(folder)
            process.join(chooser.uniform(0, seconds))
            process.kill()
        else:
            which = chooser.randrange(len(writes))
            moment = which, chooser.randrange(1, writes[which] + 1)
            process, _ = begin(folder, moment, chooser.choice([0, chooser.uniform(0, 0.05)]))
        process.join()
        before = check(folder, before)
        if process.exitcode == 0:
            check_end(folder)
            assert decided(folder) == wanted
            ended, before = ended + 1, []
            shutil.rmtree(folder)
            folder = copy_of(trained, tmp_path / str(ended))
        else:
            assert process.exitcode == -signal.SIGKILL, (folder / "printed.txt").read_text()[-3000:]
            killed += 1
            during[stage_of(folder, before)] += 1
    last, _ = begin(folder)
    last.join()
    assert last.exitcode == 0, (folder / "printed.txt").read_text()[-3000:]
    check(folder, before)
    check_end(folder)
    assert decided(folder) == wanted
    print(f"{killed} kills ({during}), {ended + 1} went out, all alike")


def stage_of(folder, entries):
    """What the next command to be finished was when the process was killed."""
    kinds = [entry.kind for entry in entries]
    if "release" in kinds:
        return "publish"
    if kinds.count("approval") == 2:
        return "release"
    return "approve" if (folder / "runs" / "run" / "gate" / "verdict.dsse.json").exists() else "gate"


@pytest.fixture(autouse=True)
def signing(monkeypatch, tmp_path):
    monkeypatch.setenv("BEHEMOTH_PASSPHRASE", DEMO_PASSPHRASE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_kills(trained, tmp_path):
    check_kills(trained, tmp_path, 8)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_fifty_kills(trained, tmp_path):
    check_kills(trained, tmp_path, 50)
