import json
import random

import pytest

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, read_jsonl, write_manifest
from behemoth.data.overlap import INDEX, Overlap, OverlapWriter
from behemoth.data.sources import Document
from behemoth.evals.contamination import annotate, read_verdicts, show
from behemoth.evals.records import Evaluation, TaskResult, read_evaluation, write_evaluation

FEW_SHOT = "Answer as in these examples. " + " ".join(
    f"example{i} has the answer number {i}." for i in range(30)
)


def some_words(seed, count):
    return " ".join(random.Random(seed).choices([f"word{i}" for i in range(3000)], k=count))


def record(number, score, prompt="", cluster="", **more):
    return {
        "item": f"q{number}",
        "cluster": cluster,
        "model": "ab",
        "prompt": prompt or f"{FEW_SHOT} {some_words(number, 30)}",
        "answer": f" answer {number}",
        "output": "",
        "score": score,
        "metrics": {},
        "error": "",
        **more,
    }


@pytest.fixture
def overlap(tmp_path):
    """Training saw the examples of every prompt, questions 0 to 39 whole, and the beginnings of 40 to 49."""
    with OverlapWriter(tmp_path / "corpus" / INDEX) as writer:
        texts = [some_words(i, 30) for i in range(40)]
        texts += [" ".join(some_words(i, 30).split()[:15]) for i in range(40, 50)]
        texts += [FEW_SHOT]
        writer.add([Document(text, f"d{i}", "forum", "CC-BY-4.0") for i, text in enumerate(texts)])
    write_manifest(tmp_path / "corpus")
    return Overlap.open({"pretrain": tmp_path / "corpus"})


@pytest.fixture
def evaluation(tmp_path):
    """Write tasks as a finished evaluation and return its directory."""

    def write(*tasks):
        directory = tmp_path / "model"
        write_evaluation(
            directory, Evaluation("model", "ab", "runs/a:m", "suite", {t.name: t for t in tasks})
        )
        return directory

    return write


def task(records, name="quiz", ask="generate"):
    return TaskResult(name, "exact_match", ask, "cd", records)


def test_items_are_judged_and_scores_told_for_all_and_for_each_verdict(evaluation, overlap, capsys):
    """All dirty items are right and every third clean one: the score without them is another."""
    records = [record(i, float(i < 40 or i % 3 == 0)) for i in range(200)]
    directory = evaluation(task(records))
    marked = annotate(directory, overlap)
    rows = list(read_jsonl(directory / "contamination.jsonl"))
    assert [row["item"] for row in rows] == [f"q{i}" for i in range(200)]
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["dirty"] * 40 + ["partly dirty"] * 10 + ["clean"] * 150
    assert rows[7]["documents"][0] | {"words": 0} == {
        "stage": "pretrain",
        "document": "d7",
        "source": "forum",
        "licence": "CC-BY-4.0",
        "words": 0,
    }
    groups = marked.tasks["quiz"].contamination["groups"]
    assert {name: part["items"] for name, part in groups.items()} == {
        "all": 200,
        "clean": 150,
        "partly dirty": 10,
        "dirty": 40,
    }
    assert groups["dirty"]["score"] == 1 and groups["clean"]["score"] == pytest.approx(50 / 150)
    assert all(
        groups[name]["low"] <= groups[name]["score"] <= groups[name]["high"] for name in ("all", "clean")
    )
    assert all(groups[name]["low"] is groups[name]["high"] is None for name in ("dirty", "partly dirty"))
    assert groups["all"]["note"] == groups["clean"]["note"] == ""
    assert groups["dirty"]["note"].startswith("cannot tell: 40 items")
    assert groups["partly dirty"]["note"].startswith("cannot tell: 10")
    assert read_json(directory / "evaluation.json")["tasks"]["quiz"]["contamination"] == {
        "stages": ["pretrain"],
        "groups": groups,
    }
    assert read_evaluation(directory).tasks["quiz"].contamination == marked.tasks["quiz"].contamination
    show(marked)
    printed = capsys.readouterr().out
    assert "items found in the text of pretrain" in printed
    assert all(word in printed for word in ("33.3", "100.0", "cannot tell: 40 items"))


