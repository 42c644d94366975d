"""The runner with a model made up for it: what is kept, what is counted, what is asked again, and what is not."""

import json
import math
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from behemoth.base.errors import DamagedError, InputError
from behemoth.evals import runner
from behemoth.evals.backends import Failed, Generated, Likelihood
from behemoth.evals.records import TaskResult, notes, read_evaluation, show, write_evaluation
from behemoth.evals.runner import cut, evaluate, names_of, quick
from behemoth.tasks.suite import Suite
from behemoth.tasks.task import Grade, Item, Task


@dataclass
class Fake:
    """Likes choices with an "a", writes its prompt backwards, and fails where `fails` is found in a question."""

    name: str = "fake"
    sha256: str = "f" * 64
    kind: str = "behemoth"
    batch: int = 4
    precision: str = "fp32"
    device: str = "cpu"
    route: str = ""
    fails: str = "\0"
    dies_after: float = math.inf  # calls
    calls: list = field(default_factory=list)

    def answer(self, questions, say):
        if len(self.calls) >= self.dies_after:
            raise KeyboardInterrupt
        self.calls.append(list(questions))
        return [Failed("HTTP 500: oh no") if self.fails in str(q) else say(q) for q in questions]

    def likelihoods(self, pairs):
        def say(pair):
            return Likelihood(-len(pair[1]) + 10 * pair[1].count("a") + len(pair[0]) % 3, "a" in pair[1], 2)

        return self.answer(pairs, say)

    def generate(self, prompts, max_tokens, stop):
        return self.answer(prompts, lambda prompt: Generated(prompt[::-1], len(prompt), "stop"))

    def nats(self, texts):
        return self.answer(texts, lambda text: 0.5 * len(text))

    @property
    def questions(self):
        return sum(map(len, self.calls))


def backwards(item, output):
    if item.answer == "?":
        return Grade(None, "nobody knows")
    if item.answer == "!":
        raise ZeroDivisionError("a broken grader")
    return Grade(float(output == item.answer), answer=output[:2], parts={"first": float(output[0] == "z")})


def write(count=10, **change):
    items = tuple(Item(f"i{n}", prompt="x" * (n + 1), answer="x" * (n + 1)) for n in range(count))
    task = Task("write", "generate", items, "exact_match", backwards, chance=0.0, source="made up")
    return replace(task, **change)


def pick(count=10):
    items = tuple(
        Item(f"c{n}", f"question {n}", (" ab", " bb", " bbb"), gold=n % 2, cluster=f"p{n // 2}")
        for n in range(count)
    )
    return Task("pick", "choice", items, "accuracy", chance=1 / 3)


FOLLOW = Task(
    "follow", "continuation", (Item("1", "so", answer=" a"), Item("2", "so", answer=" b")), "accuracy"
)
READ = Task("read", "text", (Item("d1", answer="grüße " * 20), Item("d2", answer="short")), "bits_per_byte")
SUITE = Suite("small", (pick(), write(), FOLLOW, READ))


def records_of(directory, task):
    return [json.loads(line) for line in (directory / f"{task}.jsonl").read_text().splitlines()]


def without_seconds(evaluation):
    return {
        name: [{k: v for k, v in record.items() if k != "seconds"} for record in task.records]
        for name, task in evaluation.tasks.items()
    }


