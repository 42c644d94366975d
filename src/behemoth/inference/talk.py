"""Text in, text out, a piece at a time: one completion, or a conversation in a terminal.

A token is some bytes, not some characters: what arrives is held back until its bytes are whole characters, so
a stream never shows half of one. Before post-training a model does not answer, it goes on with what it is
given; the conversation says so, and takes each line as a text to complete. When a conversation no longer fits
the context its oldest turns are left out, with a notice. Left out: system messages, tools, several answers to
choose from.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator

from behemoth.base.errors import InputError
from behemoth.inference.engine import Engine, Token
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

HELP = "/reset forgets the conversation, /quit (or end of input) leaves, Ctrl-C ends an answer.\n"
ALONE = "This model was taught one question at a time: every line stands alone.\n"
UNTRAINED = "This model has not been post-trained: it goes on with your text instead of answering it.\n"


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[str]:
    """What the model writes after `prompt`, up to a stop token; by default to the end of the context.

    Raises InputError, at the call, when the prompt is longer than the context.
    """
    tokens = engine.stream(
        [tokenizer.bos_id, *tokenizer.encode(prompt)],
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop_ids=tokenizer.stop_ids,
    )
    return pieces(tokenizer, tokens)


def pieces(tokenizer: Tokenizer, tokens: Iterable[Token]) -> Iterator[str]:
    """Tokens as text, in whole characters; bytes that never become one end as U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.decode_bytes([token.id])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def chat_loop(
    engine: Engine,
    tokenizer: Tokenizer,
    read: Callable[[], str | None],
    write: Callable[[str], None],
    *,
    turns: int,
    max_tokens: int = 512,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> None:
    """Talk until /quit or the end of input (`read` gives None).

    turns: the most questions in a conversation that the model was taught to answer; 0, and it goes on with each
    line as with a text. It is given its last `turns` questions, in the chat template, as far as the context holds
    them. Ctrl-C ends an answer; what was said of it stays in the conversation.
    """
    write((UNTRAINED if not turns else ALONE if turns == 1 else "") + HELP)
    messages: list[Message] = []
    asked = 0
    while (line := read()) is not None:
        match line.strip():
            case "":
                continue
            case "/quit":
                return
            case "/help":
                write(HELP)
                continue
            case "/reset":
                messages = []
                write("The conversation is forgotten.\n")
                continue
        conversation = [*messages, Message("user", line)]
        try:
            if turns:
                conversation = conversation[1 - 2 * turns :]
                prompt, conversation = fit(engine, tokenizer, conversation, max_tokens, write)
            else:
                prompt = [tokenizer.bos_id, *tokenizer.encode(line)]
            tokens = engine.stream(
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed + asked,
                stop_ids=tokenizer.stop_ids,
            )
        except InputError as error:  # this line cannot be used; the next one may
            write(f"{error}\n")
            continue
        messages = [*conversation, Message("assistant", say(pieces(tokenizer, tokens), write))]
        asked += 1


def fit(
    engine: Engine,
    tokenizer: Tokenizer,
    messages: list[Message],
    max_tokens: int,
    write: Callable[[str], None],
) -> tuple[list[int], list[Message]]:
    """The conversation as a prompt that leaves room for an answer, and the turns that are in it.

    Room is max_tokens, or a quarter of the context where that is less. Turns are left out oldest first, a
    question with its answer; the last question stays whatever its length.
    """
    most = engine.context - min(max_tokens, engine.context // 4)
    kept = messages
    while True:
        prompt = encode_chat(tokenizer, kept, generation_prompt=True).ids
        if len(prompt) <= most or len(kept) == 1:
            break
        kept = kept[2:]
    if len(kept) < len(messages):
        write(
            f"[the context of {engine.context} tokens is full: the oldest turns are left out from here on]\n"
        )
    return prompt, kept


def say(text: Iterator[str], write: Callable[[str], None]) -> str:
    """Write the pieces as they come; gives all that was written before the end or Ctrl-C."""
    said = []
    try:
        for piece in text:
            said.append(piece)
            write(piece)
    except KeyboardInterrupt:
        write(" [stopped]")
    write("\n")
    return "".join(said)
