"""Conversations made from Python text that training has read: what a function is for, how it is called, its body.

Functions with a docstring are natural pairs of language and code (CodeSearchNet, arXiv 1909.09436). Each gives up
to three: signature to docstring, signature and docstring to body, docstring to signature. A base model has seen
all of it as running text, so little is to be learnt here but to answer when asked, and to stop.

Leaves out: classes and modules, decorators, comments between docstring and body, whatever does not parse. Only the
first paragraph of a docstring is used.
"""

from __future__ import annotations

import ast
import io
import random
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator

import numpy as np

from behemoth.base.mixing import mix_keys
from behemoth.data.conversations import Conversation
from behemoth.data.corpus import Corpus
from behemoth.data.mixture import permute
from behemoth.text.chat import Message
from behemoth.text.tokenizer import Tokenizer

Function = ast.FunctionDef | ast.AsyncFunctionDef


def training_documents(corpus: Corpus, tokenizer: Tokenizer, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Id and text of every document that training reads, each once, in an order of `seed`; none that is held out."""
    parts = corpus.training()
    borders = np.cumsum([len(part.lengths) for part in parts])
    names = [[record["id"] for record in part.records()] for part in parts]
    for place in permute(np.arange(borders[-1]), int(borders[-1]), mix_keys(seed, 5)).tolist():
        which = int(np.searchsorted(borders, place, side="right"))
        number = place - int(borders[which]) + len(names[which])
        yield names[which][number], tokenizer.decode(parts[which].document(number).tolist())


def code_pairs(
    documents: Iterable[tuple[str, str]], limit: int, longest: int, seed: int, licence: str = "unknown"
) -> list[Conversation]:
    """At most `limit` conversations of at most `longest` characters, out of documents given as (id, text).

    A document's are in an order of `seed`; no question comes twice; reading stops when there are enough. An id is
    document:line:function:kind, the kind one of docstring, signature, body (what is to be answered).
    """
    made: dict[str, Conversation] = {}  # by question
    for name, text in documents:
        found = list(_conversations(name, text, licence))
        random.Random(f"{seed} {name}").shuffle(found)
        for conversation in found:
            if len(made) == limit:
                return list(made.values())
            question, answer = (message.content for message in conversation.messages)
            if len(question) + len(answer) <= longest:
                made.setdefault(question, conversation)
    return list(made.values())


def _conversations(name: str, text: str, licence: str) -> Iterator[Conversation]:
    lines = io.StringIO(text, newline=None).readlines()  # where `ast` ends lines, not at every form feed
    for path, node in _functions(text):
        for kind, question, answer in _questions(node, lines):
            messages = (Message("user", question), Message("assistant", answer))
            yield Conversation(f"{name}:{node.lineno}:{path}:{kind}", messages, "code", licence)


def _functions(text: str) -> Iterator[tuple[str, Function]]:
    """Every function of a module with the names it lies under; none where the text is not Python."""
    if "def " not in text:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the text's own escapes deserve
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    for path, parent in waiting:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, Function):
                yield path + node.name, node
            if isinstance(node, Function | ast.ClassDef):
                waiting.append((f"{path}{node.name}.", node))
            elif isinstance(node, ast.stmt | ast.excepthandler):
                waiting.append((path, node))


def _questions(node: Function, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Kind, question and answer."""
    purpose = _purpose(node)
    if not purpose:
        return
    signature = _signature(node)
    yield "docstring", f"What does this do?\n\n{signature}", purpose
    yield "signature", f"Write the signature.\n\n{purpose}", signature
    if body := _body(node, lines):
        yield "body", f'Write the body.\n\n{signature}\n    """{purpose}"""', body


def _purpose(node: Function) -> str:
    """The first paragraph of the docstring on one line."""
    paragraph = (ast.get_docstring(node) or "").strip().split("\n\n")[0]
    return re.sub(r"\s+", " ", paragraph)


def _signature(node: Function) -> str:
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{start} {node.name}({ast.unparse(node.args)}){returns}:"


def _body(node: Function, lines: list[str]) -> str:
    """The statements after the docstring as they stand, less their indent; "" where they do not lie on lines of
    their own."""
    if len(node.body) < 2:
        return ""
    docstring, first = node.body[:2]
    begin = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    if begin <= (docstring.end_lineno or begin):
        return ""
    body = textwrap.dedent("".join(lines[begin - 1 : node.end_lineno])).strip("\n")
    return "" if body[:1].isspace() else body