def test_every_kind_of_task_is_asked_scored_and_kept(tmp_path):
    found = evaluate(Fake(), "runs/fake", SUITE, tmp_path)
    assert list(found.tasks) == ["pick", "write", "follow", "read"]
    back = read_evaluation(tmp_path / "fake")
    assert back == found
    assert (back.spec, back.sha256, back.suite) == ("runs/fake", "f" * 64, "small")
    for name, task in found.tasks.items():
        records = records_of(tmp_path / "fake", name)
        assert [record["item"] for record in records] == [
            item.id for item in SUITE.tasks[list(found.tasks).index(name)].items
        ]
        assert records == task.records
        assert {record["model"] for record in records} == {"f" * 64}
        assert all(record["seconds"] >= 0 and record["attempts"] == 1 for record in records)
    assert not list((tmp_path / "fake").glob("*.working"))

    first = found.tasks["pick"].records[0]
    assert first["metrics"] == {"accuracy": 1.0, "accuracy_norm": 1.0}
    assert first["logprobs"] == [7 + len("question 0") % 3, -3 + 1, -4 + 1]
    assert (first["prompt"], first["output"], first["answer"], first["cluster"]) == (
        "question 0",
        " ab",
        " ab",
        "p0",
    )
    entry = json.loads((tmp_path / "fake" / "evaluation.json").read_text())["tasks"]["pick"]
    assert entry["score"] == 0.5 and entry["low"] < 0.5 < entry["high"]
    assert (entry["items"], entry["scored"], entry["unscored"], entry["errors"]) == (10, 10, 0, 0)
    assert entry["sha256"] == pick().sha256 and entry["chance"] == 1 / 3

    written = found.tasks["write"].records[1]
    assert (written["output"], written["read"], written["score"], written["tokens"]) == ("xx", "xx", 1.0, 2)
    assert written["metrics"] == {"exact_match": 1.0, "first": 0.0}
    assert [record["score"] for record in found.tasks["follow"].records] == [1.0, 0.0]
    assert found.tasks["follow"].records[0]["metrics"]["logprob"] == 10 - 2 + 2

    text = found.tasks["read"].records[0]
    assert text["metrics"]["nats"] == 60 and text["metrics"]["bytes"] == len(("grüße " * 20).encode()) == 160
    assert text["score"] == pytest.approx(60 / math.log(2))
    summary = found.tasks["read"].summary
    assert summary["score"] == pytest.approx(62.5 / math.log(2) / 165)
    assert found.tasks["read"].scores("m").unit == "bits per byte"


def test_by_length_means_characters_without_the_space_before():
    """As lm-eval counts: " aa" is two characters, so -2 a piece beats -2.1 although -4.2 is the longer one's sum."""
    item = Item("1", "q", (" aa", " bbb"), gold=0)
    task = Task("t", "choice", (item,), "accuracy_norm")
    found = runner.choose(task, item, [Likelihood(-4.0, False, 1), Likelihood(-6.3, False, 1)])
    assert found["metrics"] == {"accuracy": 1.0, "accuracy_norm": 1.0}
    found = runner.choose(task, item, [Likelihood(-4.0, False, 1), Likelihood(-5.7, False, 1)])
    assert found["metrics"] == {"accuracy": 1.0, "accuracy_norm": 0.0}
    assert (found["score"], found["output"]) == (0.0, " bbb")


def test_prompts_that_differ_by_choice_are_asked_each_with_its_own():
    item = Item("1", choices=(" ran", " ran"), prompts=("The dog", "The cats"), gold=1)
    model = Fake()
    runner.ask(model, Task("w", "choice", (item,), "accuracy"), [item])
    assert model.calls == [[("The dog", " ran"), ("The cats", " ran")]]


def test_batches_are_longest_first_and_keep_choices_together():
    batches = cut(pick(), pick(5).items, 7)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    lengths = [len(item.prompt) for batch in cut(write(), write().items, 3) for item in batch]
    assert lengths == list(range(10, 0, -1))
    assert [len(batch) for batch in cut(pick(), pick(2).items, 1)] == [
        1,
        1,
    ]  # more choices than the batch holds


def test_what_a_comparison_could_detect_is_the_planning_formula():
    """1,000 answers, half right, two models correlated by a half: so 2.8 x 0.5 / sqrt(1000)."""

    def task(right, clusters):
        records = [
            {"item": str(i), "cluster": f"c{i % clusters}", "score": float(i % 10 < right), "error": ""}
            for i in range(1000)
        ]
        return TaskResult("t", "accuracy", "choice", "", records)

    assert task(5, 1000).detectable == pytest.approx(0.0443, rel=0.02)
    assert task(5, 100).detectable > 2 * task(5, 1000).detectable  # ten items of a passage are no ten items
    assert task(0, 1).detectable is None
    assert task(5, 20).detectable is None  # twenty passages: no difference would be called one
    few = task(5, 1000)
    assert replace(few, records=few.records[:99]).detectable is None
    assert replace(few, records=few.records[:100]).detectable == pytest.approx(0.14, rel=0.02)


