"""Suites: what a person writes, and every mistake in it at once."""

import json
from pathlib import Path

import pytest

from behemoth.base.errors import InputError
from behemoth.tasks.suite import BUILT_IN, KINDS, load

SUITES = Path(__file__).parents[2] / "recipes" / "suites"
GOOD = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(20)]
CHOICE = {"prompt": "a", "choices": ["b", "c"], "gold": 0}


@pytest.fixture
def write(tmp_path):
    def write(text: str, **files: list[dict]) -> Path:
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "some.toml").write_text(text)
        return tmp_path / "some.toml"

    return write


def task(**fields) -> str:
    return "[[tasks]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())


def problems(path: Path) -> str:
    with pytest.raises(InputError) as told:
        load(path)
    return str(told.value)


def test_a_suite(write):
    text = 'name = "mine"\n' + task(kind="gsm8k", path="good.jsonl", limit=5, licence="MIT", max_tokens=32)
    text += task(kind="arithmetic", items=20, digits=[2], ask="choice", name="sums")
    suite = load(write(text, good=GOOD))
    assert (suite.name, [t.name for t in suite.tasks]) == ("mine", ["good", "sums"])
    good, sums = suite.tasks
    assert (len(good.items), good.licence, good.max_tokens) == (5, "MIT", 32)
    assert (len(sums.items), sums.ask, sums.chance) == (20, "choice", 0.25)


def test_a_limit_for_all_of_it(write):
    path = write(task(kind="gsm8k", path="good.jsonl"), good=GOOD)
    assert [len(t.items) for t in load(path, limit=3).tasks] == [3]
    assert [len(t.items) for t in load("arithmetic", limit=7).tasks] == [7, 7]


def test_the_same_suite_twice_is_the_same(write):
    path = write(
        task(kind="gsm8k", path="good.jsonl", limit=5) + task(kind="arithmetic", items=20), good=GOOD
    )
    assert [t.sha256 for t in load(path).tasks] == [t.sha256 for t in load(path).tasks]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_suites(name):
    assert all(len(t.items) >= 100 for t in load(name).tasks)


def test_variables_and_the_home_folder(write, monkeypatch, tmp_path):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    path = write(task(kind="gsm8k", path="$SOMEWHERE/good.jsonl"), good=GOOD)
    assert len(load(path).tasks[0].items) == 20
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(write(task(kind="gsm8k", path="~/good.jsonl"))).tasks[0].items) == 20


def test_a_variable_that_is_not_set_is_told_once(write):
    text = task(kind="gsm8k", path="$NO_SUCH_PLACE/a", name="a") + task(kind="gsm8k", path="good.jsonl")
    text += task(kind="gsm8k", path="good.jsonl", name="b", examples="${NO_SUCH_PLACE}/b", shots=1)
    told = problems(write(text, good=GOOD))
    assert told.count("NO_SUCH_PLACE") == 1
    assert "the environment variable NO_SUCH_PLACE is not set; set it to the folder that 2 of 3 tasks" in told


