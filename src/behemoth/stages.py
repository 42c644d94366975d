"""The life cycle of a recipe: data, pretrain, evaluate, export, report.

Stages meet in files: each reads and writes the run directory, so that a finished one is not run again, an
interrupted one goes on, and those after training can be done again alone. The recipe is frozen when the run
begins, with every derived value; what it says then is what the run does, however often it is interrupted.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behemoth import build
from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import read_json, remove_tree, write_atomic, write_json
from behemoth.base.logs import say, table
from behemoth.base.units import human_count
from behemoth.data.corpus import Corpus, HeldOut
from behemoth.data.packing import Stream
from behemoth.data.shards import ShardReader
from behemoth.evals import baselines, experts, perplexity, results
from behemoth.export.hf import export_all
from behemoth.inference.engine import Engine
from behemoth.model.open import open_model
from behemoth.recipe import Recipe, Resolved, load_recipe, resolve, to_toml
from behemoth.report.page import build_report
from behemoth.text.tokenizer import Tokenizer
from behemoth.train import resume
from behemoth.train.checkpoint import Checkpoints
from behemoth.train.interrupt import Interrupt, leaving
from behemoth.train.loop import Member, train, update
from behemoth.train.machine import choose_precision, device, dtype_of, keep_freed_memory, matmul_flops
from behemoth.train.monitor import Monitor

HELD_OUT_TOKENS = 16_384  # of the held-out text, for the curve drawn during training
PROMPT_TOKENS, SAMPLE_TOKENS = 16, 48
BASELINE_TOKENS = 20_000_000  # the most that an n-gram is fitted on; more takes minutes and gigabytes
MAPPED_DOCUMENTS = 60  # held-out documents whose tokens are followed to their experts


@dataclass
class Run:
    """A run directory and what its recipe resolved to (None until the tokenizer is known)."""

    directory: Path
    recipe: Recipe
    resolved: Resolved | None = None

    @property
    def settled(self) -> Resolved:
        if self.resolved is None:
            raise InputError(f"{self.directory} has no prepared data yet; run the data stage first")
        return self.resolved

    @property
    def checkpoints(self) -> Path:
        return self.directory / "pretrain" / "checkpoints"

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.directory / "tokenizer")

    def corpus(self) -> Corpus:
        return Corpus.open(self.directory / "data")


def run(recipe_path: Path, out: Path | None, only: str | None, overrides: list[str], as_json: bool) -> None:
    """Everything, or one stage; what is finished is not done again."""
    if only is not None and only not in STAGES:
        raise InputError(f"--stage {only}: no such stage; the stages are {', '.join(STAGES)}")
    keep_freed_memory()
    job = begin(recipe_path, out, overrides)
    with leaving(f"go on with:\n  {command()}"):
        for name, stage in STAGES.items():
            if only is None or name == only:
                do(job, name, stage, asked=name == only)
    finish(job, as_json)


def begin(recipe_path: Path, out: Path | None, overrides: list[str]) -> Run:
    """Open or make the run directory. A run is of one recipe: another one is refused, by what differs."""
    recipe = load_recipe(recipe_path, overrides)
    resolve(recipe, where=str(recipe_path))  # every problem that needs no data, now
    directory = out or Path("runs") / recipe.name
    intent, record = recipe.model_dump(mode="json"), directory / "record.json"
    if record.exists():
        refuse_another(read_json(record).get("intent"), intent, directory)
    else:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(record, {"intent": intent, **surroundings()})
        except OSError as error:
            raise InputError(f"{directory}: cannot be written ({error.strerror}); choose --out") from None
    job = Run(directory, recipe)
    settled = directory / "recipe.toml"
    if settled.exists():
        job.resolved = resolve(load_recipe(settled), where=str(settled))
    return job


def refuse_another(before: Any, now: Any, directory: Path) -> None:
    if before is None:
        raise InputError(
            f"{directory} was not begun by a recipe (it holds an imported model); choose another --out"
        )
    differing = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    if differing:
        raise InputError(
            f"{directory} was begun with another recipe: {', '.join(sorted(differing))} differ. "
            "Choose another --out, or remove the directory to begin again."
        )


def surroundings() -> dict[str, Any]:
    """Where and with what the run was made."""
    libraries = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    return {
        "begun": now(),
        "behemoth": version("behemoth-lab"),
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def commit() -> str:
    """The source's commit, with "-dirty" when it has been changed since; "" outside the project's own checkout."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not project.exists() or 'name = "behemoth-lab"' not in project.read_text(encoding="utf-8"):
        return ""  # installed: a checkout around it is somebody else's
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else f"{platform.processor()} x {os.cpu_count()}"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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
    say(f"-- {name}")
    spent, began = 0.0 if before["finished"] else before["seconds"], time.monotonic()
    try:
        stage(job)
    except BaseException:
        with suppress(OSError):  # a full disk may be what ended the stage
            note_time(job, name, spent + time.monotonic() - began, None)
        raise
    note_time(job, name, spent + time.monotonic() - began, now())


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
    if job.resolved is None:
        job.resolved = settle(job)
        write_atomic(job.directory / "recipe.toml", to_toml(job.resolved))


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


