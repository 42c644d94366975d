"""docs/release.md names every key of a policy, and none that there is not."""

import re
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from behemoth.release.policy import Approvals, Policy, load_policy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "release.md"


def keys_of(model, before=""):
    """As the page has them: those of an inner table under its name, those of both tables of approvals once."""
    for name, field in model.model_fields.items():
        key = before + (field.alias or name)
        kinds = [field.annotation, *get_args(field.annotation)]
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not tables or tables == [Approvals]:
            yield key
        for table in tables:
            yield from keys_of(table, "approvals.*." if table is Approvals else f"{key}.")


def told():
    """The keys of the page's table: `stops.doctor`, `.least_checked` are both of [stops]."""
    for row in re.findall(r"^\| ([^|]*`[^|]*) \|", PAGE.read_text(), re.MULTILINE):
        table = ""
        for key in re.findall(r"`([\w.*]+)`", row):
            table = key.rpartition(".")[0] if not key.startswith(".") else table
            yield f"{table}{key}" if key.startswith(".") else key.replace("NAME", "").rstrip(".")


def test_every_key_of_a_policy_is_told_and_no_other():
    assert sorted(told()) == sorted(set(keys_of(Policy)))


def test_the_page_shows_the_policy_of_the_quickstart():
    """Its comments are the page's own; what is set is not."""
    shown = re.search(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    quickstart = ROOT / "recipes" / "policies" / "quickstart.toml"
    load_policy(quickstart)
    real = {line.partition("#")[0].strip() for line in quickstart.read_text().splitlines()}
    assert {line.partition("#")[0].strip() for line in shown.splitlines()} <= real