def test_every_mistake_is_told_at_once(write):
    text = 'nme = "x"\n' + task(kind="gsm9k", path="good.jsonl") + task(kind="gsm8k", pth="good.jsonl")
    text += task(kind="arc", path="absent.jsonl") + task(kind="gsm8k", path="good.jsonl", limit=0)
    text += task(kind="gsm8k", path="bad.jsonl") + task(kind="arithmetic", operations=["adds"])
    told = problems(write(text, good=GOOD, bad=[{"question": "?"}]))
    assert told.startswith(str(write(text)))
    for expected in (
        "has 7 problems",
        "nme: unknown key; did you mean name?",
        "tasks.0.kind = 'gsm9k': not one of the kinds; did you mean gsm8k?",
        "tasks.1.pth: unknown key; did you mean path?",
        "tasks.3.limit = 0: input should be greater than 0",
        "tasks.5.operations.0 = 'adds'",
        "absent.jsonl: no such file or folder",
        "bad.jsonl cannot be read as gsm8k: 1 of 1 rows are not right\n    line 1: answer: missing",
    ):
        assert expected in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tasks: a suite has one [[tasks]] table or more"),
        ('tasks = "arc"', "tasks: a suite has one [[tasks]] table"),
        (task(path="good.jsonl"), "kind = '': not one of the kinds"),
        (task(kind="gsm8k"), "give path (a file or a folder), or dataset"),
        (task(kind="gsm8k", path="good.jsonl", dataset="gsm8k"), "one of the two"),
        (task(kind="gsm8k", path="good.jsonl", subset="main"), "subset = 'main' belongs to a dataset"),
        (task(kind="gsm8k", path="good.jsonl", shots=2), "shots = 2 are taken from examples"),
        (task(kind="gsm8k", path="good.jsonl", examples="good.jsonl"), "no shots"),
        (
            task(kind="gsm8k", path="good.jsonl", examples="good.jsonl", shots=1),
            "splits overlap: 20 problems",
        ),
        (task(kind="gsm8k", path="good.jsonl", paradigms=["a"]), "paradigms: unknown key"),
        (task(kind="rows", path="own.jsonl", stop=["x"]), "stop: nothing is written in this task"),
        (task(kind="rows", path="own.jsonl", grader="exakt"), "grader = 'exakt'"),
        (task(kind="gsm8k", path="good.jsonl") * 2, "two tasks are called 'good'"),
        (task(kind="next_passage", path="own.jsonl"), "text: missing"),
        (task(kind="arithmetic", digits=[0]), "digits = [0]: give numbers of digits from 1 to 9"),
        (task(kind="arithmetic", digits=[1], items=5000), "gives about"),
        ("tasks = [", "is not valid TOML"),
    ],
)
def test_one_mistake(write, text, message):
    assert message in problems(write(text, good=GOOD, own=[CHOICE]))


def test_a_suite_that_is_not_there(tmp_path):
    with pytest.raises(
        InputError, match=r"no suite 'arithmetik': give a .toml file.*did you mean arithmetic"
    ):
        load("arithmetik")
    with pytest.raises(InputError, match="did you mean starter"):
        load("startr", also=("starter",))
    with pytest.raises(InputError, match="known here: arithmetic, starter"):
        load("mmlu", also=("starter",))
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "absent.toml")


def test_passages_of_a_file(write):
    words = [f"{a}{b}" for a in "mnrst" for b in ("a", "e", "i", "o", "u")]
    rows = [
        {"id": str(n), "text": " ".join(words[(n * i * i) % 25] for i in range(400))} for n in range(2, 8)
    ]
    passages = load(write(task(kind="next_passage", path="d.jsonl", per_document=3), d=rows)).tasks[0]
    assert len(passages.items) == 18


def test_the_suites_that_come_along(monkeypatch, data_directory):
    monkeypatch.setenv("BEHEMOTH_DATA", str(data_directory))
    if not (data_directory / "eval" / "arc_easy.jsonl").exists():
        pytest.skip("BEHEMOTH_DATA has no eval/")
    small = load(SUITES / "small.toml")
    assert len(small.tasks) == 5
    assert all(t.licence != "unknown" for t in small.tasks)


def test_the_suite_of_ones_own():
    choices, answers, forms = load(SUITES / "own.toml").tasks
    assert [i.cluster for i in choices.items] == ["", "", "rain", "rain"]
    assert answers.grade(answers.items[1], " 14 days").score == 1
    date, town = forms.items
    assert [forms.grade(date, said).score for said in (" 2023-03-01", "1 March")] == [1, 0]
    assert [forms.grade(town, said).score for said in ('{"town": "a", "country": "b"}', '{"town": 1}')] == [
        1,
        0,
    ]


def test_the_form_of_what_is_written(write):
    """By the fields of the rows, or because the suite says so; an answer beside them is a reference."""
    digits, schema = (
        {"prompt": "a", "pattern": "[0-9]+", "answer": 7},
        {"prompt": "b", "schema": {"type": "array"}},
    )
    (written,) = load(write(task(kind="rows", path="own.jsonl"), own=[digits, schema])).tasks
    assert (written.metric, written.stop, written.items[0].answer) == ("format", ("\n\n",), "7")
    said = [("12", "[1]"), ("twelve", "{}")]
    assert [
        [written.grade(*pair).score for pair in zip(written.items, both, strict=True)] for both in said
    ] == [
        [1, 1],
        [0, 0],
    ]
    exact = load(write(task(kind="rows", path="own.jsonl", grader="exact"), own=[digits])).tasks[0]
    assert [exact.grade(exact.items[0], said).score for said in ("7", "12")] == [1, 0]


