"""Graders: what counts as the answer, what is wrong, what could not be scored, and that nothing takes long."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from behemoth.tasks import expressions, grading, structure
from behemoth.tasks.structure import matches_format
from behemoth.tasks.task import Item

HUGE = 10_000_000


def item(answer="", **more):
    return Item("one", answer=answer, **more)


@pytest.fixture(scope="module")
def _math_verify():
    pytest.importorskip(
        "math_verify", reason="expressions are compared by math-verify, which is not installed"
    )


# --- words and letters ---------------------------------------------------------------------------------------


def test_exact_forgives_only_spaces_around():
    assert grading.exact(item("Paris"), " Paris\n").score == 1
    assert grading.exact(item("Paris"), "paris").score == 0
    assert grading.exact(item("Paris", answers=("Lutetia",)), "Lutetia").score == 1
    assert grading.exact(item("Paris"), "") == grading.Grade(0.0, "no answer", "")


def test_exact_words_forgives_case_articles_and_punctuation():
    for said in ("the Eiffel Tower.", "EIFFEL  TOWER", "“Eiffel-Tower”!"):
        assert grading.exact_words(item("The Eiffel Tower"), said).score == 1
    assert grading.exact_words(item("The Eiffel Tower"), "Eiffel's").score == 0
    assert grading.plain_words("The A-B", case=True, articles=True, punctuation=True) == "The A-B"


def test_without_a_reference_nothing_is_scored():
    for grade in (
        grading.exact,
        grading.exact_words,
        grading.exact_final,
        grading.numeric,
        grading.contains_alias,
    ):
        found = grade(item("  "), "anything 5")
        assert found.score is None and found.why, grade.__name__
    assert grading.contains_alias(item("the"), "the").score is None  # an alias without a word
    assert grading.multiple_choice_letter(item("Paris"), "B").score is None


@pytest.mark.parametrize(
    ("reference", "output", "score"),
    [
        ("valid", "Let us see. So the answer is valid.", 1),
        ("valid", "So the answer is invalid.", 0),
        ("True", "True\n\nQ: more", 1),
        ("] ) }", "The answer is ] ) }.", 1),
        ("] ) }", "The answer is ] ) ).", 0),
        ("valid", "", 0),
    ],
)
def test_exact_final_reads_what_is_announced(reference, output, score):
    assert grading.exact_final(item(reference), output).score == score


def test_aliases_are_whole_words():
    onion = item("Onion", answers=("Allium cepa", "Bulb onions"))
    assert grading.contains_alias(onion, " It is the onion, I think").score == 1
    assert grading.contains_alias(onion, "an ALLIUM-CEPA").answer == "allium cepa"
    assert grading.contains_alias(onion, "unionised champignon").score == 0
    assert grading.contains_alias(onion, "").score == 0


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("The answer is (B).", "B"),
        ("B", "B"),
        ("b", "B"),
        ("B. Because it is", "B"),
        ("Answer: (b)", "B"),
        ("I think it is (B)", "B"),
        (r"so \boxed{\text{B}}", "B"),
        ("The answer is A. Wait: the answer is B, I think", "B"),
        ("The answer is A.", "A"),
    ],
)
def test_letters(output, letter):
    grade = grading.multiple_choice_letter(item("(B)"), output)
    assert (grade.answer, grade.score) == (letter, float(letter == "B"))
    assert grading.multiple_choice_letter(item(gold=1), output).score == float(letter == "B")


@pytest.mark.parametrize(
    "output",
    ["", "A dog barks", "The answer is A or B", "The answer is a dog", "(A) or (B)?", "answer: B, C"],
)
def test_no_letter_or_two_are_wrong_with_a_reason(output):
    grade = grading.multiple_choice_letter(item("A"), output)
    assert grade.score == 0 and "letter" in grade.why


# --- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "output"),
    [
        ("18", "#### 18"),
        ("18", "9 * 2 makes it.\n#### 18 eggs"),
        ("18", r"so \boxed{18}"),
        ("18", r"\boxed{x = 18\text{ eggs}}"),
        ("18", "The answer is $18.00."),
        ("18", "**Final Answer:**\n\n**18**"),
        ("18", "The answer is 9 * 2 = 18"),
        ("18", "The answer is 17. No, wait, the answer is 18."),
        ("18", "The answer is 18! I am sure"),
        ("18", "first 3, then 18"),
        ("1,000", "that makes 1000."),
        ("1000", "$1,000"),
        ("1000", r"\boxed{1{,}000}"),
        ("some steps\n#### 70000", "70,000 dollars"),
        ("0.75", "3/4"),
        ("0.75", r"\boxed{\frac{3}{4}}"),
        ("50%", "0.5"),
        ("50", "50%"),
        ("-3", "it is −3"),
        ("5", "16-5"),  # a difference has no negative number
        ("300", "3e2"),
        ("42", "٤٢"),
        (".5", "0.50"),
    ],
)
def test_numbers_that_are_right(reference, output):
    grade = grading.numeric(item(reference), output)
    assert grade.score == 1 and not grade.why, grade


@pytest.mark.parametrize(
    ("reference", "output"),
    [
        ("18", "#### 17"),
        ("18", "18 is not it; the answer is 17"),
        ("18", "180"),
        ("18", "1,8"),
        ("0.5%", "50%"),
        ("3", "1e999"),
        ("3", "3.1"),
        ("3", "3/2"),
        ("1000", "1,00"),
    ],
)
def test_numbers_that_are_wrong(reference, output):
    grade = grading.numeric(item(reference), output)
    assert grade.score == 0 and ", not " in grade.why


@pytest.mark.parametrize(
    "output",
    ["", "I cannot say", "nan", "inf", "-", "#### none", "the answer is unknown: ½", "1e99999999", "9" * 500],
)
def test_no_number_is_wrong_and_says_so(output):
    grade = grading.numeric(item("3"), output)
    assert grade.score == 0 and grade.why == "no number in the answer"
    assert len(grade.answer) <= 200


def test_other_accepted_numbers():
    assert grading.numeric(item("3", answers=("4",)), "4").score == 1
    assert grading.numeric(item("3", answers=("4",)), "5").score == 0


@pytest.mark.usefixtures("_math_verify")
@pytest.mark.parametrize(
    ("reference", "output", "score"),
    [
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", 1),
        (r"2\sqrt{3}", r"\boxed{2}", 0),
        ("x+1", "The answer is $1 + x$.", 1),
        ("x+1", "x+2", 0),
        ("6", r"\boxed{2\cdot 3}", 1),
        ("2", r"\boxed{2\sqrt{3}}", 0),  # begins with the right number, and is another
        ("9", r"\boxed{9**9**9}", 0),
        ("5", r"\boxed{5²}", 0),
        ("hello (", "3", None),
    ],
)
def test_expressions(reference, output, score):
    grade = grading.numeric(item(reference), output)
    assert grade.score == score and (score == 1 or grade.why)


@pytest.mark.usefixtures("_math_verify")
def test_a_comparison_without_end_is_not_scored_and_the_next_one_is(monkeypatch):
    ask = expressions.compare
    monkeypatch.setattr(expressions, "compare", lambda *pair: ask(*pair, seconds=1.0))
    start = time.monotonic()
    grade = grading.numeric(item("9"), r"\boxed{9^{9^{9}}}")
    assert grade.score is None and "too long" in grade.why
    assert time.monotonic() - start < 30  # the child may have to be started on a busy machine
    assert ask("x+1", "1+x") == "equal"


@pytest.mark.usefixtures("_math_verify")
def test_expressions_in_threads_and_in_silence(capfd):
    verdicts = {}

    def work(number):
        verdicts[number] = expressions.compare(f"{number}+x", f"x+{number % 4}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {n: "equal" if n < 4 else "different" for n in range(8)}
    assert capfd.readouterr() == ("", "")


def test_without_math_verify_expressions_are_not_scored(monkeypatch):
    def start():
        code = "import sys; sys.modules['math_verify'] = None; import behemoth.tasks.expressions as e; "
        code += "e._answer_questions()"
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    monkeypatch.setattr(expressions, "_start", start)
    worker = expressions.Worker()
    assert worker.ask("x", "x", 20.0) == "not installed"
    worker.stop()
    monkeypatch.setattr(expressions, "compare", lambda *_: "not installed")
    grade = grading.numeric(item("x+1"), "x+1")
    assert grade.score is None and "pip install math-verify" in grade.why


def test_a_child_that_dies_leaves_the_question_open(monkeypatch):
    code = "import sys; print('ready', flush=True); sys.stdin.readline()"
    pipe = subprocess.PIPE
    monkeypatch.setattr(
        expressions,
        "_start",
        lambda: subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True),
    )
    worker = expressions.Worker()
    assert worker.ask("x", "x", 20.0) == "no verdict"
    assert worker.child is None


MONSTERS = {
    "digits": "1" * HUGE,
    "spaces": " " * HUGE,
    "numbers": "1 " * (HUGE // 2),
    "thousands": "1,111," * (HUGE // 6),
    "fractions": "1/" * (HUGE // 2),
    "decimals": "1." * (HUGE // 2),
    "minus": "-" * HUGE,
    "braces": "\\boxed{" + "{" * HUGE,
    "boxes": "\\boxed{" * (HUGE // 7),
    "announcements": "the answer is " * (HUGE // 14),
    "marks": "#" * HUGE,
    "brackets": "(" * HUGE,
    "letters": "A " * (HUGE // 2),
    "backslashes": "\\" * HUGE,
    "text": "\\text{" * (HUGE // 6),
}


@pytest.mark.parametrize("name", MONSTERS)
def test_ten_megabytes_of_anything_are_quick(name):
    output, start = MONSTERS[name], time.process_time()
    for grade in (
        grading.numeric,
        grading.multiple_choice_letter,
        grading.exact_final,
        grading.contains_alias,
    ):
        assert grade(item("B 3"), output).why is not None
    assert time.process_time() - start < 5


# --- GSM8K beside lm-eval ------------------------------------------------------------------------------------


def harness_scores(reference: str, output: str) -> tuple[float, float]:
    """What lm-eval's gsm8k.yaml makes of an output, by its own filters and metric."""
    pytest.importorskip("lm_eval", reason="compared with lm-eval, which is not installed")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    scores = []
    for filter_ in (
        RegexFilter(r"#### (\-?[0-9\.\,]+)"),
        RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    ):
        said = next(iter(filter_.apply([[output]], [{}])))[0]
        ignore = [",", r"\$", r"(?s).*#### ", r"\.$"]
        found = exact_match_hf_evaluate([said], [reference], ignore, ignore_case=True)
        scores.append(float(found["exact_match"]))
    return scores[0], scores[1]