def test_what_is_too_few_to_compare_is_said_beside_its_interval(tmp_path, capsys):
    """Eight of ten right has an interval, but no comparison on ten items will ever name a winner."""
    show([evaluate(Fake(), "m", Suite("s", (write(),)), tmp_path)])
    said = capsys.readouterr().out
    assert (
        "write, fake: too few to compare, whatever the interval (10 items are too few, 100 at least)" in said
    )
    assert "in a comparison on this task alone" in said
    records = [{"item": str(i), "cluster": "", "score": float(i % 2), "error": ""} for i in range(100)]
    assert notes("m", TaskResult("t", "accuracy", "choice", "", records)) == []


def test_unscored_is_an_outcome_of_its_own(tmp_path, capsys):
    items = (
        Item("ok", "zy", answer="yz"),
        Item("odd", "a", answer="?"),
        Item("bad", "b", answer="!"),
        Item("no", "c"),
    )
    found = evaluate(Fake(), "m", Suite("s", (write(items=items),)), tmp_path).tasks["write"]
    scores = {record["item"]: (record["score"], record["why"]) for record in found.records}
    assert scores["odd"] == (None, "nobody knows")
    assert scores["bad"] == (None, "the grader failed: ZeroDivisionError: a broken grader")
    entry = found.summary
    assert (entry["items"], entry["scored"], entry["unscored"], entry["errors"]) == (4, 2, 2, 0)
    assert entry["score"] == 0.5 and (entry["worst"], entry["best"]) == (0.25, 0.75)
    assert found.scores("m").items == ("ok", "no")
    show([read_evaluation(tmp_path / "fake")])
    said = capsys.readouterr().out
    assert "2 could not be scored (nobody knows); 25.0 if they were wrong, 75.0 if right" in said


@pytest.mark.parametrize("score", [1.5, -1, math.nan])
def test_a_score_that_is_none_is_no_score(score):
    task = write(grade=lambda item, output: Grade(score))
    record = runner.grade(task, task.items[0], Generated("x", 1, "stop"))
    assert record["score"] is None and "is not from 0 to 1" in record["why"]


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_a_likelihood_that_is_no_number_is_an_error(number):
    item = Item("1", "q", (" a", " b"), gold=1)
    answers = [Likelihood(number, False, 1), Likelihood(-2.0, False, 1)]
    record = runner.judge(Task("t", "choice", (item,), "accuracy"), item, answers)
    assert record["score"] == 0 and record["error"] == f"the log-probability is {number}"


def test_errors_count_as_wrong_and_only_they_are_asked_again(tmp_path, capsys):
    suite = Suite("s", (write(), READ))
    broken = Fake(fails="xxxxxxxxx")  # the two longest prompts
    found = evaluate(broken, "m", suite, tmp_path)
    entry = found.tasks["write"].summary
    assert (entry["items"], entry["scored"], entry["errors"], entry["score"]) == (10, 10, 2, 0.8)
    bad = [record for record in found.tasks["write"].records if record["error"]]
    assert [(r["item"], r["score"], r["error"]) for r in bad] == [
        (i, 0.0, "HTTP 500: oh no") for i in ("i8", "i9")
    ]
    show([found])
    assert "2 ended in an error, counted as wrong (HTTP 500: oh no)" in capsys.readouterr().out

    still = Fake(fails="xxxxxxxxxx")  # one of them fails again: it stays, and nothing is lost
    found = evaluate(still, "m", suite, tmp_path)
    assert still.calls == [["x" * 10, "x" * 9]]
    attempts = {record["item"]: record["attempts"] for record in found.tasks["write"].records}
    assert attempts == {f"i{n}": 1 for n in range(8)} | {"i8": 2, "i9": 2}
    mended = Fake()
    found = evaluate(mended, "m", suite, tmp_path)
    assert mended.calls == [["x" * 10]]
    assert found.tasks["write"].summary["score"] == 1
    assert found.tasks["write"].records[9]["attempts"] == 3
    again = Fake()
    assert evaluate(again, "m", suite, tmp_path) == found == read_evaluation(tmp_path / "fake")
    assert again.calls == []


