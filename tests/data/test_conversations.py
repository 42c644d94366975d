"""Every layout on small rows written here, and on the real files where they are."""

import gzip
import json

import pytest
import zstandard
from any_rows import ANY_ROW, table
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import InputError
from behemoth.base.rows import Place
from behemoth.data.conversations import TOOLS, Found, read_conversations
from behemoth.text.chat import Message

ASKED, ANSWERED = Message("user", "1 + 2?"), Message("assistant", "3")
TALK = [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}]
SAID = [{"from": "human", "value": "1 + 2?"}, {"from": "gpt", "value": "3"}]
ADD = {"name": "add", "description": "a + b", "parameters": {}}
CALL = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
CALLED = '{"name": "add", "parameters": {"a": 1, "b": 2}}'


@pytest.fixture
def read(tmp_path):
    def read(*rows, name="some.jsonl", **more) -> Found:
        (tmp_path / name).write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return read_conversations(Place(tmp_path / name), **more)

    return read


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"messages": [{**TALK[0], "content": [{"type": "text", "text": "1 + 2?"}]}, TALK[1]]},
        {"messages": json.dumps(TALK)},
        {"conversations": SAID},
        {"conversations": TALK, "system": ""},
        {"instruction": "1 + 2?", "input": "", "output": "3"},
        {"instruction": "1 + 2?", "context": None, "response": "3"},
        {"instruction": "1 + 2?", "instances": [{"input": "", "output": "3"}]},
        {"prompt": "1 + 2?", "completion": "3"},
        {"question": "1 + 2?", "answer": "3"},
        {"prompt": TALK[:1], "completion": TALK[1:]},
    ],
)
def test_one_conversation_in_every_layout(read, row):
    (conversation,) = read(row).kept
    assert [(m.role, m.content) for m in conversation.messages] == [("user", "1 + 2?"), ("assistant", "3")]
    assert (conversation.id, conversation.source, conversation.licence) == ("some:1", "some", "unknown")


def test_a_row_brings_its_id_its_source_and_its_licence(read):
    row = {"messages": TALK, "id": 7, "dataset": "sums", "license": "CC0-1.0"}
    (conversation,) = read(row, licence="MIT").kept
    assert (conversation.id, conversation.source, conversation.licence) == ("7", "sums", "CC0-1.0")


def test_an_instruction_stands_before_its_input_and_after_what_was_said(read):
    row = {
        "instruction": "Add.",
        "input": "1, 2",
        "output": "3",
        "history": [["Hi.", "Hello."]],
        "system": "Sum.",
    }
    assert [m.content for m in read(row).kept[0].messages] == ["Sum.", "Hi.", "Hello.", "Add.\n\n1, 2", "3"]


def test_what_is_learnt(read):
    weighed = [*TALK, TALK[0], {**TALK[1], "weight": 0}]
    trl = {"prompt": [*TALK, TALK[0]], "completion": TALK[1:]}
    first, second = read({"messages": weighed}, trl).kept
    assert [m.learn for m in first.messages if m.role == "assistant"] == [True, False]
    assert [m.learn for m in second.messages if m.role == "assistant"] == [False, True]


OPENAI = [
    {"role": "developer", "content": "Sum."},
    TALK[0],
    {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "x", "content": "3"},
    TALK[1],
]
SHAREGPT = [
    SAID[0],
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": 3},
    SAID[1],
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": OPENAI, "tools": [ADD]},
        {
            "messages": [*OPENAI[:2], {"role": "assistant", "function_call": CALL}, *OPENAI[3:]],
            "functions": [ADD],
        },
        {"conversations": SHAREGPT, "system": "Sum.", "tools": json.dumps([ADD])},
    ],
)
def test_tools_and_calls_become_text(read, row):
    assert list(read(row).kept[0].messages) == [
        Message("system", f"{TOOLS}{json.dumps(ADD)}\n\nSum."),
        ASKED,
        Message("assistant", CALLED),
        Message("tool", "3"),
        ANSWERED,
    ]


def test_several_calls_are_answered_one_after_the_other(read):
    calls = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"function": CALL}, {"function": CALL}],
    }
    result = {"role": "tool", "content": [{"type": "text", "text": "3"}]}
    said = read({"messages": [TALK[0], calls, result, result, TALK[1]]}).kept[0].messages
    assert [m.content for m in said] == ["1 + 2?", f"Let me see.\n{CALLED}\n{CALLED}", "3", "3", "3"]


