"""The life cycle of a recipe: data, pretrain (or import), sft, rl, dpo, evaluate, export, gate, release, report.

Stages meet in files: each reads and writes the run directory, so that a finished one is not run again, an
interrupted one goes on, and those after training can be done again alone. The recipe is frozen when the run
begins, with every derived value; what it says then is what the run does, however often it is interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from behemoth import assistant, build, gating, lessons, measure, posttrain, practice, releasing
from behemoth.base.errors import InputError
from behemoth.base.files import read_json, remove_tree, sha256, write_atomic, write_json
from behemoth.base.logs import say, table
from behemoth.base.units import human_count
from behemoth.bundle.names import VERDICT
from behemoth.bundle.seal import read_seal_key, write_seal_key
from behemoth.dials import STAGES as POST_TRAINING
from behemoth.dials import Recipe
from behemoth.evals import contamination, results
from behemoth.evals.records import Evaluation, read_evaluation, show
from behemoth.examine import examine, refuse_faults
from behemoth.export.hf import export_all
from behemoth.export.imports import bring_in
from behemoth.measure import TASKS
from behemoth.model.config import TEACHER
from behemoth.model.open import open_model
from behemoth.pretrain import calibrate, pretrain
from behemoth.questions import HELD_OUT, check_suite
from behemoth.recipe import Resolved, load_recipe, resolve, to_toml
from behemoth.release.policy import load_policy
from behemoth.report.page import build_report
from behemoth.rundir import DOCTOR, Run, begin, directory_of, now
from behemoth.train.interrupt import leaving
from behemoth.train.machine import choose_precision, device, keep_freed_memory


def run(
    recipe_path: Path, out: Path | None, only: str | None, overrides: list[str], doctor: bool, as_json: bool
) -> None:
    """Everything, or one stage; what is finished is not done again."""
    if only is not None and only not in STAGES:
        raise InputError(f"--stage {only}: no such stage; the stages are {', '.join(STAGES)}")
    keep_freed_memory()
    check(load_recipe(recipe_path, overrides), out)
    job = begin(recipe_path, out, overrides)
    job.doctor = doctor
    if job.recipe.release is not None:  # before anything is trained or asked
        gating.fix(job.directory, Path(job.recipe.release.policy), job.recipe)
    stages = stages_of(job.recipe)
    if only is not None and only not in stages:
        raise InputError(f"--stage {only}: this recipe's stages are {', '.join(stages)}")
    with leaving(f"go on with:\n  {command()}"):
        for name, stage in stages.items():
            if only is None or name == only:
                do(job, name, stage, asked=name == only)
    finish(job, as_json)


def stages_of(recipe: Recipe) -> dict[str, Callable[[Run], None]]:
    """The stages that this recipe asks for, in their order."""
    opened = recipe.model.path is not None
    left_out = {
        "pretrain" if opened else "import",
        *(name for name in POST_TRAINING if name not in recipe.stages),
    }
    if not recipe.data.sources:
        left_out.add("data")
    if recipe.release is None:
        left_out |= {"gate", "release"}
    elif not recipe.release.demo:
        left_out.add("release")  # people sign, and then they release it
    return {name: stage for name, stage in STAGES.items() if name not in left_out}


def check(recipe: Recipe, out: Path | None) -> None:
    """InputError for what can be told before anything is made: now, not after hours of training."""
    check_suite(recipe.evaluation.suite)
    spec = recipe.assistant
    tasks = practice.tasks_of(spec.practice, "train", recipe.seed)
    practice.set_aside(tasks, spec.dev_items)
    practice.examined(tasks, practice.tasks_of(spec.exam, "test", recipe.seed))
    lessons.check(recipe, directory_of(recipe, out))
    if recipe.release is not None:
        policy = Path(recipe.release.policy)
        gating.check(load_policy(policy), str(policy), recipe)


def do(job: Run, name: str, stage: Callable[[Run], None], asked: bool) -> None:
    """Run one stage unless it is finished, and note how long it took; a finished one only if `asked` and repeatable.

    The seconds of an interrupted stage add up over its sessions, but for one that is killed outright. Those of a
    stage that is done once more replace the old ones.
    """
    before = read_stages(job).get(name, {"seconds": 0.0, "finished": None})
    if before["finished"] and (not asked or name in ONCE):
        if asked:
            say(f"{name} is finished and stays as it is; another --out begins a run of its own")
        return
    order = list(stages_of(job.recipe))
    for earlier in (needed for needed in order[: order.index(name)] if needed in ONCE):
        if not read_stages(job).get(earlier, {}).get("finished"):
            raise InputError(
                f"{name} needs the {earlier} stage first; `behemoth run` without --stage does all in order"
            )
    say(f"-- {name}")
    spent, began = 0.0 if before["finished"] else before["seconds"], time.monotonic()
    try:
        stage(job)
    except BaseException:
        with suppress(OSError):  # a full disk may be what ended the stage
            note_time(job, name, spent + time.monotonic() - began, None)
        raise
    note_time(job, name, spent + time.monotonic() - began, now())
    if name != "report" and (drawn := read_stages(job).get("report")):
        note_time(job, "report", drawn["seconds"], None)  # what it shows is no longer all there is


def read_stages(job: Run) -> dict[str, Any]:
    path = job.directory / "stages.json"
    return read_json(path) if path.exists() else {}


def note_time(job: Run, name: str, seconds: float, finished: str | None) -> None:
    facts = {"seconds": round(seconds, 2), "finished": finished}
    write_json(job.directory / "stages.json", read_stages(job) | {name: facts})


# ------------------------------------------------------------------------------------------------------------ data


def data(job: Run) -> None:
    """Text to tokens; then everything in the recipe that depends on them is settled and written down."""
    if not (job.directory / "data").exists():
        build.prepare_data(job.recipe, job.directory)
    settle_once(job)


def import_(job: Run) -> None:
    """The weights that the recipe begins with, as step 0 of a stage of this run, and their tokenizer."""
    path = job.recipe.model.path
    assert path is not None
    if not (job.directory / "import").exists():
        bring_in(path, job.directory)
    settle_once(job)


def settle_once(job: Run) -> None:
    if job.resolved is None:
        job.resolved = settle(job)
        settled, record = job.directory / "recipe.toml", job.directory / "record.json"
        write_atomic(settled, to_toml(job.resolved))
        write_json(record, read_json(record) | {"recipe_sha256": sha256(settled)})


def settle(job: Run) -> Resolved:
    """Fill in what only the data and this machine can tell: vocabulary, precision, and minutes as tokens."""
    vocab_size = job.tokenizer().vocab_size
    recipe, reason = job.recipe, {}
    if recipe.train.precision == "auto":
        precision, why = choose_precision(device())
        recipe = with_train(recipe, precision=precision)
        reason["train.precision"] = why
    resolved = resolve(recipe, vocab_size)
    if recipe.train.minutes is not None:
        speed = calibrate(resolved, job.corpus())
        say(f"calibrated: {human_count(speed)} tokens/s for the whole run on this machine")
        resolved = resolve(recipe, vocab_size, tokens_per_second=speed)
    return replace(resolved, reasons=resolved.reasons | reason)


def with_train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


# ---------------------------------------------------------------------------------------------- export and report


def export(job: Run) -> None:
    """Each model of the run as a Hugging Face directory, with the receipt that transformers agrees.

    Of post-training that is the model of the last stage, and whatever was pretrained.

    A model in which the doctor finds a fault is not exported, and what was exported before stays.
    """
    resolved = job.settled
    recipe = resolved.recipe
    pretrained = (
        [TEACHER, *(student.name for student in resolved.students)] if recipe.model.path is None else []
    )
    names = [*pretrained, *recipe.stages[-1:]]
    opened = [open_model(f"{job.directory}:{name}") for name in names]
    final, fresh, old = (job.directory / name for name in ("export", "export.new", "export.old"))
    remove_tree(fresh)
    export_all([(model, fresh / model.name) for model in opened])
    if job.doctor:
        specs = [(f"{job.directory}:{name}", fresh / name) for name in names]
        seen = [examine(spec, exported=directory) for spec, directory in specs]
        refuse_faults(seen, job.directory / DOCTOR)
    remove_tree(old)  # what is there stays until every receipt is
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    remove_tree(old)


def gate(job: Run) -> None:
    """Whether the last model may go out, by the recipe's policy; in a demo, demo people sign.

    Whatever the verdict is, the stage has done its work.
    """
    spec = job.recipe.release
    assert spec is not None
    by = gating.demo_signer(job.directory, "evaluator") if spec.demo else None
    verdict = gating.judged(job.directory, None, Path(spec.policy), spec.mode, by)
    if spec.demo and verdict["verdict"] == "release":
        for number in range(load_policy(Path(spec.policy)).approvals_of(spec.mode).approver):
            gating.agreed(
                job.directory / gating.GATE, gating.demo_signer(job.directory, f"approver-{number + 1}")
            )


def release(job: Run) -> None:
    """The bundle of a verdict that allows one, signed with demo keys; RUN/release is that of the last verdict."""
    spec = job.recipe.release
    assert spec is not None
    final, fresh, old = (job.directory / name for name in ("release", "release.new", "release.old"))
    remove_tree(fresh)
    remove_tree(old)
    if read_json(job.directory / gating.GATE / VERDICT)["verdict"] == "release":
        by = gating.demo_signer(job.directory, "builder")
        trust = job.directory.absolute().parent / gating.DEMO_TRUST
        seal_key = None
        if spec.mode == "closed":
            if not (trust / SEAL_KEY).exists():
                write_seal_key(trust / SEAL_KEY)
            seal_key = read_seal_key(trust / SEAL_KEY)
        releasing.released(job.directory, spec.mode, fresh, by.key, trust / "trust.json", seal_key)
    if final.exists():
        final.rename(old)
    if fresh.exists():
        fresh.rename(final)
    remove_tree(old)


def report(job: Run) -> None:
    build_report(job.directory)


def evaluate(job: Run) -> None:
    """What was pretrained on held-out text and tasks; what was post-trained on its exam."""
    if job.recipe.model.path is None:
        measure.evaluate(job)
    if job.recipe.stages:
        assistant.evaluate_assistant(job)


STAGES: dict[str, Callable[[Run], None]] = {
    "import": import_,
    "data": data,
    "pretrain": pretrain,
    "sft": posttrain.sft,
    "rl": posttrain.rl,
    "dpo": posttrain.dpo,
    "evaluate": evaluate,
    "export": export,
    "gate": gate,
    "release": release,
    "report": report,
}


SEAL_KEY = "seal.key"  # of demo bundles that are closed, beside their demo keys
ONCE = ("import", "data", "pretrain", *POST_TRAINING)  # to do one of these again would make another run


def command() -> str:
    """What was typed, so that it can be typed again."""
    return shlex.join(["behemoth", *sys.argv[1:]])


def finish(job: Run, as_json: bool) -> None:
    """What came out: the measured table, the time it took, where to look, what to type next."""
    done, page = read_stages(job), job.directory / "report.html"
    path = job.directory / "evals" / "results.json"
    found = read_json(path) if path.exists() else {"models": [], "comparisons": []}
    place = job.directory / gating.GATE / VERDICT
    verdict = read_json(place) if place.exists() else None
    if as_json:
        told = {"run": str(job.directory), "stages": done, "results": found, "report": str(page)}
        print(json.dumps(told | {"assistant": assistant.read(job.directory), "verdict": verdict}))
        return
    if found["models"]:
        results.show(found)
    if post_trained := assistant.read(job.directory):
        assistant.show(post_trained)
    if tasks := asked(job):
        show(tasks)
        contamination.show(tasks[0])
    if verdict:
        gating.tell(job.directory, verdict)
    show_time(done)
    if page.exists():
        print("\n".join([f"report: {page}", *map(str, sorted(job.directory.glob("compare-*.html")))]))
    if any(done.get(name, {}).get("finished") for name in ("pretrain", "import")):
        print("\n".join(["\nnext:", *(f"  {shlex.join(line)}" for line in next_commands(job))]))


def asked(job: Run) -> list[Evaluation]:
    """What the members answered to the recipe's tasks; the held-out text has a table of its own."""
    paths = sorted(
        (job.directory / TASKS).glob("*/evaluation.json"), key=lambda path: path.stat().st_mtime_ns
    )
    found = [read_evaluation(path.parent) for path in paths]
    kept = [{name: task for name, task in one.tasks.items() if name != HELD_OUT} for one in found]
    return [replace(one, tasks=tasks) for one, tasks in zip(found, kept, strict=True) if tasks]


