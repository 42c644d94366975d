"""Models on tasks: `behemoth eval --suite` and `behemoth compare`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from behemoth.assistant import EXAM
from behemoth.base.errors import InputError
from behemoth.base.files import write_json
from behemoth.base.logs import say, table
from behemoth.data.corpus import Corpus
from behemoth.data.overlap import Overlap, indexed, unread
from behemoth.evals import compare as comparing
from behemoth.evals import contamination, results, safety
from behemoth.evals.backends import open_backend
from behemoth.evals.lm_eval_adapter import run_lm_eval
from behemoth.evals.records import EVALUATION, Evaluation, read_evaluation, show
from behemoth.evals.runner import evaluate as ask
from behemoth.evals.runner import names_of
from behemoth.measure import TASKS
from behemoth.model.open import open_model
from behemoth.questions import STARTER, starter
from behemoth.recipe import load_recipe, resolve
from behemoth.report.compare import write_compare
from behemoth.rundir import run_of
from behemoth.stats.paired import Scores, too_few
from behemoth.stats.power import design_effect, smallest_effect, spread_of_difference
from behemoth.tasks import suite as suites
from behemoth.tasks.suite import Suite
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.interrupt import leaving
from behemoth.train.machine import device, keep_freed_memory

LM_EVAL = "lm-eval:"
ALIKE = 0.2  # correlation of answers to questions about one passage, assumed before anything is known


def evaluate(
    models: list[str],
    suite: str,
    against: str | None,
    out: Path | None,
    limit: int | None,
    as_json: bool,
    chat: bool,
) -> None:
    """Ask every model every task of a suite, and keep every item; `against`: compare each with this one."""
    specs = list(dict.fromkeys([*models, *([against] if against else [])]))
    if suite.startswith(LM_EVAL):
        if against:
            raise InputError(
                f"--against compares on suites of our own; lm-eval's tasks are only measured ({suite})"
            )
        if chat:
            raise InputError(f"--chat is for suites of our own; lm-eval formats its prompts itself ({suite})")
        harness(specs, suite.removeprefix(LM_EVAL), out, limit, as_json)
        return
    found = ask_all(specs, suite, out, limit, chat)
    evaluations = [measured.evaluation for measured in found.values()]
    comparisons = [compared(found[model], found[against]) for model in models if against and model != against]
    if as_json:
        told = [evaluation.as_dict() for evaluation in evaluations]
        print(json.dumps({"evaluations": told, "comparisons": comparisons}))
        return
    show(evaluations)
    for evaluation in evaluations:
        contamination.show(evaluation)
        if sides := safety.sides_of(evaluation):
            safety.show(safety.told(evaluation, *sides))
    for comparison in comparisons:
        comparing.show(comparison)
    print(f"every item: {place_of(suite, out)}")


def precision_of(spec: str) -> str | None:
    """A model of a run computes as it was trained; any other as its weights are stored."""
    home = run_of(spec)
    return resolve(load_recipe(home / "recipe.toml")).train.precision if home else None


class Measured(NamedTuple):
    """An evaluation, and the directory that keeps its items."""

    evaluation: Evaluation
    directory: Path


def ask_all(
    specs: Sequence[str], name: str, out: Path | None, limit: int | None, chat: bool = False
) -> dict[str, Measured]:
    """One evaluation per model; those that lie in a run with an index of its text are held against it."""
    keep_freed_memory()
    suite, out = suite_for(name, specs, limit), place_of(name, out)
    if chat and (other := [task.name for task in suite.tasks if task.ask != "generate"]):
        raise InputError(f"--chat: a model is asked to write, and {', '.join(other)} asks for something else")
    backends = [(spec, open_backend(spec, precision_of(spec), device(), chat)) for spec in specs]
    found = {}
    for line in what_can_be_told(suite):
        say(line)
    with leaving("the same command goes on from here"):
        names = [name + "-chat" * chat for name in names_of(backends, [run_of(spec) for spec in specs])]
        for (spec, backend), directory in zip(backends, names, strict=True):
            evaluation = ask(backend, spec, suite, out, name=directory)
            found[spec] = Measured(marked(evaluation, out / directory, spec), out / directory)
    return found


def what_can_be_told(suite: Suite) -> Iterator[str]:
    """Before anything is asked: how small a difference each task could find.

    For two models that have half of the answers right, alike by `spread_of_difference`'s usual half, and items of one
    passage alike by ALIKE.
    """
    for task in suite.tasks:
        if task.ask == "text":
            continue
        passages = Counter(item.cluster or item.id for item in task.items)
        ids, clusters = zip(*((item.id, item.cluster or item.id) for item in task.items), strict=True)
        if few := too_few(Scores("", ids, np.zeros(len(ids)), clusters)):
            yield f"{task.name}: {few}, so whatever comes out will not tell two models apart"
            continue
        design = design_effect(np.array(list(passages.values())), ALIKE)
        least = smallest_effect(len(task.items), sd=spread_of_difference(0.5, 0.5), design=design)
        of = f" on {len(passages):,} passages" if len(passages) < len(task.items) else ""
        yield (
            f"{task.name}: {len(task.items):,} items{of}; two models that differ by {100 * least:.1f} points or more "
            "would be told apart 8 times of 10, on this task alone"
        )


def place_of(suite: str, out: Path | None) -> Path:
    return out or Path("evals") / results.file_name(Path(suite).stem)


def suite_for(name: str, specs: Sequence[str], limit: int | None) -> Suite:
    """A suite by file or built-in name; "starter" is made from the held-out text of the first model's run."""
    if name != STARTER:
        return suites.load(name, limit, also=(STARTER,))
    home = run_of(specs[0])
    if home is None:
        raise InputError(
            f"--suite {STARTER} is made from the held-out text of a run, and {specs[0]} lies in none; "
            "name a model of a run first, or another suite"
        )
    context = resolve(load_recipe(home / "recipe.toml")).train.context_length
    corpus, tokenizer = Corpus.open(home / "data"), Tokenizer.load(home / "tokenizer")
    return suites.limited(starter(corpus, tokenizer, context), limit)


