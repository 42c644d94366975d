"""The errors a person can cause, and what they are told.

Every error a user can meet derives from `BehemothError`; the command line prints its message without a
traceback and leaves with its `exit_code`. The message says what was asked, the value found, the rule, and the
change that fixes it. A disk that refuses (full, read-only) stays an OSError, which the command line tells in
words too. Broken invariants of our own are `assert`; bugs propagate.

    BehemothError
    ├── InputError            wrong use or bad input; exit code 2
    │   ├── RecipeError       every problem of a recipe at once
    │   └── DamagedError      a file whose bytes are not the ones that were written
    └── AnswerIsNo            the work was done and the answer is no; exit code 1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class BehemothError(Exception):
    exit_code = 2


class InputError(BehemothError):
    """Wrong use or bad input: the message names the value, the rule and the fix."""


class RecipeError(InputError):
    """All problems of one recipe, so that they can be mended in one go."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.where, self.problems = where, list(problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{where} has {len(problems)} {noun}\n" + "\n".join(f"  {p}" for p in problems))


class DamagedError(InputError):
    """A file is missing, cut short or altered; `path` is the file."""

    def __init__(self, path: Path, reason: str):
        self.path = Path(path)
        super().__init__(f"{path}: {reason}")


class AnswerIsNo(BehemothError):
    """The question was answered, and the answer is no (a receipt that does not match, a gate that holds)."""

    exit_code = 1
