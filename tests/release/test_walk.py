"""The walk of docs/release-walk.md: its files still follow from the quickstart's; the whole of it in the campaign."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from behemoth.recipe import load_recipe
from behemoth.release.policy import load_policy
from behemoth.tasks import suite

SCRIPT = Path(__file__).parents[2] / "examples" / "release_walk.py"


@pytest.fixture
def walk():
    spec = importlib.util.spec_from_file_location("release_walk", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_policies_and_recipes_that_it_writes_are_good(walk, tmp_path):
    walk.write_files(tmp_path)
    policy, few = load_policy(tmp_path / "policy.toml"), load_policy(tmp_path / "few-policy.toml")
    assert {claim.name: claim.items for claim in policy.claims}["sums"] == 600
    assert {claim.name: claim.items for claim in few.claims}["sums"] == 60
    assert len(suite.load(few.suite).tasks[0].items) == 60
    quick, short = load_recipe(tmp_path / "quick.toml"), load_recipe(tmp_path / "short.toml")
    assert quick.release.policy == short.release.policy == str(tmp_path / "policy.toml")
    assert not quick.release.demo and quick.stages[-1] == "dpo" and short.stages == ["sft"]
    assert short.train.tokens < quick.train.tokens / 4 and short.sft.steps < quick.sft.steps / 4


def test_the_page_is_one_that_it_wrote(walk):
    page = (SCRIPT.parents[1] / "docs" / "release-walk.md").read_text()
    assert page.startswith(walk.HEAD)
    chapters = re.findall(r'walk\.chapter\(\s*"([^"]+)"', SCRIPT.read_text())
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == chapters


def test_what_is_typed_can_be_read(walk):
    typed = walk.typed(("gate", "quick", "--policy", "a b", "--as", "Bo", "--key", "k" * 60, "--json"))
    assert typed[0].startswith("$ behemoth gate quick --policy 'a b' --as Bo")
    assert typed[-1] == "    --json" and all(line.endswith(" \\") for line in typed[:-1])


def test_a_terminal_is_read_to_its_end_without_its_progress(walk, tmp_path):
    said = "import sys; print('one'); print('50% of 3, 1 s left', file=sys.stderr); print('two'); sys.exit(3)"
    assert walk.as_seen(["-c", said], tmp_path, {}) == (3, ["one", "two"])


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_the_whole_walk(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path / "walk")], check=True)
