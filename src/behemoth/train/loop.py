"""The training loop: a generator of step reports.

    for step in train(members, source, plan, start):
        log(step); evaluate(step); save(step)      # the caller's own words, in the order they happen

One run may train several members on the same batches: a teacher and its students. A member has its own weights,
optimizer, schedule, clipping and running average, and never writes another's: the teacher of a co-distilled run is
bit for bit the teacher trained alone. A stage is a source of batches and an objective; the loop knows neither.

A loss or a gradient that is not finite never reaches the weights: that member skips the step, and says so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from behemoth.base.errors import BehemothError
from behemoth.data.batch import Batch
from behemoth.model.transformer import Transformer
from behemoth.objectives.loss import Loss, Objective
from behemoth.train.average import Average
from behemoth.train.optim import Optimizer
from behemoth.train.schedule import Schedule

MAX_SKIPS = 10  # in a row; then something is broken that the next batch will not mend


class NotFiniteError(BehemothError):
    """Learning has broken down: every recent step of a member had a loss or gradient that is not a number."""


class Source(Protocol):
    """Batches by number: the same step always gives the same batch."""

    def batch(self, step: int) -> Batch: ...


@dataclass
class Member:
    """One model in training. It joins at step `joins` and learns for `steps` steps."""

    name: str
    model: Transformer
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    steps: int
    joins: int = 0
    average: Average | None = None
    skipped: int = 0  # steps left out so far
    skips_in_a_row: int = 0

    def learns_at(self, step: int) -> bool:
        return self.joins <= step < self.joins + self.steps


@dataclass(frozen=True)
class Plan:
    steps: int
    microbatches: int = 1
    max_grad_norm: float = 1.0


class Update(NamedTuple):
    """What one step did to one member; metrics are per unit of weight (nats per token)."""

    metrics: dict[str, float]
    grad_norm: float
    rate: float  # the factor on the learning rates
    skipped: bool
    load_LE: list[list[float]]  # each expert's share of its layer's choices


class Step(NamedTuple):
    step: int  # how many are done
    tokens: float  # weight of this step's batch
    seconds: float
    updates: dict[str, Update]


def train(members: Sequence[Member], source: Source, plan: Plan, start: int = 0) -> Iterator[Step]:
    """Run steps `start` to `plan.steps`, one report each. Members learn in the order given."""
    for step in range(start, plan.steps):
        began = time.perf_counter()
        microbatches = source.batch(step).microbatches(plan.microbatches)
        weight = sum(batch.weight for batch in microbatches)
        updates = {
            member.name: update(member, microbatches, weight, step, plan.max_grad_norm)
            for member in members
            if member.learns_at(step)
        }
        yield Step(step + 1, weight, time.perf_counter() - began, updates)


def update(member: Member, microbatches: list[Batch], weight: float, step: int, max_norm: float) -> Update:
    """One optimizer step of one member."""
    tally = Tally()
    for batch in microbatches:
        loss = member.objective(member.model, batch.to(member.model.norm.weight.device))
        (loss.total / weight).backward()
        tally.add(loss)
    norm = torch.nn.utils.clip_grad_norm_(member.model.parameters(), max_norm, foreach=True)
    rate = member.schedule(
        (step - member.joins + 1) / (member.steps + 1)
    )  # neither the first nor the last is 0
    finite = bool(torch.isfinite(norm) & torch.isfinite(tally.total))
    share_LE = tally.load_LE / tally.load_LE.sum(-1, keepdim=True).clamp_min(1)
    if finite:
        member.optimizer.step(rate)
        member.model.load_LE.copy_(share_LE)
        if member.average is not None:
            member.average.update(member.model)
    member.optimizer.zero_grad()
    count_skips(member, finite, step)
    metrics = {name: float(value) / weight for name, value in tally.metrics.items()}
    return Update(metrics, float(norm), rate, not finite, share_LE.tolist())


def count_skips(member: Member, finite: bool, step: int) -> None:
    member.skips_in_a_row = 0 if finite else member.skips_in_a_row + 1
    member.skipped += not finite
    if member.skips_in_a_row >= MAX_SKIPS:
        raise NotFiniteError(
            f"{member.name}: the loss or its gradient was not finite in {MAX_SKIPS} steps in a row, up to step "
            f"{step + 1}. Its weights are as they were before. Lower the learning rate, or look at the data."
        )


class Tally:
    """The sums of a step over its microbatches."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros(())
        self.load_LE: Tensor = torch.zeros(())
        self.metrics: Counter[str] = Counter()

    def add(self, loss: Loss) -> None:
        self.total = self.total.to(loss.total.device) + loss.total.detach()
        self.load_LE = self.load_LE.to(loss.load_LE.device) + loss.load_LE
        for name, value in loss.metrics.items():
            self.metrics[name] = self.metrics[name] + value  # type: ignore[assignment]
