"""Questions about code, made of the text that training read."""

import json

import pytest

from behemoth.data.code_pairs import code_pairs, training_documents
from behemoth.data.corpus import Corpus
from behemoth.data.prepare import prepare
from behemoth.data.sources import FilesSource
from behemoth.text.chat import Message
from behemoth.text.tokenizer import Tokenizer

MODULE = '''\
import os
FEED = "\x0c"

class Pool:
    def drain(self, *, slowly: bool = False,
              twice=True) -> int:
        """Let all water
        out.

        Second paragraph.
        """
        # what is under a docstring
        total = self.level
        if slowly:
            total -= 1
        return total

if os.name:
    async def fill(pool): "Fill it."
    def bare(x):
        return x
    def one(): "On one line."; return 1
    def same(self):
        """Let all water out."""

        @wraps(self)
        def inner():
            """Inside."""
            pass
        return inner

try:
    import fast
except ImportError:
    def slow(x):
        """Without help."""
'''
DRAIN = "def drain(self, *, slowly: bool=False, twice=True) -> int:"


def asked(documents, limit=99, longest=500, seed=0):
    found = code_pairs(documents, limit, longest, seed, licence="MIT")
    assert all([m.role for m in each.messages] == ["user", "assistant"] for each in found)
    return {each.id: tuple(m.content for m in each.messages) for each in found}


def test_a_function_gives_its_docstring_signature_and_body():
    pairs = asked([("pool.py", MODULE)])
    name = "pool.py:5:Pool.drain"
    assert pairs[f"{name}:docstring"] == (f"What does this do?\n\n{DRAIN}", "Let all water out.")
    body = "total = self.level\nif slowly:\n    total -= 1\nreturn total"
    assert pairs[f"{name}:body"] == (f'Write the body.\n\n{DRAIN}\n    """Let all water out."""', body)
    fill = "pool.py:19:fill"
    assert pairs[f"{fill}:signature"] == ("Write the signature.\n\nFill it.", "async def fill(pool):")
    assert pairs["pool.py:35:slow:docstring"][1] == "Without help."
    wrapped = '@wraps(self)\ndef inner():\n    """Inside."""\n    pass\nreturn inner'
    assert pairs["pool.py:23:same:body"][1] == wrapped
    assert pairs["pool.py:27:same.inner:body"][1] == "pass"
    kinds = {(n.split(":")[2], n.split(":")[3]) for n in pairs}
    assert not {("fill", "body"), ("one", "body")} & kinds and not [n for n, _ in kinds if n == "bare"]


def test_an_answer_is_python_again():
    for name, (question, answer) in asked([("pool.py", MODULE)]).items():
        kind = name.split(":")[-1]
        if kind == "signature":
            compile(f"{answer} ...", name, "exec")
        if kind == "body":
            head = question.split("\n\n", 1)[1]
            compile(head + "\n" + "\n".join("    " + line for line in answer.splitlines()), name, "exec")


def test_no_question_comes_twice():
    """Two functions let all water out: which of them is meant cannot be known."""
    pairs = asked([("a.py", MODULE), ("b.py", MODULE)])
    assert len({question for question, _ in pairs.values()}) == len(pairs)
    assert sum(answer == DRAIN or answer == "def same(self):" for _, answer in pairs.values()) == 1
    assert {name.split(":")[0] for name in pairs} == {"a.py"}


def test_limits_and_seed():
    documents = [(f"{i}.py", f'def f{i}(x):\n    """Number {i}."""\n    return {i}\n') for i in range(20)]
    read = []
    first = asked(((read.append(name), (name, text))[1] for name, text in documents), limit=7)
    assert len(first) == 7 and len(read) <= 4
    assert first == asked(documents, limit=7) != asked(documents, limit=7, seed=1)
    every = asked(documents)
    longest = sorted(len(question) + len(answer) for question, answer in every.values())
    short = asked(documents, longest=longest[9])
    assert set(short.items()) == {i for i in every.items() if len("".join(i[1])) <= longest[9]} != set()


@pytest.mark.parametrize(
    "text", ["def broken(:\n", "def \0x(): 'a'", "Prose that has a def in it.", "", "x = 1"]
)
def test_what_is_not_python_is_passed_over(text):
    good = ("good.py", 'def f():\n    """Do."""\n    return "\\d"\n')
    assert len(asked([("bad", text), good])) == 3


def test_where_it_came_from_is_kept():
    found = code_pairs([("pool.py", MODULE)], 1, 500, 0, licence="MIT")
    assert (found[0].source, found[0].licence) == ("code", "MIT")
    assert found[0].messages[0] == Message("user", found[0].messages[0].content)


def test_only_what_training_reads_is_read(tmp_path, prose):
    for name, seeds in (("one", range(40)), ("two", range(40, 60))):
        lines = [json.dumps({"id": f"{name}{i}", "text": prose(i, 16)}) for i in seeds]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [FilesSource(tmp_path / f"{name}.jsonl", name=name) for name in ("one", "two")]
    prepare(sources, tmp_path / "data", tokenizer_directory=tmp_path / "t", vocab_size=384)
    corpus, tokenizer = Corpus.open(tmp_path / "data"), Tokenizer.load(tmp_path / "t")
    documents = list(training_documents(corpus, tokenizer))
    held_out = {document.id for document in corpus.held_out()}
    names = [name for name, _ in documents]
    wanted = {f"one{i}" for i in range(40)} | {f"two{i}" for i in range(40, 60)}
    assert len(names) == len(set(names)) and held_out and set(names) == wanted - held_out
    assert all(text == prose(int(name[3:]), 16) for name, text in documents)
    assert names != sorted(names) and names != [
        name for name, _ in training_documents(corpus, tokenizer, seed=1)
    ]