BAD = {
    "unreadable row": "{",
    "unknown layout": {"text": "3"},
    "a preference pair": {"conversations": SAID, "chosen": SAID[1], "rejected": SAID[1]},
    "unknown role": {"messages": [{"role": ["user"], "content": "1"}, TALK[1]]},
    "not text": {"question": "1 + 2?", "answer": 3},
    "weight neither 0 nor 1": {"messages": [TALK[0], {**TALK[1], "weight": 0.5}]},
    "roles out of order": {"messages": [TALK[0], TALK[0], TALK[1]]},
    "empty prompt": {"instruction": " ", "output": "3"},
    "empty answer": {"instruction": "1 + 2?", "input": "", "output": "\n"},
    "lone surrogate": '{"question": "1 + 2?", "answer": "\\ud83d"}',
    "no assistant turn": {"messages": TALK[:1]},
    "nothing to learn": {"messages": [TALK[0], {**TALK[1], "weight": 0}]},
    "unreadable tools": {"messages": TALK, "tools": "{"},
    "unreadable tool call": {"conversations": [SAID[0], {"from": "function_call", "value": "add(1, 2)"}]},
}


def test_every_reason_and_nothing_lost(read):
    found = read({"messages": TALK}, *BAD.values())
    assert [row.why for row in found.rejected] == list(BAD)
    assert (found.total, len(found.kept), set(found.reasons.values())) == (len(BAD) + 1, 1, {1})
    odd = {"instruction": "1 + 2?", "output": "3", "history": 5}
    assert read({"messages": TALK}, odd, {**odd, "history": [["Hi."]]}).reasons == {"not text": 2}
    assert str(read({"messages": TALK}, "{", "[]")) == "1 kept, 2 rejected (unreadable row 2)"


def test_ids_are_told_apart(read):
    row = {"instruction": "1 + 2?", "output": "3"}
    several = {
        "instruction": "Add.",
        "instances": [{"input": "1", "output": "1"}, {"input": "2", "output": ""}],
    }
    found = read({**row, "id": "a"}, {**row, "id": "a#2"}, {**several, "id": "a"}, row)
    assert [c.id for c in found.kept] == ["a", "a#2", "a#3", "some:4"]
    assert [r.id for r in found.rejected] == ["a#4"]


def test_some_of_the_rows_are_the_same_some_again(read):
    rows = [{"question": str(number), "answer": "x"} for number in range(30)]
    drawn = [c.id for c in read(*rows, limit=10).kept]
    every = [c.id for c in read(*rows).kept]
    assert drawn == [c.id for c in read(*rows, limit=10).kept] == [i for i in every if i in drawn]
    assert len(drawn) == 10 and drawn != [c.id for c in read(*rows, limit=10, seed=1).kept]


def test_a_file_without_one_usable_row_is_refused(read):
    with pytest.raises(InputError, match=r"unknown layout 2.*has words.*instruction"):
        read({"words": 1}, {"words": 2})
    with pytest.raises(InputError, match="no row can be used"):
        read({"messages": TALK}, layout="alpaca")
    with pytest.raises(InputError, match=r"'hh' is not one of messages, sharegpt, alpaca, prompt_completion"):
        read({"messages": TALK}, layout="hh")


def test_one_file_in_every_wrapping(tmp_path):
    text = '{"question": "1 + 2?", "answer": "3"}\n'
    wrapped = {
        "a.jsonl": text.encode(),
        "b.json": f"[{text}]".encode(),
        "c.jsonl.gz": gzip.compress(text.encode()),
        "d.json.zst": zstandard.compress(text[:9].encode()) + zstandard.compress(text[9:].encode()),
        "e.csv": b"question,answer\n1 + 2?,3\n",
    }
    for name, data in wrapped.items():
        (tmp_path / name).write_bytes(data)
        assert read_conversations(Place(tmp_path / name)).kept[0].messages == (ASKED, ANSWERED)
    assert [c.id for c in read_conversations(Place(tmp_path)).kept] == ["a:1", "b:1", "c:1", "d:1", "e:2"]
    for name in ("c.jsonl.gz", "d.json.zst"):
        (tmp_path / name).write_bytes(wrapped[name][:-3])
        with pytest.raises(InputError, match="damaged or cut short"):
            read_conversations(Place(tmp_path / name))


def test_parquet_and_the_hub(tmp_path, monkeypatch):
    pyarrow, datasets = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sums").mkdir()
    rows = [{"messages": [*TALK[:1], {"role": "assistant", "content": "3", "weight": 1}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "sums" / "train.parquet")
    for place in (Place(tmp_path / "sums" / "train.parquet"), Place(dataset=str(tmp_path / "sums"))):
        assert read_conversations(place).kept[0].messages == (ASKED, ANSWERED)


@given(st.lists(ANY_ROW, max_size=4))
@settings(deadline=None, max_examples=150)
def test_no_row_whatever_it_holds_raises(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"messages": TALK}, *rows])))
    found = read_conversations(Place(path))
    assert found.total == 1 + sum(map(instances, rows))


def instances(row) -> int:
    """How many rows a row of self-instruct stands for."""
    several = row.get("instances")
    whole = isinstance(several, list) and several and all(isinstance(one, dict) for one in several)
    return len(several) if whole else 1


def test_the_instruction_files_of_the_data_directory(data_directory):
    told, kept_share = table(data_directory / "instruct", read_conversations)
    print("\n" + told)
    assert kept_share > 0.99
