"""Models on tasks: `behemoth eval --suite` and `behemoth compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from behemoth.base.errors import InputError
from behemoth.base.files import write_json
from behemoth.base.logs import say, table
from behemoth.data.corpus import Corpus
from behemoth.data.overlap import INDEX, Overlap
from behemoth.evals import compare as comparing
from behemoth.evals import contamination, results
from behemoth.evals.backends import open_backend
from behemoth.evals.lm_eval_adapter import run_lm_eval
from behemoth.evals.records import EVALUATION, Evaluation, read_evaluation, show
from behemoth.evals.runner import evaluate as ask
from behemoth.evals.runner import names_of
from behemoth.heldout import run_of
from behemoth.measure import STARTER, TASKS, limited, starter
from behemoth.model.open import open_model
from behemoth.recipe import load_recipe, resolve
from behemoth.report.compare import write_compare
from behemoth.tasks import suite as suites
from behemoth.tasks.suite import Suite
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.interrupt import leaving
from behemoth.train.machine import device, keep_freed_memory

LM_EVAL = "lm-eval:"


def evaluate(
    models: list[str], suite: str, against: str | None, out: Path | None, limit: int | None, as_json: bool
) -> None:
    """Ask every model every task of a suite, and keep every item; `against`: compare each with this one."""
    specs = list(dict.fromkeys([*models, *([against] if against else [])]))
    if suite.startswith(LM_EVAL):
        if against:
            raise InputError(
                f"--against compares on suites of our own; lm-eval's tasks are only measured ({suite})"
            )
        harness(specs, suite.removeprefix(LM_EVAL), out, limit, as_json)
        return
    found = ask_all(specs, suite, out, limit)
    evaluations = [measured.evaluation for measured in found.values()]
    comparisons = [compared(found[model], found[against]) for model in models if against and model != against]
    if as_json:
        told = [evaluation.as_dict() for evaluation in evaluations]
        print(json.dumps({"evaluations": told, "comparisons": comparisons}))
        return
    show(evaluations)
    for evaluation in evaluations:
        contamination.show(evaluation)
    for comparison in comparisons:
        comparing.show(comparison)
    print(f"every item: {place_of(suite, out)}")


class Measured(NamedTuple):
    """An evaluation, and the directory that keeps its items."""

    evaluation: Evaluation
    directory: Path


def ask_all(specs: Sequence[str], name: str, out: Path | None, limit: int | None) -> dict[str, Measured]:
    """One evaluation per model; those that lie in a run with an index of its text are held against it."""
    keep_freed_memory()
    suite, out = suite_of(name, specs, limit), place_of(name, out)
    backends = [(spec, open_backend(spec, device=device())) for spec in specs]
    found = {}
    with leaving("the same command goes on from here"):
        for (spec, backend), directory in zip(backends, names_of(backends), strict=True):
            evaluation = ask(backend, spec, suite, out, name=directory)
            found[spec] = Measured(marked(evaluation, out / directory, spec), out / directory)
    return found


def place_of(suite: str, out: Path | None) -> Path:
    return out or Path("evals") / results.file_name(Path(suite).stem)


def suite_of(name: str, specs: Sequence[str], limit: int | None) -> Suite:
    """A suite by file or built-in name; "starter" is made from the held-out text of the first model's run."""
    if name != STARTER:
        return suites.load(name, limit)
    home = run_of(specs[0])
    if home is None:
        raise InputError(
            f"--suite {STARTER} is made from the held-out text of a run, and {specs[0]} lies in none; "
            "name a model of a run first, or another suite"
        )
    context = resolve(load_recipe(home / "recipe.toml")).train.context_length
    return limited(starter(Corpus.open(home / "data"), Tokenizer.load(home / "tokenizer"), context), limit)


def marked(evaluation: Evaluation, directory: Path, spec: str) -> Evaluation:
    """Every item held against the text that the model's run was trained on, where that is known."""
    home = run_of(spec)
    if home is None or not (home / "data" / INDEX).is_dir():
        say(f"{spec}: what it was trained on is not known here, so no item is checked for contamination")
        return evaluation
    found = contamination.annotate(directory, Overlap.open({"pretrain": home / "data"}))
    return replace(found, tasks={name: found.tasks[name] for name in evaluation.tasks})


def harness(specs: Sequence[str], names: str, out: Path | None, limit: int | None, as_json: bool) -> None:
    """Any task of lm-eval, by its own code, on our models."""
    found = {}
    for spec in specs:
        backend = open_backend(spec, device=device())
        found[spec] = run_lm_eval(backend, names.split(","), limit=limit)
        if out is not None:
            write_json(out / f"{results.file_name(spec)}.json", found[spec])
    if as_json:
        print(json.dumps(found, default=str))
        return
    for spec, result in found.items():
        rows = [
            [task, metric, f"{value:.4f}"]
            for task, metrics in result["results"].items()
            for metric, value in metrics.items()
            if isinstance(value, float)
        ]
        table(f"{spec}, by lm-eval", ["task", "metric", "value"], rows)


# ------------------------------------------------------------------------------------------------------ two models


def compare(a: str, b: str, suite: str | None, out: Path | None, limit: int | None, as_json: bool) -> None:
    """Two models, or two evaluations that are there already: the sentence, the table, and a page of the items."""
    if suite is None:
        if limit is not None:
            raise InputError("--limit counts the items of a suite's tasks; name a --suite")
        pair = finished(a), finished(b)
    else:
        found = ask_all(list(dict.fromkeys([a, b])), suite, out, limit)
        pair = found[a], found[b]
    result = compared(*pair)
    place = (out or Path(".")) if suite is None else place_of(suite, out)
    page = write_compare(place / page_name(result["a"]["name"], result["b"]["name"]), result)
    if as_json:
        print(json.dumps(result | {"page": str(page)}))
        return
    comparing.show(result)
    print(f"page: {page}")


def compared(a: Measured, b: Measured) -> dict[str, Any]:
    """Item by item, and once more on the items that neither was trained on, where that is known of them."""
    marks = [contamination.read_verdicts(one.directory) for one in (a, b)]
    return comparing.compare_evaluations(a.evaluation, b.evaluation, [known for known in marks if known])


def finished(spec: str) -> Measured:
    """The evaluation in a directory that `eval` wrote, or the one that a run keeps of its member."""
    if (Path(spec) / EVALUATION).exists():
        return Measured(read_evaluation(Path(spec)), Path(spec))
    if several := sorted(str(path.parent) for path in Path(spec).glob(f"*/{EVALUATION}")):
        raise InputError(f"{spec} holds several models' evaluations; name one: {', '.join(several)}")
    home = run_of(spec)
    opened = open_model(spec)  # says what is wrong if it is no model at all
    kept = home / TASKS / results.file_name(opened.name) if home else None
    if kept is None or not (kept / EVALUATION).exists():
        raise InputError(
            f"{spec} has not been evaluated: say on what, for example --suite {STARTER if home else 'arithmetic'}"
        )
    evaluation = read_evaluation(kept)
    if evaluation.sha256 != opened.sha256:
        raise InputError(
            f"{kept} is the evaluation of other weights ({evaluation.sha256[:12]}) than {spec} "
            f"({opened.sha256[:12]}); evaluate these with --suite {STARTER}"
        )
    return Measured(evaluation, kept)


def page_name(a: str, b: str) -> str:
    return f"compare-{results.file_name(a)}-{results.file_name(b)}.html"
