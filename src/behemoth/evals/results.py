"""What an evaluation leaves behind: each document's score, and the table and comparisons made from them.

evals/held_out/NAME.jsonl keeps one line per document, so that any two models of any two runs can be
compared later; evals/results.json is the summary that people read. No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, read_jsonl, write_atomic, write_json
from behemoth.base.logs import table
from behemoth.stats.paired import Comparison, Scores, compare_many, score_interval, text_scores

if TYPE_CHECKING:
    from behemoth.data.corpus import HeldOut

EXAMINED_TOKENS = 4096  # of one held-out document: a single long one must not decide the result
FAMILY = "these pairs are read together (Holm): each interval has the level at which its pair was tested"
NOTE = f"scored on the first {EXAMINED_TOKENS:,} tokens of each held-out document"


@dataclass(frozen=True)
class Entry:
    """One row of the table. A `reference` is for orientation: it saw other text than the models did.

    step and sha256: of a model, the checkpoint that was measured and the hash of its weights.
    """

    scores: Scores
    kind: Literal["model", "baseline", "reference"]
    note: str = ""
    step: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Line:
    """A reference that is one number for all documents, so without an interval (`xz` of everything)."""

    name: str
    bits_per_byte: float
    documents: int
    note: str = ""


def scores(name: str, documents: Sequence[HeldOut], nats: np.ndarray) -> Scores:
    """Tie scores, (documents,) nats, to the documents they belong to."""
    num_bytes = np.array([document.num_bytes for document in documents], np.int64)
    return text_scores(name, [document.id for document in documents], nats, num_bytes)


def write_scores(directory: Path, found: Scores, documents: Sequence[HeldOut]) -> Path:
    """Write `directory`/held_out/NAME.jsonl, one line per document."""
    path = scores_path(directory, found.name)
    lines = [
        {
            "document": document.id,
            "source": document.source,
            "bytes": int(document.num_bytes),
            "tokens": len(document.tokens),
            "nats": float(bits) * math.log(2),
        }
        for document, bits in zip(documents, found.values, strict=True)
    ]
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def scores_path(directory: Path, name: str) -> Path:
    return directory / "held_out" / f"{file_name(name)}.jsonl"


def read_scores(path: Path, name: str | None = None) -> Scores:
    """Read a file of `write_scores` back; `name` defaults to the file's."""
    lines = list(read_jsonl(path))
    if not lines:
        raise InputError(f"{path}: no scores there; run the evaluation again")
    return text_scores(
        name or path.stem,
        [line["document"] for line in lines],
        np.array([line["nats"] for line in lines], np.float64),
        np.array([line["bytes"] for line in lines], np.int64),
    )


def write_results(
    directory: Path,
    entries: Sequence[Entry],
    lines: Iterable[Line] = (),
    pairs: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Write `directory`/results.json and return it: rows, best first, and a comparison per pair of names.

    The pairs are read together, so they are one family (Holm), and each sentence names the level of its interval.
    Every entry is scored on documents cut to EXAMINED_TOKENS, which `note` says.
    """
    found = {entry.scores.name: entry.scores for entry in entries}
    rows = [as_row(entry) for entry in entries] + [
        {
            "name": line.name,
            "kind": "reference",
            "bits_per_byte": line.bits_per_byte,
            "low": None,
            "high": None,
            "documents": line.documents,
            "note": line.note,
        }
        for line in lines
    ]
    comparisons = [as_record(one) for one in compare_many([(found[a], found[b]) for a, b in pairs])]
    results = {
        "unit": "bits per byte",
        "note": NOTE,
        "family": FAMILY if len(comparisons) > 1 else "",
        "models": sorted(rows, key=lambda row: row["bits_per_byte"]),
        "comparisons": comparisons,
    }
    write_json(directory / "results.json", results)
    return results


def as_row(entry: Entry) -> dict[str, Any]:
    interval = score_interval(entry.scores)
    weights = {"step": entry.step, "sha256": entry.sha256} if entry.sha256 else {}
    return {
        "name": entry.scores.name,
        "kind": entry.kind,
        "bits_per_byte": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "documents": len(entry.scores.items),
        "note": entry.note,
        **weights,
    }


def read_baselines(directory: Path, like: Scores) -> list[Entry]:
    """What an earlier evaluation in `directory` measured beside the models, where it is of the documents of `like`."""
    path = directory / "results.json"
    rows = read_json(path)["models"] if path.exists() else []
    entries = [
        Entry(read_scores(file, row["name"]), row["kind"], row["note"])
        for row in rows
        if row["kind"] != "model" and (file := scores_path(directory, row["name"])).exists()
    ]
    return [entry for entry in entries if same_documents(entry.scores, like)]


def same_documents(a: Scores, b: Scores) -> bool:
    return a.items == b.items and np.array_equal(np.asarray(a.sizes), np.asarray(b.sizes))


def show(found: dict[str, Any]) -> None:
    """Print what `write_results` returned."""
    rows = [
        [row["name"], f"{row['bits_per_byte']:.3f}", interval_of(row), row["note"]] for row in found["models"]
    ]
    table("held-out bits per byte (lower is better)", ["model", "bits per byte", "95% interval", ""], rows)
    sentences = [comparison["sentence"] for comparison in found["comparisons"]]
    print("\n".join([found["note"], *sentences, *filter(None, [found["family"]])]))


def interval_of(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def as_record(comparison: Comparison) -> dict[str, Any]:
    """`difference` is positive when `a` is better."""
    return {
        "a": comparison.a,
        "b": comparison.b,
        "difference": comparison.difference.estimate,
        "low": comparison.difference.low,
        "high": comparison.difference.high,
        "level": comparison.difference.level,
        "p_value": comparison.p_value,
        "verdict": comparison.verdict,
        "more_items": comparison.more_items,
        "sentence": comparison.sentence,
    }


def file_name(name: str) -> str:
    """A name as part of a path: letters, digits, dot and dash stay, the rest becomes a dash."""
    return (
        "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "-" for c in name).strip(".") or "model"
    )
