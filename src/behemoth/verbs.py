"""What the shorter commands do: generate, chat, import, export, doctor, and looking at the data of a run."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from behemoth import build
from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import write_json
from behemoth.base.logs import say, table
from behemoth.data.corpus import Corpus
from behemoth.data.examples import Examples
from behemoth.data.overlap import SHORTEST, Overlap, indexed, passport, unread, words
from behemoth.data.show import render, render_examples
from behemoth.doctor import examination
from behemoth.examine import examine, refuse_faults
from behemoth.export.gguf import writing
from behemoth.export.hf import exporting
from behemoth.export.imports import import_model as import_hf
from behemoth.inference.engine import Engine
from behemoth.inference.talk import chat_loop, complete
from behemoth.model.open import open_model
from behemoth.opening import ready
from behemoth.practice import stage_seed
from behemoth.recipe import load_recipe, resolve
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import device

LONGEST_NAME = 255  # of a file; a longer text is the passage itself


def generate(
    model: str, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int, as_json: bool
) -> None:
    """Continue `prompt`, streaming; as JSON: the whole text and what made it."""
    opened = ready(model, device())
    pieces = complete(
        Engine(opened.model),
        opened.tokenizer,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    if as_json:
        print(
            json.dumps(
                {"model": opened.name, "sha256": opened.sha256, "prompt": prompt, "text": "".join(pieces)}
            )
        )
        return
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def chat(model: str, temperature: float, top_p: float, seed: int) -> None:
    opened = ready(model, device())
    chat_loop(
        Engine(opened.model),
        opened.tokenizer,
        read_line,
        write,
        turns=opened.turns,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )


def read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def write(text: str) -> None:
    print(text, end="", flush=True)


def import_model(directory: Path, out: Path, adapter: Path | None, as_json: bool) -> None:
    receipt = import_hf(directory, out, adapter)
    if as_json:
        print(json.dumps({"run": str(out), "receipt": receipt}))
        return
    say(f"{directory} is now {out}: {len(receipt['checks'])} checks agree with transformers")
    if adapter is not None:
        say(f"{adapter} was folded into its weights afterwards")
    print(f"next:\n  {shlex.join(['behemoth', 'generate', str(out)])}")


def export(model: str, to: str, target: Path, doctor: bool, as_json: bool) -> None:
    """A model for other programs: for transformers a directory, for llama.cpp one file with its receipt beside it."""
    match to:
        case "hf":
            with exporting(open_model(model), target) as (aside, receipt):
                if doctor:
                    refuse_faults([examine(model, exported=aside)])
        case "gguf":
            with writing(open_model(model), target) as receipt:
                if doctor:
                    refuse_faults([examine(model)])
            write_json(target.with_name(f"{target.name}.receipt.json"), receipt)
        case _:
            raise InputError(
                f"--to {to}: no such format; there are hf (safetensors for transformers) and gguf (for llama.cpp)"
            )
    if as_json:
        print(json.dumps({"directory" if to == "hf" else "file": str(target), "receipt": receipt}))
        return
    rows = [
        [check["name"], brief(check["value"]), brief(check["limit"]), "ok" if check["ok"] else "NO"]
        for check in receipt["checks"]
    ]
    table(f"receipt of {target}", ["check", "value", "limit", ""], rows)
    if to == "gguf":
        say(receipt["limits"]["said"])


def see_doctor(patient: str, as_json: bool) -> None:
    """Every check, shown; AnswerIsNo where one of them finds a fault."""
    found = examine(patient)
    if as_json:
        print(json.dumps(examination.as_json(found)))
        sys.exit(AnswerIsNo.exit_code if found.faults else 0)  # the verdict is in what was printed
    examination.show(found)
    if found.faults:
        raise AnswerIsNo(f"{patient}: {len(found.faults)} of {len(found.findings)} checks found a fault")


def data_passport(run: Path, text: str, as_json: bool) -> None:
    """Which training documents hold a passage; the text itself, or a file that holds it."""
    stages = indexed(run)
    if not stages and not (run / "data").is_dir():
        raise InputError(f"{run} has no prepared text (no data/), so nothing can be looked up; name a run")
    if len(os.fsencode(text)) < LONGEST_NAME and Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8", errors="replace")
    elif len(text.split()) < 2 and len(words(text)) < SHORTEST:
        raise InputError(f"{text!r} is no file, and too short for a passage; give one of the two")
    if missing := unread(run):
        say(f"of the text of {' and '.join(missing)} there is no index, so it is not looked into")
    found = passport(Overlap.open(stages), text)
    print(json.dumps(found.as_dict()) if as_json else found)


def brief(value: Any) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)


def data_show(source: Path, rows: int, stage: str, as_json: bool) -> None:
    """The first packed rows of a run, or of a recipe whose text is prepared aside for the purpose."""
    if stage not in ("pretrain", "sft"):
        raise InputError(f"--stage {stage}: pretrain and sft have rows of text to show")
    if stage == "sft":
        show_conversations(source, rows, as_json)
        return
    settled = source / "recipe.toml" if source.is_dir() else source
    if source.is_dir() and not settled.exists():
        raise InputError(
            f"{source} has no recipe, so no text of its own (an imported model, or no run at all)"
        )
    recipe = load_recipe(settled)
    context = resolve(recipe, where=str(settled)).train.context_length
    with tempfile.TemporaryDirectory() as aside:
        run = source if source.is_dir() else Path(aside)
        if run is not source:
            build.prepare_data(recipe, run)
        corpus, tokenizer = Corpus.open(run / "data"), Tokenizer.load(run / "tokenizer")
        text = render(corpus, tokenizer, context, rows, recipe.seed)
    print(json.dumps({"source": str(source), "rows": rows, "text": text}) if as_json else text)


def show_conversations(run: Path, rows: int, as_json: bool) -> None:
    """What fine-tuning reads of a run, as conversations with what is learnt marked."""
    if not (run / "sft" / "data").is_dir():
        raise InputError(f"{run} has no conversations (no sft/data/); run its sft stage first")
    examples, tokenizer = Examples.open(run / "sft" / "data"), Tokenizer.load(run / "tokenizer")
    seed, chunk = load_recipe(run / "recipe.toml").seed, open_model(f"{run}:sft").model.config.chunk_size
    text = render_examples(examples, tokenizer, rows, chunk=chunk, seed=stage_seed(seed, "sft"))
    print(json.dumps({"source": str(run), "rows": rows, "text": text}) if as_json else text)
