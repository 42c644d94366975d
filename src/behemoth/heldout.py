"""Models on the held-out text of a run: `behemoth eval` without a suite, and `behemoth experts`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from behemoth.base.errors import InputError
from behemoth.base.files import read_json, verify_manifest, write_json
from behemoth.base.logs import say, table
from behemoth.data.corpus import Corpus
from behemoth.evals import perplexity, results
from behemoth.measure import examine_experts
from behemoth.model.open import Opened, locate, open_model
from behemoth.recipe import load_recipe, resolve
from behemoth.report.page import build_report
from behemoth.report.run import read_run
from behemoth.rundir import run_of
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.machine import device, dtype_of, keep_freed_memory

SPLITS = ("train", "held_out")  # the directories of a source's shards


def evaluate(models: list[str], against: str | None, out: Path | None, as_json: bool) -> None:
    """Held-out bits per byte on the held-out text of the first model's run, beside what that run measured.

    Every model reads rows of one length, in the precision of that run. `against`: compared pair by pair.
    """
    keep_freed_memory()
    specs = list(dict.fromkeys([*models, *([against] if against else [])]))
    home = run_of(models[0])
    if home is None:
        raise InputError(f"{models[0]} is of no run with held-out text; name a model inside its run first")
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


# ------------------------------------------------------------------------------------------------------- experts


def show_experts(spec: str, as_json: bool) -> None:
    """Measure who the experts of a run's member are, keep it in the run, draw it in its report, and print it."""
    keep_freed_memory()
    home, opened = (
        run_of(spec),
        open_model(spec, device=device()),
    )  # which says what is wrong if it is no model
    if home is None:
        raise InputError(f"{spec} is of no run with held-out text; name a run, or RUN:MEMBER")
    training = resolve(load_recipe(home / "recipe.toml"), where=str(home / "recipe.toml")).train
    opened.model.compute_dtype = dtype_of(training.precision)
    if not opened.model.config.sparse_layers:
        raise InputError(f"{spec} is a dense model: it has no experts")
    corpus, tokenizer = Corpus.open(home / "data"), Tokenizer.load(home / "tokenizer")
    check_tokenizer(opened, corpus, spec)
    documents = perplexity.beginnings(corpus.held_out(), tokenizer.byte_lengths, results.EXAMINED_TOKENS)
    found = examine_experts(opened, documents, tokenizer, training.context_length)
    page = None
    if locate(f"{home}:{opened.name}") == opened.directory:
        path = home / "evals" / "experts.json"
        write_json(path, (read_json(path) if path.exists() else {}) | {opened.name: found})
        page = build_report(home)
    over_time = load_over_time(home, opened.name)
    if as_json:
        told = {"model": spec, "sha256": opened.sha256, "layers": found, "report": page and str(page)}
        print(json.dumps(told | {"load_over_time": over_time}))
        return
    for i, layer in enumerate(found):
        history = over_time[i] if i < len(over_time) else []
        rows = [
            expert_row(e, history[e["expert"]] if history else [], 1 / len(layer["experts"]))
            for e in layer["experts"]
        ]
        table(f"{spec}, layer {layer['layer']}", EXPERT_COLUMNS, rows)
    print(
        f"drawn in {page}"
        if page
        else f"not kept in {home}: these are not the newest weights of {opened.name}"
    )


def load_over_time(home: Path, member: str) -> list[list[list[float]]]:
    """Each expert's share of the choices during training, (layer, expert, stretch of steps); [] where not recorded."""
    lines = [line["members"].get(member, {}).get("load") for line in read_run(home).metrics]
    load_SLE = np.array([load for load in lines if load])
    if not load_SLE.size:
        return []
    stretches = np.array_split(load_SLE, min(STRETCHES, len(load_SLE)))
    return np.stack([part.mean(0) for part in stretches], axis=-1).round(4).tolist()


EXPERT_COLUMNS = [
    "expert",
    "share",
    "over training",
    "bits per byte added by removing it",
    "takes most",
    "its own",
]
STRETCHES = 12  # of the steps of training, each told by one letter
HEIGHTS = "▁▂▃▄▅▆▇█"  # none of the choices ... an even share in the middle ... twice that, or more


def expert_row(expert: dict[str, Any], history: list[float], even: float) -> list[str]:
    """One line of the table: how much it takes, now and over time, what it is worth, what kind of tokens, which."""
    added = expert.get("without", {}).get("all")
    kinds = sorted(expert["kinds"].items(), key=lambda pair: -pair[1])[:2]
    return [
        str(expert["expert"]),
        f"{expert['share']:.1%}",
        "".join(HEIGHTS[min(int(4 * share / even), 7)] for share in history),
        told(added) if added else "not measured",
        ", ".join(f"{kind} {share:.0%}" for kind, share in kinds if share),
        " ".join(
            json.dumps(text, ensure_ascii=False)[1:-1].strip() or "space" for text, *_ in expert["tokens"][:6]
        ),
    ]


def told(added: dict[str, float | None]) -> str:
    """A difference in bits per byte with its interval, where it has one."""
    interval = "" if added["low"] is None else f" ({added['low']:+.4f} to {added['high']:+.4f})"
    return f"{added['added']:+.4f}{interval}"
