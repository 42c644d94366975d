"""Pairs of answers to one prompt, the better and the worse, in the layouts they are found in.

Anthropic's HH-RLHF (two transcripts that share a beginning), a prompt with a chosen and a rejected text, the same as
messages (TRL; with the prompt apart or inside both), ShareGPT's conversations with two last turns (LLaMA-Factory), and
two responses that people judged: PandaLM's annotators (1 or 2 is the better one, 0 a tie; the majority counts) and
Auto-J's label (0 or 1 is the better one, 2 a tie). Rows are kept or rejected as in `conversations.py`; a pair whose
better answer nobody can name, or whose prompts differ, is rejected. Left out: scores, and rankings of more than two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from behemoth.base.rows import Place, Row, Wrong
from behemoth.data.conversations import (
    PROMPTS,
    TURNS,
    Found,
    check_layout,
    checked,
    found,
    framed,
    messages_of,
    origin,
    question,
    text_of,
)
from behemoth.text.chat import Message

Layout = Literal["hh", "plain", "messages", "sharegpt", "judged"]

KNOWN = (
    "chosen and rejected (texts, transcripts or messages) with prompt, instruction or conversations; response1 and "
    "response2 with annotator1, annotator2 ... or label"
)
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
RESPONSES = (("response1", "response2"), ("response 1", "response 2"), ("response_1", "response_2"))


@dataclass(frozen=True)
class Pair:
    """Two different answers to one prompt; the prompt's last message is a user's or a tool's."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str = ""
    licence: str = "unknown"


def read_pairs(
    place: Place,
    *,
    layout: str | None = None,
    licence: str = "unknown",
    limit: int | None = None,
    seed: int = 0,
) -> Found[Pair]:
    """The pairs of a file, a folder or a data set; arguments and errors as of `read_conversations`."""
    check_layout(layout, get_args(Layout))

    def read(row: Row, name: str) -> Pair:
        chosen, rejected = _sides(row, layout or _layout(row))
        chosen, rejected = checked(framed(row, chosen)), checked(framed(row, rejected))
        *prompt, better = chosen
        *others, worse = rejected
        if better.role != "assistant" or worse.role != "assistant":
            raise Wrong("no assistant turn")
        if _said(prompt) != _said(others):
            raise Wrong("no common prompt")
        if _said([better]) == _said([worse]):
            raise Wrong("chosen equals rejected")
        return Pair(name, tuple(prompt), better.content, worse.content, *origin(row, licence))

    return found(place, place.rows(), read, KNOWN, limit, seed)


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """What the template makes of messages: it drops the white space around them."""
    return [(message.role, message.content.strip()) for message in messages]


def _layout(row: Row) -> Layout:
    if any(row.has(name) for pair in RESPONSES for name in pair):
        return "judged"
    if not (row.has("chosen") and row.has("rejected")):
        raise Wrong("unknown layout")
    if any(map(row.has, TURNS)):
        return "sharegpt"
    if isinstance(row.data["chosen"], list):
        return "messages"
    return "plain" if any(map(row.has, (*PROMPTS, "instruction"))) else "hh"


def _sides(row: Row, layout: str) -> tuple[Sequence[Message], Sequence[Message]]:
    """The whole conversation with the better answer, and that with the worse one."""
    sides = row.data.get("chosen"), row.data.get("rejected")
    match layout:
        case "hh":
            return _transcript(sides[0]), _transcript(sides[1])
        case "messages":
            return _whole(row, sides[0]), _whole(row, sides[1])
        case "sharegpt":
            before = messages_of(next((row.data[name] for name in TURNS if row.has(name)), None))
            return [*before, *messages_of([sides[0]])], [*before, *messages_of([sides[1]])]
    texts = _judged(row) if layout == "judged" else sides
    better, worse = ([*question(row), Message("assistant", text_of(text))] for text in texts)
    return better, worse


def _transcript(text: Any) -> list[Message]:
    """HH-RLHF: an empty line, "Human:" or "Assistant:", and what they say."""
    lead, *parts = re.split(r"\n\n(Human|Assistant):", text_of(text))
    if lead.strip() or not parts:
        raise Wrong("not a transcript")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(SPEAKERS[speaker], said.strip()) for speaker, said in turns]


def _whole(row: Row, side: Any) -> list[Message]:
    """TRL: answers after a prompt of their own field, or conversations that hold it."""
    messages = messages_of(side)
    return messages if any(m.role != "assistant" for m in messages) else [*question(row), *messages]


def _judged(row: Row) -> tuple[Any, Any]:
    """(the better response, the worse); Wrong for a tie, or without a verdict."""
    names = next((pair for pair in RESPONSES if all(map(row.has, pair))), RESPONSES[0])
    responses = [row.data.get(name) for name in names]
    annotators = [row.data[name] for name in row.data if re.fullmatch(r"annotator_?\d+", name)]
    verdicts = [str(verdict) for verdict in annotators or [row.data.get("label")]]
    first, second, tie = ("1", "2", "0") if annotators else ("0", "1", "2")
    if not set(verdicts) <= {first, second, tie}:
        raise Wrong("unknown label")
    [(verdict, votes)] = Counter(verdicts).most_common(1)
    if 2 * votes <= len(verdicts):
        raise Wrong("no majority")
    if verdict == tie:
        raise Wrong("a tie")
    better, worse = responses if verdict == first else responses[::-1]
    return better, worse