def test_what_every_prompt_begins_with_makes_no_item_dirty(evaluation, overlap):
    """The examples are three quarters of each prompt, and training saw them; for one item alone they would count."""
    several, one = task([record(i, 1.0) for i in range(100, 110)]), task([record(100, 1.0)], "alone")
    annotate(directory := evaluation(several, one), overlap)
    found = read_verdicts(directory)
    assert set(found["quiz"].values()) == {"clean"}
    assert found["alone"] == {"q100": "dirty"}


def test_a_passage_with_many_questions_is_no_template(evaluation, overlap):
    """Questions on one passage are one cluster; named apart, the passage would be taken for the task's own."""
    passage = some_words(5, 30)
    together = [record(i, 1.0, f"{passage} what is {some_words(i, 10)}", "p5") for i in range(100, 106)]
    apart = [entry | {"cluster": ""} for entry in together]
    annotate(directory := evaluation(task(together), task(apart, "apart")), overlap)
    found = read_verdicts(directory)
    assert set(found["quiz"].values()) == {"dirty"}
    assert "dirty" not in found["apart"].values()


def test_the_answer_is_part_of_the_item(evaluation, overlap):
    records = [record(i, 1.0, "Go on:", answer=some_words(i, 30)) for i in (3, 150)]
    annotate(directory := evaluation(task(records)), overlap)
    assert read_verdicts(directory) == {"quiz": {"q3": "dirty", "q150": "clean"}}


def test_texts_are_told_in_bits_and_unscored_items_are_counted(evaluation, overlap, capsys):
    texts = [
        record(i, 1.0, "", metrics={"nats": 100.0 + i, "bytes": 200}, answer=some_words(i, 30))
        | {"prompt": ""}
        for i in (*range(35), *range(60, 100))
    ]
    questions = [record(i, None) for i in range(3)] + [record(i, 1.0) for i in range(60, 63)]
    marked = annotate(evaluation(task(texts, "texts", "text"), task(questions)), overlap)
    groups = marked.tasks["texts"].contamination["groups"]
    assert groups["dirty"]["items"] == 35 and groups["clean"]["items"] == 40
    assert groups["dirty"]["score"] < groups["all"]["score"] < groups["clean"]["score"] < 1.5
    assert groups["dirty"]["note"] == ""
    dirty = marked.tasks["quiz"].contamination["groups"]["dirty"]
    assert (dirty["items"], dirty["scored"], dirty["score"], dirty["low"]) == (3, 0, None, None)
    assert dirty["note"].startswith("cannot tell")
    show(marked)
    assert "-" in capsys.readouterr().out


def test_few_large_documents_are_too_few_however_many_there_are(evaluation, overlap):
    """Forty texts, one of them as large as all others: they are worth four of one size."""
    texts = [
        record(i, 1.0, "", metrics={"nats": n + 0.7 * i, "bytes": n}, answer=some_words(i, 30))
        | {"prompt": ""}
        for i, n in zip(range(60, 100), [200] * 39 + [7800], strict=True)
    ]
    marked = annotate(evaluation(task(texts, "texts", "text")), overlap)
    clean = marked.tasks["texts"].contamination["groups"]["clean"]
    assert (clean["scored"], clean["low"], clean["high"]) == (40, None, None)
    assert "40 documents of unequal size, worth 4 equal ones" in clean["note"]


def test_an_evaluation_that_was_not_looked_up_says_nothing(evaluation, capsys, tmp_path):
    directory = evaluation(task([record(1, 1.0)]))
    show(read_evaluation(directory))
    assert capsys.readouterr().out == ""
    assert read_verdicts(directory) == {}
    with pytest.raises(InputError, match="no evaluation there"):
        annotate(tmp_path / "nothing", Overlap({}))


def test_a_strange_verdict_is_refused(tmp_path):
    line = {"task": "quiz", "item": "q1", "verdict": "spotless"}
    (tmp_path / "contamination.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="'spotless'; it is one of clean, partly dirty, dirty, too short"):
        read_verdicts(tmp_path)
