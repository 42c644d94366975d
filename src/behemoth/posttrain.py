"""Post-training: supervised fine-tuning, reinforcement learning, preferences; each a source and an objective.

Llama 4's announced order: a light first tuning, then online learning on what is hard, then light preferences. Every
stage begins with the model that the one before it left, learns on the loop of pretraining, and leaves a model of its
own name (`RUN:sft`, `RUN:rl`, `RUN:dpo`). Between steps it is asked practice problems that were set aside; the exam is
for `evaluate`. What happens between two steps is written in `learn`, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from behemoth import build
from behemoth.base.files import read_json, write_json
from behemoth.base.logs import say
from behemoth.data.corpus import HeldOut
from behemoth.data.examples import ExampleSource
from behemoth.data.preference_rows import PairSource
from behemoth.dials import RlRecipe, StageRecipe
from behemoth.evals import perplexity
from behemoth.evals.endpoint import Endpoint
from behemoth.evals.runner import quick
from behemoth.export.adapters import save_adapter
from behemoth.inference.engine import Engine
from behemoth.lessons import COUNTS, note_prompts, prepare_conversations, prepare_pairs
from behemoth.model.config import TEACHER
from behemoth.model.cost import training_flops
from behemoth.model.open import Opened, open_model
from behemoth.model.transformer import Transformer
from behemoth.model.weights import load_weights
from behemoth.practice import practised, prompts_to, stage_seed
from behemoth.pretrain import HELD_OUT_TOKENS, leave_or_go_on
from behemoth.questions import answering
from behemoth.rl.collapse import Best, Watch
from behemoth.rl.curriculum import Curriculum
from behemoth.rl.rewards import Rewards
from behemoth.rl.rollouts import EndpointSampler, EngineSampler, Sampler
from behemoth.rl.source import PolicySource, Settings
from behemoth.rundir import Run
from behemoth.tasks.suite import Suite
from behemoth.text.tokenizer import Tokenizer
from behemoth.train import resume
from behemoth.train.checkpoint import Checkpoints, load_tensors, save_tensors
from behemoth.train.interrupt import Interrupt
from behemoth.train.loop import Member, Plan, Source, train
from behemoth.train.machine import device, dtype_of, matmul_flops
from behemoth.train.monitor import Monitor

OUTCOME = "outcome.json"  # of the rl stage: which step was kept, and why it ended
LOOKS = 8  # dev evaluations in a stage


def sft(job: Run) -> None:
    """The next token of what the assistant says, in conversations; some rows may be pretraining text."""
    recipe, context = job.settled.recipe, job.settled.train.context_length
    spec, start, seed = recipe.sft, before(job, "sft"), stage_seed(recipe.seed, "sft")
    assert spec is not None
    examples, chunk = prepare_conversations(job, spec, start.model), start.model.config.chunk_size
    replay = job.corpus().batches(context, 1, seed) if spec.replay else None
    source = ExampleSource(examples, context, spec.rows_per_step, seed, chunk, replay, spec.replay)
    rows = source.num_rows * spec.epochs / (1 - spec.replay)
    steps = spec.steps or max(1, round(rows / spec.rows_per_step))
    say(
        f"{len(examples):,} conversations in {source.num_rows:,} rows of {context} tokens, {source.filled:.0%} full; "
        f"{source.epochs(steps):.2g} epochs in {steps} steps"
    )
    member = build.tuned("sft", start.model, spec, build.sft_objective(spec), steps, seed)
    learn(job, member, source, spec, start)


def dpo(job: Run) -> None:
    """Which of two answers is better, against the model that the stage begins with."""
    recipe = job.settled.recipe
    spec, start, seed = recipe.dpo, before(job, "dpo"), stage_seed(recipe.seed, "dpo")
    assert spec is not None
    pairs, reference = prepare_pairs(job, spec, start.model)
    source = PairSource(pairs, reference, spec.pairs_per_step, seed, job.tokenizer().pad_id)
    steps = spec.steps or max(1, round(len(pairs) * spec.epochs / spec.pairs_per_step))
    say(f"{len(pairs):,} pairs, {source.epochs(steps):.2g} epochs in {steps} steps")
    member = build.tuned("dpo", start.model, spec, build.dpo_objective(spec), steps, seed)
    learn(job, member, source, spec, start)


def rl(job: Run) -> None:
    """Answers that the policy writes, each rewarded against the others to its prompt."""
    recipe, tokenizer = job.settled.recipe, job.tokenizer()
    spec, start, seed = recipe.rl, before(job, "rl"), stage_seed(recipe.seed, "rl")
    assert spec is not None and spec.steps is not None
    policy, reference = start.model, None
    if spec.kl:
        reference = load_weights(start.directory, device=device())
        reference.compute_dtype = policy.compute_dtype
    tasks, _ = practised(recipe)
    prompts = prompts_to(tasks, tokenizer, spec.max_tokens, policy.config.context_length)
    stale = spec.steps if spec.server else 0  # a server's weights stay as they are; here none can be old
    member = build.tuned("rl", policy, spec, build.rl_objective(spec), spec.steps, seed)
    source = PolicySource(
        policy,
        sampler_of(spec, policy, tokenizer),
        Curriculum(prompts, spec.prompts_per_step, seed=seed),
        Rewards(dict(spec.rewards)),
        Settings(spec.samples, spec.microbatches, stale, seed, tokenizer.pad_id),
        reference,
    )
    note_prompts(job.directory / "rl" / "data", prompts)
    learn(job, member, source, spec, start, policy=source)


# ------------------------------------------------------------------------------------------------- the loop's body


def learn(
    job: Run,
    member: Member,
    source: Source,
    spec: StageRecipe,
    begins: Opened,
    policy: PolicySource | None = None,
) -> None:
    """Every step of a stage, and what happens between two of them. policy: the source, where the policy writes it."""
    tokenizer, directory, steps = job.tokenizer(), job.directory / member.name, member.steps
    turns = max(begins.turns, read_json(directory / COUNTS)["turns"] if (directory / COUNTS).exists() else 1)
    saves = Checkpoints(directory / "checkpoints")
    start = resume.restore(saves, [member])
    notes = resume.notes(saves, start)
    if start == steps or notes.get("stopped"):
        forget_best(directory)
        return
    if start:
        say(f"going on from step {start} of {steps}")
    course = Course(spec, policy, notes)
    view = view_of(job)
    monitor = monitor_of(job, member, source, start, policy is None)
    look_every = spec.evaluate_every or max(1, steps // LOOKS)
    save_every = spec.save_every or max(1, steps // 2)

    with closing(monitor), Interrupt() as interrupt:
        if start == 0 and course.is_best(0, look(member, monitor, view, 0), view):
            save_best(directory, member, 0)
        for step in train([member], source, Plan(steps, spec.microbatches, spec.max_grad_norm), start):
            monitor.step(step, **course.follow(step.updates[member.name].metrics))
            monitor.rollouts(policy.transcripts if policy else ())
            last = step.step == steps or course.stopped is not None
            if last or step.step % look_every == 0:
                scores = look(member, monitor, view, step.step)
                if course.is_best(step.step, scores, view):
                    save_best(directory, member, step.step)
            if last:
                if policy:
                    take_best(directory, member, course, step.step)
                if spec.adapter:
                    save_adapter(member.model, directory / "adapter", begins.directory.absolute())
            if last or interrupt.requested or step.step % save_every == 0:
                saved = resume.save(saves, step.step, [member], tokenizer.sha256, course.notes(), turns)
                leave_or_go_on(saved, step.step, last, interrupt)
            if last:
                break
    forget_best(directory)


class Course:
    """How reinforcement learning goes: whether to stop, and which step was best. Of other stages nothing is known."""

    def __init__(self, spec: StageRecipe, policy: PolicySource | None, notes: dict[str, Any]):
        self.policy = policy
        self.stopped: str | None = None
        self.watch = Watch(spec.stop_after_fall) if isinstance(spec, RlRecipe) else Watch()
        self.best = Best(**notes.get("best", {}))
        if policy and notes:
            policy.restore(notes["policy"])
            self.watch.restore(notes["watch"])

    def follow(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Take in what the step's answers were worth; it is what there is to say of the step."""
        if self.policy is None:
            return {}
        facts = self.policy.facts | {"entropy": metrics["entropy"]}
        self.stopped = self.watch.update(facts)
        return {"rollouts": facts}

    def is_best(self, step: int, scores: Sequence[float], view: View) -> bool:
        """Whether the step did as well as any before on all that was set aside; nobody knows if some has no score."""
        known = self.policy is not None and bool(scores) and len(scores) == len(view.dev.tasks)
        return known and self.best.update(step, float(np.mean(scores)))

    def notes(self) -> dict[str, Any]:
        """What going on needs, as JSON."""
        if self.policy is None:
            return {}
        known = {"watch": self.watch.state(), "best": vars(self.best), "stopped": self.stopped}
        return {**known, "policy": self.policy.state()}


