"""Conversations to learn from, in the layouts they are found in, as messages of the one chat template.

Layouts: OpenAI's messages, ShareGPT's from/value, Alpaca's instruction/input/output (and Dolly's and self-instruct's
variants of it), and a prompt with its completion or a question with its answer, which may also be lists of messages
(TRL). Which one a row has is told from its fields, so a folder may mix them.

Tools become text here: what there is, in the words of Llama 3.1's template, in front of the system message; a call as
the assistant's JSON, one a line; a result as what the role "tool" says. A row is kept or rejected with one of few
reasons, so that rows in = kept + rejected. Left out: images and audio, and weights between 0 and 1.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar, get_args

from behemoth.base.errors import InputError
from behemoth.base.rows import Place, Row, Wrong
from behemoth.text.chat import Message

Layout = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
Kept = TypeVar("Kept")

TURNS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query")
ANSWERS = ("completion", "output", "response", "answer")
KNOWN = (
    "messages or conversations (role and content, or from and value); instruction, input or context, output or "
    "response; prompt or question with completion, response or answer"
)
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}
FOLLOWS = {  # what may stand before a message
    "system": ("",),
    "user": ("", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
TOOLS = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call. "
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
    "Do not use variables.\n\n"
)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Conversation:
    """Messages in an order that can be trained on; at least one of the assistant's is to be learnt."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    licence: str = "unknown"


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why, in a few words that many rows share."""

    id: str
    why: str


@dataclass(frozen=True)
class Found(Generic[Kept]):
    """What a place held: every row is in one of the two lists, under an id that no other row has."""

    kept: list[Kept]
    rejected: list[Rejected]

    @property
    def total(self) -> int:
        return len(self.kept) + len(self.rejected)

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row.why for row in self.rejected)

    def __str__(self) -> str:
        reasons = ", ".join(f"{why} {count:,}" for why, count in self.reasons.most_common())
        return f"{len(self.kept):,} kept, {len(self.rejected):,} rejected" + (
            f" ({reasons})" if reasons else ""
        )


def read_conversations(
    place: Place,
    *,
    layout: str | None = None,
    licence: str = "unknown",
    limit: int | None = None,
    seed: int = 0,
) -> Found[Conversation]:
    """The conversations of a file, a folder or a data set; of self-instruct's rows, one per instance.

    layout: a `Layout`; None tells it from each row's fields. licence: of rows that name none. limit: that many rows,
    drawn with `seed`, in the order of the file. InputError: an unknown layout, a place that cannot be read, or
    one of which no row can be used.
    """
    check_layout(layout, get_args(Layout))

    def read(row: Row, name: str) -> Conversation:
        known = layout or _layout(row)
        messages = _turns(row) if known in ("messages", "sharegpt") else _single(row)
        return Conversation(name, checked(framed(row, messages)), *origin(row, licence))

    rows = [instance for row in place.rows() for instance in _instances(row)]
    return found(place, rows, read, KNOWN, limit, seed)


def check_layout(layout: str | None, known: Sequence[str]) -> None:
    if layout not in (None, *known):
        raise InputError(
            f"layout {layout!r} is not one of {', '.join(known)}; without one it is told from the fields"
        )


def found(
    place: Place,
    rows: Sequence[Row],
    read: Callable[[Row, str], Kept],
    known: str,
    limit: int | None,
    seed: int,
) -> Found[Kept]:
    """Each row read under an id of its own, or rejected for what `read` says is Wrong with it.

    InputError when not one is left; it says what fields are `known`.
    """
    named = list(zip(_ids(rows), rows, strict=True))
    if limit is not None and limit < len(named):
        named = [named[i] for i in sorted(random.Random(seed).sample(range(len(named)), limit))]
    both: Found[Kept] = Found([], [])
    for name, row in named:
        try:
            if row.problem:
                raise Wrong("unreadable row")
            both.kept.append(read(row, name))
        except Wrong as wrong:
            both.rejected.append(Rejected(name, str(wrong)))
    if not both.kept:
        first = rows[0].problem or f"the first one has {', '.join(rows[0].data) or 'nothing'}"
        raise InputError(f"{place}: no row can be used: {both}; {first}; fields that are read: {known}")
    return both


def origin(row: Row, licence: str) -> tuple[str, str]:
    """(source, licence), as the row names them; else the file's name and what was said of the whole place."""
    return _word(row, ("source", "dataset"), row.stem), _word(row, ("licence", "license"), licence)


def _word(row: Row, names: Sequence[str], default: str) -> str:
    """The first of these fields, where it can be written down."""
    value = next((str(row.data[name]) for name in names if isinstance(row.data.get(name), (str, int))), "")
    return value if value.strip() and not LONE_SURROGATE.search(value) else default


def _ids(rows: Sequence[Row]) -> Iterator[str]:
    """The id that each row brings, or its place in the file; one that was there before gets #2, #3 ..."""
    seen, times = set(), Counter[str]()
    for row in rows:
        name = own = _word(row, ("id", "idx"), row.name)
        while name in seen:
            times[own] += 1
            name = f"{own}#{times[own] + 1}"
        seen.add(name)
        yield name


# --- layouts ------------------------------------------------------------------------------------------------


