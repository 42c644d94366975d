import json
from dataclasses import replace

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.evals.compare import WHOLE, compare_evaluations, show
from behemoth.evals.records import Evaluation, TaskResult, read_evaluation, write_evaluation
from behemoth.report.compare import compare_page
from behemoth.stats.paired import compare, compare_many


def record(item, score, **more):
    facts = {
        "item": item, "cluster": "", "model": "", "prompt": f"Question {item}\nAnswer:", "output": f"says {score}",
        "answer": "18", "read": "", "score": score, "metrics": {"exact_match": score}, "why": "", "error": "",
        "seconds": 0.1, "tokens": 3, "truncated": False, "attempts": 1,
    }  # fmt: skip
    return {**facts, **more}


def task(name, scores, **more):
    records = [record(f"{name}-{i}", score) for i, score in enumerate(scores)]
    return TaskResult(name, "exact_match", "generate", "5a" * 32, records, **more)


def text(name, bits, num_bytes=1000):
    records = [
        record(f"d{i}", None if b is None else b * num_bytes, prompt="", output="", answer="x" * 20_000,
               metrics={"nats": (b or 0) * num_bytes * np.log(2), "bytes": num_bytes})
        for i, b in enumerate(bits)
    ]  # fmt: skip
    return TaskResult(name, "bits_per_byte", "text", "7b" * 32, records)


def evaluation(name, *tasks, suite="basics", sha256=""):
    return Evaluation(name, sha256, f"runs/{name}", suite, {task.name: task for task in tasks}, "behemoth")


def answers(share, count=400, seed=0):
    return (np.random.default_rng(seed).random(count) < share).astype(float).tolist()


BETTER, WORSE = answers(0.9), answers(0.5, seed=1)


def test_every_task_is_told_with_the_numbers_of_the_statistics():
    a = evaluation("A", task("sums", BETTER, chance=0.25), task("words", WORSE), text("wiki", [1.9] * 40))
    bits = [2.1 + 0.01 * (i % 7) for i in range(40)]
    b = evaluation("B", task("sums", WORSE, chance=0.25), task("words", WORSE), text("wiki", bits))
    found = compare_evaluations(a, b)
    expected = compare_many([(a.tasks[n].scores("A"), b.tasks[n].scores("B")) for n in a.tasks])
    assert [t["task"] for t in found["tasks"]] == ["sums", "words", "wiki"]
    for told, right in zip(found["tasks"], expected, strict=True):
        assert told["sentence"] == right.sentence
        assert (told["difference"], told["low"], told["high"], told["level"]) == (
            right.difference.estimate, right.difference.low, right.difference.high, right.difference.level,
        )  # fmt: skip
        assert told["verdict"] == right.verdict
    assert [t["verdict"] for t in found["tasks"]] == ["better", "cannot tell", "better"]
    assert found["counts"] == {"better": 2, "worse": 0, "cannot tell": 1}
    assert found["sentence"] == "A is better than B on 2 of 3 tasks; on the other one it cannot be told."
    first = found["tasks"][0]
    assert first["chance"] == 0.25
    assert first["a"]["score"] == pytest.approx(np.mean(BETTER))
    both = np.array(BETTER) + np.array(WORSE) == 2
    assert first["agreement"]["both"] == both.sum()
    assert sum(first["agreement"].values()) == 400
    assert json.loads(json.dumps(found)) == found


def test_the_items_on_which_they_part_are_told_from_both_sides():
    a, b = task("sums", [1.0] * 300), task("sums", [1.0] * 300)
    b.records[7] |= {"score": 0.0, "output": "17", "read": "17", "why": "not 18", "truncated": True}
    a.records[9] |= {"score": 0.0, "error": "HTTP 500", "output": "y" * 100_000}
    (found,) = compare_evaluations(evaluation("A", a), evaluation("B", b))["tasks"]
    assert found["differing"] == {"a": 1, "b": 1, "equal": 298}
    first, second = found["examples"]
    assert (first["item"], first["better"], first["gap"]) == ("sums-7", "a", 1.0)
    assert first["prompt"] == "Question sums-7\nAnswer:"
    assert first["reference"] == "18"
    assert first["a"]["output"] == "says 1.0"
    assert (first["b"]["output"], first["b"]["why"], first["b"]["score"]) == ("17", "not 18", 0.0)
    assert first["b"]["truncated"]
    assert (second["item"], second["better"]) == ("sums-9", "b")
    assert second["a"]["error"] == "HTTP 500"
    assert "92,000 characters left out" in second["a"]["output"]
    assert len(second["a"]["output"]) < WHOLE + 60


