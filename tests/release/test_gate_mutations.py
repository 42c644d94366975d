"""Would a test notice? Each comparison of the gate is turned round in turn, and some test of it must then fail.

Every mutant is tried in a process of its own, forked after everything is imported: the changed module takes the
place of the real one, those that had imported it are read again, and the tests of the gate run until one fails.
"""

import ast
import copy
import importlib.util
import os
import sys
from pathlib import Path

import pytest

import behemoth.release.gate  # noqa: F401  before the fork, not after each

ROOT = Path(__file__).parents[2]
MODULES = ("stats/bars.py", "release/claims.py", "release/gate.py")
AGAIN = (
    "behemoth.stats.bars",
    "behemoth.release.claims",
    "behemoth.release.gate",
)  # each after those it imports
TESTS = ("tests/stats/test_bars.py", "tests/release/test_claims.py", "tests/release/test_gate.py")
OPPOSITE = {
    ast.Lt: (ast.GtE, ast.LtE),
    ast.LtE: (ast.Gt, ast.Lt),
    ast.Gt: (ast.LtE, ast.GtE),
    ast.GtE: (ast.Lt, ast.Gt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
SAME = {  # what a change cannot be seen in, and why
    (
        "stats/bars.py",
        "np.abs(rates - np.median(rates)) > 1e-09",
        ast.GtE,
    ): "a guard against rounding",
    ("release/claims.py", "gap > 0", ast.GtE): "a gap of nought was told apart before",
}


def comparisons(path):
    """(where, source, kind) of every comparison, and for each operator the tree with another in its place."""
    tree = ast.parse(path.read_text())
    places = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    for number, place in enumerate(places):
        for at, operator in enumerate(place.ops):
            for other in OPPOSITE[type(operator)]:
                changed = copy.deepcopy(tree)
                node = [each for each in ast.walk(changed) if isinstance(each, ast.Compare)][number]
                node.ops[at] = other()
                yield f"line {place.lineno}", ast.unparse(place), other, changed


def mutants():
    for name in MODULES:
        for line, said, other, tree in comparisons(ROOT / "src" / "behemoth" / name):
            if (name, said, other) not in SAME:
                yield pytest.param(name, tree, id=f"{name} {line} {said} with {other.__name__}")


def survives(name, tree, folder):
    """Whether the tests of the gate pass with this tree in the place of the module."""
    child = os.fork()
    if not child:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            os._exit(int(held_by(name, tree, folder)))
        except BaseException:
            os._exit(1)  # what cannot even be imported is noticed
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def held_by(name, tree, folder):
    for module in AGAIN:
        path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        if str(path).endswith(name):
            path = folder / path.name
            path.write_text(ast.unparse(tree))
        read_again(module, path)
    for test in [each for each in sys.modules if each.startswith(("test_", "simulated_gate"))]:
        del sys.modules[test]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "100"]
    tests = TESTS if name.startswith("stats") else TESTS[::-1]  # its own first
    return pytest.main([*options, *(str(ROOT / test) for test in tests)])


def read_again(module, path):
    """Put what `path` holds in the place of a module that was imported already."""
    spec = importlib.util.spec_from_file_location(module, path)
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])
    package, _, last = module.rpartition(".")
    setattr(sys.modules[package], last, sys.modules[module])


@pytest.mark.slow
def test_the_gate_as_it_is_passes(tmp_path):
    path = ROOT / "src" / "behemoth" / MODULES[-1]
    assert survives(MODULES[-1], ast.parse(path.read_text()), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("name", "tree"), [*mutants()])
def test_some_test_notices(name, tree, tmp_path):
    assert not survives(name, tree, tmp_path)
