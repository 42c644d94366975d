"""A recipe says what is wanted; everything that follows from it is computed here, with a reason.

A recipe is a TOML file of a few dials: sources of text, a model's size and experts, a budget, students.
What it leaves out is derived by `resolve`: the shape from the size, the steps from the budget, the batch from
both. Each derived value carries one sentence that says why. The resolved recipe is written back as a complete
recipe, and loading that again changes nothing.

The words themselves are in `dials.py`, the rules in `derive.py`; writing a value overrides its rule. No torch here,
but to read the shape of a model that the recipe names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from behemoth.base.config import apply_overrides, load_toml, problems_of, validate
from behemoth.base.errors import InputError, RecipeError
from behemoth.base.files import expanded, read_json
from behemoth.base.units import human_count, human_duration
from behemoth.derive import (
    MICROBATCH_TOKENS,
    SIZE_TOLERANCE,
    average_rule,
    best_fit,
    candidates,
    context_rule,
    microbatches_rule,
    nearest_divisor,
    rates_rule,
    rows_rule,
    shape,
    vocabulary_rule,
)
from behemoth.dials import (
    AssistantRecipe,
    DataRecipe,
    DpoRecipe,
    EvaluationRecipe,
    FilesText,
    ModelRecipe,
    Recipe,
    Refusals,
    ReleaseRecipe,
    RlRecipe,
    Rows,
    SftRecipe,
    StageRecipe,
    StudentRecipe,
    SuiteFile,
    TokenizerRecipe,
    TrainRecipe,
)
from behemoth.model.config import TEACHER, Frozen, ModelConfig
from behemoth.model.cost import count_parameters, training_flops
from behemoth.text.vocabulary import padded

TOKENS_PER_PARAMETER = (
    20  # Chinchilla (Hoffmann et al. 2022): about 20 training tokens per (active) parameter
)
GUESSED_FLOPS = 60e9  # a laptop core or two; stands in until a run has measured its machine

AnyModel = TypeVar("AnyModel", bound=ModelRecipe)
AnyTable = TypeVar("AnyTable", bound=Frozen)


# --- what follows from them ---------------------------------------------------------------------------------


class Training(TrainRecipe):
    """[train] with nothing left open: the same fields, each with a value."""

    tokens: int
    context_length: int
    tokens_per_step: int
    microbatches: int
    learning_rate: float
    adam_learning_rate: float
    average: float
    evaluate_every: int
    sample_every: int
    save_every: int


@dataclass(frozen=True)
class Student:
    """A student with its shape and its place in the teacher's run."""

    name: str
    model: ModelConfig
    first_step: int  # the teacher's steps that are over when it joins
    steps: int  # its own
    soft: float
    control: bool


