"""Programs are cut, run and graded. The real ones: `test_reference_answers.py`."""

import pytest

from behemoth.base.rows import Row
from behemoth.tasks import code, sandbox
from behemoth.tasks.formats import FORMATS
from behemoth.tasks.task import Item

isolated = pytest.mark.skipif(bool(sandbox.refusal()), reason=f"no sandbox here: {sandbox.refusal()}")

PROMPT = 'import math\n\ndef half(x):\n    return x / 2\n\n\ndef root(x: float) -> float:\n    """The square root."""\n'
BODY = "    return math.sqrt(x)\n"
CHECK = "def check(candidate):\n    for n in range(9):\n        assert candidate(n * n) == n and half(n) * 2 == n\n"
ROOT = {"task_id": "H/0", "prompt": PROMPT, "entry_point": "root", "canonical_solution": BODY, "test": CHECK}
MBPP = [
    {
        "task_id": 11,
        "text": "Remove the first and last occurrence of a character.",
        "code": "def remove_Occ(s, ch):\r\n    for find in (str.find, str.rfind):\r\n        i = find(s, ch)\r\n"
        "        s = s if i < 0 else s[:i] + s[i + 1:]\r\n    return s",
        "test_list": ['assert remove_Occ("hello","l") == "heo"', 'assert remove_Occ("PHP","P") == "H"'],
        "test_setup_code": "",
    },
    {
        "task_id": 4,
        "prompt": "Find the n largest integers, in descending order.",
        "code": "import heapq as hq\ndef heap_queue_largest(nums, n):\n    return hq.nlargest(n, nums)",
        "test_imports": ["import math"],
        "test_list": [
            "assert heap_queue_largest([25, 35, 22, 85], 2) == [85, 35]",
            "assert math.isclose(sum(heap_queue_largest([1, 2], 1)), 2.0)",
        ],
    },
    {
        "task_id": 2,
        "text": "Shared elements.",
        "code": "def similar(a, b):\n    return tuple(set(a) & set(b))",
        "test_list": ["assert set(similar((3, 4, 5, 6), (5, 7, 4, 10))) == set((4, 5))"],
        "test_setup_code": "",
    },
]


def humaneval(row: dict) -> Item:
    return FORMATS["humaneval"].read(Row(0, row))


def mbpp(row: dict) -> Item:
    return FORMATS["mbpp"].read(Row(0, row))


@isolated
@pytest.mark.parametrize(
    ("output", "score"),
    [
        (BODY, 1),
        (BODY + "\n\ndef another():\n    never closed (", 1),
        (BODY + "\nprint(root(4))\n", 1),
        (f"Here you are:\n```python\nimport math\n\ndef root(x):\n{BODY}```\nIt works.", 1),
        (f"```\n{BODY}```", 1),
        (f"def root(x):\n{BODY}", 1),
        (f"```python\nfrom math import sqrt\ndef root(x):\n    return helper(x)\ndef helper(x):\n{BODY}", 1),
        ("    return math.sqrt(x) + 1\n", 0),
        ("    return helper(x)\n", 0),
        ("", 0),
        ("    return (\n", 0),
        ("I cannot write this.", 0),
        ("    pass\n\ndef half(x): return True\n", 0),
    ],
)
def test_humaneval_is_read_as_usual(output, score):
    grade = code.humaneval(humaneval(ROOT), output)
    assert grade.score == score, grade
    assert bool(grade.why) == (score == 0)


@isolated
def test_a_test_that_calls_the_function_by_name_calls_the_reference():
    item = humaneval(ROOT | {"test": "def check(candidate):\n    assert candidate(9) == root(9)\n"})
    assert code.humaneval(item, BODY).score == 1
    assert code.humaneval(item, "    return 0.0\n").score == 0


@isolated
def test_a_program_cannot_change_what_the_test_leans_on():
    item = humaneval(ROOT | {"test": "def check(candidate):\n    assert half(candidate(4)) == 1\n"})
    assert code.humaneval(item, "```\ndef half(x): return 1\ndef root(x): return 7\n```").score == 0


@isolated
@pytest.mark.parametrize("row", MBPP, ids=lambda row: str(row["task_id"]))
def test_mbpp(row):
    item = mbpp(row)
    assert code.mbpp(item, item.answer).score == 1
    assert code.mbpp(item, f"{item.answer}\n[DONE]\nand more (").score == 1
    assert code.mbpp(item, f"Sure:\n```python\n{item.answer}\n```").score == 1
    assert code.mbpp(item, item.answer.replace("return ", "return 7, ")).score == 0
    assert code.mbpp(item, "").score == 0


def test_mbpp_whose_tests_build_objects_could_not_be_scored():
    row = MBPP[0] | {"code": "class Pair: ...\ndef f(p): ...", "test_list": ["assert f(Pair()) == 1"]}
    grade = code.mbpp(mbpp(row), "")
    assert grade.score is None and "objects of a class" in grade.why


def test_the_names_that_a_test_calls():
    test = "import math\nfrom re import sub as s\nx = [1]\ndef own(): ...\n"
    test += "assert f(x, g(2)) == len(x) and math.isclose(1, 2) and s('a', 'b', own()) and x.sort()"
    assert code.called(test) == {"f", "g"}


def test_without_isolation_programs_could_not_be_scored(monkeypatch):
    monkeypatch.setattr(sandbox, "refusal", lambda: "no walls here")
    monkeypatch.delenv(code.UNSAFE, raising=False)
    for grade in (code.humaneval(humaneval(ROOT), BODY), code.mbpp(mbpp(MBPP[0]), "")):
        assert (grade.score, grade.why) == (None, "no walls here")
    monkeypatch.setenv(code.UNSAFE, "1")
    assert code.humaneval(humaneval(ROOT), BODY).score == 1
    assert code.humaneval(humaneval(ROOT), "    return 7\n").score == 0
