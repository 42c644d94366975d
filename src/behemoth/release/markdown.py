"""Markdown and its YAML head, written so that the same values give the same bytes whatever is installed.

Text that a person wrote is shown as text: no markup, no HTML, no second line of theirs survives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MARKUP = re.compile(r"[\\`*\[\]|~$#]|(?<!\w)_|_(?!\w)")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "://": "&#58;//", "www.": "www&#46;", "@": "&#64;"}
PLAIN = re.compile(r"[a-z][a-z0-9_]*(?:[-.][a-z0-9_]+)*")
YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def printable(value: object) -> str:
    """On one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def words(value: object) -> str:
    """Text as text: what a page would make bold, a link, a cell or HTML of stays as it is written."""
    line = MARKUP.sub(lambda found: "\\" + found[0], printable(value))
    for mark, entity in ENTITIES.items():
        line = line.replace(mark, entity)
    return line


def code(value: object) -> str:
    """A short name as code, without what would end it, or a cell of a table."""
    return "`" + (re.sub(r"[^ -_a-{}~]", "", str(value)).strip() or " ") + "`"


def fenced(text: str, language: str = "") -> str:
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{ticks}{language}\n{text}\n{ticks}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def front_matter(data: Mapping[str, Any]) -> str:
    return "\n".join(["---", *_yaml(data), "---"])


def _yaml(value: Mapping[str, Any] | Sequence[Any], indent: str = "") -> Iterator[str]:
    """Block style; of YAML's scalars only those that are JSON's too, and plain words."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping | list):
                yield f"{indent}{key}:"
                yield from _yaml(inner, indent + "  ")
            else:
                yield f"{indent}{key}: {_scalar(inner)}"
        return
    for inner in value:
        first, *rest = _yaml(inner, indent + "  ") if isinstance(inner, Mapping) else [_scalar(inner)]
        yield f"{indent}- {first.strip()}"
        yield from rest


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and value not in YAML_WORDS
    if isinstance(value, str):
        return value if plain else json.dumps(printable(value), ensure_ascii=False)
    return json.dumps(value)
