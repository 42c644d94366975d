"""Settings from TOML into frozen models, with every mistake reported at once.

pydantic finds the mistakes; this module says them in words: where, what was found, and for an unknown key
the nearest known one. An override (`train.tokens=2M`) is a TOML value; what is not valid TOML is taken as
text, so that nobody has to quote quotes in a shell.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from behemoth.base.errors import InputError, RecipeError

Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; a missing or broken one is an InputError that names it and the line."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = sorted(path.parent.glob("*.toml")) if path.parent.is_dir() else []
        here = "; there are " + ", ".join(str(p) for p in beside[:8]) if beside else ""
        raise InputError(f"{path}: no such file{here}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the .toml file itself") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text; a recipe is a UTF-8 TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each "a.b=value" set; numbers in the key index lists (students.0.soft=0.5)."""
    data = copy.deepcopy(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {override}: write it as key=value, for example train.tokens=2M")
        *parents, last = (part.strip() for part in key.split("."))
        place: Any = data
        for part in parents:
            place = _step_into(place, part, override)
        _assign(place, last, _value(text), override)
    return data


def validate(model: type[Model], data: dict[str, Any], where: str) -> Model:
    """Build `model` from `data`, or raise one RecipeError that lists every problem."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(where, problems_of(error, model)) from None


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Each problem of a ValidationError in one line: the key, what was found, and what would be right."""
    return [_describe(dict(item), model, prefix) for item in error.errors(include_url=False)]


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint for a misspelt word: "; did you mean X?", or the list of what exists."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text


def _step_into(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, override)]
    if not isinstance(place, dict):
        raise InputError(f"--set {override}: nothing can be set inside {place!r}, which is a plain value")
    return place.setdefault(part, {})


def _assign(place: Any, part: str, value: Any, override: str) -> None:
    if isinstance(place, list):
        place[_index(place, part, override)] = value
    elif isinstance(place, dict):
        place[part] = value
    else:
        raise InputError(f"--set {override}: nothing can be set inside {place!r}, which is a plain value")


def _index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise InputError(f"--set {override}: {part} is not one of the {len(place)} entries (0 is the first)")
    return int(part)


def _describe(item: dict[str, Any], model: type[BaseModel], prefix: str) -> str:
    parts, models = _walk(model, item["loc"])
    key = ".".join(filter(None, [prefix, *map(str, parts)]))
    found = item["input"]
    if item["type"] == "extra_forbidden":
        known = sorted({name for kind in models for name in kind.model_fields})
        return f"{key}: unknown key{nearest(str(parts[-1]), known)}"
    if item["type"] == "missing":
        return f"{key}: missing; it has no default, so write one"
    if item["type"].startswith("union_tag"):
        tags = sorted(_tag(kind) for kind in models if _tag(kind))
        given = found.get("kind") if isinstance(found, dict) else found
        return f"{key}.kind = {given!r}: not one of the kinds{nearest(str(given), tags)}"
    said = item["msg"].removeprefix("Value error, ")
    if isinstance(found, (dict, list, tuple)) or not key:
        return f"{key}: {said}" if key else said
    return f"{key} = {found!r}: {said[0].lower()}{said[1:]}"


def _walk(model: type[BaseModel], path: Sequence[str | int]) -> tuple[list[str | int], list[type[BaseModel]]]:
    """Follow an error's path through nested models: the path as people write it, and the models there."""
    parts: list[str | int] = []
    models, parents = [model], [model]
    for part in path:
        tagged = [kind for kind in models if _tag(kind) == part]
        if tagged and parts and isinstance(parts[-1], int):
            models = parents = tagged
            continue
        parts.append(part)
        if isinstance(part, str):
            parents = models
            fields = [kind.model_fields[part] for kind in models if part in kind.model_fields]
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return parts, models or parents


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]


def _tag(model: type[BaseModel]) -> str:
    """The word that selects this member of a union by its `kind` field, or an empty string."""
    field = model.model_fields.get("kind")
    words = get_args(field.annotation) if field else ()
    return str(words[0]) if words else ""
