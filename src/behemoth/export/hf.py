"""A model as a Hugging Face directory, published only after transformers has given the same answers.

The directory is written beside its final place, questioned in a fresh process (see `reference` and
`receipt`), given its `receipt.json` and then renamed. When an answer differs, nothing is published and the
findings stay in `NAME.receipt-failed.json`. Whoever has questions of their own asks them in between
(`exporting`). Several models share one process: most of its time goes into importing transformers.
"""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import publish_directory, read_json, remove_tree, sha256, write_json
from behemoth.export.reference import ask, special_ids
from behemoth.model.open import RECEIPT, Opened
from behemoth.model.transformer import Transformer
from behemoth.model.weights import save_weights
from behemoth.text.tokenizer import Tokenizer

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}  # Llama 4's defaults


def export(opened: Opened, out: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Write `opened` to the new directory `out` and return its receipt.

    dtype: precision on disk, the weights' own when None.
    InputError: `out` exists, or Hugging Face's architecture cannot express the model. AnswerIsNo:
    transformers gives other answers than ours; nothing is published.
    """
    return export_all([(opened, out)], dtype)[0]


def export_all(jobs: Sequence[tuple[Opened, Path]], dtype: torch.dtype | None = None) -> list[dict[str, Any]]:
    """`export` of several models with one fresh process.

    AnswerIsNo for the first that differs; those before it are published.
    """
    with _answered(jobs, dtype) as answers:
        for (temporary, receipt), (_, out) in zip(answers, jobs, strict=True):
            _sign(receipt, temporary, out)
            publish_directory(temporary, out)
    return [receipt for _, receipt in answers]


@contextmanager
def exporting(opened: Opened, out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """`export` with a look in between: the directory, finished but beside its place, and its receipt.

    It is published when the block ends; an exception in it publishes nothing and leaves nothing behind.
    """
    with _answered([(opened, out)], None) as ((temporary, receipt),):
        _sign(receipt, temporary, out)
        yield temporary, receipt
        publish_directory(temporary, out)


@contextmanager
def _answered(
    jobs: Sequence[tuple[Opened, Path]], dtype: torch.dtype | None
) -> Iterator[list[tuple[Path, dict[str, Any]]]]:
    """Each model written beside its place, with what transformers answered; whatever still is there goes at the end."""
    for opened, out in jobs:
        _check_expressible(opened.model, out)
    temporaries = [out.with_name(f".{out.name}.{os.getpid()}.tmp") for _, out in jobs]
    try:
        with TemporaryDirectory(prefix="behemoth-receipt-") as evidence:
            places = [Path(evidence) / str(number) for number in range(len(jobs))]
            for (opened, _), temporary, place in zip(jobs, temporaries, places, strict=True):
                _write(opened, temporary, place, dtype)
            receipts = question(places)
        yield list(zip(temporaries, receipts, strict=True))
    finally:
        for temporary in temporaries:
            remove_tree(temporary)


def _check_expressible(model: Transformer, out: Path) -> None:
    if out.exists():
        raise InputError(f"{out} already exists; export into a new directory, or move that one away")
    if model.config.score_on != "input":
        raise InputError(
            f"score_on = {model.config.score_on!r} cannot be exported: Hugging Face's Llama 4 knows only "
            "scores on the experts' input and would compute another function; train with score_on = 'input'"
        )


def _write(opened: Opened, directory: Path, evidence: Path, dtype: torch.dtype | None) -> None:
    """The files of the export, and the questions about them."""
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    evidence.mkdir()
    model = _rounded(opened.model, dtype)
    write_files(model, tokenizer, directory, opened.turns)
    ask(model, tokenizer, evidence, directory, directory, imported=False)


def write_files(model: Transformer, tokenizer: Tokenizer, directory: Path, turns: int = 0) -> None:
    """What a Hugging Face directory holds, but for the receipt, into the new `directory`."""
    ids = special_ids(tokenizer)
    directory.mkdir(parents=True)
    save_weights(model, directory, tokens=ids, turns=turns)
    write_json(directory / "generation_config.json", ids | SAMPLING)
    tokenizer.save(directory)


def _rounded(model: Transformer, dtype: torch.dtype | None) -> Transformer:
    """The model with the weights that will be on disk; the same one when nothing is rounded."""
    if dtype in (None, model.embed_tokens.weight.dtype):
        return model
    rounded = copy.deepcopy(model).to(dtype)
    rounded.frequencies = model.frequencies  # positions stay fp32
    return rounded


def question(places: Sequence[Path]) -> list[dict[str, Any]]:
    """Put the questions to transformers in a fresh process; one receipt per evidence directory."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "behemoth.export.receipt", *map(str, places)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AnswerIsNo(f"transformers could not load or run the model: {reason}")
    versions = {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")
    }
    return [_receipt(read_json(place / "findings.json"), versions) for place in places]


def _receipt(checks: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, Any]:
    verdict = "match" if all(check["ok"] for check in checks) else "mismatch"
    return {"verdict": verdict, "checks": checks, "files": {}, "versions": versions}


def failures(receipt: dict[str, Any]) -> list[str]:
    """The checks of a receipt that failed, a line each."""
    return [
        f"{c['name']}: {c['value']} (limit {c['limit']}) {c['note']}"
        for c in receipt["checks"]
        if not c["ok"]
    ]


def _sign(receipt: dict[str, Any], temporary: Path, out: Path) -> None:
    """Give the directory its receipt, or keep the findings and say no."""
    receipt["files"] = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
    if receipt["verdict"] != "match":
        evidence = out.with_name(f"{out.name}.receipt-failed.json")
        write_json(evidence, receipt)
        lines = "\n".join(f"  {line}" for line in failures(receipt))
        raise AnswerIsNo(
            f"{out} was not published: transformers answers differently\n{lines}\n  findings: {evidence}"
        )
    write_json(temporary / RECEIPT, receipt)