def test_of_texts_the_documents_that_weigh_most_come_first_and_fewer_bits_are_better():
    a, b = [2.0] * 40, [2.0] * 40
    a[3], b[5], b[8] = 2.5, 2.2, 2.9
    (found,) = compare_evaluations(
        evaluation("A", text("wiki", a)), evaluation("B", text("wiki", b)), examples=1
    )["tasks"]
    assert [(e["item"], e["better"]) for e in found["examples"]] == [("d8", "a"), ("d3", "b")]
    assert found["examples"][0]["gap"] == pytest.approx(900)
    assert found["examples"][0]["b"]["score"] == pytest.approx(2.9)
    assert found["differing"] == {"a": 2, "b": 1, "equal": 37}
    assert found["difference"] == pytest.approx((0.2 + 0.9 - 0.5) / 40)
    assert "agreement" not in found


def test_what_one_of_them_could_not_be_scored_on_is_left_out_for_both_and_said():
    a, b = task("sums", BETTER), task("sums", WORSE)
    a.records[0]["score"] = b.records[1]["score"] = b.records[2]["score"] = None
    found = compare_evaluations(evaluation("A", a), evaluation("B", b))
    (told,) = found["tasks"]
    assert (told["items"], told["left_out"], told["a"]["unscored"], told["b"]["unscored"]) == (397, 3, 1, 2)
    assert told["difference"] == pytest.approx(np.mean(BETTER[3:]) - np.mean(WORSE[3:]))
    assert told["a"]["score"] == pytest.approx(np.mean(BETTER[3:]))
    assert "3 items could not be scored for one of the two and are left out for both." in found["remarks"]


def test_nothing_scored_is_cannot_tell_and_other_tasks_stand():
    nothing = task("sums", [None] * 50)
    a = evaluation("A", nothing, task("words", BETTER))
    b = evaluation("B", task("sums", WORSE[:50]), task("words", WORSE))
    found = compare_evaluations(a, b)
    assert [t["verdict"] for t in found["tasks"]] == ["cannot tell", "better"]
    assert found["tasks"][0]["sentence"] == "cannot tell: 0 items of 50 could be scored for both"
    assert (
        found["tasks"][1]["p_value"]
        == compare(a.tasks["words"].scores("A"), b.tasks["words"].scores("B")).p_value
    )
    assert "not scored" in compare_page(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: evaluation("B", *b.tasks.values(), suite="other"), "the suite basics, B the suite other"),
        (lambda b: evaluation("B", *b.tasks.values(), task("more", [1.0])), "1 task only of B: 'more'"),
        (lambda b: evaluation("B"), "1 task only of A: 'sums'"),
        (lambda b: evaluation("B", task("sums", WORSE[:395])), "sums: 5 items only of A: 'sums-395', .* and 2 more"),
        (lambda b: evaluation("B", task("sums", [*WORSE, 1.0])), "sums: 1 item only of B: 'sums-400'"),
        (lambda b: evaluation("B", TaskResult("sums", "exact_match", "generate", "00" * 32, b.tasks["sums"].records)),
         "another version of the task .5a5a5a5a5a5a and 000000000000"),
        (lambda b: evaluation("B", TaskResult("sums", "other", "generate", "5a" * 32, b.tasks["sums"].records)),
         "another metric"),
        (lambda b: evaluation("B", TaskResult("sums", "exact_match", "generate", "5a" * 32,
                                              b.tasks["sums"].records + b.tasks["sums"].records[:2])),
         "2 items twice in B: 'sums-0', 'sums-1'"),
    ],
)  # fmt: skip
def test_other_questions_are_refused_and_named(change, said):
    a, b = evaluation("A", task("sums", BETTER)), evaluation("B", task("sums", WORSE))
    with pytest.raises(InputError, match=said):
        compare_evaluations(a, change(b))


