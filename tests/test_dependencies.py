"""What is declared is what is imported."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].replace("-", "_") for requirement in requirements}


def imported() -> set[str]:
    """Every package outside the standard library that the source imports, in its functions too."""
    nodes = [node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"behemoth"}


def test_what_is_imported_is_declared_and_the_core_is_imported():
    core, extras = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    optional = set().union(*(names(extras[name]) for name in extras if name != "dev"))
    assert core <= imported() <= core | optional
