"""The life cycle of a recipe: data, pretrain, evaluate, export, report.

Stages meet in files: each reads and writes the run directory, so that a finished one is not run again, an
interrupted one goes on, and any can be rerun alone. The recipe is frozen when the run begins, with every derived
value; what it says then is what the run does, however often it is interrupted.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from behemoth.evals import baselines, experts, perplexity, results
from behemoth.export.hf import export_all
from behemoth.inference.engine import Engine
from behemoth.model.open import open_model
from behemoth.recipe import Recipe, Resolved, load_recipe, resolve, to_toml
from behemoth.report.page import build_report
from behemoth.text.tokenizer import Tokenizer
from behemoth.train import resume
from behemoth.train.checkpoint import Checkpoints
from behemoth.train.interrupt import Interrupt
from behemoth.train.loop import Member, train, update
from behemoth.train.machine import choose_precision, device, dtype_of, keep_freed_memory, matmul_flops
from behemoth.train.monitor import Monitor

HELD_OUT_TOKENS = 16_384  # of the held-out text, for the curve drawn during training
SAMPLE_TOKENS = 48
BASELINE_TOKENS = (
    20_000_000  # the most that an n-gram is fitted on; counting more takes minutes and gigabytes
)
EXAMINED_TOKENS = 4096  # of one held-out document: a single long one must not decide the result
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
    for name, stage in STAGES.items():
        if only is None or name == only:
            do(job, name, stage, again=name == only)
    finish(job, as_json)


def begin(recipe_path: Path, out: Path | None, overrides: list[str]) -> Run:
    """Open or make the run directory. A run is of one recipe: another one is refused, by what differs."""
    recipe = load_recipe(recipe_path, overrides)
    resolve(recipe, where=str(recipe_path))  # every problem that needs no data, now
    directory = out or Path("runs") / recipe.name
    intent, record = recipe.model_dump(mode="json"), directory / "record.json"
    if record.exists():
        refuse_another(read_json(record)["intent"], intent, directory)
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
    """The source's commit, with "-dirty" when it has been changed since; "" outside a checkout."""
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


def do(job: Run, name: str, stage: Callable[[Run], None], again: bool) -> None:
    """Run one stage unless it is finished, and note how long it took."""
    path = job.directory / "stages.json"
    done = read_json(path) if path.exists() else {}
    if name in done and not again:
        return
    say(f"-- {name}")
    began = time.monotonic()
    stage(job)
    seconds = round(time.monotonic() - began, 2)
    write_json(path, done | {name: {"seconds": seconds, "finished": now()}})


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
    monitor = Monitor(
        job.directory / "pretrain", members, plan.steps, start, build.step_flops(resolved, members), peak
    )
    probe = perplexity.fixed_subset(
        corpus.held_out(), tokenizer.byte_lengths, settings.context_length, HELD_OUT_TOKENS
    )
    prompts = sample_prompts(probe, tokenizer)

    with Interrupt() as interrupt:
        for step in train(members, source, plan, start):
            monitor.step(step)
            learning = [member for member in members if member.name in step.updates]
            last = step.step == plan.steps
            if last or step.step % settings.evaluate_every == 0:
                for member in learning:
                    bits = perplexity.held_out_bits(member.model, probe, settings.context_length)
                    monitor.held_out(step.step, member.name, bits.estimate)
            if last or step.step % settings.sample_every == 0:
                for member in learning:
                    for prompt, text in sample(member, tokenizer, prompts):
                        monitor.sample(step.step, member.name, prompt, text)
            if last or interrupt.requested or step.step % settings.save_every == 0:
                saved = resume.save(saves, step.step, members, corpus.tokenizer_sha256)
                if saved is None and (last or interrupt.requested):
                    raise AnswerIsNo(
                        f"step {step.step} could not be saved; make room and run the same command"
                    )
            if interrupt.requested and not last:
                say(f"saved at step {step.step}; go on with:\n  {command()}")
                sys.exit(interrupt.exit_code)


def sample_prompts(
    probe: list[HeldOut], tokenizer: Tokenizer, count: int = 2, tokens: int = 16
) -> list[list[int]]:
    """Nothing at all, and the beginnings of held-out documents."""
    return [[tokenizer.bos_id]] + [[int(i) for i in document.tokens[:tokens]] for document in probe[:count]]


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
    return " ".join(["behemoth", *sys.argv[1:]])