def test_all_reasons_are_told_at_once():
    a = evaluation("A", task("sums", BETTER), task("words", BETTER))
    b = evaluation("B", task("sums", WORSE[:9]), suite="other")
    with pytest.raises(InputError) as error:
        compare_evaluations(a, b)
    assert [part in str(error.value) for part in ("suite other", "'words'", "391 items only of A")] == [
        True
    ] * 3


def test_items_in_another_order_are_the_same_items():
    a, b = task("sums", BETTER), task("sums", WORSE)
    expected = compare_evaluations(evaluation("A", a), evaluation("B", b))
    b.records.reverse()
    assert compare_evaluations(evaluation("A", a), evaluation("B", b)) == expected


def test_models_of_one_name_are_told_apart():
    one, other = (
        evaluation("m", task("sums", BETTER), sha256="a" * 64),
        evaluation("m", task("sums", WORSE), sha256="b" * 64),
    )
    found = compare_evaluations(one, other)
    assert (found["a"]["name"], found["b"]["name"]) == ("m (aaaaaaa)", "m (bbbbbbb)")
    same = compare_evaluations(one, one)
    assert (same["a"]["name"], same["b"]["name"]) == ("m (1)", "m (2)")
    assert same["tasks"][0]["verdict"] == "cannot tell"
    assert same["tasks"][0]["difference"] == 0


def test_shared_passages_count_as_one():
    a, b = task("sums", BETTER), task("sums", WORSE)
    alone = compare_evaluations(evaluation("A", a), evaluation("B", b))["tasks"][0]
    for one in (a, b):
        for i, found in enumerate(one.records):
            found["cluster"] = f"passage {i // 40}"
    (told,) = compare_evaluations(evaluation("A", a), evaluation("B", b))["tasks"]
    assert alone["verdict"] == "better"
    assert told["verdict"] == "cannot tell"  # 10 passages
    assert "10 passages" in told["sentence"]


def test_clean_items_are_compared_alone_and_a_verdict_they_do_not_bear_out_is_said():
    """B is as good as A on the clean items and worse on those that A has seen."""
    a, b = answers(0.5, seed=3), answers(0.5, seed=4)
    a[200:350], b[200:350] = [1.0] * 150, [0.0] * 150
    verdicts = ["clean"] * 200 + ["dirty"] * 100 + ["partly dirty"] * 50 + ["too short"] * 50
    marks = {"sums": {f"sums-{i}": verdict for i, verdict in enumerate(verdicts)}}
    other = {"sums": {f"sums-{i}": "dirty" if i == 0 else "clean" for i in range(400)}}
    one, two = evaluation("A", task("sums", a)), evaluation("B", task("sums", b))
    found = compare_evaluations(one, two, {"a": marks, "b": other})
    (told,) = found["tasks"]
    clean, dirty = told["contamination"]["clean"], told["contamination"]["dirty"]
    assert (clean["items"], dirty["items"]) == (199, 151)
    assert (told["verdict"], clean["verdict"], dirty["verdict"]) == ("better", "cannot tell", "better")
    assert clean["difference"] == pytest.approx(np.mean(a[1:200]) - np.mean(b[1:200]))
    said = "sums: the verdict rests on all items; the clean ones alone do not bear it out."
    assert said in found["remarks"]
    assert "Contamination" in compare_page(found)
    assert "contamination" not in compare_evaluations(one, two)["tasks"][0]
    few = {"sums": {f"sums-{i}": "clean" if i < 40 else "dirty" for i in range(400)}}
    found = compare_evaluations(one, two, {"a": few, "b": few})
    assert (
        "sums: the verdict rests on all items; the clean ones alone are too few to say." in found["remarks"]
    )


def test_who_was_looked_into_is_told():
    """Clean means clean in the training data that is known, and of the other nobody can say."""
    marks = {"sums": {f"sums-{i}": "clean" if i % 2 else "dirty" for i in range(400)}}
    one, two = evaluation("A", task("sums", BETTER)), evaluation("B", task("sums", WORSE))
    for given, known in (({"a": marks, "b": marks}, ["A", "B"]), ({"b": marks, "a": {}}, ["B"]), ({}, [])):
        found = compare_evaluations(one, two, given)
        assert found["looked_into"] == known
        unknown = "in the training data of B only: what A was trained on is not known here."
        assert any(unknown in remark for remark in found["remarks"]) == (known == ["B"])
        page = compare_page(found)
        assert ("training data of either model" in page) == (len(known) == 2)
        assert ("training data of B, the only one that is known here" in page) == (known == ["B"])


