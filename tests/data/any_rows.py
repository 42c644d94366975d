"""Rows that hold anything, under the fields that the readers know; and real files, counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from behemoth.base.rows import Place
from behemoth.data.conversations import Found

LEAVES = (
    st.none() | st.booleans() | st.sampled_from([0, 1.5, "", "x", "human", "gpt", "tool", "[{}]", "\ud83d"])
)
INNER = ["role", "from", "content", "value", "weight", "tool_calls", "function_call", "name"]
OUTER = [
    *("messages", "conversations", "instruction", "input", "output", "prompt", "answer", "tools", "history"),
    *(
        "instances",
        "id",
        "source",
        "system",
        "chosen",
        "rejected",
        "label",
        "response1",
        "response2",
        "annotator1",
    ),
]
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=8,
)
ANY_ROW = st.dictionaries(st.sampled_from(OUTER), VALUES, max_size=6)


def table(folder: Path, read: Callable[[Place], Found[Any]]) -> tuple[str, float]:
    """A line per file, and the share of rows that is kept where it is least; every row has to be accounted for."""
    if not folder.is_dir():
        pytest.skip(f"BEHEMOTH_DATA has no {folder.name}/")
    lines, shares = [], []
    for path in sorted(folder.iterdir()):
        rows, found = len(Place(path).rows()), read(Place(path))
        assert rows == found.total == len({row.id for row in [*found.kept, *found.rejected]})
        assert sum(found.reasons.values()) == len(found.rejected)
        lines.append(f"{path.name:36} {rows:6,} rows: {found}")
        shares.append(len(found.kept) / rows)
    return "\n".join(lines), min(shares)
