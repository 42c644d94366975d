"""From a recipe's words to the objects they mean: every choice between interchangeable parts is made here.

This is the whole replacement for a registry: to see what a word of a recipe does, search for it on this page.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource, HubSource, PythonSource, Source
from behemoth.dials import (
    DataRecipe,
    DpoRecipe,
    FilesText,
    HubText,
    PythonText,
    Recipe,
    RlRecipe,
    SftRecipe,
    StageRecipe,
)
from behemoth.model.adapters import AdapterSettings, add_adapter
from behemoth.model.config import TEACHER, ModelConfig
from behemoth.model.cost import forward_flops, training_flops
from behemoth.model.transformer import Transformer
from behemoth.objectives.distill import distill
from behemoth.objectives.loss import Objective
from behemoth.objectives.next_token import next_token
from behemoth.objectives.policy_gradient import policy_gradient
from behemoth.objectives.preference import dpo
from behemoth.recipe import Resolved, Student, resolve
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.average import Average
from behemoth.train.loop import Member, Plan
from behemoth.train.machine import device, dtype_of
from behemoth.train.optim import Optimizer, Settings
from behemoth.train.schedule import warmup_stable_decay

CONTROL = "-control"  # follows the name of the student it is the control of


def sources(data: DataRecipe) -> list[Source]:
    return [source(text, f"{text.kind}-{number}") for number, text in enumerate(data.sources)]


def source(text: PythonText | FilesText | HubText, name: str) -> Source:
    match text:
        case PythonText():
            return PythonSource(name=name, weight=text.weight)
        case FilesText():
            return FilesSource(Path(text.path), name=name, weight=text.weight, licence=text.licence)
        case HubText():
            return HubSource(
                text.dataset,
                name=name,
                weight=text.weight,
                licence=text.licence,
                config=text.subset,
                split=text.split,
                text_field=text.text_column,
            )


def prepare_data(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """Read, clean, split and tokenise the recipe's text into `directory`/data and `directory`/tokenizer."""
    given, tokenizer = recipe.tokenizer.path, None
    if recipe.model.path is not None:
        tokenizer = Tokenizer.load(directory / "tokenizer")
    elif given is not None:
        tokenizer = Tokenizer.from_huggingface(Path(given))
    return prepare(
        sources(recipe.data),
        directory / "data",
        tokenizer=tokenizer,
        vocab_size=resolve(recipe).model.vocab_size,
        seed=recipe.seed,
        held_out=recipe.data.held_out,
        tokenizer_directory=directory / "tokenizer",
    )


def members(resolved: Resolved) -> list[Member]:
    """The teacher, then each student and its control. What they share is the batches, and the teacher's average."""
    train = resolved.train
    teacher = member(resolved, TEACHER, resolved.model, resolved.recipe.seed, joins=0, steps=resolved.steps)
    if not resolved.students:
        return [teacher]
    teacher.average = Average(teacher.model, train.average)
    return [teacher] + [
        pupil
        for number, student in enumerate(resolved.students, start=1)
        for pupil in pupils(resolved, student, resolved.recipe.seed + number, teacher.average.model)
    ]


def pupils(resolved: Resolved, student: Student, seed: int, teacher: Transformer) -> list[Member]:
    """A student and, when asked for, its control: the same weights at first, the same batches, no teacher."""
    place = {"joins": student.first_step, "steps": student.steps}
    learner = member(resolved, student.name, student.model, seed, **place)
    learner.objective = partial(distill, teacher=teacher, soft=student.soft, balance=resolved.train.balance)
    if not student.control:
        return [learner]
    return [learner, member(resolved, student.name + CONTROL, student.model, seed, **place)]


def member(resolved: Resolved, name: str, config: ModelConfig, seed: int, joins: int, steps: int) -> Member:
    """A model that learns to predict the next token, freshly drawn from `seed`."""
    train = resolved.train
    model = Transformer(config, dtype_of(train.precision))
    model.initialise(torch.Generator().manual_seed(seed)).to(device())
    settings = Settings(train.optimizer, train.learning_rate, train.adam_learning_rate, train.weight_decay)
    schedule = partial(warmup_stable_decay, warmup=train.warmup, decay=train.decay)
    objective = partial(next_token, balance=train.balance)
    return Member(name, model, objective, Optimizer(model, settings), schedule, steps, joins)


def plan(resolved: Resolved) -> Plan:
    train = resolved.train
    return Plan(resolved.steps, train.microbatches, train.max_grad_norm)


def step_flops(resolved: Resolved, all_members: list[Member]) -> dict[str, float]:
    """The arithmetic of one step of each member, by name: its own, and for a student its teacher's forward."""
    context = resolved.train.context_length
    tokens = resolved.rows_per_step * context
    learners = {student.name for student in resolved.students}
    return {
        m.name: tokens
        * (
            training_flops(m.model.config, context)
            + (forward_flops(resolved.model, context) if m.name in learners else 0)
        )
        for m in all_members
    }


# ---------------------------------------------------------------------------------------------------- post-training


def tuned(
    name: str, model: Transformer, spec: StageRecipe, objective: Objective, steps: int, seed: int
) -> Member:
    """A model that goes on learning, all of it or an adapter."""
    if spec.adapter is not None:
        add_adapter(
            model, AdapterSettings(spec.adapter.rank, spec.adapter.alpha, parts=spec.adapter.parts), seed
        )
    assert spec.optimizer and spec.learning_rate and spec.adam_learning_rate, "the recipe was resolved"
    settings = Settings(spec.optimizer, spec.learning_rate, spec.adam_learning_rate, spec.weight_decay)
    schedule = partial(warmup_stable_decay, warmup=spec.warmup, decay=spec.decay)
    return Member(name, model, objective, Optimizer(model, settings), schedule, steps)


def sft_objective(spec: SftRecipe) -> Objective:
    return partial(next_token, balance=spec.balance)


def rl_objective(spec: RlRecipe) -> Objective:
    return partial(
        policy_gradient,
        clip_low=spec.clip_low,
        clip_high=spec.clip_high,
        one_sided=spec.clip == "one-sided",
        kl=spec.kl,
        balance=spec.balance,
    )


def dpo_objective(spec: DpoRecipe) -> Objective:
    return partial(dpo, beta=spec.beta, per_token=spec.per_token, nll=spec.nll, balance=spec.balance)