def test_of_several_tasks_the_chance_of_a_wrong_verdict_is_always_told():
    kinds = {"b": (BETTER, WORSE), "w": (WORSE, BETTER), "c": (WORSE, WORSE)}
    for verdicts in ("bw", "bc", "cc", "b"):
        sides = [[task(f"t{i}", kinds[v][side]) for i, v in enumerate(verdicts)] for side in (0, 1)]
        found = compare_evaluations(evaluation("A", *sides[0]), evaluation("B", *sides[1]))
        told = [
            remark for remark in found["remarks"] if "about 5%, over the verdicts on whole tasks" in remark
        ]
        assert len(told) == (len(verdicts) > 1)


def test_the_same_weights_are_said_to_be_the_same():
    one = evaluation("A", task("sums", WORSE), text("wiki", [2.0] * 40), sha256="a" * 64)
    two = replace(one, name="B")
    found = compare_evaluations(one, two)
    assert found["sentence"].startswith("A and B are the same weights (aaaaaaaaaaaa) and answer alike")
    assert found["remarks"] == []
    assert {t["sentence"] for t in found["tasks"]} == {
        "nothing to tell apart: the same weights, and no item on which they differ"
    }
    assert "alone is right on only" not in compare_page(found)
    other = replace(two, tasks={**one.tasks, "sums": task("sums", BETTER)})  # as rounding might, but more
    found = compare_evaluations(one, other)
    assert found["sentence"].startswith("A is worse than B on 1 of 2 tasks")
    assert "Both are the same weights (aaaaaaaaaaaa)" in found["remarks"][0]
    nobody_knows = compare_evaluations(replace(one, sha256=""), replace(two, sha256=""))
    assert "same weights" not in nobody_knows["sentence"]


def test_models_that_were_asked_in_other_ways_are_named():
    one, two = evaluation("A", task("sums", WORSE)), evaluation("B", task("sums", WORSE))
    alike = compare_evaluations(replace(one, precision="float32"), replace(two, precision="float32"))
    assert not any("was asked" in remark for remark in alike["remarks"])
    found = compare_evaluations(replace(one, precision="float32"), replace(two, precision="bfloat16"))
    (said,) = [remark for remark in found["remarks"] if "was asked" in remark]
    assert said.startswith("A was asked in float32 on ") and "B in bfloat16 on" in said
    assert "bfloat16" in compare_page(found)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ("bb", "A is better than B on all 2 tasks."),
        ("ww", "A is worse than B on all 2 tasks."),
        ("bw", "A is better than B on 1 of 2 tasks and worse on 1."),
        ("ct", "Cannot tell A and B apart on any of 2 tasks."),
        ("bct", "A is better than B on 1 of 3 tasks; on the other 2 it cannot be told."),
    ],
)  # fmt: skip
def test_the_strongest_statement_that_the_verdicts_allow(verdicts, said):
    kinds = {"b": (BETTER, WORSE), "w": (WORSE, BETTER), "c": (WORSE, WORSE), "t": (BETTER, BETTER)}
    sides = [[task(f"t{i}", kinds[v][side]) for i, v in enumerate(verdicts)] for side in (0, 1)]
    found = compare_evaluations(evaluation("A", *sides[0]), evaluation("B", *sides[1]))
    assert found["sentence"] == said


def test_from_disk_to_terminal_and_page(tmp_path, capsys):
    for name, scores in (("A", BETTER), ("B", WORSE)):
        write_evaluation(tmp_path / name, evaluation(name, task("sums", scores), text("wiki", [2.0] * 40)))
    found = compare_evaluations(read_evaluation(tmp_path / "A"), read_evaluation(tmp_path / "B"))
    show(found)
    said = capsys.readouterr().out
    assert "A against B, basics" in said
    assert found["sentence"] in said
    page = compare_page(found)
    assert found["sentence"] in page
    for number in (found["tasks"][0]["a"]["score"], found["tasks"][0]["b"]["score"]):
        assert f"{100 * number:.1f}" in page
        assert f"{100 * number:.1f}" in said