def test_a_second_try_that_fails_altogether_loses_nothing_and_stops_nothing(tmp_path):
    items = tuple(Item(f"i{n}", f"{'bad' if n % 2 == 0 else 'odd'} {n}", answer=f"{n}") for n in range(60))
    suite = Suite("s", (write(items=items), FOLLOW))
    first = evaluate(Fake(fails="bad"), "m", suite, tmp_path)
    assert first.tasks["write"].summary["errors"] == 30
    again = evaluate(Fake(fails="bad"), "m", suite, tmp_path)
    assert [record["attempts"] for record in again.tasks["write"].records] == [2, 1] * 30
    assert again.tasks["write"].summary == first.tasks["write"].summary


def test_a_text_that_failed_is_left_out_and_counted(tmp_path):
    found = evaluate(Fake(fails="short"), "m", Suite("s", (READ,)), tmp_path).tasks["read"]
    assert [record["score"] for record in found.records] == [pytest.approx(60 / math.log(2)), None]
    entry = found.summary
    assert (entry["scored"], entry["unscored"], entry["errors"]) == (1, 1, 1)
    assert entry["score"] == pytest.approx(60 / math.log(2) / 160) and entry["low"] is None


@pytest.mark.parametrize("count", [3, 50])
def test_when_everything_fails_nothing_is_recorded(tmp_path, count):
    suite = Suite("s", (FOLLOW, write(count)))
    with pytest.raises(
        InputError, match=r"the endpoint answered none of \d+ questions in a row of write; .*HTTP 500"
    ):
        evaluate(Fake(fails="x", kind="endpoint"), "http://h/v1#m", suite, tmp_path)
    assert list(read_evaluation(tmp_path / "fake").tasks) == ["follow"]
    (working,) = (tmp_path / "fake").glob("*.working")
    assert "oh no" not in working.read_text()
    up_again = Fake(kind="endpoint")
    found = evaluate(up_again, "http://h/v1#m", suite, tmp_path)
    assert found.tasks["write"].summary["score"] == 1 and up_again.questions == count


def test_many_questions_too_long_are_no_reason_to_stop(tmp_path):
    found = evaluate(Fake(fails="x" * 31), "m", Suite("s", (write(60),)), tmp_path).tasks["write"].summary
    assert (found["errors"], found["score"]) == (30, 0.5)


def test_a_server_that_goes_away_leaves_no_zeros(tmp_path):
    class Goes(Fake):
        def answer(self, questions, say):
            self.fails = "x" if len(self.calls) >= 2 else "\0"
            return super().answer(questions, say)

    suite = Suite("s", (write(40),))
    with pytest.raises(InputError, match="20 questions in a row"):
        evaluate(Goes(), "m", suite, tmp_path)
    back = Fake()
    found = evaluate(back, "m", suite, tmp_path).tasks["write"].summary
    assert (found["score"], found["errors"], back.questions) == (1, 0, 32)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    """Stopped at every batch in turn; whatever the machine left of a last line does not count."""
    total = Fake()
    undisturbed = evaluate(total, "m", SUITE, tmp_path / "undisturbed")
    torn = ["", '{"records": [{"item": "i', "\0\0\0", "not json\n"]
    assert len(total.calls) > 8
    for calls in range(len(total.calls)):
        out, first, second = tmp_path / f"{calls}", Fake(dies_after=calls), Fake()
        with pytest.raises(KeyboardInterrupt):
            evaluate(first, "m", SUITE, out)
        for working in out.rglob("*.working"):
            with open(working, "a") as file:
                file.write(torn[calls % len(torn)])
        found = evaluate(second, "m", SUITE, out)
        assert first.calls + second.calls == total.calls
        assert without_seconds(found) == without_seconds(undisturbed)
        assert read_evaluation(out / "fake") == found


