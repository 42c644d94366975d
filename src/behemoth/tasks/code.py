"""Graders for programs: HumanEval (arXiv:2107.03374) and MBPP (arXiv:2108.07732), run in the sandbox.

What a model wrote is cut as is usual: up to the first stop string, or a fenced block if it wrote one. The program
alone is run in one sandbox, the tests in another, and only values pass between them (`sandbox.py`). So a test's own
helpers are those of the prompt, whatever a program makes of them, and where a test calls the function by its name
(HumanEval/33 compares it with itself) it calls the reference solution.

A program that fails, crashes or takes too long is wrong: 0. Without isolation it could not be scored, unless
BEHEMOTH_UNSAFE_CODE=1 says that it may run unprotected. Left out: the few MBPP tasks whose tests build objects of a
class that the program defines; they could not be scored.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
from collections.abc import Sequence

from behemoth.tasks import sandbox
from behemoth.tasks.task import Grade, Item

UNSAFE = "BEHEMOTH_UNSAFE_CODE"
HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_STOP = ("[DONE]",)
SHOWN = 200  # characters of a program in its grade
_FENCED = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)


def humaneval(item: Item, output: str) -> Grade:
    """The body of the function, or all of it, passes the task's `check`."""
    name, prompt = item.facts["entry_point"], item.prompt
    test = f"{prompt}{item.answer}\n{item.facts['test']}\ncheck(candidate)\n"
    return graded(humaneval_program(prompt, name, output), test, {"candidate": name})


def humaneval_program(prompt: str, name: str, output: str) -> str:
    """The prompt and what continues it; a whole function takes the place of the one in the prompt."""
    whole = written(output)
    start = re.compile(rf"^def {re.escape(name)}\b", re.MULTILINE)
    if not start.search(whole):
        return prompt + cut(whole, HUMANEVAL_STOP)
    before = start.split(prompt, maxsplit=1)[0]
    return before + "\n" + whole


def mbpp(item: Item, output: str) -> Grade:
    """All of the task's tests hold, after its setup."""
    test = "\n".join([str(item.facts.get("setup") or ""), *item.facts["tests"]])
    try:
        wanted = called(test)
        classes = {node.name for node in ast.parse(item.answer).body if isinstance(node, ast.ClassDef)}
    except (SyntaxError, ValueError):
        return Grade(None, "the tests or the reference cannot be read as Python")
    if wanted & classes:
        return Grade(None, "the tests build objects of a class of the program, which stay in its sandbox")
    return graded(written(cut(output, MBPP_STOP)), test, {name: name for name in wanted})


def called(test: str) -> set[str]:
    """The names that a test calls and does not have itself."""
    nodes = list(ast.walk(ast.parse(test)))
    names = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    own = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    imports = (alias for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for alias in n.names)
    own |= {alias.asname or alias.name.partition(".")[0] for alias in imports}
    return names - own - set(dir(builtins))


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first stop string."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def written(text: str) -> str:
    """The first fenced block that holds a function, else the first; all of a text without any."""
    blocks = [match[1] for match in _FENCED.finditer(text)]
    return next((block for block in blocks if "def " in block), blocks[0] if blocks else text)


def graded(program: str, test: str, calls: dict[str, str]) -> Grade:
    """The program under a test, as `sandbox.run` has them."""
    unsafe = os.environ.get(UNSAFE) == "1"
    if not unsafe and (problem := sandbox.refusal()):
        return Grade(None, problem)
    ran = sandbox.run(program, test, calls, unsafe=unsafe)
    shown = program if len(program) <= SHOWN else "…" + program[1 - SHOWN :]
    if ran.outcome == "passed":
        return Grade(1.0, answer=shown)
    return Grade(0.0, ran.why if ran.outcome == "failed" else f"{ran.outcome}: {ran.why}", shown)
