import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from behemoth.base.errors import InputError
from behemoth.evals.results import Entry, Line, read_scores, scores, write_results, write_scores


@dataclass(frozen=True)
class Document:
    id: str
    source: str
    tokens: np.ndarray
    num_bytes: int


DOCUMENTS = [Document(f"d{i}", "test", np.arange(10 + i), 100 + 10 * i) for i in range(30)]


def scored(name, rate):
    noise = np.random.default_rng(len(name)).normal(0, 0.01, len(DOCUMENTS))
    return scores(name, DOCUMENTS, (rate + noise) * math.log(2) * np.array([d.num_bytes for d in DOCUMENTS]))


def test_scores_survive_the_disk(tmp_path):
    found = scored("co-distilled student", 2.0)
    path = write_scores(tmp_path, found, DOCUMENTS)
    assert path == tmp_path / "held_out" / "co-distilled-student.jsonl"
    back = read_scores(path, name=found.name)
    assert (back.name, back.documents) == (found.name, found.documents)
    assert np.array_equal(back.nats, found.nats)
    assert np.array_equal(back.num_bytes, found.num_bytes)
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


def test_an_empty_file_of_scores_is_refused(tmp_path):
    with pytest.raises(InputError, match="no scores there"):
        read_scores(tmp_path / "absent.jsonl")