def test_an_interrupted_second_try_keeps_what_the_first_had(tmp_path):
    suite = Suite("s", (write(),))
    evaluate(Fake(fails="xxxx", batch=2), "m", suite, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Fake(batch=2, dies_after=2), "m", suite, tmp_path)
    last = Fake(batch=2)
    found = evaluate(last, "m", suite, tmp_path).tasks["write"]
    assert last.questions == 3
    assert [record["attempts"] for record in found.records] == [1, 1, 1] + [2] * 7
    assert found.summary["score"] == 1


def test_tasks_finished_before_outlive_an_interrupted_second_try(tmp_path):
    suite = Suite("s", (write(name="one"), write(name="two"), READ))
    before = evaluate(Fake(fails="x" * 10), "m", suite, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Fake(dies_after=1), "m", suite, tmp_path)  # in the second task
    found = read_evaluation(tmp_path / "fake").tasks
    assert {name: task.summary["errors"] for name, task in found.items()} == {"one": 0, "two": 1, "read": 0}
    assert found["read"] == before.tasks["read"]
    last = Fake()
    assert list(evaluate(last, "m", suite, tmp_path).tasks) == ["one", "two", "read"]
    assert last.questions == 1


def test_a_task_that_changed_is_asked_anew_and_the_old_one_kept(tmp_path, capsys):
    evaluate(Fake(), "m", SUITE, tmp_path)
    old = (tmp_path / "fake" / "write.jsonl").read_text()
    changed = replace(SUITE, tasks=(pick(), write(12)))
    model = Fake()
    found = evaluate(model, "m", changed, tmp_path)
    assert model.questions == 12 and len(found.tasks["write"].records) == 12
    assert (tmp_path / "fake" / "write.jsonl.old-1").read_text() == old
    assert "task write is not the one that was asked then: kept as" in capsys.readouterr().err
    assert list(found.tasks) == ["pick", "write"]
    assert set(read_evaluation(tmp_path / "fake").tasks) == {
        "pick",
        "write",
        "follow",
        "read",
    }  # nothing lost


WAYS = [{"precision": "bf16"}, {"device": "cuda"}, {"route": "chat/completions"}]


@pytest.mark.parametrize("change", [{"batch": 3}, {"sha256": "0" * 64}, *WAYS])
def test_unfinished_work_of_other_weights_or_batches_is_not_gone_on_with(tmp_path, capsys, change):
    suite = Suite("s", (write(),))
    with pytest.raises(KeyboardInterrupt):
        evaluate(Fake(dies_after=1), "m", suite, tmp_path)
    other = Fake(**change)
    evaluate(other, "m", suite, tmp_path)
    assert other.questions == 10
    assert "kept as" in capsys.readouterr().err
    (kept,) = (path for path in tmp_path.rglob("write.jsonl.working*"))
    assert "old-1" in str(kept)


@pytest.mark.parametrize("change", WAYS)
def test_unfinished_work_says_itself_how_it_was_asked(tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Fake(dies_after=1), "m", Suite("s", (write(),)), tmp_path)
    path = tmp_path / "fake" / "evaluation.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"model": record["model"] | change}))
    other = Fake(**change)
    evaluate(other, "m", Suite("s", (write(),)), tmp_path)
    assert other.questions == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (WAYS[0], "in fp32 on cpu then, and in bf16 on cpu now"),
        (WAYS[1], "in fp32 on cpu then, and in fp32 on cuda now"),
        (WAYS[2], "in fp32 on cpu then, and through /chat/completions now"),
    ],
)
@pytest.mark.parametrize("spec", ["runs/a", "elsewhere/a"])
def test_the_same_weights_in_another_precision_are_asked_anew(tmp_path, capsys, change, said, spec):
    before = evaluate(Fake(), "runs/a", SUITE, tmp_path)
    other = Fake(**change)
    found = evaluate(other, spec, SUITE, tmp_path)
    assert other.questions and f"{spec} was asked {said}: kept as" in capsys.readouterr().err
    assert read_evaluation(tmp_path / "fake") == found
    assert [getattr(found, key) for key in change] == [*change.values()]
    assert read_evaluation(tmp_path / "fake.old-1") == before


