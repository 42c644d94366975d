import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.evals.results import (
    Entry,
    Line,
    read_baselines,
    read_scores,
    scores,
    show,
    write_results,
    write_scores,
)


@dataclass(frozen=True)
class Document:
    id: str
    source: str
    tokens: np.ndarray
    num_bytes: int


DOCUMENTS = [Document(f"d{i}", "test", np.arange(10 + i), 100 + 10 * i) for i in range(40)]


def scored(name, rate):
    noise = np.random.default_rng(len(name)).normal(0, 0.01, len(DOCUMENTS))
    return scores(name, DOCUMENTS, (rate + noise) * math.log(2) * np.array([d.num_bytes for d in DOCUMENTS]))


def test_scores_survive_the_disk(tmp_path):
    found = scored("co-distilled student", 2.0)
    path = write_scores(tmp_path, found, DOCUMENTS)
    assert path == tmp_path / "held_out" / "co-distilled-student.jsonl"
    back = read_scores(path, name=found.name)
    assert (back.name, back.items) == (found.name, found.items)
    assert back.values == pytest.approx(found.values, rel=1e-15)
    assert np.array_equal(back.sizes, found.sizes)
    first = json.loads(path.read_text().splitlines()[0])
    assert set(first) == {"document", "source", "bytes", "tokens", "nats"}


def test_a_name_cannot_leave_the_directory(tmp_path):
    path = write_scores(tmp_path, scored("../../etc/passwd", 2.0), DOCUMENTS)
    assert path.parent == tmp_path / "held_out"


def test_results_hold_rows_best_first_and_the_comparisons_asked_for(tmp_path):
    entries = [
        Entry(scored("3-gram", 2.3), "baseline", "same tokens"),
        Entry(scored("teacher", 2.1), "model"),
    ]
    results = write_results(
        tmp_path, entries, [Line("xz", 1.7, 30, "sees everything")], [("teacher", "3-gram")]
    )
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert [row["name"] for row in results["models"]] == ["xz", "teacher", "3-gram"]
    assert results["models"][0]["low"] is None
    assert results["models"][1]["low"] < results["models"][1]["bits_per_byte"] < results["models"][1]["high"]
    (comparison,) = results["comparisons"]
    assert comparison["difference"] == pytest.approx(0.2, abs=0.02)
    assert comparison["sentence"].startswith("teacher is better than 3-gram by 0.")


def test_results_name_the_weights_and_how_they_were_scored(tmp_path, capsys):
    entries = [
        Entry(scored("3-gram", 2.3), "baseline"),
        Entry(scored("teacher", 2.1), "model", step=400, sha256="ab"),
    ]
    found = write_results(tmp_path, entries)
    assert {(row["name"], row.get("step"), row.get("sha256")) for row in found["models"]} == {
        ("teacher", 400, "ab"),
        ("3-gram", None, None),
    }
    assert "4,096" in found["note"]
    show(found)
    assert found["note"] in capsys.readouterr().out


def test_baselines_of_an_earlier_evaluation_count_only_for_its_documents(tmp_path):
    entries = [
        Entry(scored("3-gram", 2.3), "baseline", "same tokens"),
        Entry(scored("teacher", 2.1), "model"),
    ]
    write_results(tmp_path, entries)
    write_scores(tmp_path, entries[0].scores, DOCUMENTS)
    (back,) = read_baselines(tmp_path, scored("another", 2.0))
    assert (back.scores.name, back.kind, back.note) == ("3-gram", "baseline", "same tokens")
    fewer = scores("another", DOCUMENTS[1:], np.ones(len(DOCUMENTS) - 1))
    assert read_baselines(tmp_path, fewer) == []
    assert read_baselines(tmp_path / "nowhere", fewer) == []


def test_an_empty_file_of_scores_is_refused(tmp_path):
    with pytest.raises(InputError, match="no scores there"):
        read_scores(tmp_path / "absent.jsonl")


def test_comparisons_read_together_are_one_family(tmp_path, capsys):
    """Alone each is at 95%; together the closest is tested at a level that its p-value does not reach."""
    generator = np.random.default_rng(0)
    size = np.array([d.num_bytes for d in DOCUMENTS])

    def ahead(name, by):
        noise = generator.normal(0, 0.01, len(DOCUMENTS))
        noise = (noise - noise @ size / size.sum()) / noise.std() * 0.01
        return Entry(scores(name, DOCUMENTS, (2.0 + by + noise) * math.log(2) * size), "model")

    entries = [
        ahead("a", 0.0),
        ahead("b", 0.006),
        ahead("c", 0.0),
        ahead("d", 0.0),
        ahead("e", 0.0),
        ahead("f", 0.2),
    ]
    pairs = [("a", name) for name in "bcdef"]
    (alone,) = write_results(tmp_path, entries, pairs=pairs[:1])["comparisons"]
    together = write_results(tmp_path, entries, pairs=pairs)["comparisons"]
    assert alone["verdict"] == "better" and alone["level"] == 0.95
    assert together[0]["verdict"] == "cannot tell" and together[-1]["verdict"] == "better"
    assert [one["level"] for one in together] == pytest.approx([0.9875] * 4 + [0.99])
    assert "98.75% interval" in together[0]["sentence"] and "99% interval" in together[-1]["sentence"]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["comparisons"] == together
    show(found)
    assert "read together (Holm)" in capsys.readouterr().out