# -------------------------------------------------------------------------------------------------------- evaluate


def evaluate(job: Run) -> None:
    """Held-out bits per byte of every member beside baselines, document by document; and who the experts are."""
    resolved, corpus, tokenizer = job.settled, job.corpus(), job.tokenizer()
    context, documents = resolved.train.context_length, examined(corpus, tokenizer)
    entries, maps, names = [], {}, [member.name for member in build.members(resolved)]
    for name in names:
        model = open_model(f"{job.directory}:{name}", device=device()).model
        model.compute_dtype = dtype_of(resolved.train.precision)
        nats = perplexity.score_documents(model, documents, context)
        entries.append(results.Entry(results.scores(name, documents, nats), "model"))
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


def examined(corpus: Corpus, tokenizer: Tokenizer) -> list[HeldOut]:
    """The held-out documents as they are scored: at most their first few thousand tokens."""
    return perplexity.beginnings(corpus.held_out(), tokenizer.byte_lengths, EXAMINED_TOKENS)


def fit_baselines(job: Run, corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[str, Any, Any, str]]:
    """N-grams fitted on exactly the tokens that a member saw, and for orientation on the whole corpus."""
    resolved, table = job.settled, baselines.token_bytes(tokenizer)
    context, rows, seed = resolved.train.context_length, resolved.rows_per_step, resolved.recipe.seed

    def seen(first_step: int, steps: int) -> Iterator[np.ndarray]:
        every = corpus.stream(
            context, rows, seed, min(first_step + steps, first_step + BASELINE_TOKENS // (rows * context))
        )
        return chain.from_iterable(islice(every, first_step * rows, None))

    def pair(
        first_step: int, steps: int, label: str, kind: str, note: str
    ) -> Iterator[tuple[str, Any, Any, str]]:
        trigram = baselines.TokenNgram.fit(seen(first_step, steps), tokenizer.vocab_size, order=3)
        yield f"token 3-gram{label}", trigram, kind, note
        fivegram = baselines.ByteNgram.fit(seen(first_step, steps), table, order=5)
        yield f"byte 5-gram{label}", fivegram, kind, note

    yield from pair(0, resolved.steps, "", "baseline", "fitted on the tokens the teacher saw")
    for student in resolved.students:
        label, note = f" ({student.name}'s tokens)", f"fitted on the tokens {student.name} saw"
        yield from pair(student.first_step, student.steps, label, "baseline", note)
    epoch = -(-corpus.batches(context, rows, seed).num_rows // rows)
    yield from pair(0, epoch, " (whole corpus)", "reference", "fitted on all the training text")


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
    remove_tree(job.directory / "export")
    opened = [open_model(f"{job.directory}:{name}") for name in names]
    export_all([(model, job.directory / "export" / model.name) for model in opened])


def report(job: Run) -> None:
    build_report(job.directory)


STAGES: dict[str, Callable[[Run], None]] = {
    "data": data,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "export": export,
    "report": report,
}


def finish(job: Run, as_json: bool) -> None:
    """What came out: the measured table, the time it took, where to look, what to type next."""
    done = read_json(job.directory / "stages.json")
    path = job.directory / "evals" / "results.json"
    found = read_json(path) if path.exists() else {"models": [], "comparisons": []}
    page = job.directory / "report.html"
    if as_json:
        print(json.dumps({"run": str(job.directory), "stages": done, "results": found, "report": str(page)}))
        return
    if found["models"]:
        table(
            "held-out bits per byte (lower is better)",
            ["model", "bits per byte", "95% interval", ""],
            [
                [row["name"], f"{row['bits_per_byte']:.3f}", interval(row), row["note"]]
                for row in found["models"]
            ],
        )
        print("\n".join(comparison["sentence"] for comparison in found["comparisons"]) + "\n")
    table(
        "time by stage",
        ["stage", "seconds"],
        [[name, f"{facts['seconds']:.1f}"] for name, facts in done.items()]
        + [["together", f"{sum(facts['seconds'] for facts in done.values()):.1f}"]],
    )
    if page.exists():
        print(f'report: {page}\n\nnext:\n  behemoth generate {job.directory} "def main("')
        print(
            f"  behemoth chat {job.directory}\n  behemoth eval {job.directory} --against {job.directory}:student"
        )


def interval(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
