"""What the shorter commands do: generate, chat, eval, import, export, and looking at the data of a run."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from behemoth import build
from behemoth.base.errors import InputError
from behemoth.base.files import verify_manifest
from behemoth.base.logs import say, table
from behemoth.data.corpus import Corpus
from behemoth.data.show import render
from behemoth.evals import perplexity, results
from behemoth.export.hf import export as export_hf
from behemoth.export.imports import import_model as import_hf
from behemoth.inference.engine import Engine
from behemoth.inference.talk import chat_loop, complete
from behemoth.model.open import Opened, open_model
from behemoth.recipe import load_recipe, resolve
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import device, dtype_of, keep_freed_memory

SPLITS = ("train", "held_out")  # the directories of a source's shards


def generate(
    model: str, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int, as_json: bool
) -> None:
    """Continue `prompt`, streaming; as JSON: the whole text and what made it."""
    opened = open_model(model, device=device())
    pieces = complete(
        Engine(opened.model),
        Tokenizer.load(opened.tokenizer_directory),
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
    opened = open_model(model, device=device())
    chat_loop(
        Engine(opened.model),
        Tokenizer.load(opened.tokenizer_directory),
        read_line,
        write,
        post_trained=False,  # no stage of this version teaches a model to answer
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


def evaluate(models: list[str], against: str | None, out: Path | None, as_json: bool) -> None:
    """Held-out bits per byte on the held-out text of the first model's run, beside what that run measured.

    Every model reads rows of one length, in the precision of that run. `against`: compared pair by pair.
    """
    keep_freed_memory()
    specs = list(dict.fromkeys([*models, *([against] if against else [])]))
    home = run_of(models[0])
    if home is None:
        raise InputError(
            f"{models[0]}: no held-out text; name a model inside its run directory first (it has data/ and tokenizer/)"
        )
    corpus, tokenizer = Corpus.open(home / "data"), Tokenizer.load(home / "tokenizer")
    notes = {spec: check_text(spec, models[0], corpus) for spec in specs}
    opened = {spec: open_model(spec, device=device()) for spec in specs}
    for spec in specs:
        check_tokenizer(opened[spec], corpus, spec)
    training = resolve(load_recipe(home / "recipe.toml"), where=str(home / "recipe.toml")).train
    context = min([training.context_length, *(one.model.config.context_length for one in opened.values())])
    documents = perplexity.beginnings(corpus.held_out(), tokenizer.byte_lengths, results.EXAMINED_TOKENS)

    if out is not None and out.resolve() == (home / "evals").resolve():
        raise InputError(
            f"--out {out}: that is where the run keeps its own results; choose another directory"
        )
    if len({results.file_name(spec) for spec in opened}) < len(opened):
        raise InputError(
            f"{', '.join(opened)}: two of these would be written under one name; rename a directory"
        )

    entries = []
    for spec, one in opened.items():
        say(f"{spec}: {len(documents)} held-out documents of {home}, rows of {context}, {training.precision}")
        one.model.compute_dtype = dtype_of(training.precision)
        scores = results.scores(spec, documents, perplexity.score_documents(one.model, documents, context))
        entries.append(results.Entry(scores, "model", notes[spec], one.step, one.sha256))
    pairs = [(model, against) for model in models if against and model != against]
    known = results.read_baselines(home / "evals", entries[0].scores)
    with tempfile.TemporaryDirectory() as nowhere:
        directory = out or Path(nowhere)
        for entry in entries:
            results.write_scores(directory, entry.scores, documents)
        found = results.write_results(directory, [*entries, *known], pairs=pairs)
    if as_json:
        print(json.dumps(found))
    else:
        results.show(found)


def run_of(model: str) -> Path | None:
    """The run directory with prepared text that a model lies in, if any."""
    path = Path(model.rpartition(":")[0] if not Path(model).exists() and ":" in model else model)
    for directory in (path, *path.absolute().parents):
        if (directory / "data").is_dir() and (directory / "tokenizer").is_dir():
            return directory
    return None


def check_text(spec: str, first: str, corpus: Corpus) -> str:
    """Refuse a model trained on another text, which may hold documents of this held-out one; a note if unknown."""
    run = run_of(spec)
    if run is None:
        return "its training text is unknown, and may hold these documents"
    if run / "data" != corpus.directory and not same_text(run / "data", corpus.directory):
        raise InputError(
            f"{spec} was trained on {run / 'data'}, {first} on {corpus.directory}, and these differ: what one holds "
            "out, the other may have learned. Compare models of one prepared text"
        )
    return ""


def same_text(one: Path, other: Path) -> bool:
    """Whether two corpora hold the same tokens, in training and held out alike."""
    return shard_hashes(one) == shard_hashes(other)


def shard_hashes(data: Path) -> dict[str, str]:
    files = verify_manifest(data)["files"]
    return {name: facts["sha256"] for name, facts in files.items() if Path(name).parent.name in SPLITS}


def check_tokenizer(opened: Opened, corpus: Corpus, spec: str) -> None:
    found = Tokenizer.load(opened.tokenizer_directory).sha256
    if found != corpus.tokenizer_sha256:
        raise InputError(
            f"{spec} has another tokenizer ({found[:12]}) than the held-out text ({corpus.tokenizer_sha256[:12]}); "
            "its documents would have to be encoded again, so compare models of one run, or of one tokenizer"
        )


def import_model(directory: Path, out: Path, as_json: bool) -> None:
    receipt = import_hf(directory, out)
    if as_json:
        print(json.dumps({"run": str(out), "receipt": receipt}))
        return
    say(f"{directory} is now {out}: {len(receipt['checks'])} checks agree with transformers")
    print(f"next:\n  {shlex.join(['behemoth', 'generate', str(out)])}")


def export(model: str, to: str, directory: Path, as_json: bool) -> None:
    if to != "hf":
        raise InputError(f"--to {to}: no such format; this version writes hf (safetensors for transformers)")
    receipt = export_hf(open_model(model), directory)
    if as_json:
        print(json.dumps({"directory": str(directory), "receipt": receipt}))
        return
    rows = [
        [check["name"], brief(check["value"]), brief(check["limit"]), "ok" if check["ok"] else "NO"]
        for check in receipt["checks"]
    ]
    table(f"receipt of {directory}", ["check", "value", "limit", ""], rows)


def brief(value: Any) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)


def data_show(source: Path, rows: int, as_json: bool) -> None:
    """The first packed rows of a run, or of a recipe whose text is prepared aside for the purpose."""
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