@dataclass(frozen=True)
class Resolved:
    """A complete recipe: nothing in it is left to derive, and `reasons` says why for what was."""

    recipe: Recipe
    model: ModelConfig
    students: tuple[Student, ...]
    steps: int
    rows_per_step: int
    reasons: dict[str, str] = field(compare=False)  # "train.tokens_per_step" -> why

    @property
    def train(self) -> Training:
        assert isinstance(self.recipe.train, Training)
        return self.recipe.train


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file with `a.b=value` overrides; RecipeError lists every problem at once."""
    path = Path(path)
    recipe = validate(Recipe, apply_overrides(load_toml(path), overrides), str(path))
    return _with_absolute_paths(recipe, path.resolve().parent)


def resolve(
    recipe: Recipe,
    vocab_size: int | None = None,
    tokens_per_second: float | None = None,
    where: str = "recipe",
) -> Resolved:
    """Fill in everything the recipe leaves open.

    `vocab_size` is the real tokenizer's, once there is one (a tiny corpus gives fewer entries than were asked
    for). `tokens_per_second` is the measured speed of the whole run, which turns a budget in minutes into
    tokens; without it a guess stands in, good enough to look at and not to train by. Raises RecipeError with
    every impossible combination and what would mend it.
    """
    work = _Derivation()
    if recipe.model.path is not None:
        return _resolve_opened(recipe, recipe.model.path, where, work)
    vocab = _vocabulary(recipe, vocab_size, work)
    model = derive_model(recipe.model, vocab, recipe.train.context_length, "model", work)
    if model is None:
        raise RecipeError(where, work.problems)
    train, steps, rows = _derive_train(recipe, model, tokens_per_second, work)
    students = [_derive_student(index, recipe, model, steps, work) for index in range(len(recipe.students))]
    if work.problems:
        raise RecipeError(where, work.problems)
    found = tuple(student for student in students if student is not None)
    full = recipe.model_copy(
        update={
            "tokenizer": recipe.tokenizer.model_copy(update={"vocab_size": vocab}),
            "model": _filled(recipe.model, model),
            "train": train,
            "students": tuple(_filled(s, f.model) for s, f in zip(recipe.students, found, strict=True)),
            **_derive_stages(recipe, {TEACHER: model} | {f.name: f.model for f in found}, work),
        }
    )
    return Resolved(full, model, found, steps, rows, work.reasons)


def _resolve_opened(recipe: Recipe, path: str, where: str, work: _Derivation) -> Resolved:
    """A recipe that begins with weights which are there: their shape is read, nothing is pretrained."""
    from behemoth.model.open import config_of

    model = config_of(path)
    context = recipe.train.context_length
    train, _, _ = _derive_train(
        recipe.model_copy(
            update={"train": TrainRecipe(context_length=context, precision=recipe.train.precision)}
        ),
        model,
        None,
        work,
    )
    if work.problems:
        raise RecipeError(where, work.problems)
    for name in TrainRecipe.model_fields:
        if name != "context_length":
            work.reasons.pop(f"train.{name}", None)
    stages = _derive_stages(recipe, {TEACHER: model}, work)
    full = recipe.model_copy(update={"train": train, **stages})
    return Resolved(full, model, (), 0, 0, work.reasons)


def _derive_stages(recipe: Recipe, models: dict[str, ModelConfig], work: _Derivation) -> dict[str, Any]:
    """The tables of post-training with nothing left open but the steps of what depends on its data."""
    start = recipe.assistant.start or TEACHER
    if recipe.stages and recipe.assistant.start is None:
        work.reasons["assistant.start"] = "the run's own model"
    model, found = models[start], {}
    for name in recipe.stages:
        spec: StageRecipe = getattr(recipe, name)
        kind = spec.optimizer or ("muon" if _learns_like_pretraining(name, recipe) else "adamw")
        if spec.optimizer is None:
            work.reasons[f"{name}.optimizer"] = (
                "as in pretraining" if kind == "muon" else "small steps: AdamW, as the field does"
            )
        rates = rates_rule(
            name, kind, model.hidden_size, spec.adapter is not None, recipe.model.path is not None
        )
        values: dict[str, Any] = {"optimizer": kind}
        for key, (value, reason) in rates.items():
            values[key] = work.fill(f"{name}.{key}", getattr(spec, key), value, reason)
        if isinstance(spec, RlRecipe):
            values["steps"] = work.fill("rl.steps", spec.steps, 100, "enough to see whether it helps")
        found[name] = spec.model_copy(update=values)
    assistant = recipe.assistant.model_copy(update={"start": start})
    return {"assistant": assistant, **found} if recipe.stages else {}


def _learns_like_pretraining(name: str, recipe: Recipe) -> bool:
    return (
        name == "sft" and recipe.model.path is None and recipe.sft is not None and recipe.sft.adapter is None
    )


class _Derivation:
    """The reasons and the problems that turn up on the way."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.problems: list[str] = []

    def fill(self, key: str, given: Any, derived: Any, reason: str) -> Any:
        """What the recipe says; where it says nothing, what follows, and note why."""
        if given is not None:
            return given
        self.reasons[key] = reason
        return derived


def _vocabulary(recipe: Recipe, actual: int | None, work: _Derivation) -> int:
    given = recipe.tokenizer.vocab_size
    if actual is not None:
        if actual != given:
            work.reasons["tokenizer.vocab_size"] = "the entries of the tokenizer itself"
        return actual
    if recipe.tokenizer.path is not None:
        if given is None:
            work.reasons["tokenizer.vocab_size"] = "the entries of the imported tokenizer"
            return _imported_vocabulary(Path(recipe.tokenizer.path))
        return given
    if given is None and recipe.model.size is None:
        work.problems.append(
            "tokenizer.vocab_size: missing, and with no model.size it does not follow; write one"
        )
        return 2048
    derived = vocabulary_rule(recipe.model.size or 1)
    return work.fill(
        "tokenizer.vocab_size", given, derived, "the power of two nearest the square root of size"
    )


