"""One chat template, used by everything that formats a conversation.

Llama 4's: `<|begin_of_text|>`, then per message `<|header_start|>role<|header_end|>`, an empty line, the
content, `<|eot|>`. White space around a content is dropped, as Llama 3 does: the reply then begins with the
same token when it is trained on and when it is sampled after the empty line. The same rules stand in code,
for ids that no text can forge, and in Jinja, for the exported directory. Tool calls and images are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from behemoth.base.errors import InputError

if TYPE_CHECKING:  # the tokenizer writes JINJA beside itself, so it imports this module
    from behemoth.text.tokenizer import Tokenizer

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}
CHAT_TOKENS = ("<|header_start|>", "<|header_end|>", "<|eot|>")

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


@dataclass(frozen=True)
class Message:
    """What one side says; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as ids; `mask` is 1 on what the assistant learns to say, its `<|eot|>` included."""

    ids: list[int]
    mask: list[int]


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False
) -> ChatTokens:
    """Format a conversation; `generation_prompt` opens the assistant's next message.

    InputError for an unknown role, or a tokenizer that lacks the template's special tokens.
    """
    if not tokenizer.can_chat:
        raise InputError(f"this tokenizer cannot format a chat: it lacks one of {', '.join(CHAT_TOKENS)}")
    ids, mask = [tokenizer.bos_id], [0]
    for message in messages:
        header = _header(tokenizer, message.role)
        said = [*tokenizer.encode(message.content.strip()), tokenizer.special_tokens["<|eot|>"]]
        ids += header + said
        mask += [0] * len(header) + [int(message.role == "assistant")] * len(said)
    if generation_prompt:
        opening = _header(tokenizer, "assistant")
        ids, mask = ids + opening, mask + [0] * len(opening)
    return ChatTokens(ids, mask)


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; roles are {', '.join(ROLES)}")
    start, end = (tokenizer.special_tokens[name] for name in ("<|header_start|>", "<|header_end|>"))
    return [start, *tokenizer.encode(ROLES[role]), end, *tokenizer.encode("\n\n")]
