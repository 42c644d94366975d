"""Which passage really follows this one? A task made of any held-out text, for models too small for exams.

A document is cut at evenly spread points. The model reads what stands before the cut, and rates four passages of
exactly the same length: the true next one, and three from other documents. All begin and end at word borders,
after a single space, so that neither length nor a torn word tells them apart. As in SWAG and HellaSwag (Zellers
et al. 2018, 2019), but nothing is written by a machine: the false endings are somebody else's true ones.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence

from behemoth.base.errors import InputError
from behemoth.tasks.task import Item, Task, spread

CHOICES = 4
SHORTEST_PROMPT = 60  # characters; less before the cut says too little about what follows
LONGEST = 1.3  # of the wanted length, where a passage would end within a word
ATTEMPTS = 50  # documents, and places in each, that are tried for a false passage of the same length
CUT = re.compile(r"(?<=\S) (?=\S)")


def next_passage(
    documents: Sequence[tuple[str, str]],
    seed: int = 0,
    per_document: int = 8,
    passage_chars: int = 100,
    prompt_chars: int = 300,
    limit: int | None = None,
    name: str = "next_passage",
    source: str = "",
    licence: str = "unknown",
) -> Task:
    """A task from (id, text) pairs; a document with room for `per_document` passages gives so many items."""
    draw = random.Random(f"next passage {seed}")
    texts = [(identity, text, [m.start() for m in CUT.finditer(text)]) for identity, text in documents]
    items = []
    for identity, text, cuts in texts:
        for count, cut in enumerate(_spread(cuts, len(text), per_document, passage_chars, draw), 1):
            true = text[cut : _end(text, cut + passage_chars)]
            false = _false_passages(true, text, texts, draw)
            if len(true) > LONGEST * passage_chars or len(false) < CHOICES - 1:
                continue
            choices = [true, *false]
            draw.shuffle(choices)
            prompt = text[_word_start(text, max(0, cut - prompt_chars)) : cut]
            items.append(
                Item(
                    f"{identity}#{count}", prompt, tuple(choices), gold=choices.index(true), cluster=identity
                )
            )
    items = spread(items, limit, seed)
    if not items:
        raise InputError(
            f"no passages can be cut from {len(texts):,} documents: {CHOICES} or more are needed, "
            f"with {SHORTEST_PROMPT + passage_chars} characters of prose each"
        )
    return Task(name, "choice", tuple(items), "accuracy", chance=1 / CHOICES, source=source, licence=licence)


def _spread(cuts: Sequence[int], length: int, count: int, passage: int, draw: random.Random) -> list[int]:
    """Cuts whose passages do not overlap: one drawn from the front of each stretch of the text."""
    room = length - SHORTEST_PROMPT
    count = min(count, max(0, int(room / (1.5 * passage))))
    chosen = []
    for number in range(count):
        low = SHORTEST_PROMPT + room * number // count
        high = SHORTEST_PROMPT + room * (number + 1) // count - int(LONGEST * passage)
        inside = cuts[bisect_left(cuts, low) : bisect_left(cuts, high)]
        if inside:
            chosen.append(draw.choice(inside))
    return chosen


def _false_passages(
    true: str, own: str, texts: Sequence[tuple[str, str, list[int]]], draw: random.Random
) -> list[str]:
    """Passages of other documents, each from another one, exactly as long as the true one."""
    found: list[str] = []
    for number in draw.sample(range(len(texts)), min(len(texts), ATTEMPTS)):
        _, text, cuts = texts[number]
        if text == own:
            continue
        starts = draw.sample(cuts, min(len(cuts), ATTEMPTS))
        start = next((cut for cut in starts if _ends_a_word(text, cut + len(true))), None)
        passage = true if start is None else text[start : start + len(true)]
        if passage != true and passage not in found:
            found.append(passage)
        if len(found) == CHOICES - 1:
            break
    return found


def _end(text: str, place: int) -> int:
    """The first end of a word at or after a place."""
    while place < len(text) and not text[place].isspace():
        place += 1
    return place


def _word_start(text: str, place: int) -> int:
    while 0 < place < len(text) and not text[place - 1].isspace():
        place += 1
    return place


def _ends_a_word(text: str, place: int) -> bool:
    return (
        place <= len(text) and (place == len(text) or text[place].isspace()) and not text[place - 1].isspace()
    )