def test_it_says_when_it_was_finished_and_by_which_version(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Fake(dies_after=3), "m", SUITE, tmp_path)
    begun = read_evaluation(tmp_path / "fake")
    assert (begun.version, begun.finished) == ("", "")
    early = datetime.now(UTC).replace(microsecond=0)
    found = evaluate(Fake(fails="x" * 10), "m", SUITE, tmp_path)
    assert found.version == version("behemoth-lab")
    assert early <= datetime.fromisoformat(found.finished) <= datetime.now(UTC)
    path = tmp_path / "fake" / "evaluation.json"
    path.write_text(path.read_text().replace(found.finished, "2001-01-01T00:00:00+00:00"))
    nothing_asked = evaluate(Fake(), "m", Suite("s", (pick(),)), tmp_path)
    assert nothing_asked.finished.startswith("2001")
    assert read_evaluation(tmp_path / "fake").finished.startswith("2001")
    assert evaluate(Fake(), "m", SUITE, tmp_path).finished >= found.finished  # of what failed


def test_new_weights_of_the_same_run_move_the_old_evaluation_aside(tmp_path, capsys):
    evaluate(Fake(), "runs/a", SUITE, tmp_path)
    found = evaluate(Fake(sha256="0" * 64), "runs/a", SUITE, tmp_path)
    assert {record["model"] for record in found.tasks["pick"].records} == {"0" * 64}
    assert read_evaluation(tmp_path / "fake.old-1").sha256 == "f" * 64
    assert "runs/a had other weights then (ffffffffffff): kept as" in capsys.readouterr().err


def test_the_evaluation_of_another_model_is_not_touched(tmp_path):
    before = evaluate(Fake(), "runs/a", SUITE, tmp_path)
    with pytest.raises(
        InputError, match=re.escape("holds the evaluation of another model, runs/a; give another")
    ):
        evaluate(Fake(sha256="0" * 64), "runs/b", SUITE, tmp_path)
    assert read_evaluation(tmp_path / "fake") == before
    moved = Fake()
    assert evaluate(moved, "elsewhere/a", SUITE, tmp_path).spec == "elsewhere/a"  # the same weights
    assert not moved.calls


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "{}\n" * 10,
        lambda text: text.replace('"score": 1.0', '"score": 0.0', 1),
        lambda text: "".join(reversed(text.splitlines(keepends=True))),
    ],
)
def test_damaged_records_are_named_kept_and_asked_anew(tmp_path, capsys, damage):
    before = evaluate(Fake(), "m", SUITE, tmp_path)
    path = tmp_path / "fake" / "write.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DamagedError, match=r"write\.jsonl: .*run the evaluation again"):
        read_evaluation(tmp_path / "fake")
    model = Fake()
    assert without_seconds(evaluate(model, "m", SUITE, tmp_path)) == without_seconds(before)
    assert model.questions == 10 and path.with_name("write.jsonl.old-1").exists()


def test_answers_of_another_model_are_none_of_this_one(tmp_path):
    task = evaluate(Fake(sha256="0" * 64), "m", SUITE, tmp_path / "other").tasks["write"]
    found = evaluate(Fake(), "m", SUITE, tmp_path)
    write_evaluation(tmp_path / "fake", replace(found, tasks=found.tasks | {"write": task}))
    with pytest.raises(DamagedError, match=r"write\.jsonl: holds answers of another model"):
        read_evaluation(tmp_path / "fake")
    model = Fake()
    assert without_seconds(evaluate(model, "m", SUITE, tmp_path)) == without_seconds(found)
    assert model.questions == 10


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_records_without_their_summary_are_kept_and_asked_anew(tmp_path, capsys, damage):
    before = evaluate(Fake(), "m", SUITE, tmp_path)
    damage(tmp_path / "fake" / "evaluation.json")
    assert without_seconds(evaluate(Fake(), "m", SUITE, tmp_path)) == without_seconds(before)
    assert len(records_of(tmp_path / "fake.old-1", "write")) == 10
    assert "kept as" in capsys.readouterr().err