def show_time(done: dict[str, Any]) -> None:
    """What each stage took, and its share of the whole."""
    together = sum(facts["seconds"] for facts in done.values())
    rows = [
        [
            name if facts["finished"] else f"{name} (not finished)",
            f"{facts['seconds']:.1f}",
            f"{facts['seconds'] / (together or 1):.0%}",
        ]
        for name, facts in done.items()
    ]
    table("time by stage", ["stage", "seconds", "share"], [*rows, ["together", f"{together:.1f}", "100%"]])


def next_commands(job: Run) -> list[list[str]]:
    run, trained = str(job.directory), job.recipe.stages
    bundle, trust = job.directory / "release", job.directory.parent / gating.DEMO_TRUST / "trust.json"
    checks = [["behemoth", "verify", str(bundle), "--trust", str(trust)]] if bundle.exists() else []
    if trained:
        sparse = not job.recipe.model.path and job.settled.model.num_experts
        experts = [["behemoth", "experts", f"{run}:{TEACHER}"]] if sparse else []
        return [["behemoth", "chat", run], ["behemoth", "doctor", run], *experts, *checks]
    compare = [["behemoth", "compare", run, f"{run}:{s.name}"] for s in job.settled.students[:1]]
    return [["behemoth", verb, run] for verb in ("generate", "chat", "doctor", "experts")] + compare + checks
