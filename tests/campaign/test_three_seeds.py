"""What the quickstart claims, over three seeds: data order, initialisation and held-out documents all differ."""

import subprocess
import sys
from pathlib import Path

import pytest

from behemoth.base.files import read_json

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.toml"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quickstart_learns(seed, tmp_path):
    command = [sys.executable, "-m", "behemoth", "run", str(RECIPE), "--out", str(tmp_path / "run")]
    subprocess.run([*command, "--set", f"seed={seed}"], check=True, stderr=subprocess.DEVNULL)
    found = read_json(tmp_path / "run" / "evals" / "results.json")["comparisons"]
    low = {(c["a"], c["b"]): c["low"] for c in found}
    margin = {(c["a"], c["b"]): c["difference"] for c in found}
    print(f"\nseed {seed}: " + "; ".join(c["sentence"] for c in found))
    assert margin["teacher", "token 3-gram"] >= 0.05
    assert low["teacher", "token 3-gram"] > 0
    assert low["student", "byte 5-gram (student's tokens)"] > 0
    assert low["student", "student-control"] > 0
    table = read_json(tmp_path / "run" / "evals" / "assistant.json")
    step = {(s["from"], s["to"]): s for s in table["steps"]}
    score = {m["name"]: m["scores"]["arithmetic"] for m in table["models"]}
    worse = [entry["worse_percent"] for entry in table["held_out"]]
    print({name: s["estimate"] for name, s in score.items()}, worse)
    assert step["sft", "rl"]["difference"] >= 0.1
    assert step["sft", "rl"]["low"] > 0
    assert score["dpo"]["estimate"] >= 0.6
    assert max(worse) <= 5