@dataclass(frozen=True)
class View:
    """What a model is looked at with between steps: problems that were set aside, and some held-out text."""

    dev: Suite
    probe: Sequence[HeldOut]
    tokenizer: Tokenizer
    context: int


def view_of(job: Run) -> View:
    tokenizer, context = job.tokenizer(), job.settled.train.context_length
    probe: list[HeldOut] = []
    if (job.directory / "data").is_dir():
        held_out = job.corpus().held_out()
        probe = perplexity.fixed_subset(held_out, tokenizer.byte_lengths, context, HELD_OUT_TOKENS)
    _, dev = practised(job.settled.recipe)
    return View(dev, probe, tokenizer, context)


def look(member: Member, monitor: Monitor, view: View, step: int) -> list[float]:
    """The score of each dev task, written down, and what the model makes of the text."""
    if view.probe:
        bits = perplexity.held_out_bits(member.model, view.probe, view.context)
        monitor.held_out(step, member.name, bits)
    backend = answering(member.model, view.tokenizer, member.name, chat=True)
    asked = quick(backend, view.dev) if view.dev.tasks else []
    for task, found in asked:
        monitor.task(step, member.name, task.name, task.ask, found)
        say(f"step {step}: {task.name} {found.estimate:.1%} of {len(task.items)} problems set aside")
    return [found.estimate for _, found in asked]


