"""One chat template, used by everything that formats a conversation.

Llama 4's: `<|begin_of_text|>`, then per message `<|header_start|>role<|header_end|>`, an empty line, the
content, `<|eot|>`; Llama 3's is the same with `<|start_header_id|>`, `<|end_header_id|>`, `<|eot_id|>`, and which
of the two is used follows from the tokenizer. White space around a content is dropped, as Llama 3 does: the reply
then begins with the same token when it is trained on and when it is sampled after the empty line. The same rules
stand in code, for ids that no text can forge, and in Jinja, for the exported directory.

The template knows texts only: what tools there are, and calls of them, are written into the messages when a file
is read (`data/conversations.py`). The date that Llama 3.1 puts into every system message, and images, are left out.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from behemoth.base.errors import InputError

if TYPE_CHECKING:  # the tokenizer writes the Jinja beside itself, so it imports this module
    from behemoth.text.tokenizer import Tokenizer

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}


class ChatNames(NamedTuple):
    """The special tokens around a message: before its role, after it, and at its end."""

    start: str
    end: str
    eot: str


LLAMA4 = ChatNames("<|header_start|>", "<|header_end|>", "<|eot|>")
LLAMA3 = ChatNames("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class Message:
    """What one side says; `role` is system, user, assistant or tool.

    learn: whether an assistant's message is trained on; of the other roles nothing ever is.
    """

    role: str
    content: str
    learn: bool = True


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as ids; `mask` is 1 on what the assistant learns to say, the end of its message included."""

    ids: list[int]
    mask: list[int]


def chat_names(special_tokens: Container[str]) -> ChatNames | None:
    """Which of the two sets a vocabulary has; None where it has neither, and cannot format a chat."""
    return next((names for names in (LLAMA4, LLAMA3) if all(name in special_tokens for name in names)), None)


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False
) -> ChatTokens:
    """Format a conversation; `generation_prompt` opens the assistant's next message.

    InputError for an unknown role, or a tokenizer that lacks the template's special tokens.
    """
    names = chat_names(tokenizer.special_tokens)
    if names is None:
        needed = " or ".join(", ".join(names) for names in (LLAMA4, LLAMA3))
        raise InputError(f"this tokenizer cannot format a chat: it has not all of {needed}")
    eot = tokenizer.special_tokens[names.eot]
    ids, mask = [tokenizer.bos_id], [0]
    for message in messages:
        header = _header(tokenizer, names, message.role)
        said = [*tokenizer.encode(message.content.strip()), eot]
        ids += header + said
        mask += [0] * len(header) + [int(message.role == "assistant" and message.learn)] * len(said)
    if generation_prompt:
        opening = _header(tokenizer, names, "assistant")
        ids, mask = ids + opening, mask + [0] * len(opening)
    return ChatTokens(ids, mask)


def _header(tokenizer: Tokenizer, names: ChatNames, role: str) -> list[int]:
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; roles are {', '.join(ROLES)}")
    start, end = tokenizer.special_tokens[names.start], tokenizer.special_tokens[names.end]
    return [start, *tokenizer.encode(ROLES[role]), end, *tokenizer.encode("\n\n")]


def jinja(names: ChatNames) -> str:
    """The template as transformers and others read it."""
    template = JINJA
    for ours, theirs in zip(LLAMA4, names, strict=True):
        template = template.replace(ours, theirs)
    return template


JINJA = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('unknown role ' + message['role'] + '; roles are system, user, assistant, tool') }}
{%- endif %}
{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
{{- '<|header_start|>' + role + '<|header_end|>\\n\\n' }}
{{- message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}"""
