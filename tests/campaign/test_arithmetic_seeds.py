"""What `recipes/arithmetic.toml` claims, over three seeds: held-out sums and differences, nine of ten right."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from behemoth.base.files import read_json

RECIPE = Path(__file__).parents[2] / "recipes" / "arithmetic.toml"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nine_of_ten_problems_that_were_never_practised(seed, tmp_path):
    began, run = time.monotonic(), tmp_path / "run"
    command = [sys.executable, "-m", "behemoth", "run", str(RECIPE), "--out", str(run)]
    subprocess.run([*command, "--set", f"seed={seed}"], check=True, stderr=subprocess.DEVNULL)
    table, outcome = read_json(run / "evals" / "assistant.json"), read_json(run / "rl" / "outcome.json")
    scores = {model["name"]: model["scores"]["arithmetic"] for model in table["models"]}
    minutes = (time.monotonic() - began) / 60
    print(f"\nseed {seed}: {minutes:.1f} minutes", scores, table["steps"], table["held_out"], outcome)
    assert scores["rl"]["estimate"] >= 0.9
    assert outcome["stopped"] is None
    assert minutes <= 20