def monitor_of(job: Run, member: Member, source: Source, start: int, even: bool) -> Monitor:
    """even: every step costs the same, so that a share of the machine's peak can be told."""
    if not even:
        return Monitor(job.directory / member.name, [member], member.steps, start)
    context, precision = job.settled.train.context_length, job.settled.train.precision
    tokens = source.batch(0).tokens_BT.numel()
    flops = {member.name: tokens * training_flops(member.model.config, context)}
    peak = matmul_flops(dtype_of(precision), device())
    return Monitor(job.directory / member.name, [member], member.steps, start, flops, peak)


def best_file(directory: Path, step: int) -> Path:
    return directory / f"best-{step:08d}.safetensors"


def save_best(directory: Path, member: Member, step: int) -> None:
    """What learns, as it is now; told apart by its step, since a run that is taken up again may go back behind it."""
    learning: dict[str, Tensor] = {n: p for n, p in member.model.named_parameters() if p.requires_grad}
    save_tensors(best_file(directory, step), learning)


def take_best(directory: Path, member: Member, course: Course, step: int) -> None:
    """Put the weights of the best step back, and write down which that was and why the stage ended."""
    best = course.best
    if course.stopped:
        say(f"stopped at step {step}: {course.stopped}")
    if best.score is not None and best.step != step:
        say(f"step {best.step} was the best ({best.score:.1%}); its weights are kept")
        tensors = load_tensors(best_file(directory, best.step))
        with torch.no_grad():
            for name, p in member.model.named_parameters():
                if p.requires_grad:
                    p.copy_(tensors[name])
    found = {"best_step": best.step, "best_score": best.score, "stopped": course.stopped, "steps": step}
    write_json(directory / OUTCOME, found)


def forget_best(directory: Path) -> None:
    """The stage is over, and its last checkpoint holds the best weights."""
    for path in directory.glob("best-*.safetensors"):
        path.unlink()


# -------------------------------------------------------------------------------------------------- what it begins with


def before(job: Run, stage: str) -> Opened:
    """The model that the stage begins with: what the stage before it left, or the member that the recipe names.

    Weights that learn are held in fp32; those under an adapter as they are stored.
    """
    recipe = job.settled.recipe
    earlier = recipe.stages[: recipe.stages.index(stage)]
    name = earlier[-1] if earlier else recipe.assistant.start or TEACHER
    adapter = getattr(recipe, stage).adapter is not None
    opened = open_model(f"{job.directory}:{name}", None if adapter else torch.float32, device())
    opened.model.compute_dtype = dtype_of(job.settled.train.precision)
    return opened


def sampler_of(spec: RlRecipe, policy: Transformer, tokenizer: Tokenizer) -> Sampler:
    """Who writes the answers: the policy, or a server."""
    if spec.server is not None:
        return EndpointSampler(Endpoint(spec.server), tokenizer, spec.temperature)
    return EngineSampler(Engine(policy), tokenizer, spec.temperature)
