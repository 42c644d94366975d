"""What pages and source promise exists: verbs, make targets, paths, recipe names, and the tree of folders."""

import re
from pathlib import Path

import pytest

from behemoth import cli

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if path.name != "CHANGELOG.md"]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
GROUPS = {"data", "judge", "trust"}
VERBS = GROUPS | {command.name or command.callback.__name__ for command in cli.app.registered_commands}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(page: Path) -> str:
    """The page's code: its fenced blocks and what stands in backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", rest)])


@pages
def test_verbs_exist(page):
    named = set(re.findall(r"^\$?\s*behemoth ([a-z][a-z_-]*)", code_of(page), re.MULTILINE))
    assert named <= VERBS


@pages
def test_make_targets_exist(page):
    named = set(re.findall(r"^\$?\s*make ([a-z][a-z-]*)", code_of(page), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


@pages
def test_paths_exist(page):
    named = re.findall(r"`((?:src|tests|recipes|docs|benchmarks|examples)/[\w./-]*)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_in_the_source_exist(file):
    """In docstrings, comments and messages."""
    named = re.findall(r"(?<![\w/])(?:benchmarks|docs|examples|recipes|tests)/[\w/-]+\.\w+", file.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pages
def test_recipes_named_in_commands_exist(page):
    named = re.findall(r"\brecipes/[\w-]+\.toml", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_tree_in_the_architecture_page_is_the_tree():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {path.parent.name for path in ROOT.glob("src/behemoth/*/__init__.py")}
    tree = re.search(r"^src/behemoth/\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    drawn = set(re.findall(r"^\s*([a-z]+)/(?=\s)", tree, re.MULTILINE))
    assert drawn == rooms


def test_help_lists_every_make_target():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    assert phony == set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert phony >= {
        "quickstart",
        "test",
        "test-slow",
        "campaign",
        "lint",
        "types",
        "bench",
        "size",
        "clean",
        "help",
    }
