"""From a MODEL or a RECIPE to a patient, and the examination.

A model of a run comes with everything its recipe tells: the weights it began with are drawn again from the seed, its
objective and optimizer are built as training builds them, its text is the run's held-out text. Weights from
elsewhere are examined without that, and each check that misses something says so.

A recipe is examined before anything is spent on it: its models are drawn whole when they are small, and otherwise in
little, with the same number of experts, choices, layer pattern and chunks in the row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from behemoth import build
from behemoth.base.errors import AnswerIsNo, InputError
from behemoth.base.files import write_json
from behemoth.base.logs import say
from behemoth.data.corpus import Corpus, HeldOut
from behemoth.doctor.examination import Examination, as_json, timed, verdict
from behemoth.doctor.patient import Patient, Source
from behemoth.model import llama3
from behemoth.model.config import ModelConfig
from behemoth.model.cost import count_parameters
from behemoth.model.open import RECEIPT, Opened, open_model
from behemoth.model.transformer import Transformer
from behemoth.recipe import Recipe, Resolved, load_recipe, resolve
from behemoth.rundir import run_of
from behemoth.text.tokenizer import Tokenizer
from behemoth.train.loop import Member
from behemoth.train.machine import choose_precision, device, dtype_of
from behemoth.train.optim import Optimizer, Settings

WHOLE = 30_000_000  # parameters up to which a model itself is trained on for a few steps
FEWEST_TOKENS, TOKENS_PER_EXPERT, MOST_TOKENS = 4096, 200, 32_768  # of text that is read
ROW, LITTLE_ROW = 256, 128
UNNAMED = 2048  # ids of a model in little whose tokenizer is not there yet


def examine(spec: str, *, exported: Path | None = None, overrides: Sequence[str] = ()) -> Examination:
    """Examine a recipe (a .toml file) or a model (a run, RUN:MEMBER, a checkpoint, a Hugging Face directory).

    exported: the Hugging Face directory that was made of this model, where it does not speak for itself.
    """
    if Path(spec).suffix == ".toml":
        recipe = load_recipe(Path(spec), overrides)
        return examine_recipe(resolve(recipe, given_vocabulary(recipe), where=spec), spec)
    return examine_model(open_model(spec, device=device()), spec, exported)


def examine_model(opened: Opened, name: str, exported: Path | None = None) -> Examination:
    """A model that exists: the real weights."""
    with TemporaryDirectory(prefix="behemoth-doctor-") as workspace:
        patient = patient_of(opened, Path(workspace), exported)
        notes = []
        if patient.proxy is not None:
            size = f"{count_parameters(patient.proxy.config).total:,}"
            notes.append(f"the checks that train use a model in little, of {size} parameters")
        return timed(name, [patient], notes)


def patient_of(opened: Opened, workspace: Path, exported: Path | None = None) -> Patient:
    """A model with all that its run knows of it."""
    run, config = run_of(opened.directory), opened.model.config
    in_checkpoint = opened.directory.parent.name == "weights"
    if exported is None and not in_checkpoint:
        exported = opened.directory
    resolved = resolve(load_recipe(run / "recipe.toml"), config.vocab_size) if run else None
    if resolved is not None and not resolved.steps:
        resolved = None  # nothing was pretrained here, so there is no such training to look at
    corpus = Corpus.open(run / "data") if run and (run / "data").is_dir() else None
    text_BT, text_is = text(config, corpus, opened.tokenizer_directory)
    small = count_parameters(config).total <= WHOLE
    patient = Patient(
        opened.name,
        opened.model,
        text_BT,
        text_is,
        workspace,
        trained=opened.step != 0,
        tokenizer=opened.tokenizer_directory,
        exported=exported,
        foreign=exported is not None and run is None and not (exported / RECEIPT).exists(),
        proxy=None if small else drawn(in_little(config)).to(device()),
        control=control_of(opened, run),
        adapter=adapter_of(opened, run),
        source=source(resolved, corpus),
    )
    if resolved is None or not whole(resolved):
        return patient
    member = {member.name: member for member in build.members(resolved)}.get(opened.name)
    if member is None or member.model.config != config:
        return patient
    return as_trained(patient, resolved, member, initial=member.model)


def examine_recipe(
    resolved: Resolved, name: str, corpus: Corpus | None = None, tokenizer: Path | None = None
) -> Examination:
    """The models that a recipe describes, as its training would draw them; the text and tokenizer if they are there."""
    notes, resolved = [], with_precision(resolved)
    if not whole(resolved):
        resolved = little(resolved, with_tokenizer=bool(tokenizer or resolved.recipe.tokenizer.path))
        sizes = ", ".join(f"{count_parameters(m).total:,}" for m in models_of(resolved))
        notes.append(
            f"examined in little, with {sizes} parameters: widths, depth, chunks and context are smaller; experts, "
            "choices per token and the pattern of layers are the recipe's"
        )
    given = resolved.recipe.tokenizer.path
    tokenizer = tokenizer or (Path(given) if given else None)
    patients = []
    with TemporaryDirectory(prefix="behemoth-doctor-") as workspace:
        for member in build.members(resolved):
            if member.name.endswith(build.CONTROL):
                continue  # a student's control differs from the teacher in nothing that is checked
            place = Path(workspace) / member.name
            place.mkdir()
            text_BT, text_is = text(member.model.config, corpus, tokenizer)
            patient = Patient(
                member.name,
                member.model,
                text_BT,
                text_is,
                place,
                trained=False,
                tokenizer=tokenizer,
                source=source(resolved, corpus),
            )
            patients.append(as_trained(patient, resolved, member, initial=None))
        return timed(name, patients, notes)


def as_trained(patient: Patient, resolved: Resolved, member: Member, initial: Transformer | None) -> Patient:
    """With what training would use: objective, balance, optimizer, precision, and the weights it begins with."""
    train = resolved.train
    settings = Settings(train.optimizer, train.learning_rate, train.adam_learning_rate, train.weight_decay)
    return replace(
        patient,
        initial=initial,
        objective=member.objective,
        balance=train.balance,
        optimizer=partial(Optimizer, settings=settings),
        precision=dtype_of(train.precision),
    )


def with_precision(resolved: Resolved) -> Resolved:
    """What this machine computes in, where the recipe leaves that open."""
    if resolved.train.precision != "auto":
        return resolved
    precision, _ = choose_precision(device())
    train = resolved.train.model_copy(update={"precision": precision})
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"train": train}))


def adapter_of(opened: Opened, run: Path | None) -> Path | None:
    """The adapter that was merged into the model, where its stage trained one."""
    path = run / opened.name / "adapter" if run else None
    return path if path and path.is_dir() else None


def control_of(opened: Opened, run: Path | None) -> Transformer | None:
    """The control of a student, from the same checkpoint."""
    beside = opened.directory.parent / (opened.name + build.CONTROL)
    if run is None or opened.directory.parent.name != "weights" or not beside.is_dir():
        return None
    return open_model(beside, device=device()).model


def source(resolved: Resolved | None, corpus: Corpus | None) -> Callable[[], Source] | None:
    if resolved is None or corpus is None:
        return None
    context, rows, seed = resolved.train.context_length, resolved.rows_per_step, resolved.recipe.seed
    return lambda: corpus.batches(context, rows, seed)


def given_vocabulary(recipe: Recipe) -> int | None:
    path = recipe.tokenizer.path
    return Tokenizer.from_huggingface(Path(path)).vocab_size if path else None


# ----------------------------------------------------------------------------------------------------------- in little


def models_of(resolved: Resolved) -> list[ModelConfig]:
    return [resolved.model, *(student.model for student in resolved.students)]


def whole(resolved: Resolved) -> bool:
    return all(count_parameters(model).total <= WHOLE for model in models_of(resolved))


def little(resolved: Resolved, with_tokenizer: bool) -> Resolved:
    """The recipe with every model small, one context that all of them fit, and a vocabulary as large as needed."""
    vocab_size = resolved.model.vocab_size if with_tokenizer else min(resolved.model.vocab_size, UNNAMED)
    small = [in_little(model.model_copy(update={"vocab_size": vocab_size})) for model in models_of(resolved)]
    students = tuple(replace(s, model=m) for s, m in zip(resolved.students, small[1:], strict=True))
    context = min(resolved.train.context_length, LITTLE_ROW)
    train = resolved.train.model_copy(update={"context_length": context})
    recipe = resolved.recipe.model_copy(update={"train": train})
    return replace(resolved, recipe=recipe, model=small[0], students=students)


def in_little(config: ModelConfig) -> ModelConfig:
    """The same structure, small: every kind of layer twice if there are that many, narrow, with short chunks.

    The vocabulary stays, so that the tokenizer fits; experts get narrower the more of them there are.
    """
    pattern = max(1, config.nope_every) * config.moe_every
    chunk = min(config.chunk_size, LITTLE_ROW // 4)
    groups = config.num_heads // config.num_kv_heads
    many = config.num_experts > 32  # in few dimensions some of many router rows are never the largest
    width = (64 if many else 32) if config.vocab_size > 2**16 else (128 if many else 64)
    small = config.model_copy(
        update={
            "hidden_size": width,
            "num_layers": min(config.num_layers, max(4, min(2 * pattern, 8))),
            "num_heads": groups,
            "num_kv_heads": 1,
            "head_size": 16,
            "expert_size": 32 if many else 2 * width,
            "dense_size": 4 * width,
            "chunk_size": chunk,
            "temperature_floor": min(config.temperature_floor, chunk),
            "context_length": min(config.context_length, LITTLE_ROW),
        }
    )
    if llama3.fits(config):  # no chunks, in little as in large
        small = small.model_copy(update={"chunk_size": small.context_length})
    return small


def drawn(config: ModelConfig) -> Transformer:
    return Transformer(config).initialise(torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------------------------- text


def text(config: ModelConfig, corpus: Corpus | None, tokenizer: Path | None) -> tuple[Tensor, str]:
    """Rows of ids to read, and what they are: held-out text, else Python source, else random ids."""
    wanted = min(MOST_TOKENS, max(FEWEST_TOKENS, TOKENS_PER_EXPERT * config.num_experts))
    length = min(ROW, config.context_length)
    held_out = corpus.held_out() if corpus is not None else []
    if sum(len(document.tokens) for document in held_out) >= 2 * length:
        return rows(equal_shares(held_out, wanted), length), "held-out text"
    if tokenizer is not None:
        made = Tokenizer.load(tokenizer)
        source = Path(argparse.__file__).read_text(encoding="utf-8")
        ids = [i for part in source.split("\n\n\n") for i in (made.bos_id, *made.encode(part), made.eos_id)]
        if max(ids) >= config.vocab_size:
            raise InputError(
                f"{tokenizer} has ids beyond the model's {config.vocab_size}: it is another model's"
            )
        return rows(np.array(ids[:wanted]), length), "Python source (argparse)"
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(config.vocab_size, (-(-wanted // length), length), generator=generator)
    return ids_BT.to(device()), "random ids"


def equal_shares(documents: Sequence[HeldOut], wanted: int) -> Any:
    """So many ids, the same number from the beginning of each document, so that no long one is all there is."""
    share = max(64, -(-wanted // len(documents)))
    pieces = [document.tokens[:share] for document in documents]
    found = np.concatenate(pieces)[:wanted]
    return found if len(found) >= wanted // 2 else np.concatenate([d.tokens for d in documents])[:wanted]


def rows(ids: Any, length: int) -> Tensor:
    count = len(ids) // length
    return torch.from_numpy(np.asarray(ids[: count * length], np.int64)).view(count, length).to(device())


# ------------------------------------------------------------------------------------------------------ for the house


def refuse_faults(found: Sequence[Examination], kept: Path | None = None) -> None:
    """Say what was seen, keep it in `kept` (JSON), and raise AnswerIsNo where anything is a fault."""
    if kept is not None:
        write_json(kept, {"examined": [as_json(examination) for examination in found]})
    for examination in found:
        say(f"doctor: {examination.name}: {verdict(examination)}")
    faults = [finding for examination in found for finding in examination.faults]
    if faults:
        told = "\n".join(f"  {f.model}: {f.check}: {f.meaning}; {f.todo}" for f in faults)
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise AnswerIsNo(f"the doctor found {count}\n{told}\nto go on in spite of it: --no-doctor")
