"""The shape of the house: imports flow downward, rooms free of torch, constructs that do not occur."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from behemoth import recipe

SOURCE = Path(__file__).parents[1] / "src" / "behemoth"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    0: ["base"],
    1: ["text", "model", "stats", "bundle"],
    2: ["data", "tasks", "parallel", "inference", "planner"],
    3: ["objectives"],
    4: ["train", "rl", "evals", "export"],
    5: ["studies", "doctor", "report"],
    6: ["release", "serve"],
    7: [],  # the files beside the rooms: wiring
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
TORCH_FREE = [
    *["behemoth.base." + name for name in ("config", "errors", "files", "logs", "rows", "units")],
    *[
        f"behemoth.{room}.{path.stem}"
        for room in ("stats", "tasks", "bundle", "release")
        for path in (SOURCE / room).glob("[a-z]*.py")
    ],
    *["behemoth." + name for name in ("cli", "explain", "recipe", "starter", "model.config", "model.cost")],
]
FORBIDDEN = r"\bpickle\b|(?<!\.)\beval\(|\bexec\(|shell=True|torch\.load\b|trust_remote_code(?!=False)"


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def imported_modules(path: Path) -> set[str]:
    """Every module of behemoth that a file imports, in its functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("behemoth.")}


def code_without_comments(path: Path) -> list[str]:
    """The lines of a file with its docstrings blanked, so that prose may name what code may not do."""
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.end_lineno:
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return lines


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} - {""} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_flow_downward(path):
    own = room(path)
    for module in imported_modules(path):
        target = module.split(".")[1]
        if target == own:
            continue
        below = FLOOR.get(target, 7) < FLOOR.get(own, 7) or (not own and target not in FLOOR)
        assert below, f"{path.relative_to(SOURCE)} imports {module}, which is not on a floor below it"


def test_torch_free_rooms():
    """scipy only where numbers are weighed: `stats` needs its special functions, the command line none of them."""
    light = ", ".join(
        name for name in TORCH_FREE if not name.startswith(("behemoth.stats.", "behemoth.release."))
    )
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    code = f"import sys, {light}; seen = {{'scipy'}} & set(sys.modules); import {', '.join(TORCH_FREE)}; "
    code += f"print(sorted(seen | {heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_forbidden_constructs():
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(code_without_comments(path), 1)
        if re.search(FORBIDDEN, line) and not re.search(r"# allowed: \w+", line)
    ]
    assert not found


def test_one_place_calls_backward():
    lines = [line for path in FILES for line in code_without_comments(path) if ".backward(" in line]
    assert len(lines) == 1, lines


def test_init_files_are_empty():
    assert not [path for path in SOURCE.rglob("__init__.py") if path.stat().st_size]


def test_every_recipe_field_is_read():
    """An option that nothing reads is a promise that nothing keeps."""
    wanted = {
        (kind.__name__, name) for kind in recipe_models() for name in kind.model_fields if name != "kind"
    }
    read = set().union(*(attributes_read(path) for path in FILES))
    assert not {f"{kind}.{name}" for kind, name in wanted if name not in read}


def recipe_models() -> list[type[BaseModel]]:
    members = vars(recipe).values()
    return [
        m
        for m in members
        if isinstance(m, type) and issubclass(m, BaseModel) and m.__module__ == recipe.__name__
    ]


def attributes_read(path: Path) -> set[str]:
    """Names read as `x.name` (or matched as `Kind(name=...)`) outside the recipe's own classes."""
    tree = ast.parse(path.read_text())
    if path.name == "recipe.py":
        tree.body = [node for node in tree.body if not isinstance(node, ast.ClassDef)]
    nodes = list(ast.walk(tree))
    loads = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return loads | {name for n in nodes if isinstance(n, ast.MatchClass) for name in n.kwd_attrs}