@pytest.mark.parametrize(
    ("row", "grader", "message"),
    [
        ({"answer": "x"}, "format", "pattern or schema: a row needs one of the two, this one has 0"),
        ({"pattern": "x"}, "exact", "answer: missing"),
        (
            {"pattern": "x", "schema": {}},
            "format",
            "pattern or schema: a row needs one of the two, this one has 2",
        ),
        ({"pattern": "("}, "format", "'(' is not a regular expression"),
        ({"pattern": 3}, "format", "3 is not a regular expression"),
        ({"schema": "{"}, "format", "schema: not valid JSON"),
        ({"schema": {"oneOf": []}}, "format", "the schema asks for oneOf, which is not checked here"),
    ],
)
def test_a_form_that_cannot_be_checked_is_refused_at_once(write, row, grader, message):
    told = problems(write(task(kind="rows", path="own.jsonl", grader=grader), own=[{"prompt": "a"} | row]))
    assert f"line 1: {message}" in told


def test_examples_without_an_answer_are_refused(write):
    text = task(kind="rows", path="own.jsonl", examples="shown.jsonl", shots=1)
    own, shown = ([{"prompt": prompt, "pattern": "x"}] for prompt in "ab")
    assert "1 examples have no answer to show" in problems(write(text, own=own, shown=shown))


# --- tasks that share questions -----------------------------------------------------------------------------


def test_two_tasks_that_ask_the_same_are_told_of(write, capsys):
    """Whatever stands before the questions, and in whatever file they are."""
    text = task(kind="gsm8k", path="good.jsonl") + task(kind="gsm8k", path="half.jsonl", name="again")
    text += task(kind="gsm8k", path="half.jsonl", name="shown", examples="more.jsonl", shots=2)
    more = [{"question": f"more {n}?", "answer": f"#### {n}"} for n in range(4)]
    load(write(text, good=GOOD, half=GOOD[15:] + more[3:], more=more[:3]))
    told = capsys.readouterr().err
    assert "good and again both ask 5 of their items" in told
    assert "good and shown both ask 5 of their items" in told
    assert "again and shown both ask 6 of their items" in told


def test_a_task_whose_questions_are_the_examples_of_another_is_told_of(write, capsys):
    text = task(kind="gsm8k", path="good.jsonl")
    text += task(kind="gsm8k", path="other.jsonl", examples="good.jsonl", shots=3)
    other = [{"question": f"other {n}?", "answer": f"#### {n}"} for n in range(4)]
    load(write(text, good=GOOD, other=other))
    told = capsys.readouterr().err
    assert "other shows 3 items of good as examples, answers included" in told
    assert "both ask" not in told


def test_tasks_that_share_nothing_are_not_told_of(write, capsys):
    load("arithmetic")
    load(write(task(kind="gsm8k", path="good.jsonl") + task(kind="arithmetic", items=20), good=GOOD))
    assert capsys.readouterr().err == ""


def test_no_suite_asks_for_programs_without_being_told_to():
    text = "".join(path.read_text() for path in SUITES.glob("*.toml"))
    assert 'kind = "humaneval"' not in text
    assert 'kind = "mbpp"' not in text
    assert {"humaneval", "mbpp"} < set(KINDS)


@pytest.mark.slow
def test_the_public_suite(monkeypatch, data_directory):
    monkeypatch.setenv("BEHEMOTH_DATA", str(data_directory))
    if not (data_directory / "eval" / "arc_easy.jsonl").exists():
        pytest.skip("BEHEMOTH_DATA has no eval/")
    tasks = {t.name: t for t in load(SUITES / "public.toml").tasks}
    assert len(tasks) == 15
    assert tasks["mmlu"].items[0].prompt.count("\nAnswer:") == 6
    paradigms = [item.facts["paradigm"] for item in tasks["blimp"].items]
    assert {paradigms.count(paradigm) for paradigm in paradigms} == {100}
