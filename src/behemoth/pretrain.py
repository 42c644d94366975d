"""The body of the training loop: what happens between two steps of a run, in the order it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from behemoth import build
from behemoth.base.errors import AnswerIsNo
from behemoth.base.logs import say
from behemoth.data.corpus import Corpus, HeldOut
from behemoth.evals import perplexity
from behemoth.evals.runner import quick
from behemoth.examine import examine_recipe, refuse_faults
from behemoth.inference.engine import Engine
from behemoth.questions import NO_SUITE, answering, suite_of
from behemoth.recipe import Resolved
from behemoth.rundir import DOCTOR, Run
from behemoth.tasks.suite import limited
from behemoth.text.tokenizer import Tokenizer
from behemoth.train import resume
from behemoth.train.checkpoint import Checkpoints
from behemoth.train.interrupt import Interrupt
from behemoth.train.loop import Member, train, update
from behemoth.train.machine import device, dtype_of, matmul_flops
from behemoth.train.monitor import Monitor

HELD_OUT_TOKENS = 16_384  # of the held-out text, for the curve drawn during training
LONG = 3600  # seconds: a run that takes longer is examined by the doctor first
SLOWEST = 0.02  # of the machine's peak; no run of ours was as slow
PROMPT_TOKENS, SAMPLE_TOKENS = 16, 48


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
    evaluation = resolved.recipe.evaluation
    if start == 0 and job.doctor and expected_seconds(resolved, corpus, members, flops, peak) > LONG:
        say("this run takes more than an hour: the doctor looks first")
        first = examine_recipe(resolved, resolved.recipe.name, corpus, job.directory / "tokenizer")
        refuse_faults([first], job.directory / DOCTOR)
    asked = evaluation.suite if evaluation.every else NO_SUITE
    suite = limited(suite_of(asked, corpus, tokenizer, settings.context_length), evaluation.limit)
    monitor = Monitor(job.directory / "pretrain", members, plan.steps, start, flops, peak)

    with closing(monitor), Interrupt() as interrupt:
        for step in train(members, source, plan, start):
            monitor.step(step)
            last = step.step == plan.steps
            for member in members:
                if member.name not in step.updates:
                    continue
                if last or (step.step % settings.evaluate_every == 0 and not interrupt.requested):
                    bits = perplexity.held_out_bits(member.model, probe, settings.context_length)
                    monitor.held_out(step.step, member.name, bits)
                if last or (step.step % settings.sample_every == 0 and not interrupt.requested):
                    for prompt, text in sample(member, tokenizer, prompts):
                        monitor.sample(step.step, member.name, prompt, text)
                if evaluation.every and step.step % evaluation.every == 0 and not interrupt.requested:
                    for task, score in quick(answering(member.model, tokenizer, member.name), suite):
                        monitor.task(step.step, member.name, task.name, task.ask, score)
            if last or interrupt.requested or step.step % settings.save_every == 0:
                saved = resume.save(saves, step.step, members, corpus.tokenizer_sha256)
                leave_or_go_on(saved, step.step, last, interrupt)


def leave_or_go_on(saved: Path | None, step: int, last: bool, interrupt: Interrupt) -> None:
    """After a save: an interrupted run leaves, if it is safe to."""
    if saved is None and (last or interrupt.requested):
        raise AnswerIsNo(f"step {step} could not be saved; make room and run the same command")
    if interrupt.requested and saved is not None:
        say(f"saved at step {step}")
        sys.exit(interrupt.exit_code)


def expected_seconds(
    resolved: Resolved, corpus: Corpus, members: Sequence[Member], flops: dict[str, float], peak: float
) -> float:
    """Of the whole run; measured on a few steps, unless the arithmetic alone says on which side of an hour it lies."""
    least = sum(flops[member.name] * member.steps for member in members) / peak
    if least > LONG or least / SLOWEST < LONG:
        return least
    return resolved.train.tokens / calibrate(resolved, corpus)


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
