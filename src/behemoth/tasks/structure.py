"""Grading the form of an output: a pattern that all of it matches, or JSON of a given structure.

The item's facts say which: `pattern`, a regular expression (`(?s).*<answer>.+</answer>`), or `schema`, the plain
part of JSON Schema (2020-12) named in `KEYWORDS`. A schema that asks for more is not half-checked: the grade is
None and says which keyword was not understood. A pattern may take time without end on an unlucky text, so it is
matched by the `regex` package, which can be given a limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from behemoth.tasks.task import Grade, Item, Undecidable

SECONDS = 2.0
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
KEYWORDS = {
    *("type", "enum", "const", "required", "properties", "additionalProperties", "items"),
    *("minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"),
}
NOTES = {"$schema", "$id", "title", "description", "examples", "default"}  # they demand nothing


def matches_format(item: Item, output: str) -> Grade:
    """Whether the whole output, spaces around it aside, has the form that the item's facts ask for."""
    text = output.strip()
    try:
        if "pattern" in item.facts:
            wrong = _differs_from_pattern(item.facts["pattern"], text)
        elif "schema" in item.facts:
            wrong = _differs_from_schema(item.facts["schema"], text)
        else:
            return Grade(None, "the item needs a pattern or a schema in its facts")
    except Undecidable as error:
        return Grade(None, str(error))
    return Grade(0.0 if wrong else 1.0, wrong, text[:200])


def _differs_from_pattern(pattern: Any, text: str) -> str:
    try:
        import regex
    except ImportError as error:
        raise Undecidable("patterns need the package regex: pip install regex") from error
    try:
        found = regex.fullmatch(pattern, text, timeout=SECONDS)
    except TimeoutError as error:
        raise Undecidable(f"the pattern took more than {SECONDS:g} s on this output") from error
    except (regex.error, TypeError) as error:
        raise Undecidable(f"{pattern!r} is not a regular expression: {error}") from error
    return "" if found else "the pattern does not match"


def _differs_from_schema(schema: Any, text: str) -> str:
    text = text.removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # a reader may limit the depth (RFC 8259, section 9)
        return f"not JSON: {error}"
    return departure(value, schema)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def departure(value: Any, schema: Any, where: str = "$") -> str:
    """The first way in which a value is not what its schema asks for; "" where it is."""
    if not isinstance(schema, Mapping):
        raise Undecidable(f"the schema at {where} is not an object")
    if unknown := sorted(set(schema) - KEYWORDS - NOTES):
        raise Undecidable(f"the schema asks for {', '.join(unknown)}, which is not checked here")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if unknown := sorted(set(kinds) - set(TYPES)):
        raise Undecidable(f"the schema knows a type {', '.join(unknown)}, JSON does not")
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{where} is not of type {' or '.join(kinds)}"
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return f"{where} is none of the values allowed"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{where} is not {schema['const']!r}"
    if isinstance(value, dict):
        return _object_departs(value, schema, where)
    if isinstance(value, list):
        items = schema.get("items", {})
        parts = (departure(part, items, f"{where}[{place}]") for place, part in enumerate(value))
        return _outside(len(value), schema, "Items", where) or next(filter(None, parts), "")
    if isinstance(value, str):
        return _outside(len(value), schema, "Length", where)
    return _outside(value, schema, "imum", where) if _is(value, "number") else ""


def _object_departs(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> str:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} has no {name!r}"
    for name, part in value.items():
        if name not in properties and others is False:
            return f"{where} has {name!r}, which is not asked for"
        inner = properties.get(name, {} if isinstance(others, bool) else others)
        if wrong := departure(part, inner, f"{where}.{name}"):
            return wrong
    return ""


def _outside(size: float, schema: Mapping[str, Any], what: str, where: str) -> str:
    low, high = schema.get(f"min{what}", size), schema.get(f"max{what}", size)
    return "" if low <= size <= high else f"{where} is too {'small' if size < low else 'large'}"


def _is(value: Any, kind: str) -> bool:
    """JSON's types, which are not Python's: true is no number, 1.0 is an integer."""
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (
        kind == "integer" and isinstance(value, float) and value.is_integer()
    )


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