def test_what_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no evaluation there \(no evaluation\.json\)"):
        read_evaluation(tmp_path)
    for text in ("{", "[]", '{"model": {}, "tasks": []}'):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(DamagedError, match=r"evaluation\.json"):
            read_evaluation(tmp_path)


@pytest.mark.parametrize("second", ["f" * 64, "0" * 64])
def test_two_processes_cannot_write_one_evaluation(tmp_path, second):
    class Nosy(Fake):
        def answer(self, questions, say):
            evaluate(Fake(sha256=self.second), "m", SUITE, tmp_path)

    Nosy.second = second
    with pytest.raises(InputError, match="another process is evaluating there"):
        evaluate(Nosy(), "m", SUITE, tmp_path)
    evaluate(Fake(), "m", SUITE, tmp_path)


def test_names_that_would_collide_are_refused():
    with pytest.raises(InputError, match="tasks a/b and a-b would share a file"):
        runner.check_suite(Suite("s", (write(name="a/b"), write(name="a-b"))))
    with pytest.raises(InputError, match="metric = 'accuray'; ask = 'choice' has accuracy or accuracy_norm"):
        runner.check_suite(Suite("s", (replace(pick(), metric="accuray"),)))
    one, other = Fake(name="teacher"), Fake(name="teacher")
    nowhere = [None, None]
    assert names_of([("out/a", one), ("out/b", other)], nowhere) == ["out-a", "out-b"]
    assert names_of([("out/a", one), ("out/b", Fake())], nowhere) == ["teacher", "fake"]
    with pytest.raises(InputError, match="two of the models would be written under the name out-a"):
        names_of([("out/a", one), ("out-a", other)], nowhere)


def test_the_teachers_of_two_runs_have_directories_of_their_own(tmp_path, monkeypatch):
    """Also in two commands, of which neither knows the other, and where the run is named `.`."""
    teacher = Fake(name="teacher")
    assert names_of([("runs/a", teacher)], [Path("runs/a")]) == ["a-teacher"]
    assert names_of([("runs/b:teacher", teacher)], [Path("runs/b")]) == ["b-teacher"]
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    assert names_of([(".", teacher)], [Path(".")]) == ["c-teacher"]
    step = "runs/a/pretrain/checkpoints/step-00000004"
    both = names_of([("runs/a", teacher), (step, teacher)], [Path("runs/a")] * 2)
    assert both == ["runs-a", "runs-a-pretrain-checkpoints-step-00000004"]


def test_marks_put_on_records_survive_the_disk_and_a_second_try(tmp_path):
    suite = Suite("s", (write(),))
    found = evaluate(Fake(fails="x" * 10), "m", suite, tmp_path)
    task = found.tasks["write"]
    records = [record | {"contamination": "clean"} for record in task.records]
    marked = replace(found, tasks={"write": replace(task, records=records, contamination={"clean": 10})})
    write_evaluation(tmp_path / "fake", marked)
    assert read_evaluation(tmp_path / "fake") == marked
    again = evaluate(Fake(), "m", suite, tmp_path).tasks["write"]
    assert [record["contamination"] for record in again.records] == ["clean"] * 10
    assert again.records[9]["score"] == 1


def test_a_quick_look_writes_nothing_and_finds_the_same(tmp_path):
    found = quick(Fake(), SUITE)
    kept = evaluate(Fake(), "m", SUITE, tmp_path)
    assert {task.name: score for task, score in found} == {n: task.interval for n, task in kept.tasks.items()}
    assert (found[0][0].ask, found[0][1].estimate) == ("choice", 0.5)


def test_output_that_cannot_be_encoded_is_kept_readable(tmp_path):
    class Odd(Fake):
        def generate(self, prompts, max_tokens, stop):
            return [Generated("half \ud83d", 1, "stop") for _ in prompts]

    evaluate(Odd(), "m", Suite("s", (write(2),)), tmp_path)
    assert records_of(tmp_path / "fake", "write")[0]["output"] == "half ?"
