"""`behemoth judge`: train a small judge of refusals on labelled answers, and say how well a judge agrees with such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from behemoth.base.errors import InputError
from behemoth.base.logs import table
from behemoth.evals.judging import Verdicts, agreement, counts, sentence
from behemoth.tasks.classifier import FOLDS, held_out_verdicts
from behemoth.tasks.classifier import train as trained_on
from behemoth.tasks.judge import Rules, judge_of, read_labels


def train(labels: Path, out: Path, as_json: bool) -> None:
    """The verb: a judge of all the labels, and how judges of nine tenths of them did on the rest."""
    examples = read_labels(labels)
    if out.exists():
        raise InputError(
            f"--out {out}: it is there already, and nothing is written over; choose another name"
        )
    judge = trained_on(examples)
    held_out = counts(Verdicts(examples, held_out_verdicts(examples))) | {
        "parts": FOLDS,
        "source": labels.name,
    }
    judge = replace(judge, held_out=held_out, name=out.name)
    try:
        judge.save(out)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; choose another place") from None
    rules = agreement(Rules(), examples, labels.name)
    found = {"judge": str(out), "sha256": judge.sha256, "held_out": held_out, "rules": rules}
    if as_json:
        print(json.dumps(found))
        return
    rows = [_row("the rules", rules), _row(f"trained, each tenth held out in turn ({FOLDS} parts)", held_out)]
    table(f"{labels}: agreement with the labels", HEAD, rows)
    print(f"{out}: {judge.sha256}\nit learnt from all {len(examples):,} labels; check it on others")


def check(judge: str, labels: Path, as_json: bool) -> None:
    """The verb: how a judge agrees with labelled answers that it did not learn from."""
    found = agreement(judge_of(judge), read_labels(labels), labels.name)
    if as_json:
        print(json.dumps(found))
        return
    table(f"{labels}: agreement with the labels", HEAD, [_row(found["judge"], found)])
    print(sentence(found))


HEAD = ["judge", "kappa", "95% interval", "alike", "answers", "refusals", "missed", "false"]


def _row(name: str, found: dict[str, Any]) -> list[object]:
    return [
        name,
        f"{found['kappa']:.2f}",
        f"{found['low']:.2f} to {found['high']:.2f}",
        f"{100 * found['accuracy']:.1f}%",
        found["examples"],
        found["refusals"],
        found["missed"],
        found["false_refusals"],
    ]