def _layout(row: Row) -> Layout:
    if row.has("chosen") and row.has("rejected"):
        raise Wrong("a preference pair")
    if any(row.has(name) for name in TURNS):
        return "messages"
    if row.has("instruction"):
        return "alpaca"
    if any(map(row.has, PROMPTS)) and any(map(row.has, ANSWERS)):
        return "prompt_completion"
    raise Wrong("unknown layout")


def _instances(row: Row) -> list[Row]:
    """Self-instruct puts several inputs with their outputs under one instruction."""
    several = row.data.get("instances")
    if not isinstance(several, list) or not several or not all(isinstance(one, Mapping) for one in several):
        return [row]
    return [replace(row, data={**row.data, **one}) for one in several]


def _turns(row: Row) -> list[Message]:
    return messages_of(next((row.data[name] for name in TURNS if row.has(name)), None))


def _single(row: Row) -> list[Message]:
    """One question and its answer, after what LLaMA-Factory's `history` says went before."""
    answer = next((row.data[name] for name in ANSWERS if row.has(name)), None)
    if isinstance(answer, list):  # TRL: all of the prompt is given, all of the completion is learnt
        return [*(replace(m, learn=False) for m in question(row)), *messages_of(answer)]
    messages = [*question(row), Message("assistant", text_of(answer))]
    return [*_history(row.data.get("history")), *messages]


def _history(pairs: Any) -> list[Message]:
    pairs = pairs or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Wrong("not text")
    roles = ("user", "assistant")
    return [Message(role, text_of(text)) for pair in pairs for role, text in zip(roles, pair, strict=True)]


def question(row: Row) -> list[Message]:
    """What is asked: a prompt (a text, or messages), or an instruction with what it is to be applied to."""
    if not row.has("instruction"):
        prompt = next((row.data[name] for name in PROMPTS if row.has(name)), None)
        return messages_of(prompt) if isinstance(prompt, list) else [Message("user", text_of(prompt))]
    given = next((row.data[name] for name in ("input", "context") if row.has(name)), None)
    parts = [text_of(row.data["instruction"]), text_of(given)]
    return [Message("user", "\n\n".join(part for part in parts if part.strip()))]


# --- messages -----------------------------------------------------------------------------------------------


def messages_of(turns: Any) -> list[Message]:
    """Messages of OpenAI's or ShareGPT's kind; Wrong for an unknown role or a content that is not text."""
    turns = _parsed(turns, "not text") if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Wrong("not text")
    return [_message(turn) for turn in turns]


def _message(turn: Mapping[str, Any]) -> Message:
    name, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Wrong("unknown role")
    if turn.get("weight") not in (None, 0, 1):
        raise Wrong("weight neither 0 nor 1")
    if name == "function_call":
        said = _calls(content)
    elif role == "tool":
        said = [_result(content)]
    else:
        said = [text_of(content), *_calls(turn.get("tool_calls") or turn.get("function_call"))]
    return Message(role, "\n".join(text for text in said if text.strip()), learn=turn.get("weight") != 0)


def text_of(content: Any) -> str:
    """A text, or OpenAI's list of parts where all are text; nothing is an empty text."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else parts
    if content is None or isinstance(content, str):
        return content or ""
    raise Wrong("not text")


def framed(row: Row, messages: Sequence[Message]) -> list[Message]:
    """With the row's tools and system text as the first message; a system message of its own comes first."""
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    else:
        system = text_of(
            next((row.data[name] for name in ("system", "system_prompt") if row.has(name)), None)
        )
    lead = "\n\n".join(part for part in (_tools(row), system) if part.strip())
    return [Message("system", lead), *messages] if lead else list(messages)


def checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, if they can be trained on; Wrong with the reason if not."""
    before = ""
    for message in messages:
        if before not in FOLLOWS[message.role]:
            raise Wrong("roles out of order")
        if message.role != "tool" and not message.content.strip():  # a tool may well have nothing to say
            raise Wrong("empty answer" if message.role == "assistant" else "empty prompt")
        if LONE_SURROGATE.search(message.content):
            raise Wrong("lone surrogate")
        before = message.role
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise Wrong("no assistant turn")
    if not any(message.learn for message in answers):
        raise Wrong("nothing to learn")
    return tuple(messages)


# --- tools --------------------------------------------------------------------------------------------------


def _tools(row: Row) -> str:
    """The definitions in a row's `tools`, a list or JSON of one, as text; a definition a line."""
    tools = next((row.data[name] for name in ("tools", "functions") if row.has(name)), None) or []
    tools = _parsed(tools, "unreadable tools") if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Wrong("unreadable tools")
    return TOOLS + "\n".join(map(_json, tools)) if tools else ""


def _calls(calls: Any) -> list[str]:
    """Calls as OpenAI or ShareGPT write them, one or a list, or JSON of either, in Llama's writing."""
    calls = _parsed(calls, "unreadable tool call") if isinstance(calls, str) else calls
    return [_call(call) for call in (calls if isinstance(calls, list) else [calls] if calls else [])]


def _call(call: Any) -> str:
    call = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise Wrong("unreadable tool call")
    given = call.get("arguments", call.get("parameters")) or {}
    given = _parsed(given, "unreadable tool call") if isinstance(given, str) else given
    if not isinstance(given, Mapping):
        raise Wrong("unreadable tool call")
    return _json({"name": call["name"], "parameters": given})


def _result(content: Any) -> str:
    try:
        return text_of(content)
    except Wrong:  # a value, as programs return it
        return _json(content)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _parsed(text: str, why: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Wrong(why) from None
