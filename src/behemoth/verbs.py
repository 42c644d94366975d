"""What the shorter commands do: generate, chat, eval, import, export, and looking at the data of a run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from behemoth import build
from behemoth.base.errors import InputError
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
from behemoth.stages import examined
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import device, keep_freed_memory


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
        return input("> ")
    except EOFError:
        return None


def write(text: str) -> None:
    print(text, end="", flush=True)


def evaluate(models: list[str], against: str | None, out: Path | None, as_json: bool) -> None:
    """Held-out bits per byte of each model on the held-out text of the first one's run; paired with `against`."""
    keep_freed_memory()
    specs = [*models, *([against] if against and against not in models else [])]
    corpus_directory = data_of(models[0])
    corpus = Corpus.open(corpus_directory)
    documents, scored = examined(corpus, Tokenizer.load(corpus_directory.parent / "tokenizer")), {}
    for spec in specs:
        opened = open_model(spec, device=device())
        check_tokenizer(opened, corpus, spec)
        context = opened.model.config.context_length
        say(f"{spec}: {len(documents)} held-out documents of {corpus_directory}")
        scored[spec] = results.scores(
            spec, documents, perplexity.score_documents(opened.model, documents, context)
        )
    entries = [results.Entry(found, "model") for found in scored.values()]
    pairs = [(model, against) for model in models if against and model != against]
    with tempfile.TemporaryDirectory() as nowhere:
        directory = out or Path(nowhere)
        for entry in entries:
            results.write_scores(directory, entry.scores, documents)
        found = results.write_results(directory, entries, pairs=pairs)
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        [row["name"], f"{row['bits_per_byte']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        for row in found["models"]
    ]
    table("held-out bits per byte (lower is better)", ["model", "bits per byte", "95% interval"], rows)
    print("\n".join(comparison["sentence"] for comparison in found["comparisons"]))


def data_of(model: str) -> Path:
    """The prepared text of the run that a model lies in."""
    path = Path(model.rpartition(":")[0] if not Path(model).exists() and ":" in model else model)
    for directory in (path, *path.parents):
        if (directory / "data").is_dir() and (directory / "tokenizer").is_dir():
            return directory / "data"
    raise InputError(
        f"{model}: no held-out text; name a model inside its run directory first (it has data/ and tokenizer/)"
    )


def check_tokenizer(opened: Opened, corpus: Corpus, spec: str) -> None:
    found = Tokenizer.load(opened.tokenizer_directory).sha256
    if found != corpus.tokenizer_sha256:
        raise InputError(
            f"{spec} has another tokenizer ({found[:12]}) than the held-out text ({corpus.tokenizer_sha256[:12]}); "
            "its documents would have to be encoded again, so compare models of one run, or of one tokenizer"
        )


def import_model(directory: Path, out: Path) -> None:
    receipt = import_hf(directory, out)
    say(f"{directory} is now {out}: {len(receipt['checks'])} checks agree with transformers")
    print(f'next:\n  behemoth generate {out} "Once"')


def export(model: str, to: str, directory: Path) -> None:
    if to != "hf":
        raise InputError(f"--to {to}: no such format; this version writes hf (safetensors for transformers)")
    receipt = export_hf(open_model(model), directory)
    rows = [
        [check["name"], check["value"], check["limit"], "ok" if check["ok"] else "NO"]
        for check in receipt["checks"]
    ]
    table(f"receipt of {directory}", ["check", "value", "limit", ""], rows)


def data_show(source: Path, rows: int) -> None:
    """The first packed rows of a run, or of a recipe whose text is prepared aside for the purpose."""
    if source.is_dir():
        settled = source / "recipe.toml"
        resolved = resolve(load_recipe(settled), where=str(settled))
        show(
            source / "data",
            source / "tokenizer",
            resolved.train.context_length,
            rows,
            resolved.recipe.seed,
        )
        return
    recipe = load_recipe(source)
    resolved = resolve(recipe, where=str(source))
    with tempfile.TemporaryDirectory() as aside:
        build.prepare_data(recipe, Path(aside))
        context = resolved.train.context_length
        show(Path(aside) / "data", Path(aside) / "tokenizer", context, rows, recipe.seed)


def show(data: Path, tokenizer: Path, context: int, rows: int, seed: int) -> None:
    print(render(Corpus.open(data), Tokenizer.load(tokenizer), context, rows, seed))