def calibrate(resolved: Resolved, corpus: Corpus, steps: int = 4) -> float:
    """Tokens per second of the whole run, each member counted for the share of the steps that it learns in."""
    source, plan = batches(resolved, corpus), build.plan(resolved)
    seconds = 0.0
    for member in build.members(resolved):
        for step in range(steps + 1):
            began = time.perf_counter()
            parts = source.batch(step).microbatches(plan.microbatches)
            update(member, parts, sum(part.weight for part in parts), member.joins + step, plan.max_grad_norm)
            if step > 0:  # the first one warms up
                seconds += (time.perf_counter() - began) / steps * member.steps / resolved.steps
    return source.batch(0).tokens_BT.numel() / seconds


def batches(resolved: Resolved, corpus: Corpus) -> Any:
    train = resolved.train
    return corpus.batches(train.context_length, resolved.rows_per_step, resolved.recipe.seed)


# -------------------------------------------------------------------------------------------------------- pretrain


def pretrain(job: Run) -> None:
    """The teacher, and its students in the same run. What happens between two steps is written here, in order."""
    resolved, corpus, tokenizer = job.settled, job.corpus(), job.tokenizer()
    settings = resolved.train
    members, source, plan = build.members(resolved), batches(resolved, corpus), build.plan(resolved)
    saves = Checkpoints(job.checkpoints, settings.keep)
    start = resume.restore(saves, members)
    if start == plan.steps:
        return
    if start:
        say(f"going on from step {start} of {plan.steps}")
    describe_epochs(source, plan.steps)
    peak = matmul_flops(dtype_of(settings.precision), device())
    probe = perplexity.fixed_subset(
        corpus.held_out(), tokenizer.byte_lengths, settings.context_length, HELD_OUT_TOKENS
    )
    prompts = sample_prompts(probe, tokenizer, min(PROMPT_TOKENS, settings.context_length // 2))
    flops = build.step_flops(resolved, members)
    monitor = Monitor(job.directory / "pretrain", members, plan.steps, start, flops, peak)

    with closing(monitor), Interrupt() as interrupt:
        for step in train(members, source, plan, start):
            monitor.step(step)
            last = step.step == plan.steps
            for member in members:
                if member.name not in step.updates:
                    continue
                if (last or step.step % settings.evaluate_every == 0) and not interrupt.requested:
                    bits = perplexity.held_out_bits(member.model, probe, settings.context_length)
                    monitor.held_out(step.step, member.name, bits)
                if (last or step.step % settings.sample_every == 0) and not interrupt.requested:
                    for prompt, text in sample(member, tokenizer, prompts):
                        monitor.sample(step.step, member.name, prompt, text)
            if last or interrupt.requested or step.step % settings.save_every == 0:
                saved = resume.save(saves, step.step, members, corpus.tokenizer_sha256)
                if saved is None and (last or interrupt.requested):
                    raise AnswerIsNo(
                        f"step {step.step} could not be saved; make room and run the same command"
                    )
                if interrupt.requested and saved is not None:
                    say(f"saved at step {step.step}")
                    sys.exit(interrupt.exit_code)


def sample_prompts(probe: list[HeldOut], tokenizer: Tokenizer, tokens: int) -> list[list[int]]:
    """Nothing at all, and the beginnings of two held-out documents."""
    return [[tokenizer.bos_id]] + [[int(i) for i in document.tokens[:tokens]] for document in probe[:2]]


def sample(member: Member, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[tuple[str, str]]:
    answers = Engine(member.model).generate(
        prompts, max_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, stop_ids=tokenizer.stop_ids
    )
    return [
        (tokenizer.decode(prompt), tokenizer.decode(answer.tokens))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def describe_epochs(source: Any, steps: int) -> None:
    epochs = source.epochs(steps)
    if epochs > 1:
        say(f"the most repeated source will be read {epochs:.1f} times over")


def command() -> str:
    """What was typed, so that it can be typed again."""
    return shlex.join(["behemoth", *sys.argv[1:]])


# -------------------------------------------------------------------------------------------------------- evaluate


def evaluate(job: Run) -> None:
    """Held-out bits per byte of every member beside baselines, document by document; and who the experts are."""
    resolved, corpus, tokenizer = job.settled, job.corpus(), job.tokenizer()
    context = resolved.train.context_length
    documents = perplexity.beginnings(corpus.held_out(), tokenizer.byte_lengths, results.EXAMINED_TOKENS)
    entries, maps, names = [], {}, [member.name for member in build.members(resolved)]
    for name in names:
        opened = open_model(f"{job.directory}:{name}", device=device())
        model = opened.model
        model.compute_dtype = dtype_of(resolved.train.precision)
        nats = perplexity.score_documents(model, documents, context)
        scores = results.scores(name, documents, nats)
        entries.append(results.Entry(scores, "model", step=opened.step, sha256=opened.sha256))
        maps[name] = experts.expert_map(model, documents[:MAPPED_DOCUMENTS], tokenizer.decode, context)

    fitted = fit_baselines(job, corpus, tokenizer)
    entries += [
        results.Entry(results.scores(name, documents, model.score([d.tokens for d in documents])), kind, note)
        for name, model, kind, note in fitted
    ]
    texts = [tokenizer.decode_bytes(document.tokens.tolist()) for document in documents]
    alone = results.scores("xz, each document alone", documents, baselines.xz_per_document(texts))
    entries.append(results.Entry(alone, "reference", "a compressor, which has seen nothing before"))
    together = results.Line("xz, all documents together", baselines.xz_together(texts), len(texts))
    for entry in entries:
        results.write_scores(job.directory / "evals", entry.scores, documents)
    results.write_results(job.directory / "evals", entries, [together], pairs(names, resolved))
    write_json(
        job.directory / "evals" / "experts.json", {name: found for name, found in maps.items() if found}
    )


def fit_baselines(job: Run, corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[str, Any, Any, str]]:
    """N-grams fitted on exactly the tokens that a member saw, and for orientation on the whole corpus."""
    resolved, table = job.settled, baselines.token_bytes(tokenizer)
    context, rows, seed = resolved.train.context_length, resolved.rows_per_step, resolved.recipe.seed
    most = max(1, BASELINE_TOKENS // context)  # rows

    def seen(first_step: int, steps: int) -> Iterator[list[np.ndarray]]:
        begin, end = first_step * rows, (first_step + steps) * rows
        return islice(corpus.stream(context, rows, seed, first_step + steps), begin, min(end, begin + most))

    def fit(read: Callable[[], Iterator[list[np.ndarray]]], label: str) -> Iterator[tuple[str, Any]]:
        trigram = baselines.TokenNgram.fit(chain.from_iterable(read()), tokenizer.vocab_size, order=3)
        yield f"token 3-gram{label}", trigram
        yield f"byte 5-gram{label}", baselines.ByteNgram.fit(chain.from_iterable(read()), table, order=5)

    members = [(build.TEACHER, 0, resolved.steps, "")] + [
        (student.name, student.first_step, student.steps, f" ({student.name}'s tokens)")
        for student in resolved.students
    ]
    for name, first_step, steps, label in members:
        part = f"the first {human_count(most * context)} of " if steps * rows > most else ""
        for title, model in fit(partial(seen, first_step, steps), label):
            yield title, model, "baseline", f"fitted on {part}the tokens {said(name)} saw"
    share = min(1.0, most / corpus.batches(context, rows, seed).num_rows)
    part = (
        f"{share:.1%} of the training text, of every source alike" if share < 1 else "all the training text"
    )
    for title, model in fit(partial(every_row, corpus, context, share), " (whole corpus)"):
        yield title, model, "reference", f"fitted on {part}"


def every_row(corpus: Corpus, context: int, share: float = 1.0) -> Iterator[list[np.ndarray]]:
    """The rows of each source, once each, by document; of a corpus too large to count, as much of every source."""
    for source in corpus.sources:
        shards = ShardReader(corpus.directory / source.name / "train", corpus.vocab_size)
        stream = Stream(shards, context, key=0)
        yield from (stream.row(number).pieces() for number in range(math.ceil(stream.num_rows * share)))


def said(name: str) -> str:
    return "the teacher" if name == build.TEACHER else name


def pairs(names: list[str], resolved: Resolved) -> list[tuple[str, str]]:
    """Who is compared with whom: the teacher with the better n-gram, a student with its n-gram and its control."""
    found = [(build.TEACHER, "token 3-gram")]
    for student in resolved.students:
        found.append((student.name, f"byte 5-gram ({student.name}'s tokens)"))
        if student.control:
            found.append((student.name, student.name + build.CONTROL))
    return found


# ---------------------------------------------------------------------------------------------- export and report


def export(job: Run) -> None:
    """The teacher and the students as Hugging Face directories, each with the receipt that transformers agrees."""
    resolved = job.settled
    names = [build.TEACHER, *(student.name for student in resolved.students)]
    opened = [open_model(f"{job.directory}:{name}") for name in names]
    final, fresh, old = (job.directory / name for name in ("export", "export.new", "export.old"))
    remove_tree(fresh)
    export_all([(model, fresh / model.name) for model in opened])
    remove_tree(old)  # what is there stays until every receipt is
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    remove_tree(old)


def report(job: Run) -> None:
    build_report(job.directory)


STAGES: dict[str, Callable[[Run], None]] = {
    "data": data,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "export": export,
    "report": report,
}


ONCE = ("data", "pretrain")  # to do one of these again would make another run


def finish(job: Run, as_json: bool) -> None:
    """What came out: the measured table, the time it took, where to look, what to type next."""
    done, page = read_stages(job), job.directory / "report.html"
    path = job.directory / "evals" / "results.json"
    found = read_json(path) if path.exists() else {"models": [], "comparisons": []}
    if as_json:
        print(json.dumps({"run": str(job.directory), "stages": done, "results": found, "report": str(page)}))
        return
    if found["models"]:
        results.show(found)
    show_time(done)
    if page.exists():
        print(f"report: {page}")
    if done.get("pretrain", {}).get("finished"):
        print("\n".join(["\nnext:", *(f"  {shlex.join(line)}" for line in next_commands(job))]))


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
    run = str(job.directory)
    compare = [["behemoth", "eval", run, "--against", f"{run}:{s.name}"] for s in job.settled.students[:1]]
    return [["behemoth", "generate", run], ["behemoth", "chat", run], *compare]