GSM8K_OUTPUTS = [
    "#### 18", "####18", "#### 18.", "#### $18", "#### 1,8", "#### 18.00", "18", "18.", "$18", "so 18 eggs", "",
    "no", "#### 17\n#### 18", "#### 18\nQuestion: 3", "...", "#### ,", "-18", "#### -18", "5-18", "$", "18 $.", "1 8",
    "#### 18 #### ", "[invalid]", "٤٢", "18\n", "#### 18\n\n", "#### x", "$1.8e1",
]  # fmt: skip


@pytest.mark.parametrize("reference", ["steps\n#### 18", "18", "1,800", "-18"])
@pytest.mark.parametrize("output", GSM8K_OUTPUTS)
def test_gsm8k_parts_are_those_of_lm_eval(reference, output):
    parts = grading.gsm8k(item(reference), output).parts
    assert (parts["strict"], parts["flexible"]) == harness_scores(reference, output)


def test_gsm8k_agrees_with_lm_eval_on_the_published_answers(data_directory):
    path = data_directory / "eval" / "gsm8k_test.jsonl"
    if not path.exists():
        pytest.skip(f"no {path.name} in the data directory")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    mine, theirs, right = [], [], 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        worked = re.sub(r"<<.*?>>", "", row["answer"])
        for output in (
            row["answer"],
            worked.replace("####", "The answer is"),
            worked.rpartition("\n")[0],
            other["answer"],
            worked[: len(worked) // 2],
        ):
            reference = row["answer"].rpartition("####")[2].strip()
            grade = grading.gsm8k(item(reference), output)
            mine.append((grade.parts["strict"], grade.parts["flexible"]))
            theirs.append(harness_scores(row["answer"], output))
        right += grading.gsm8k(item(reference), row["answer"]).score == 1
    assert mine == theirs
    assert right == len(rows)
    print(
        f"\ngsm8k: {len(mine):,} outputs, strict {sum(s for s, _ in mine):.0f}, flexible {sum(f for _, f in mine):.0f}"
    )


# --- form ----------------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ('{"name": "x", "age": 3}', ""),
        ('```json\n{"name": "x", "age": 3.0, "tags": ["a"]}\n```', ""),
        ('{"name": "x"}', "'age'"),
        ('{"name": "x", "age": true}', "$.age"),
        ('{"name": "", "age": 3}', "$.name is too small"),
        ('{"name": "x", "age": 3, "tags": ["c"]}', "$.tags[0]"),
        ('{"name": "x", "age": 3, "more": 1}', "'more'"),
        ('{"name": "x", "age": NaN}', "not JSON"),
        ("Sure: {}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "not of type object"),
    ],
)
def test_schema(output, why):
    grade = matches_format(item(facts={"schema": PERSON}), output)
    assert grade.score == float(not why) and why in grade.why


@pytest.mark.parametrize(
    "facts", [{}, {"schema": {"oneOf": []}}, {"schema": 3}, {"schema": {"type": "date"}}, {"pattern": "("}]
)
def test_a_form_that_cannot_be_checked_is_not_scored(facts):
    grade = matches_format(item(facts=facts), "{}")
    assert grade.score is None and grade.why


def test_pattern(monkeypatch):
    monkeypatch.setattr(structure, "SECONDS", 0.3)
    tagged = item(facts={"pattern": r"(?s)<think>.*</think>\s*<answer>.+</answer>"})
    assert matches_format(tagged, "<think>a\nb</think>\n<answer>3</answer>\n").score == 1
    assert matches_format(tagged, "<answer>3</answer>").score == 0
    start = time.monotonic()
    endless = matches_format(item(facts={"pattern": r"(a|a)*b|(a+)+c"}), "a" * 5000)
    assert endless.score is None and "took more than 0.3 s" in endless.why
    assert time.monotonic() - start < 20


def test_grading_is_instant_to_import():
    code = "import sys, behemoth.tasks.grading, behemoth.tasks.ifeval; "
    code += "print({'torch', 'sympy', 'langdetect', 'regex'} & set(sys.modules))"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert found.stdout.strip() == "set()"