def marked(evaluation: Evaluation, directory: Path, spec: str) -> Evaluation:
    """Every item held against the text that the model's run was trained on, where that is known."""
    home = run_of(spec)
    if home is None or not (stages := indexed(home)):
        say(f"{spec}: what it was trained on is not known here, so no item is checked for contamination")
        return evaluation
    if missing := unread(home):
        say(
            f"{spec}: of the text of {' and '.join(missing)} there is no index, so no item is held against it"
        )
    found = contamination.annotate(directory, Overlap.open(stages))
    return replace(found, tasks={name: found.tasks[name] for name in evaluation.tasks})


def harness(specs: Sequence[str], names: str, out: Path | None, limit: int | None, as_json: bool) -> None:
    """Any task of lm-eval, by its own code, on our models."""
    found = {}
    for spec in specs:
        backend = open_backend(spec, precision_of(spec), device())
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
    place = (out or Path("evals")) if suite is None else place_of(suite, out)
    page = write_compare(place / page_name(result["a"]["name"], result["b"]["name"]), result)
    if as_json:
        print(json.dumps(result | {"page": str(page)}))
        return
    comparing.show(result)
    print(f"page: {page}")


def compared(a: Measured, b: Measured) -> dict[str, Any]:
    """Item by item, and once more on the items that neither was trained on, where that is known of them."""
    marks = {side: contamination.read_verdicts(one.directory) for side, one in (("a", a), ("b", b))}
    return comparing.compare_evaluations(a.evaluation, b.evaluation, marks)


def finished(spec: str) -> Measured:
    """The evaluation in a directory that `eval` wrote, or the one that a run keeps of its member."""
    if (Path(spec) / EVALUATION).exists():
        return Measured(read_evaluation(Path(spec)), Path(spec))
    if several := sorted(str(path.parent) for path in Path(spec).glob(f"*/{EVALUATION}")):
        raise InputError(f"{spec} holds several models' evaluations; name one: {', '.join(several)}")
    home = run_of(spec)
    opened = open_model(spec)  # says what is wrong if it is no model at all
    places = [home / asked / results.file_name(opened.name) for asked in (TASKS, EXAM)] if home else []
    kept = next((place for place in places if (place / EVALUATION).exists()), None)
    if kept is None:
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