def _imported_vocabulary(path: Path) -> int:
    """Entries of a Hugging Face tokenizer.json, rounded up to a multiple of 64 as the embedding is."""
    content = read_json(path / "tokenizer.json" if path.is_dir() else path)
    try:
        last = max([*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{path} is not a tokenizer.json with a vocabulary of its own") from None
    return padded(last + 1)


def derive_model(
    spec: ModelRecipe, vocab_size: int, context: int | None, where: str, work: _Derivation
) -> ModelConfig | None:
    """The shape that a size asks for, or None with the problem noted. Explicit fields override every rule."""
    if spec.hidden_size is None and spec.size is None:
        work.problems.append(f'{where}.size: missing; write the total of parameters, for example size = "4M"')
        return None
    if spec.hidden_size is None:
        size = spec.size or 0
        shapes = candidates(size, _architecture(spec), vocab_size, context)
        config = best_fit(shapes, size)
        if config is None:
            work.problems.append(_too_small(shapes, spec, vocab_size, where))
            return None
    else:
        try:
            config = shape(_architecture(spec), vocab_size, context)
        except ValidationError as error:
            work.problems += problems_of(error, ModelConfig, where)
            return None
    _explain_model(spec, config, where, work)
    work.problems += _model_problems(spec, config, where)
    return config


def _architecture(spec: ModelRecipe) -> dict[str, Any]:
    """The fields of the architecture that the recipe gives."""
    names = set(ModelConfig.model_fields) & set(ModelRecipe.model_fields)
    found = {name: getattr(spec, name) for name in names} | {"num_experts": spec.experts}
    return {name: value for name, value in found.items() if value is not None}


def _too_small(shapes: list[ModelConfig], spec: ModelRecipe, vocab_size: int, where: str) -> str:
    if not shapes:
        return f"{where}: the fields given fit no width at all; give hidden_size too, or fewer of them"
    least = min(count_parameters(shape).total for shape in shapes)
    return (
        f"{where}.size = {human_count(spec.size or 0)} is too small: with a vocabulary of {vocab_size:,} and "
        f"these experts the smallest model has {human_count(least)} parameters; raise {where}.size, "
        "or lower tokenizer.vocab_size or the number of experts"
    )


def _explain_model(spec: ModelRecipe, config: ModelConfig, where: str, work: _Derivation) -> None:
    """One sentence for each value of the shape that the recipe did not give."""
    size = human_count(spec.size) if spec.size else "the size"
    asked = f"; {size} were asked for" if spec.size else ""
    reasons = {
        "size": f"the parameters that the shape adds up to{asked}",
        "experts": "eight, small enough for one machine",
        "hidden_size": f"the width and depth whose parameters fill {size} best",
        "num_layers": "48 layers at width 5120 as Scout, as width to the 0.6, in fours",
        "head_size": "32 below width 512, 64 below 2048, then Llama's 128",
        "num_heads": "hidden_size / head_size",
        "num_kv_heads": "two query heads share one in small models, four or more in large, at most 8 kept",
        "expert_size": "twice the width below 1024, then 8/5 of it as Llama 4",
        "dense_size": "a layer without experts costs what the shared and the chosen experts cost",
        "experts_per_token": "Llama 4 sends a token to one routed expert",
        "moe_every": "every layer has experts, as Scout",
        "score_on": "Llama 4 scales what the expert reads",
        "nope_every": "Llama 4: every fourth layer has no positions and sees the whole row",
        "chunk_size": "a quarter of the context, at most Llama 4's 8192",
        "temperature_floor": "Llama 4: as long as a chunk",
        "rope_theta": "10,000 for rows up to 8192, 500,000 for longer ones",
        "tie_embeddings": "Llama 4's value",
        "context_length": "the rows that training uses",
    }
    given = {name for name in ModelRecipe.model_fields if getattr(spec, name) is not None}
    if spec.size != count_parameters(config).total:
        given.discard("size")
    for name in ModelRecipe.model_fields:
        if name not in given and name != "rope_scaling":
            work.reasons[f"{where}.{name}"] = reasons.get(name, "Llama 4's value")


def _model_problems(spec: ModelRecipe, config: ModelConfig, where: str) -> list[str]:
    problems = []
    total = count_parameters(config).total
    if spec.size and spec.hidden_size and not 0.4 * spec.size <= total <= SIZE_TOLERANCE * spec.size:
        problems.append(
            f"{where}.size = {human_count(spec.size)}, but the shape given has {human_count(total)} "
            f"parameters; remove {where}.size, or the explicit {where}.hidden_size"
        )
    if spec.chunk_size and config.chunk_size > config.context_length:
        problems.append(
            f"{where}.chunk_size = {config.chunk_size:,} is longer than the context of "
            f"{config.context_length:,}; lower it to {config.context_length:,} or less"
        )
    return problems


def _derive_student(
    index: int, recipe: Recipe, teacher: ModelConfig, teacher_steps: int, work: _Derivation
) -> Student | None:
    """A student: vocabulary, rows and positions are the teacher's, the rest follows from its own size."""
    spec, where = recipe.students[index], f"students.{index}"
    shared = ("chunk_size", "context_length", "rope_theta", "rope_scaling", "nope_every", "temperature_floor")
    same = {name: getattr(teacher, name) for name in shared} | {"experts": teacher.num_experts}
    inherited = {name: value for name, value in same.items() if getattr(spec, name) is None}
    filled = spec.model_copy(update=inherited)
    model = derive_model(filled, teacher.vocab_size, None, where, work)
    if model is None:
        return None
    for name, value in inherited.items():
        if value is not None:
            work.reasons[f"{where}.{name}"] = "as the teacher"
    if model.context_length < teacher.context_length:
        work.problems.append(
            f"{where}.context_length = {model.context_length:,} is less than the teacher's "
            f"{teacher.context_length:,}, and both read the same rows; remove it"
        )
    first = round(spec.joins_at * teacher_steps)
    if teacher_steps and first >= teacher_steps:
        work.problems.append(
            f"{where}.joins_at = {spec.joins_at} leaves the student none of the teacher's {teacher_steps} "
            "steps; lower it"
        )
    return Student(spec.name, model, first, teacher_steps - first, spec.soft, spec.control)


def _derive_train(
    recipe: Recipe, model: ModelConfig, tokens_per_second: float | None, work: _Derivation
) -> tuple[Training, int, int]:
    """Budget, batch, rates and intervals: the filled [train], its steps, and the rows of one step."""
    given = recipe.train
    context = given.context_length or min(model.context_length, context_rule(model.hidden_size))
    if given.context_length is None:
        work.reasons["train.context_length"] = "short rows for narrow models: 256, 1024, 2048, 8192 by width"
    if context > model.context_length:
        work.problems.append(
            f"train.context_length = {context:,} is longer than model.context_length = "
            f"{model.context_length:,}; lower the first or raise the second"
        )
    tokens = _budget(recipe, model, context, tokens_per_second, work)
    per_step = work.fill(
        "train.tokens_per_step",
        given.tokens_per_step,
        rows_rule(tokens, context) * context,
        f"2 x sqrt(tokens), rounded to a power of two of rows of {context:,}",
    )
    rows, steps = per_step // context, tokens // per_step
    if per_step % context:
        low = max(1, rows) * context
        work.problems.append(
            f"train.tokens_per_step = {per_step:,} is not a multiple of train.context_length = {context:,}; "
            f"nearest: {low:,} or {low + context:,}"
        )
    elif steps < 1:
        work.problems.append(
            f"train.tokens = {tokens:,} is less than one step of {per_step:,} tokens; raise train.tokens"
            " or lower train.tokens_per_step"
        )
    microbatches = work.fill(
        "train.microbatches",
        given.microbatches,
        microbatches_rule(max(rows, 1), context),
        f"as few as keep one forward within {MICROBATCH_TOKENS:,} tokens",
    )
    if max(rows, 1) % microbatches:
        work.problems.append(
            f"train.microbatches = {microbatches} does not divide the {rows} rows of a step; "
            f"nearest: {nearest_divisor(max(rows, 1), microbatches)}"
        )
    return (
        _fill_train(given, model, tokens, context, per_step, microbatches, max(steps, 1), work),
        steps,
        rows,
    )


def _fill_train(
    given: TrainRecipe,
    model: ModelConfig,
    tokens: int,
    context: int,
    per_step: int,
    microbatches: int,
    steps: int,
    work: _Derivation,
) -> Training:
    muon = given.optimizer == "muon"
    falls = (128 / model.hidden_size) ** (2 / 3)
    adam = 2e-2 if muon else 3e-3  # at width 128; of the embeddings, head, router and norms, or of everything
    why = f"{adam:g} at width 128, falling as width to the 2/3"
    adam_rate = (float(f"{adam * falls:.3g}"), why)
    derived: dict[str, tuple[Any, str]] = {
        "learning_rate": (0.01, "Muon's updates have one size at every width") if muon else adam_rate,
        "adam_learning_rate": adam_rate,
        "average": (average_rule(steps), "a memory of about one twelfth of the steps"),
        "evaluate_every": (max(1, steps // 8), "eight times in the run"),
        "sample_every": (max(1, steps // 4), "four times in the run"),
        "save_every": (max(1, steps // 4), "four times in the run"),
    }
    values = {
        name: work.fill(f"train.{name}", getattr(given, name), value, reason)
        for name, (value, reason) in derived.items()
    }
    values |= {"tokens": tokens, "minutes": None, "context_length": context, "tokens_per_step": per_step}
    values["microbatches"] = microbatches
    return Training.model_construct(given.model_fields_set | set(values), **dict(given) | values)


def _budget(
    recipe: Recipe, model: ModelConfig, context: int, tokens_per_second: float | None, work: _Derivation
) -> int:
    given = recipe.train
    if given.minutes is None:
        active = count_parameters(model).active
        reason = f"{TOKENS_PER_PARAMETER} for each of {human_count(active)} active parameters"
        return int(work.fill("train.tokens", given.tokens, TOKENS_PER_PARAMETER * active, reason))
    speed = tokens_per_second or GUESSED_FLOPS / training_flops(model, context)
    known = "measured" if tokens_per_second else "guessed; a run measures its machine first"
    budget = human_duration(given.minutes * 60)
    work.reasons["train.tokens"] = f"{budget} at {human_count(speed)} tokens/s ({known})"
    return max(1, int(given.minutes * 60 * speed))


def _filled(spec: AnyModel, config: ModelConfig) -> AnyModel:
    """The same dials with every field of the architecture written out; `size` becomes what the shape has."""
    values = {name: getattr(config, name) for name in ModelRecipe.model_fields if hasattr(config, name)}
    size = count_parameters(config).total
    return spec.model_copy(update=values | {"size": size, "experts": config.num_experts})


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths of a recipe start at its own folder, so that it means the same wherever it is run from.

    What does not lie there, but where the command was typed, was meant so (`--set model.path=DIR`).
    """

    def absolute(path: str) -> str:
        plain = expanded(path)
        member = (
            plain.with_name(plain.name.partition(":")[0]) if ":" in plain.name else plain
        )  # of RUN:MEMBER the run
        here = (folder / member).exists() or not member.exists()
        return str((folder / plain if here else plain).resolve())

    def placed(entry: AnyTable) -> AnyTable:
        if isinstance(entry, FilesText | Rows | Refusals | SuiteFile) and entry.path is not None:
            return entry.model_copy(update={"path": absolute(entry.path)})  # type: ignore[return-value]
        return entry

    sources = tuple(placed(source) for source in recipe.data.sources)
    tokenizer = recipe.tokenizer
    if tokenizer.path is not None:
        tokenizer = tokenizer.model_copy(update={"path": absolute(tokenizer.path)})
    data, evaluation = recipe.data.model_copy(update={"sources": sources}), recipe.evaluation
    if evaluation.is_file:
        evaluation = evaluation.model_copy(update={"suite": absolute(evaluation.suite)})
    model, changes = recipe.model, {}
    if model.path is not None and not model.path.startswith("hf:"):
        model = model.model_copy(update={"path": absolute(model.path)})
    for table, names in (
        ("assistant", ("practice", "exam")),
        ("sft", ("conversations",)),
        ("dpo", ("pairs",)),
    ):
        if (spec := getattr(recipe, table)) is not None:
            entries = {name: tuple(placed(entry) for entry in getattr(spec, name)) for name in names}
            changes[table] = spec.model_copy(update=entries)
    if recipe.release is not None:
        changes["release"] = recipe.release.model_copy(update={"policy": absolute(recipe.release.policy)})
    changes |= {"data": data, "tokenizer": tokenizer, "evaluation": evaluation, "model": model}
    return recipe.model_copy(update=changes)


# --- and back to a file -------------------------------------------------------------------------------------


# Written under headers of their own.
TABLES = (
    *(DataRecipe, TokenizerRecipe, ModelRecipe, TrainRecipe, EvaluationRecipe),
    *(AssistantRecipe, SftRecipe, RlRecipe, DpoRecipe, ReleaseRecipe),
)


@dataclass(frozen=True)
class Setting:
    """One value of a resolved recipe, as it is written: given, a default, or derived for a reason."""

    key: str
    value: str
    reason: str  # "given", "default", or the sentence that says why
    derived: bool


def settings(resolved: Resolved) -> list[Setting]:
    """Every value of the complete recipe in the order of the file."""
    tables = _tables(resolved)
    return [setting for _, prefix, table in tables for setting in _settings(prefix, table, resolved.reasons)]


def to_toml(resolved: Resolved) -> str:
    """The complete recipe as a file; each derived value is followed by its reason."""
    lines = [
        "# Complete: a value that was derived is followed by the reason. A copy may be changed and run anew."
    ]
    for header, prefix, table in _tables(resolved):
        lines += ["", header] if header else [""]
        for setting in _settings(prefix, table, resolved.reasons):
            reason = f"  # derived: {setting.reason}" if setting.derived else ""
            lines.append(f"{setting.key.removeprefix(prefix)} = {setting.value}{reason}")
    return "\n".join(lines) + "\n"


class Reading(Frozen):
    """What is left of [train] where nothing is pretrained."""

    precision: str
    context_length: int


def _tables(resolved: Resolved) -> list[tuple[str, str, Frozen]]:
    """The tables of the file: header, prefix of its keys, content."""
    recipe, train = resolved.recipe, resolved.recipe.train
    if not recipe.students and "train.average" in resolved.reasons:
        train = train.model_copy(update={"average": None})  # it is for students to learn from
    sources = [
        ("[[data.sources]]", f"data.sources.{i}.", source) for i, source in enumerate(recipe.data.sources)
    ]
    students = [("[[students]]", f"students.{i}.", student) for i, student in enumerate(recipe.students)]
    later: list[tuple[str, str, Frozen]] = []
    for name in ("assistant", *recipe.stages) if recipe.stages else ():
        table = getattr(recipe, name)
        later.append((f"[{name}]", f"{name}.", table))
        for key, entries in table:
            if _is_tables(entries):
                later += [(f"[[{name}.{key}]]", f"{name}.{key}.{i}.", e) for i, e in enumerate(entries)]
    if recipe.release is not None:
        later.append(("[release]", "release.", recipe.release))
    how: Frozen = train
    opened = recipe.model.path is not None
    if opened:
        how = Reading(precision=train.precision, context_length=resolved.train.context_length)
    return [
        ("", "", recipe),
        ("[data]", "data.", recipe.data),
        *sources,
        *([] if opened else [("[tokenizer]", "tokenizer.", recipe.tokenizer)]),
        ("[model]", "model.", recipe.model),
        ("[train]", "train.", how),
        *([] if opened else [("[evaluation]", "evaluation.", recipe.evaluation)]),
        *students,
        *later,
    ]


def _settings(prefix: str, table: Frozen, reasons: dict[str, str]) -> list[Setting]:
    own = StudentRecipe.__annotations__ if isinstance(table, StudentRecipe) else ()  # before any model's
    names = [*own, *(name for name in type(table).model_fields if name not in own)]
    return [
        Setting(
            prefix + name,
            _toml_value(value),
            reasons.get(prefix + name) or ("given" if name in table.model_fields_set else "default"),
            derived=prefix + name in reasons,
        )
        for name, value in ((name, getattr(table, name)) for name in names)
        if value is not None and not isinstance(value, TABLES) and not _is_tables(value)
    ]


def _is_tables(value: Any) -> bool:
    """Whether it is written as tables of their own: sources, students, tasks."""
    return isinstance(value, tuple) and (not value or isinstance(value[0], Frozen))


def _toml_value(value: Any) -> str:
    match value:
        case tuple():
            return "[" + ", ".join(_toml_value(part) for part in value) + "]"
        case bool():
            return str(value).lower()
        case int():
            return f"{value:_}" if value >= 10_000 else str(value)
        case float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Frozen():
            return "{ " + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value) + " }"
    raise TypeError(f"{type(value).__name__} is no TOML value")
